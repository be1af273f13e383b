//! Opening the log, opening it again after a failure, and closing it.

use super::arrivals::Arrivals;
use super::life::{Life, Replicas, split};
use super::replicas::Partitions;
use super::space::is_of_space;
use super::{FAILURE_WINDOW, FAILURES_MAX, Shard};
use crate::error::Error;
use crate::identity::Identity;
use crate::partition::{Machine, Partition, Shared};
use crate::reads::Reads;
use crate::recovery::Recovering;
use crate::request::RequestError;
use crate::returning::Returning;
use crate::snapshot::format::Header;
use crate::snapshot::{Snapshots, files};
use std::collections::BTreeMap;
use std::path::Path;
use tidelog_consensus::Replica;
use tidelog_io::{Completion, Foreground, Io, IoErrorKind, TokenClass, Wait};
use tidelog_types::PartitionId;
use tidelog_wal::{Wal, WalError, WalEvent};

/// Verifies the snapshot that the log's mark names and gives it to the state machine, unless that has it all.
fn open_snapshot(
    fg: &mut Foreground<'_>,
    data_dir: &Path,
    header: Header,
    replica: &mut Replica,
    machine: Option<&mut Machine>,
) -> Result<(), Error> {
    let Header { partition, covered, .. } = header;
    let dir = files::dir(data_dir, partition);
    let damaged = |fault: files::SnapshotFault| {
        let file = dir.join(files::name(covered));
        Error::Recovery(format!(
            "partition {partition} is damaged: its snapshot {}, which stands for the log up to entry {}: {fault}. The data is left as it is; restore this file, or this node's directory from the other replicas",
            file.display(),
            covered.index
        ))
    };
    if let Some(base) = files::open(fg, &dir, header).map_err(damaged)?
        && !replica.recall(&base)
    {
        return Err(Error::Recovery(format!(
            "the snapshot {} contradicts the log of partition {partition}. The data is left as it is",
            dir.join(files::name(covered)).display()
        )));
    }
    let Some(machine) = machine else { return Ok(()) };
    if machine.applied() < covered.index {
        files::restore(fg, &dir, covered, machine.inner()).map_err(damaged)?;
        machine.restored(covered.index);
    }
    let low_water = replica.marks().low_water;
    if machine.applied().next() < low_water {
        return Err(Error::Recovery(format!(
            "the state machine of partition {partition} has applied entries up to {}, its log begins at {low_water}, and no snapshot covers what is between: it cannot be brought on",
            machine.applied()
        )));
    }
    Ok(())
}

impl Shard {
    /// Opens the log and starts a replica, as a follower, for each partition placed here; if there is no space for that, it is tried
    /// again later. `machines`: state machines that have lived before.
    pub(super) fn open_log(
        &mut self,
        io: &mut dyn Io,
        mut machines: BTreeMap<PartitionId, Option<Machine>>,
    ) -> Result<(), Error> {
        let formed = self.identity.formed.clone().expect("the log is opened once the cluster is formed");
        let placement = crate::recovery::placement(&self.options, &formed)
            .map_err(|e| Error::Config(format!("[cluster] replication: {e}")))?;
        let held = crate::recovery::held(&placement, self.options.node);
        let mut recovering = Recovering::new(held.keys().copied());
        let options = crate::recovery::wal_options(&self.options, &self.identity, &formed);
        let mut others = Vec::new();
        let (mut wal, report) = match Wal::open_beside(io, options, &mut recovering, &mut others) {
            Ok(opened) => opened,
            Err(error) if is_of_space(&error) => {
                self.hand_out(io, others);
                self.wait_for_space(error.to_string(), machines);
                return Ok(());
            }
            Err(error) => return Err(Error::Recovery(error.to_string())),
        };
        if !self.identity.has_log {
            let mut fg = Foreground::new(io);
            let mut known = Identity { has_log: true, ..self.identity.clone() };
            let stored = known.store(&mut fg, &self.options.data_dir);
            others.extend(fg.finish());
            match stored {
                Ok(()) => self.identity = known,
                Err(Error::Io(error)) if error.kind == IoErrorKind::NoSpace => {
                    others.extend(wal.close(io).others);
                    self.hand_out(io, others);
                    self.wait_for_space(error.to_string(), machines);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        tracing::info!(found = crate::recovery::describe(&report), "log opened");
        self.report = Some(report);
        let clock = io.clock();
        if let Some(space) = self.room.told() {
            wal.note_space(space);
        }
        if let Some(until) = self.room.doubted(clock.now) {
            wal.doubt_space(until);
        }
        let mut partitions = Partitions::default();
        for (id, voters) in held {
            let config = crate::recovery::replica_config(&self.options, id, voters, io.random());
            let restored = recovering.take(id).map_err(|e| {
                Error::Recovery(format!("the checkpoint of partition {id}: {e}. The data is left as it is"))
            })?;
            restored.check().map_err(|e| {
                Error::Recovery(format!(
                    "the log of partition {id} contradicts itself: {e}. The data is left as it is"
                ))
            })?;
            let header =
                Header { partition: id, covered: restored.snapshot(), cluster: formed.cluster.tag() };
            let mut replica = Replica::new(config, restored, clock);
            let mut machine = machines.remove(&id).unwrap_or_else(|| (self.machines)(id).map(Machine::new));
            let mut fg = Foreground::new(io);
            open_snapshot(&mut fg, &self.options.data_dir, header, &mut replica, machine.as_mut())?;
            others.extend(fg.finish());
            let marks = self.marks.get(&id).cloned().unwrap_or_default();
            let mut partition = Partition::new(id, replica, machine, marks, self.options.keep, clock);
            let place =
                self.report.as_ref().map_or(String::new(), |report| crate::recovery::place(report, id));
            partition.damage_at_opening(clock, &place);
            if self.identity.barred.is_some() {
                partition.bar();
            }
            partitions.insert(id, partition);
        }
        for node in &self.connected {
            partitions.iter_mut().for_each(|p| p.peer_up(clock, *node));
        }
        let mut shared = Shared::default();
        shared.damaged.extend(partitions.iter().filter(|(_, p)| p.is_damaged()).map(|(id, _)| id));
        let arrivals = Arrivals::new(self.options.peer_bytes_max);
        let mut replicas = Replicas { partitions, arrivals, ..Replicas::default() };
        replicas.touch_all();
        let cluster = formed.cluster.tag();
        let snapshots = Snapshots::new(self.options.data_dir.clone());
        self.life = Some(Life {
            cluster,
            placement,
            wal,
            reads: Reads::default(),
            returning: Returning::default(),
            shared,
            replicas,
            snapshots,
            disk: self.disk.disk(),
            blocked_since: None,
        });
        self.hand_out(io, others);
        Ok(())
    }

    /// Completions that arrived while something ran to completion.
    pub(super) fn hand_out(&mut self, io: &mut dyn Io, others: Vec<Completion>) {
        self.clock = io.clock();
        self.wanted = self.wanted.max(self.clock.now);
        for completion in others {
            if completion.token.class == TokenClass::Net {
                self.transport.complete(io, completion, &mut self.events);
            }
        }
    }

    /// The log failed: nothing more is acknowledged. Everyone who waits learns so, what is in flight drains and is
    /// discarded, and the log is opened again.
    pub(super) fn reopen(&mut self, io: &mut dyn Io, error: &WalError) -> Result<(), Error> {
        let why = error.to_string();
        self.inbox.life_cycle.events.publish(crate::Event::Fenced { why: why.clone() });
        if error.error.kind == IoErrorKind::NoSpace {
            tracing::warn!(%why, "no space: nothing is acknowledged until the log is open again");
            self.room.doubt(self.clock.now);
        } else {
            tracing::error!(%why, "the shard is fenced: nothing is acknowledged until its log is open again");
            self.failures.push_back(self.clock.now);
        }
        while self.failures.front().is_some_and(|at| self.clock.now.since(*at) > FAILURE_WINDOW) {
            self.failures.pop_front();
        }
        self.abandon(io, "the shard is being recovered");
        self.transport.flush(io);
        if let Some(life) = &mut self.life {
            let closed = life.wal.close(io);
            let mut others = closed.others;
            others.retain(|completion| {
                completion.token.class != TokenClass::Engine || {
                    life.snapshots.drained(completion);
                    false
                }
            });
            others.extend(life.snapshots.drain(io));
            self.hand_out(io, others);
        }
        let machines = self.end_life();
        if self.failures.len() >= FAILURES_MAX {
            return Err(Error::Fenced(why));
        }
        self.open_log(io, machines)?;
        if self.life.is_some() {
            self.inbox.life_cycle.events.publish(crate::Event::Reopened);
        }
        Ok(())
    }

    /// Answers everyone who waits for this life of the log.
    fn abandon(&mut self, io: &mut dyn Io, why: &str) {
        if let Some((replicas, mut cx)) =
            split(&mut self.life, io, &mut *self.transport, self.clock, &self.addresses)
        {
            for wanted in cx.reads.abandon() {
                cx.respond(wanted.origin, Err(RequestError::Unavailable(why.to_owned())));
            }
            for (origin, _, _) in replicas.requests.drain(..) {
                cx.respond(origin, Err(RequestError::Unavailable(why.to_owned())));
            }
            replicas.partitions.iter_mut().for_each(|p| p.abandon(&mut cx, why));
        }
        let askers = self.life.as_mut().map(|life| life.snapshots.abandon()).unwrap_or_default();
        for origin in askers {
            super::answer(&mut *self.transport, origin, Err(RequestError::Unavailable(why.to_owned())));
        }
        self.wake_answered();
    }

    /// Drops the log and the replicas. Gives back the state machines.
    fn end_life(&mut self) -> BTreeMap<PartitionId, Option<Machine>> {
        let Some(life) = self.life.take() else { return BTreeMap::new() };
        life.replicas.partitions.into_iter().map(|(id, p)| (id, p.into_machine())).collect()
    }

    pub(super) fn drained(&self) -> bool {
        self.life.as_ref().is_none_or(|l| {
            let r = &l.replicas;
            r.requests.is_empty()
                && r.arrivals.is_empty()
                && l.reads.waiting() == 0
                && r.partitions.iter().all(|(_, p)| p.waiting() == 0)
        })
    }

    pub(super) fn close(&mut self, io: &mut dyn Io) {
        if let Some(life) = &mut self.life {
            let closed = life.wal.close(io);
            // A log that failed on its last step is not opened again just to be closed.
            let reported = closed.events.into_iter().filter(|e| !matches!(e, WalEvent::Fenced { .. }));
            self.wal_events.extend(reported);
            self.handle_wal_events(io);
            self.hand_out(io, closed.others);
        }
        self.abandon(io, "the node has stopped");
        self.end_life();
        tracing::info!("stopped");
        self.transport.flush(io);
        // What was just queued for clients leaves with one more submission.
        self.completions.clear();
        io.poll(Wait::No, &mut self.completions);
    }
}
