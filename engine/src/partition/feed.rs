//! Feeding the peers of a leader: from the tail cache, or from disk for those that are behind.

use super::{Context, Partition};
use crate::reads::ReadFor;
use crate::transport::PeerMessage;
use tidelog_consensus::{Free, Message};
use tidelog_types::limits::APPEND_BYTES_MAX;
use tidelog_types::{Index, NodeId};
use tidelog_wal::Run;

/// Records on their way from disk to a peer that the tail cache no longer serves.
#[derive(Debug)]
pub(super) enum Fetch {
    Reading,
    Ready(Run),
}

impl Partition {
    /// Sends what each peer lacks and the log has frozen. True if something is left that only waits for the
    /// log's next batch.
    pub(crate) fn pump(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.replica.is_leader() || self.is_alone() {
            return false;
        }
        let id = self.id;
        let frozen = cx.wal.sequenced(id);
        for at in 0..self.replica.peers().len() {
            let Some(&peer) = self.replica.peers().get(at) else { break };
            loop {
                let mut carried: Option<Run> = None;
                let fetches = &mut self.fetches;
                let lost = self.replica.next_for(peer).and_then(|first| self.replica.damaged_from(first));
                let Context { io, wal, transport, reads, clock, .. } = cx;
                let append = self.replica.take_append(*clock, peer, &mut |first, last, budget| {
                    let last = last.min(frozen);
                    // What is damaged here is sent when it is whole again.
                    let last = lost
                        .map_or(last, |lost| if lost <= first { Index::ZERO } else { last.min(lost.prev()) });
                    let bytes_max = APPEND_BYTES_MAX
                        .min(transport.room(peer))
                        .min(usize::try_from(budget).unwrap_or(usize::MAX));
                    if first > last || bytes_max == 0 {
                        return None;
                    }
                    let run =
                        wal.cached(id, first, last, bytes_max).or_else(|| match fetches.remove(&peer) {
                            Some(Fetch::Ready(run)) if run.first == first && run.last <= last => Some(run),
                            Some(Fetch::Reading) => {
                                fetches.insert(peer, Fetch::Reading);
                                None
                            }
                            _ => {
                                if let Some(read) = reads.start(ReadFor::Peer { partition: id, peer }) {
                                    wal.read(*io, read, id, first, last, bytes_max);
                                    fetches.insert(peer, Fetch::Reading);
                                }
                                None
                            }
                        })?;
                    let fits = (run.last, run.bytes as u64);
                    carried = Some(run);
                    Some(fits)
                });
                let Some(append) = append else { break };
                let records = match carried {
                    Some(run) if append.count > 0 => {
                        assert!(
                            run.first == append.prev.index.next()
                                && run.last == append.prev.index.plus(append.count),
                            "an append names the entries that it carries"
                        );
                        run.pieces
                    }
                    _ => {
                        assert!(append.count == 0, "entries without bytes");
                        vec![]
                    }
                };
                let message =
                    PeerMessage { partition: id, message: Message::Free(Free::Append(append)), records };
                if !cx.transport.send(peer, message) {
                    // Dropped: the replica must not wait for its answer, it begins with a probe again.
                    self.replica.peer_down(cx.clock, peer);
                    self.replica.peer_up(cx.clock, peer);
                    break;
                }
            }
            self.drop_unsent(peer);
        }
        self.replica.marks().last > frozen
    }

    /// Drops what was read for a peer and could not leave: kept until it can, it would be memory for each partition and peer. It is read again.
    fn drop_unsent(&mut self, peer: NodeId) {
        if matches!(self.fetches.get(&peer), Some(Fetch::Ready(_))) {
            self.fetches.remove(&peer);
        }
    }

    /// Records read for a peer have arrived.
    pub(crate) fn fetched(&mut self, peer: NodeId, run: Option<Run>) {
        if let Some(fetch) = self.fetches.get_mut(&peer)
            && matches!(fetch, Fetch::Reading)
        {
            match run {
                Some(run) => *fetch = Fetch::Ready(run),
                None => {
                    self.fetches.remove(&peer);
                }
            }
        }
    }
}
