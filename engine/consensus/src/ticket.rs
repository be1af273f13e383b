//! What of the log is durable here, told by tickets.
//!
//! An index can be cut and used again while an older write of it is still in flight, so a completion names
//! the step that it completes, not the index, and credits only entries that were not cut since. It promises
//! that [`Tickets::index`] never counts an entry whose own write has not been reported. It does not know what
//! the entries are, nor who waits.

use std::collections::VecDeque;
use tidelog_types::{Generation, Index, Ticket};

/// What holds once `ticket` is durable.
#[derive(Clone, Copy, Debug)]
struct Pending {
    ticket: Ticket,
    /// Entries up to here that no later cut removed are durable then.
    last: Index,
    /// The generation promised.
    generation: Generation,
}

/// Tickets given out and reported.
#[derive(Clone, Debug)]
pub(crate) struct Tickets {
    issued: Ticket,
    reported: Ticket,
    index: Index,
    generation: Generation,
    /// Ascending in every field: tickets strictly, since a cut lowers what earlier ones may credit.
    pending: VecDeque<Pending>,
    /// Of these, the ones that promise another generation than the one before.
    promises: VecDeque<Ticket>,
    /// The generation of the newest ticket.
    newest: Generation,
}

impl Tickets {
    /// After a recovery: all that was found is durable.
    pub(crate) fn new(last: Index, generation: Generation) -> Tickets {
        Tickets {
            issued: Ticket(0),
            reported: Ticket(0),
            index: last,
            generation,
            pending: VecDeque::new(),
            promises: VecDeque::new(),
            newest: generation,
        }
    }

    /// The ticket of a step that leaves the log ending at `last` under `generation`.
    pub(crate) fn issue(&mut self, last: Index, generation: Generation) -> Ticket {
        self.issued = Ticket(self.issued.0 + 1);
        self.pending.push_back(Pending { ticket: self.issued, last, generation });
        if core::mem::replace(&mut self.newest, generation) != generation {
            self.promises.push_back(self.issued);
        }
        self.issued
    }

    /// Entries above `keep` were removed: no ticket given out so far may credit them any more.
    pub(crate) fn cut(&mut self, keep: Index) {
        self.index = self.index.min(keep);
        for pending in self.pending.iter_mut().rev() {
            if pending.last <= keep {
                break;
            }
            pending.last = keep;
        }
    }

    /// The log reports `ticket` durable, and with it all before it.
    pub(crate) fn report(&mut self, ticket: Ticket) {
        assert!(ticket <= self.issued, "only what was asked for can become durable: {ticket}");
        while let Some(pending) = self.pending.front().filter(|p| p.ticket <= ticket) {
            self.index = self.index.max(pending.last);
            self.generation = pending.generation;
            self.pending.pop_front();
        }
        self.reported = self.reported.max(ticket);
        while self.promises.front().is_some_and(|promise| *promise <= ticket) {
            self.promises.pop_front();
        }
    }

    /// Generations that were promised and are not durable yet.
    pub(crate) fn promises(&self) -> usize {
        self.promises.len()
    }

    /// The first ticket that is not reported yet; 0 if all are.
    pub(crate) fn next_reported(&self) -> Ticket {
        self.pending.front().map_or(Ticket(0), |pending| pending.ticket)
    }

    /// Last index durable here.
    pub(crate) fn index(&self) -> Index {
        self.index
    }

    /// The generation whose promise is durable here.
    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether `ticket` has been reported.
    pub(crate) fn is_durable(&self, ticket: Ticket) -> bool {
        ticket <= self.reported
    }

    /// The ticket to wait for until the entries up to `index` are durable; 0 if they are.
    pub(crate) fn covering(&self, index: Index) -> Ticket {
        if index <= self.index {
            return Ticket(0);
        }
        let at = self.pending.partition_point(|pending| pending.last < index);
        let pending = self.pending.get(at);
        pending.map(|p| p.ticket).expect("an entry of the log is durable or has a ticket")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const G: Generation = Generation(1);

    #[test]
    fn a_completion_does_not_credit_what_was_cut_since() {
        let mut tickets = Tickets::new(Index(4), G);
        let old = tickets.issue(Index(10), G);
        tickets.cut(Index(8));
        let cut = tickets.issue(Index(8), G);
        let new = tickets.issue(Index(10), Generation(2));
        tickets.report(old);
        assert_eq!(tickets.index(), Index(8), "9 and 10 are other entries now");
        assert_eq!(tickets.covering(Index(8)), Ticket(0));
        assert_eq!(tickets.covering(Index(9)), new);
        tickets.report(cut);
        assert_eq!((tickets.index(), tickets.generation()), (Index(8), G));
        tickets.report(new);
        assert_eq!((tickets.index(), tickets.generation()), (Index(10), Generation(2)));
    }

    #[test]
    fn a_cut_takes_durable_entries_with_it() {
        let mut tickets = Tickets::new(Index(10), G);
        tickets.cut(Index(7));
        assert_eq!(tickets.index(), Index(7));
    }

    #[test]
    fn generations_on_their_way_to_the_disk_are_counted() {
        let mut tickets = Tickets::new(Index(0), G);
        tickets.issue(Index(1), G);
        assert_eq!(tickets.promises(), 0);
        let second = tickets.issue(Index(1), Generation(2));
        tickets.issue(Index(2), Generation(2));
        let third = tickets.issue(Index(2), Generation(4));
        assert_eq!(tickets.promises(), 2);
        tickets.report(second);
        assert_eq!(tickets.promises(), 1);
        tickets.report(third);
        assert_eq!(tickets.promises(), 0);
    }

    #[test]
    fn an_older_report_changes_nothing() {
        let mut tickets = Tickets::new(Index(0), G);
        let first = tickets.issue(Index(1), G);
        let second = tickets.issue(Index(2), G);
        tickets.report(second);
        tickets.report(first);
        assert!(tickets.is_durable(second));
        assert_eq!(tickets.index(), Index(2));
    }

    #[test]
    #[should_panic(expected = "asked for")]
    fn a_ticket_never_given_out_is_a_bug() {
        Tickets::new(Index(0), G).report(Ticket(1));
    }

    proptest! {
        /// Against a model that numbers every entry ever written: durable means that this very entry is.
        #[test]
        fn only_entries_whose_own_write_was_reported_count(steps in proptest::collection::vec((0u8..4, 0u64..6), 1..60)) {
            let mut tickets = Tickets::new(Index(0), G);
            let mut log: Vec<u64> = Vec::new(); // the ticket that wrote each entry
            let (mut issued, mut reported) = (0u64, 0u64);
            for (what, number) in steps {
                match what {
                    0 => {
                        let keep = (log.len() as u64).saturating_sub(number);
                        log.truncate(keep as usize);
                        tickets.cut(Index(keep));
                        issued = tickets.issue(Index(keep), G).0;
                    }
                    1 => {
                        reported = (reported + number).min(issued);
                        tickets.report(Ticket(reported));
                    }
                    _ => {
                        issued += 1;
                        log.extend(std::iter::repeat_n(issued, number as usize));
                        prop_assert_eq!(tickets.issue(Index(log.len() as u64), G).0, issued);
                    }
                }
                let durable = log.iter().take_while(|t| **t <= reported).count() as u64;
                prop_assert_eq!(tickets.index(), Index(durable));
                for (at, ticket) in log.iter().enumerate() {
                    let covering = tickets.covering(Index(at as u64 + 1));
                    if *ticket <= reported {
                        prop_assert_eq!(covering, Ticket(0));
                    } else {
                        prop_assert!(covering.0 >= *ticket && covering.0 <= issued);
                    }
                }
            }
        }
    }
}
