//! `tidelog wal diff`: where two nodes' logs part.
//!
//! Two replicas may differ at their ends: entries that are not committed are on one node and not yet, or not any more, on the
//! other; a node that was cut off keeps such an end until it hears from a leader again, also where the other has long committed
//! something else. What must not be, and is exit code 1: that they differ where *both* know that their own entry is committed, that
//! one (index, generation) has two contents, or that they part and meet again (invariants 3 and 5); and damage in either, because then
//! not all of it could be compared. What it does not know: entries below the first that either node keeps, and what state
//! machines hold.
//!
//! Each log is read as a prefix of what its node writes, so running nodes can be compared, too.

use super::entries::{Entries, Logs, take};
use super::look::{is_damage, look};
use super::{DiffArgs, identity, logs, open_io};
use crate::failure::{Exit, Failure};
use crate::output::{Output, Printer};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tidelog_io::Io;
use tidelog_types::Index;
use tidelog_wal::inspect::{Eyes, Item, walk};

pub(super) fn run(args: &DiffArgs) -> Result<Exit, Failure> {
    let mut io = open_io()?;
    same_cluster(io.as_mut(), &args.a, &args.b)?;
    let a = Side::read(io.as_mut(), &args.a)?;
    let b = Side::read(io.as_mut(), &args.b)?;
    let partitions: BTreeSet<_> = a.logs.keys().chain(b.logs.keys()).copied().collect();
    let partitions: Vec<Partition> = partitions
        .into_iter()
        .filter(|partition| args.partitions.is_empty() || args.partitions.contains(&partition.get()))
        .map(|partition| {
            let (a, b) = (a.logs.get(&partition), b.logs.get(&partition));
            Partition::compare(
                partition.get(),
                a.unwrap_or(&Entries::default()),
                b.unwrap_or(&Entries::default()),
            )
        })
        .collect();
    let damaged = a.damaged.is_some() || b.damaged.is_some();
    let outcome = match () {
        () if partitions.iter().any(|p| p.outcome == "contradiction") => "contradiction",
        () if damaged => "damaged",
        () if partitions.iter().any(|p| p.outcome == "parted") => "parted",
        () => "same",
    };
    let answer = Answer {
        outcome,
        a: args.a.display().to_string(),
        b: args.b.display().to_string(),
        a_damaged: a.damaged,
        b_damaged: b.damaged,
        partitions,
    };
    let mut printer = Printer::new();
    match args.output.output {
        Output::Json => printer.object(&answer)?,
        Output::Text => {
            for line in answer.lines() {
                printer.line(line)?;
            }
        }
    }
    printer.flush()?;
    Ok(if matches!(outcome, "contradiction" | "damaged") { Exit::Failed } else { Exit::Done })
}

/// How often a log is read that changes meanwhile.
const LOOKS: usize = 3;

/// Logs of two clusters have nothing to do with each other, and a log has nothing to part from itself.
fn same_cluster(io: &mut dyn Io, a: &Path, b: &Path) -> Result<(), Failure> {
    let (Some(Ok(a_is)), Some(Ok(b_is))) = (identity(io, a), identity(io, b)) else { return Ok(()) };
    let (a_is, b_is) = (a_is.identity, b_is.identity);
    let (Some(a_of), Some(b_of)) = (&a_is.formed, &b_is.formed) else { return Ok(()) };
    if a_of.cluster != b_of.cluster {
        return Err(Failure::usage(format!(
            "{} is of cluster {:016x} ({:?}), {} of cluster {:016x} ({:?})",
            a.display(),
            a_of.cluster.get(),
            a_is.cluster_name,
            b.display(),
            b_of.cluster.get(),
            b_is.cluster_name
        ))
        .advise("name the data directories of two nodes of one cluster"));
    }
    Ok(())
}

/// One node's log.
struct Side {
    logs: Logs,
    /// What is damaged in it.
    damaged: Option<String>,
}

impl Side {
    fn read(io: &mut dyn Io, dir: &PathBuf) -> Result<Side, Failure> {
        let mut side = Side { logs: Logs::new(), damaged: None };
        for dir in logs(io, std::slice::from_ref(dir))? {
            let (logs, damaged) = one(io, &dir);
            side.logs.extend(logs);
            side.damaged = side.damaged.or(damaged);
        }
        Ok(side)
    }
}

/// The log of one shard, and what is damaged in it.
fn one(io: &mut dyn Io, dir: &Path) -> (Logs, Option<String>) {
    let mut found = Logs::new();
    for _ in 0..LOOKS {
        found.clear();
        let walked = walk(io, dir, Eyes::default(), &mut |item| {
            if let Item::Record { header, .. } = item {
                take(&mut found, header);
            }
        });
        if walked.is_ok_and(|report| !report.is_damaged()) {
            return (found, None);
        }
        let looked = look(io, dir, Eyes::default());
        if looked.is_damaged() || looked.unread().is_some() {
            let finding = looked.report.findings.iter().find(|finding| is_damage(finding));
            let why = looked.error.or(looked.report.stopped.clone()).map(|error| error.to_string());
            return (found, why.or(finding.map(ToString::to_string)));
        }
    }
    (found, Some("it changed each time while it was read: stop its node".into()))
}

#[derive(Serialize)]
struct Answer {
    /// `same`: one is the beginning of the other. `parted`: they differ where they may. `contradiction`: they differ where
    /// they must not. `damaged`: not all could be compared, and nothing that could contradicts.
    outcome: &'static str,
    a: String,
    b: String,
    a_damaged: Option<String>,
    b_damaged: Option<String>,
    partitions: Vec<Partition>,
}

/// How the two logs of a partition relate.
#[derive(Serialize)]
struct Partition {
    partition: u64,
    /// `same`, `parted` or `contradiction`, as above; `one_sided`: only one of the two has it.
    outcome: &'static str,
    /// Entries that both have, and that are the same.
    same_entries: u64,
    first_differing: Option<Differing>,
    /// Why it is a contradiction.
    why: Option<&'static str>,
    a: Marks,
    b: Marks,
}

/// The first entry that is not the same.
#[derive(Serialize)]
struct Differing {
    index: u64,
    a_generation: u64,
    b_generation: u64,
    /// Which of the two know by their high-water mark that their own entry is committed: `both`, `a`, `b` or `neither`. If one does,
    /// the other's entries from here on are cut when it hears from a leader.
    committed_in: &'static str,
}

#[derive(Serialize)]
struct Marks {
    /// 0: no entry.
    first: u64,
    last: u64,
    last_generation: u64,
    high_water: u64,
    /// Entries behind the last index that the other has.
    beyond: u64,
    /// Indexes between its first and its last one that it does not have: damage.
    missing: u64,
}

impl Marks {
    fn of(own: &Entries, other: &Entries) -> Marks {
        let (first, last) = (own.first(), own.last);
        let (mut beyond, mut there) = (0, 0);
        for (index, _) in own.iter() {
            there += 1;
            beyond += u64::from(index > other.last);
        }
        let span = if first == Index::ZERO { 0 } else { last.get() + 1 - first.get() };
        Marks {
            first: first.get(),
            last: last.get(),
            last_generation: own.get(last).map_or(0, |known| known.generation.get()),
            high_water: own.high_water.get(),
            beyond,
            missing: span - there,
        }
    }
}

impl Partition {
    fn compare(partition: u64, a: &Entries, b: &Entries) -> Partition {
        let (mut same_entries, mut first_differing) = (0, None);
        let (mut rewritten, mut committed, mut met_again) = (false, false, false);
        for (index, ours) in a.iter() {
            let Some(theirs) = b.get(index).filter(|_| index >= b.low_water) else { continue };
            if ours == theirs {
                same_entries += 1;
                met_again |= first_differing.is_some();
                continue;
            }
            rewritten |= ours.generation == theirs.generation;
            let committed_in = match (index <= a.high_water, index <= b.high_water) {
                (true, true) => "both",
                (true, false) => "a",
                (false, true) => "b",
                (false, false) => "neither",
            };
            committed |= committed_in == "both";
            first_differing.get_or_insert(Differing {
                index: index.get(),
                a_generation: ours.generation.get(),
                b_generation: theirs.generation.get(),
                committed_in,
            });
        }
        rewritten |= !a.contradictions.is_empty() || !b.contradictions.is_empty();
        let why = if rewritten {
            Some("one (index, generation) has two contents")
        } else if committed {
            Some("entries differ that both know to be committed")
        } else if met_again {
            Some("they part and meet again: an entry fixes all before it")
        } else {
            None
        };
        let empty = |entries: &Entries| entries.first() == Index::ZERO;
        let outcome = match (why, &first_differing) {
            (Some(_), _) => "contradiction",
            (None, Some(_)) => "parted",
            (None, None) if empty(a) != empty(b) => "one_sided",
            (None, None) => "same",
        };
        Partition {
            partition,
            outcome,
            same_entries,
            first_differing,
            why,
            a: Marks::of(a, b),
            b: Marks::of(b, a),
        }
    }
}

impl Answer {
    fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("{}: a = {}, b = {}", self.outcome, self.a, self.b)];
        for (name, damaged) in [("a", &self.a_damaged), ("b", &self.b_damaged)] {
            if let Some(why) = damaged {
                lines.push(format!("  {name} is damaged, what is damaged was not compared: {why}"));
            }
        }
        for p in &self.partitions {
            let mut line =
                format!("  partition {}: {}, {} entries the same", p.partition, p.outcome, p.same_entries);
            if let Some(d) = &p.first_differing {
                line += &format!(
                    "; they part at index {}: generation {} in a, {} in b, known to be committed in {}",
                    d.index, d.a_generation, d.b_generation, d.committed_in
                );
            }
            if let Some(why) = p.why {
                line += &format!("; {why}: this must not be");
            }
            lines.push(line);
            for (name, m) in [("a", &p.a), ("b", &p.b)] {
                let entries = if m.first == 0 {
                    "no entries".to_owned()
                } else {
                    format!("entries {}..={} (last of generation {})", m.first, m.last, m.last_generation)
                };
                let beyond = if m.beyond > 0 {
                    format!(", {} beyond the other's end", m.beyond)
                } else {
                    String::new()
                };
                let missing = if m.missing > 0 { format!(", {} missing", m.missing) } else { String::new() };
                lines.push(format!(
                    "    {name}: {entries}, high-water hint {}{beyond}{missing}",
                    m.high_water
                ));
            }
        }
        lines
    }
}
