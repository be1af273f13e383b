//! What the log reports, given to the replicas that it concerns.

use super::life::split;
use super::{DISK_FULL, Shard};
use crate::reads::ReadFor;
use crate::request::RequestError;
use tidelog_consensus::DamagedRange;
use tidelog_io::Io;
use tidelog_wal::{ReadError, WalEvent};

impl Shard {
    pub(super) fn log_tick(&mut self, io: &mut dyn Io) {
        if let Some(life) = &mut self.life {
            life.wal.tick(io, &mut self.wal_events);
        }
        self.handle_wal_events(io);
    }

    pub(super) fn handle_wal_events(&mut self, io: &mut dyn Io) {
        let mut events = std::mem::take(&mut self.wal_events);
        if let Some(life) = &self.life {
            let durable = events.iter().filter_map(|event| match event {
                WalEvent::Durable { partition, .. } => Some(*partition),
                _ => None,
            });
            self.visits.begin(&life.replicas.partitions, durable);
        }
        for event in events.drain(..) {
            let Some((replicas, mut cx)) =
                split(&mut self.life, io, &mut *self.transport, self.clock, &self.addresses)
            else {
                continue;
            };
            match event {
                WalEvent::Durable { partition, ticket } => {
                    self.visits.next(&replicas.partitions, |id| cx.wal.warm(id));
                    replicas.touched.insert(partition);
                    if let Some(p) = replicas.partitions.get_mut(partition) {
                        p.durable(&mut cx, ticket);
                    }
                }
                WalEvent::Read { read, result } => {
                    let what = cx.reads.finish(read);
                    if let (Some(what), Err(error)) = (&what, &result) {
                        let partition = what.partition();
                        replicas.touched.insert(partition);
                        if let Some(p) = replicas.partitions.get_mut(partition) {
                            p.read_failed(&mut cx, error);
                        }
                    }
                    let run = result.map_err(|error| match error {
                        ReadError::Busy => RequestError::busy(cx.retry_after),
                        error => {
                            tracing::warn!(%error, "a read from the log failed");
                            RequestError::Unavailable(format!("the log could not be read: {error}"))
                        }
                    });
                    match what {
                        Some(ReadFor::Client { partition, wanted }) => {
                            match (run, replicas.partitions.get(partition)) {
                                (Ok(run), Some(p)) => p.answer_read(&mut cx, wanted, run),
                                (Err(error), Some(p)) => p.refuse_read(&mut cx, wanted, error),
                                (Err(error), None) => cx.respond(wanted.origin, Err(error)),
                                (Ok(_), None) => {}
                            }
                        }
                        Some(ReadFor::Peer { partition, peer }) => {
                            replicas.touched.insert(partition);
                            if let Some(p) = replicas.partitions.get_mut(partition) {
                                p.fetched(peer, run.ok());
                            }
                        }
                        Some(ReadFor::Repair { partition, peer }) => {
                            if let (Ok(run), Some(p)) = (run, replicas.partitions.get(partition)) {
                                p.give_run(&mut cx, peer, run);
                            }
                        }
                        Some(ReadFor::Apply { partition }) => {
                            replicas.touched.insert(partition);
                            if let Some(p) = replicas.partitions.get_mut(partition) {
                                p.apply_read(&mut cx, run.ok());
                            }
                        }
                        None => {}
                    }
                }
                // The log reports nothing durable from here on. It is closed and opened again when it has been given
                // the rest of this turn's completions.
                WalEvent::Fenced { error } => self.fenced = Some(error),
                WalEvent::Full => {
                    tracing::warn!("no space for another segment: appends are refused until there is");
                    replicas.full = true;
                    self.inbox.life_cycle.events.publish(crate::Event::DiskFull);
                    for (origin, _, _) in replicas.requests.drain(..) {
                        cx.respond(origin, Err(DISK_FULL));
                    }
                }
                WalEvent::Damaged { partition, first, last, generation, error } => {
                    replicas.touched.insert(partition);
                    if let Some(p) = replicas.partitions.get_mut(partition) {
                        p.note_damage(&error.to_string());
                        p.found_damaged(&mut cx, DamagedRange { first, last, generation });
                    }
                }
                WalEvent::SnapshotWanted { partition } => {
                    tracing::debug!(%partition, "the log is over its budget, and this partition holds its oldest segment");
                    // A plain log has none to take: its entries are moved instead.
                    replicas.due.insert(partition);
                }
                WalEvent::SpaceBack => {
                    tracing::info!("space for segments is back");
                    replicas.full = false;
                    self.inbox.life_cycle.events.publish(crate::Event::DiskHasSpace);
                }
            }
        }
        self.wal_events = events;
    }
}
