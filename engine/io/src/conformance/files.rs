//! Files and names.

use super::{Bench, Check};
use crate::{IoErrorKind, Op, OpenMode, Output};
use bytes::Bytes;
use tidelog_types::limits::PAGE_BYTES;

pub(super) const CHECKS: &[Check] = &[
    ("files: create, write, read back", files_round_trip),
    ("files: create refuses an existing file", create_is_exclusive),
    ("files: several pieces, one behind the other", several_pieces),
    ("files: reading at and past the end", reading_past_the_end),
    ("files: a large file through one read", large_read),
    ("files: misaligned operations are errors", misalignment_is_an_error),
    ("files: what is not there", not_found),
    ("files: read-only files refuse writes", read_only),
    ("files: closed files are gone", closed_files),
    ("files: close waits for what is in flight", close_behind_writes),
    ("files: rename, remove, list, sync", names),
    ("files: a file's place", place),
    ("files: many at once", many_writes_at_once),
    ("files: space", space_is_told),
];

fn files_round_trip(b: &mut Bench) {
    let path = b.path("file");
    let (file, bytes) = b.open(&path, OpenMode::Create);
    demand!(b, bytes == 0, "a new file is empty");
    let data = b.pages(2, 1);
    b.ok(Op::Write { file, offset: 0, data: vec![data.clone()] });
    b.ok(Op::Sync { file });
    let more = b.pages(1, 2);
    b.write(file, 2 * PAGE_BYTES as u64, vec![more.clone()]);
    let (got, n) = b.read(file, 0, 3 * PAGE_BYTES);
    demand!(b, n == 3 * PAGE_BYTES, "all of it is read");
    demand!(
        b,
        got[..2 * PAGE_BYTES] == data[..] && got[2 * PAGE_BYTES..] == more[..],
        "what was written is read"
    );
    // overwriting in the middle
    let again = b.pages(1, 3);
    b.write(file, PAGE_BYTES as u64, vec![again.clone()]);
    b.close(file);
    let (file, bytes) = b.open(&path, OpenMode::ReadWrite);
    demand!(b, bytes == 3 * PAGE_BYTES as u64, "opening tells the size");
    let (got, _) = b.read(file, PAGE_BYTES as u64, PAGE_BYTES);
    demand!(b, got[..] == again[..], "overwritten bytes are read");
    b.close(file);
}

fn create_is_exclusive(b: &mut Bench) {
    let file = b.create("file");
    let data = b.pages(1, 1);
    b.write(file, 0, vec![data.clone()]);
    b.error_of_kind(Op::Open { path: b.path("file"), mode: OpenMode::Create }, IoErrorKind::Exists);
    let (got, _) = b.read(file, 0, PAGE_BYTES);
    demand!(b, got[..] == data[..], "a refused creation leaves the file alone");
    b.close(file);
}

fn several_pieces(b: &mut Bench) {
    let file = b.create("file");
    let data = b.pages(8, 7);
    let page = |from: usize, to: usize| data.slice(from * PAGE_BYTES..to * PAGE_BYTES);
    // slices of one buffer, out of order, through both kinds of write
    b.write(file, 0, vec![page(4, 8), page(0, 1), page(1, 4)]);
    b.ok(Op::Write { file, offset: 8 * PAGE_BYTES as u64, data: vec![page(7, 8), page(7, 8)] });
    let (got, n) = b.read(file, 0, 10 * PAGE_BYTES);
    demand!(b, n == 10 * PAGE_BYTES, "all pieces are there");
    demand!(b, got[..4 * PAGE_BYTES] == data[4 * PAGE_BYTES..], "the first piece comes first");
    demand!(b, got[4 * PAGE_BYTES..8 * PAGE_BYTES] == data[..4 * PAGE_BYTES], "then the others");
    demand!(b, got[8 * PAGE_BYTES..9 * PAGE_BYTES] == data[7 * PAGE_BYTES..], "one piece may come twice");
    b.close(file);
}

fn reading_past_the_end(b: &mut Bench) {
    let file = b.create("file");
    let (_, n) = b.read(file, 0, PAGE_BYTES);
    demand!(b, n == 0, "an empty file reads as nothing");
    let data = b.pages(3, 5);
    b.write(file, 0, vec![data.clone()]);
    let (got, n) = b.read(file, PAGE_BYTES as u64, 8 * PAGE_BYTES);
    demand!(b, n == 2 * PAGE_BYTES, "a read over the end gives what there is");
    demand!(b, got.len() == 8 * PAGE_BYTES, "the whole buffer comes back");
    demand!(b, got[..n] == data[PAGE_BYTES..], "and it is the right part");
    let (_, n) = b.read(file, 3 * PAGE_BYTES as u64, PAGE_BYTES);
    demand!(b, n == 0, "at the end there is nothing");
    let (_, n) = b.read(file, 300 * PAGE_BYTES as u64, PAGE_BYTES);
    demand!(b, n == 0, "past the end there is nothing");
    b.close(file);
}

fn large_read(b: &mut Bench) {
    let file = b.create("file");
    let data = b.pages(1024, 9);
    b.write(file, 0, vec![data.clone()]);
    let (got, n) = b.read(file, 0, 1024 * PAGE_BYTES);
    demand!(b, n == 1024 * PAGE_BYTES && got[..] == data[..], "4 MiB in one piece");
    b.close(file);
}

fn misalignment_is_an_error(b: &mut Bench) {
    let file = b.create("file");
    let data = b.pages(2, 1);
    b.write(file, 0, vec![data.clone()]);
    let kind = IoErrorKind::Other;
    for durable in [false, true] {
        let mut write = |offset: u64, data: Vec<Bytes>| {
            let op = if durable {
                Op::WriteDurable { file, offset, data }
            } else {
                Op::Write { file, offset, data }
            };
            b.error_of_kind(op, kind);
        };
        write(1, vec![data.clone()]);
        write(512, vec![data.clone()]);
        write(0, vec![data.slice(..PAGE_BYTES - 1)]);
        write(0, vec![data.slice(64..PAGE_BYTES + 64)]);
        write(0, vec![data.clone(), data.slice(..64)]);
        write(0, vec![]);
        write(0, vec![Bytes::new()]);
    }
    let buffer = b.setup.io.buffers().take(PAGE_BYTES);
    b.error_of_kind(Op::Read { file, offset: 100, buffer }, kind);
    let mut buffer = b.setup.io.buffers().take(PAGE_BYTES);
    buffer.truncate(100);
    b.error_of_kind(Op::Read { file, offset: 0, buffer }, kind);
    let (got, n) = b.read(file, 0, 2 * PAGE_BYTES);
    demand!(b, n == 2 * PAGE_BYTES && got[..] == data[..], "refused operations change nothing");
    b.close(file);
}

fn not_found(b: &mut Bench) {
    let path = b.path("nothing");
    let kind = IoErrorKind::NotFound;
    b.error_of_kind(Op::Open { path: path.clone(), mode: OpenMode::Read }, kind);
    b.error_of_kind(Op::Open { path: path.clone(), mode: OpenMode::ReadWrite }, kind);
    b.error_of_kind(Op::Remove { path: path.clone() }, kind);
    b.error_of_kind(Op::Rename { from: path.clone(), to: b.path("else") }, kind);
    b.error_of_kind(Op::List { path: path.clone() }, kind);
    b.error_of_kind(Op::SyncDir { path: path.clone() }, kind);
    b.error_of_kind(Op::Open { path: path.join("file"), mode: OpenMode::Create }, kind);
}

fn read_only(b: &mut Bench) {
    let file = b.create("file");
    let data = b.pages(1, 1);
    b.write(file, 0, vec![data.clone()]);
    b.close(file);
    let path = b.path("file");
    let (file, _) = b.open(&path, OpenMode::Read);
    let other = b.pages(1, 2);
    b.error(Op::Write { file, offset: 0, data: vec![other.clone()] });
    b.error(Op::WriteDurable { file, offset: 0, data: vec![other] });
    let (got, _) = b.read(file, 0, PAGE_BYTES);
    demand!(b, got[..] == data[..], "a refused write changes nothing");
    b.close(file);
}

fn closed_files(b: &mut Bench) {
    let file = b.create("file");
    b.close(file);
    let kind = IoErrorKind::Other;
    b.error_of_kind(Op::CloseFile { file }, kind);
    b.error_of_kind(Op::Sync { file }, kind);
    let data = b.pages(1, 1);
    b.error_of_kind(Op::WriteDurable { file, offset: 0, data: vec![data] }, kind);
    let buffer = b.setup.io.buffers().take(PAGE_BYTES);
    b.error_of_kind(Op::Read { file, offset: 0, buffer }, kind);
    let path = b.path("file");
    let (again, _) = b.open(&path, OpenMode::Read);
    demand!(b, again != file, "ids are never used twice");
    b.close(again);
}

fn close_behind_writes(b: &mut Bench) {
    let file = b.create("file");
    let data = b.pages(16, 4);
    let write = b.submit(Op::WriteDurable { file, offset: 0, data: vec![data.clone()] });
    let close = b.submit(Op::CloseFile { file });
    let other = b.create("other");
    b.wait_ok(write);
    b.wait_ok(close);
    b.close(other);
    let path = b.path("file");
    let (file, bytes) = b.open(&path, OpenMode::Read);
    demand!(b, bytes == data.len() as u64, "the write in flight was not lost");
    let (got, _) = b.read(file, 0, data.len());
    demand!(b, got[..] == data[..], "nor diverted");
    b.close(file);
}

fn names(b: &mut Bench) {
    let dir = b.path("sub");
    b.ok(Op::CreateDir { path: dir.clone() });
    b.ok(Op::CreateDir { path: dir.clone() });
    b.ok(Op::SyncDir { path: b.setup.dir.clone() });
    let list = |b: &mut Bench| match b.ok(Op::List { path: dir.clone() }) {
        Output::Names(names) => names,
        other => b.fail(format!("list gave {other:?}")),
    };
    demand!(b, list(b).is_empty(), "a new directory is empty");
    for (seed, name) in ["c", "a", "b"].iter().enumerate() {
        let path = dir.join(name);
        let (file, _) = b.open(&path, OpenMode::Create);
        let data = b.pages(1, seed as u64);
        b.write(file, 0, vec![data]);
        b.close(file);
    }
    demand!(b, list(b) == ["a", "b", "c"], "names are sorted");
    b.ok(Op::Rename { from: dir.join("c"), to: dir.join("d") });
    demand!(b, list(b) == ["a", "b", "d"], "renamed");
    b.ok(Op::Rename { from: dir.join("d"), to: dir.join("a") });
    demand!(b, list(b) == ["a", "b"], "renaming replaces");
    let (file, _) = b.open(&dir.join("a"), OpenMode::Read);
    let (got, _) = b.read(file, 0, PAGE_BYTES);
    demand!(b, got[..] == b.pages(1, 0)[..], "with the content of what was renamed");
    // an open file outlives its name
    b.ok(Op::Remove { path: dir.join("a") });
    let (again, n) = b.read(file, 0, PAGE_BYTES);
    demand!(b, n == PAGE_BYTES && again[..] == got[..], "removed but open");
    b.close(file);
    demand!(b, list(b) == ["b"], "removed");
    b.ok(Op::SyncDir { path: dir.clone() });
    b.error_of_kind(Op::Open { path: dir.join("a"), mode: OpenMode::Read }, IoErrorKind::NotFound);
}

fn place(b: &mut Bench) {
    let dir = b.path("place");
    b.ok(Op::CreateDir { path: dir.clone() });
    let located = |b: &mut Bench, file| match b.ok(Op::Locate { file }) {
        Output::Located(place) => place,
        other => b.fail(format!("locate gave {other:?}")),
    };
    let (file, _) = b.open(&dir.join("a"), OpenMode::Create);
    let data = b.pages(1, 0);
    b.write(file, 0, vec![data.clone()]);
    let first = located(b, file);
    b.close(file);
    b.ok(Op::Rename { from: dir.join("a"), to: dir.join("b") });
    let (file, _) = b.open(&dir.join("b"), OpenMode::Read);
    demand!(b, located(b, file) == first, "another name is the same place");
    let (copy, _) = b.open(&dir.join("a"), OpenMode::Create);
    b.write(copy, 0, vec![data]);
    demand!(b, located(b, copy) != first, "a copy has another");
    b.close(file);
    b.close(copy);
    b.error_of_kind(Op::Locate { file }, IoErrorKind::Other);
}

fn many_writes_at_once(b: &mut Bench) {
    const COUNT: usize = 600;
    let file = b.create("file");
    let zeros = b.pages(COUNT, 0);
    b.write(file, 0, vec![zeros]);
    let mut tokens = Vec::new();
    for page in 0..COUNT {
        let data = vec![b.pages(1, page as u64 + 1)];
        let offset = (page * PAGE_BYTES) as u64;
        let op = if page % 3 == 0 {
            Op::WriteDurable { file, offset, data }
        } else {
            Op::Write { file, offset, data }
        };
        tokens.push(b.submit(op));
    }
    for token in tokens {
        b.wait_ok(token);
    }
    b.ok(Op::Sync { file });
    let (got, _) = b.read(file, 0, COUNT * PAGE_BYTES);
    for page in 0..COUNT {
        let want = b.pages(1, page as u64 + 1);
        demand!(b, got[page * PAGE_BYTES..][..PAGE_BYTES] == want[..], "every page where it belongs");
    }
    b.close(file);
}

fn space_is_told(b: &mut Bench) {
    let file = b.create("space");
    let told = |b: &mut Bench| match b.ok(Op::Space { path: b.path("space") }) {
        Output::Space(space) => space,
        other => b.fail(format!("{other:?}")),
    };
    for _ in 0..3 {
        let space = told(b);
        demand!(b, space.total_bytes > 0 && space.free_bytes <= space.total_bytes, "a part of it is free");
    }
    b.close(file);
    b.error_of_kind(Op::Space { path: b.path("nothing here") }, IoErrorKind::NotFound);
}
