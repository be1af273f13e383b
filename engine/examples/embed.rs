//! A counter of words that survives restarts: a state machine on one partition, without a network.
//!
//! `cargo run --release -p tidelog --example embed -- /tmp/words one two two`

use std::collections::BTreeMap;
use std::io::{Read, Result, Write};
use std::sync::{Arc, Mutex};
use tidelog::config::Config;
use tidelog::state_machine::{Applied, StateMachine};
use tidelog::{Engine, Index};

#[derive(Default)]
struct Words(Arc<Mutex<BTreeMap<String, u64>>>, Index);

impl StateMachine for Words {
    fn apply(&mut self, entry: Applied<'_>) {
        let word = String::from_utf8_lossy(entry.payload).into_owned();
        *self.0.lock().unwrap().entry(word).or_default() += 1;
        self.1 = entry.index;
    }
    fn snapshot(&mut self, out: &mut dyn Write) -> Result<Index> {
        self.0.lock().unwrap().iter().try_for_each(|(word, n)| writeln!(out, "{n} {word}")).map(|()| self.1)
    }
    fn restore(&mut self, _: &mut dyn Read) -> Result<Index> {
        Ok(self.1) // this example keeps its whole log and never needs one
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let config = Config::single(args.next().ok_or("usage: embed DIR [WORD...]")?);
    let counts = Arc::<Mutex<BTreeMap<String, u64>>>::default();
    let words = Arc::clone(&counts);
    let engine =
        Engine::open_with(config, Box::new(move |_| Some(Box::new(Words(Arc::clone(&words), Index::ZERO)))))?;
    let log = engine.partition(b"words");
    let pending: Vec<_> = args.map(|word| log.append(word)).collect();
    for append in pending {
        println!("durable at {:?}", append.wait()?);
    }
    engine.close()?;
    println!("{:?}", counts.lock().unwrap());
    Ok(())
}
