//! A back-end that is dropped in the middle of things leaves nothing behind. In a process of its own: descriptors are
//! counted.

mod scratch;

use scratch::Scratch;
use std::path::Path;
use tidelog_io::{
    BackEnd, Completion, Io, IoOptions, Op, OpenMode, Output, Token, TokenClass, Wait, open_back_end,
};

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("descriptors").count()
}

fn run(io: &mut dyn Io, op: Op) -> Output {
    let mut got: Vec<Completion> = Vec::new();
    io.submit(Token { class: TokenClass::Other, value: 1 }, op);
    while got.is_empty() {
        io.poll(Wait::Forever, &mut got);
    }
    got.remove(0).result.expect("it works")
}

/// Opens, connects, starts much, and goes.
fn leave(kind: BackEnd, dir: &Path, polled: bool) {
    let mut io = open_back_end(kind, &IoOptions::default()).expect("it opens");
    let io = io.as_mut();
    let pool = io.buffers();
    let path = dir.join("file");
    let Output::Opened { file, .. } = run(io, Op::Open { path: path.clone(), mode: OpenMode::Create }) else {
        panic!("opened")
    };
    let address = "127.0.0.1:0".parse().expect("an address");
    let Output::Listening { listener, address } = run(io, Op::Listen { address }) else {
        panic!("listening")
    };
    let token = |value| Token { class: TokenClass::Other, value };
    io.submit(token(2), Op::Connect { address });
    let Output::Connected { conn, .. } = run(io, Op::Accept { listener }) else { panic!("accepted") };
    // what never ends by itself
    io.submit(token(3), Op::Accept { listener });
    io.submit(token(4), Op::Recv { conn, buffer: pool.take(4096), filled: 0 });
    let flood = pool.take_zeroed(8 << 20).freeze();
    io.submit(token(5), Op::Send { conn, data: vec![flood.clone(), flood.clone()] });
    // what takes a while, more of it than fits in flight
    for at in 0..400u64 {
        let data = vec![pool.take_zeroed(4096).freeze()];
        let offset = at * 4096;
        let write = match at % 20 {
            0 => Op::WriteDurable { file, offset, data },
            _ => Op::Write { file, offset, data },
        };
        io.submit(token(6), write);
        io.submit(token(7), Op::Read { file, offset: at * 4096, buffer: pool.take(4096) });
    }
    io.submit(token(8), Op::SyncDir { path: dir.to_path_buf() });
    io.submit(token(9), Op::Open { path: path.clone(), mode: OpenMode::Read });
    if polled {
        io.poll(Wait::No, &mut Vec::new());
    }
    std::fs::remove_file(path).expect("the file");
}

#[test]
fn nothing_is_left_behind() {
    let scratch = Scratch::new();
    for kind in [BackEnd::Uring, BackEnd::Blocking] {
        leave(kind, scratch.path(), true);
        let before = descriptors();
        for round in 0..6 {
            leave(kind, scratch.path(), round % 2 == 0);
            assert_eq!(descriptors(), before, "{kind:?}, round {round}");
        }
    }
}
