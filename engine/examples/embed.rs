//! A counter of words that survives restarts: a state machine on one partition, without a network.
//!
//! `cargo run --release -p tidelog --example embed -- /tmp/words one two two`

use std::collections::BTreeMap;
use std::io::{Cursor, Error, Read, Result};
use std::sync::{Arc, Mutex};
use tidelog::config::Config;
use tidelog::state_machine::{Applied, SnapshotView, StateMachine};
use tidelog::{Engine, Index};

struct Words(Arc<Mutex<BTreeMap<String, u64>>>);

impl StateMachine for Words {
    fn apply(&mut self, entry: Applied<'_>) {
        let word = String::from_utf8_lossy(entry.payload).into_owned();
        *self.0.lock().unwrap().entry(word).or_default() += 1;
    }
    fn snapshot(&mut self) -> Result<SnapshotView> {
        // A few words are written out at once; examples/kv.rs shows how a large state does it.
        let lines: String = self.0.lock().unwrap().iter().map(|(word, n)| format!("{n} {word}\n")).collect();
        Ok(Box::new(Cursor::new(lines)))
    }
    fn restore(&mut self, _: Index, snapshot: &mut dyn Read) -> Result<()> {
        let mut lines = String::new();
        snapshot.read_to_string(&mut lines)?;
        let words = lines.lines().filter_map(|line| line.split_once(' '));
        let counts = words.map(|(n, word)| Ok((word.to_owned(), n.parse().map_err(Error::other)?)));
        *self.0.lock().unwrap() = counts.collect::<Result<_>>()?;
        Ok(())
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let config = Config::single(args.next().ok_or("usage: embed DIR [WORD...]")?);
    let counts = Arc::<Mutex<BTreeMap<String, u64>>>::default();
    let words = Arc::clone(&counts);
    let engine = Engine::open_with(config, Box::new(move |_| Some(Box::new(Words(Arc::clone(&words))))))?;
    let log = engine.partition(b"words");
    let pending: Vec<_> = args.map(|word| log.append(word)).collect();
    for append in pending {
        println!("durable at {:?}", append.wait()?);
    }
    engine.close()?;
    println!("{:?}", counts.lock().unwrap());
    Ok(())
}
