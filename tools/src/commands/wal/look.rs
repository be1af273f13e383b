//! Looking at a log that may be in use.
//!
//! A node that runs writes, and takes back segments that it needs no more, while a tool reads. What is bad at one look may
//! have been half written, or read while its file was given to another use. So nothing is called damage that two looks in
//! a row have not found at the same place. What this does not know: whether a node runs at all; a log that is damaged
//! is read twice, one that is not, once.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tidelog_io::{Io, IoErrorKind};
use tidelog_wal::inspect::{Eyes, Item, Report, walk};
use tidelog_wal::{Finding, OpenError, Verdict};

/// Most looks; after them the last one is believed.
const LOOKS_MAX: usize = 6;

/// What two looks agree on.
pub(super) struct Looked {
    pub(super) report: Report,
    /// Why the log is none, if it is none.
    pub(super) error: Option<OpenError>,
    /// Good batches whose footer is not: their echo in the next batch still names what they hold.
    pub(super) footers_bad: u64,
}

impl Looked {
    /// Whether anything that may have been acknowledged is not whole.
    pub(super) fn is_damaged(&self) -> bool {
        self.unread().is_none() && (self.error.is_some() || self.report.is_damaged())
    }

    /// Why nothing is known about the log, if the files could not be read for a reason that says nothing about them.
    pub(super) fn unread(&self) -> Option<&OpenError> {
        let says_nothing =
            |error: &&OpenError| matches!(error, OpenError::Io(io) if io.kind != IoErrorKind::Device);
        self.error.as_ref().filter(says_nothing)
    }

    /// Why the log would not be opened, other than for a batch that is among the findings.
    pub(super) fn refusals(&self) -> impl Iterator<Item = &OpenError> {
        self.error.iter().chain(&self.report.stopped).filter(|error| !matches!(error, OpenError::Damaged(_)))
    }

    /// The places of what is damaged.
    fn places(&self) -> BTreeSet<(PathBuf, u64)> {
        let place = |finding: &Finding| (finding.file.clone(), finding.offset);
        let mut places: BTreeSet<_> =
            self.report.findings.iter().filter(|f| is_damage(f)).map(place).collect();
        for error in self.error.iter().chain(&self.report.stopped) {
            places.insert((error.to_string().into(), 0));
        }
        places
    }
}

/// Whether a finding is damage, as against what a crash leaves.
pub(super) fn is_damage(finding: &Finding) -> bool {
    matches!(finding.verdict, Verdict::Damaged | Verdict::Unknown)
}

/// Walks over the log of a shard, again and again until two looks agree.
pub(super) fn look(io: &mut dyn Io, dir: &Path, eyes: Eyes) -> Looked {
    look_with(&mut || once(io, dir, eyes))
}

fn look_with(once: &mut dyn FnMut() -> Looked) -> Looked {
    let mut last = once();
    for _ in 1..LOOKS_MAX {
        if !last.is_damaged() && last.unread().is_none() {
            break;
        }
        let before = last.places();
        last = once();
        let same = last.places();
        if before.intersection(&same).next().is_some() {
            break;
        }
    }
    last
}

fn once(io: &mut dyn Io, dir: &Path, eyes: Eyes) -> Looked {
    let mut footers_bad = 0;
    let result = walk(io, dir, eyes, &mut |item| {
        footers_bad += u64::from(matches!(item, Item::Batch { footer: None, .. }));
    });
    match result {
        Ok(report) => Looked { report, error: None, footers_bad },
        Err(error) => Looked { report: Report::default(), error: Some(error), footers_bad },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidelog_types::Lsn;
    use tidelog_wal::BadWhy;

    fn finding(offset: u64) -> Finding {
        Finding {
            verdict: Verdict::Damaged,
            file: "a.wal".into(),
            offset,
            lsn: Lsn(offset),
            epoch: 1,
            bytes: 4096,
            why: BadWhy::Records,
            spans: Vec::new(),
            quarantined: None,
        }
    }

    fn looks(damage: &[&[u64]]) -> (usize, Looked) {
        let mut left = damage.iter();
        let looked = look_with(&mut || {
            let findings =
                left.next().expect("no more looks than that").iter().map(|at| finding(*at)).collect();
            Looked { report: Report { findings, ..Report::default() }, error: None, footers_bad: 0 }
        });
        (damage.len() - left.len(), looked)
    }

    #[test]
    fn damage_is_what_two_looks_find_at_one_place() {
        for (damage, taken, damaged) in [
            (&[&[][..]][..], 1, false),
            (&[&[8192], &[8192]], 2, true),
            (&[&[8192], &[]], 2, false),
            (&[&[8192], &[12288], &[]], 3, false),
            (&[&[8192], &[12288], &[12288]], 3, true),
            (&[&[1], &[2], &[3], &[4], &[5], &[6]], 6, true),
        ] {
            let (looked_times, looked) = looks(damage);
            assert_eq!((looked_times, looked.is_damaged()), (taken, damaged), "{damage:?}");
        }
    }
}
