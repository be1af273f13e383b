//! A backup of a partition's log that is written to meanwhile: read call by call under a pin, so that no snapshot lets go of what is
//! still to be copied.
//!
//! `cargo run --release -p tidelog --example backup -- /tmp/log /tmp/copy`

use std::fs::File;
use std::io::{BufWriter, Write};
use tidelog::config::Config;
use tidelog::request::{Level, RequestError};
use tidelog::{Engine, Index, Partition, PinFor};

/// Copies everything that is committed when it begins to read: index, length and payload of each record. How many.
fn back_up(log: &Partition, out: &mut impl Write) -> Result<u64, Box<dyn std::error::Error>> {
    // From the first entry that is kept; the log may be shortened in this very moment.
    let pin = loop {
        match log.pin(log.marks().low_water, PinFor::Backup) {
            Err(RequestError::Truncated { .. }) => {}
            pin => break pin?,
        }
    };
    let mut next = pin.first().unwrap_or(Index(1));
    let (mut copied, mut last) = (0, None);
    while last.is_none_or(|last| next <= last) {
        let read = log.read(next.., Level::Local).wait()?;
        last = last.or(Some(read.high_water));
        for record in &read.records {
            out.write_all(&record.index.0.to_le_bytes())?;
            out.write_all(&(record.payload.len() as u64).to_le_bytes())?;
            out.write_all(&record.payload)?;
            copied += 1;
        }
        next = read.next;
        // What is copied may go. A backup that stands still for too long, or holds too much, is told so.
        if !pin.advance(next) {
            return Err("the backup took too long: see retention.pin_age and retention.pin_bytes".into());
        }
    }
    out.flush()?;
    Ok(copied)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (dir, copy) = args.next().zip(args.next()).ok_or("usage: backup DIR COPY")?;
    let engine = Engine::open(Config::single(dir))?;
    let log = engine.partition(b"log");
    let pending: Vec<_> = (0..1000).map(|n| log.append(format!("record {n}"))).collect();
    for append in pending {
        append.wait()?;
    }
    let copied = back_up(&log, &mut BufWriter::new(File::create(&copy)?))?;
    println!("{copied} records");
    engine.close()?;
    Ok(())
}
