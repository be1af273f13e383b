//! Directories that are not what their node was: copied, put back, run twice, emptied; and crashes aimed at formation.
//!
//! A node that lost what it once confirmed neither votes nor confirms (invariant 20). Judged from what it sends and from whether it
//! opens at all; while a machine has a disk that is not its own, the models of disks do not follow it.

use super::{BOOT, Run, SECOND};
use crate::checkers::{Verdict, broken, ensure};
use crate::cluster::End;
use crate::faults::Blow;
use std::path::Path;
use std::time::Duration;
use tidelog::identity::Identity;
use tidelog_consensus::{Asserting, Message};
use tidelog_sim::{DiskImage, Moment};
use tidelog_types::limits::PAGE_BYTES;
use tidelog_types::{Index, PartitionId};

/// A machine of this number beside a node's own runs its double.
const DOUBLE: u64 = 1 << 20;
/// How long an emptied node is up before its own disk is back.
const WIPED_NS: (u64, u64) = (SECOND / 10, 3 * SECOND);
/// Operations of a first start within which a crash may meet it: the creation of the directory, formation, the first opening of the log.
const FORMATION_OPERATIONS: u64 = 40;

/// A machine whose disk is not its node's own.
#[derive(Clone, Debug)]
pub(super) enum Impostor {
    /// Emptied: it can come to nothing.
    Wiped(DiskImage),
    /// The disk is as it was earlier. What it is compared with: the last entry that it had, by partition.
    RolledBack(DiskImage),
}

impl Impostor {
    fn own(&self) -> &DiskImage {
        match self {
            Impostor::Wiped(own) | Impostor::RolledBack(own) => own,
        }
    }
}

pub(super) fn identity(run: &Run, id: u64) -> Option<Identity> {
    let bytes = run.world.read_raw(id, Path::new("/data/node/identity"))?;
    bytes.chunks(PAGE_BYTES).find_map(|page| Identity::decode(page).ok())
}

impl Run {
    /// The first boots: some are met by a crash on the way to formation.
    pub(super) fn first_boots(&mut self) -> Verdict {
        for id in self.profile.nodes.clone() {
            self.world.set_capacity(id, self.profile.disk_bytes);
            let crash = (self.random.below(4) == 0).then(|| {
                let moment = *self
                    .random
                    .pick(&[Moment::Before, Moment::Inside, Moment::After])
                    .unwrap_or(&Moment::Inside);
                (self.random.below(FORMATION_OPERATIONS), moment)
            });
            match crash {
                None => self.boot(id)?,
                Some(crash) => {
                    self.deal(Blow::CrashInFormation);
                    let end = self.cluster.boot(id, Some(crash));
                    self.check(id)?;
                    end.map_or(Ok(()), |end| self.ended(id, end))?;
                }
            }
        }
        if self.random.below(3) == 0 {
            let at = self.random.between((1, SECOND / 50));
            let victim = self.random.pick(&self.profile.nodes).copied().unwrap_or(1);
            self.world.alarm(at, super::WIPE + victim);
        }
        Ok(())
    }

    fn deal(&mut self, blow: Blow) {
        *self.dealt.entry(blow.name()).or_insert(0) += 1;
    }

    /// Whether any disk knows of a formed cluster.
    fn is_formed(&self) -> bool {
        self.profile
            .nodes
            .iter()
            .any(|id| identity(self, *id).is_some_and(|identity| identity.formed.is_some()))
    }

    /// A founder is emptied before there is a cluster: it takes part as what it is then.
    pub(super) fn wipe_founder(&mut self, id: u64) -> Verdict {
        if self.is_formed() {
            return Ok(());
        }
        self.deal(Blow::WipeFounder);
        let own = self.world.disk_image(id);
        if self.world.is_up(id) {
            self.end(id, true);
        }
        // Its end may not be known to the others yet: if they form the cluster with what it was, that is what it must be.
        self.world.wipe(id);
        self.impostors.insert(id, Impostor::Wiped(own));
        Ok(())
    }

    /// Directories that are refused where they lie, or that can do nothing.
    pub(super) fn spoil_directory(&mut self, blow: Blow, id: u64) -> Verdict {
        let settled = identity(self, id).is_some_and(|identity| identity.formed.is_some());
        // A cluster of one has nobody who knows what an emptied node was: it is the founder of another cluster.
        let alone = blow == Blow::WipeDirectory && self.profile.nodes.len() == 1;
        if !settled
            || alone
            || self.impostors.contains_key(&id)
            || self.cluster.nodes.get(&id).is_none_or(|n| n.process.is_none())
        {
            return Ok(());
        }
        self.deal(blow);
        let own = self.world.disk_image(id);
        match blow {
            Blow::DoubleDirectory => {
                let double = DOUBLE + id;
                self.world.wipe(double);
                self.world.put_copy(double, &own);
                let end = self.cluster.boot_double(id, double);
                refused(id, &end)
            }
            Blow::CopyDirectory => {
                self.end(id, false);
                self.checkers.read_disk(id)?;
                let own = self.world.disk_image(id);
                self.world.put_copy(id, &own);
                let end = self.cluster.boot(id, None);
                self.cluster.bury(id);
                self.world.kill(id);
                drop(self.world.take_durable(id));
                self.world.put_back(id, &own);
                refused(id, &end)
            }
            _ => {
                self.end(id, true);
                self.checkers.read_disk(id)?;
                let own = self.world.disk_image(id);
                self.world.wipe(id);
                self.impostors.insert(id, Impostor::Wiped(own));
                let after = self.random.between(WIPED_NS);
                self.world.alarm(self.world.now() + after, super::WIPE + id);
                Ok(())
            }
        }
    }

    /// Gives a machine its node's own disk back. It boots later.
    pub(super) fn put_own_disk_back(&mut self, id: u64) {
        let Some(impostor) = self.impostors.remove(&id) else { return };
        if matches!(impostor, Impostor::Wiped(_)) && self.is_member_as_it_is(id) {
            return; // it was emptied before formation, and the cluster was formed with what it is now
        }
        if self.world.is_up(id) {
            self.world.crash(id);
        }
        self.cluster.bury(id);
        // What the other disk made durable is nothing of this one's.
        drop(self.world.take_durable(id));
        self.world.put_back(id, impostor.own());
        self.world.alarm(self.world.now() + 1, BOOT + id);
    }

    /// The alarm of a wiped founder, or the end of a wiped node's time.
    pub(super) fn wipe_alarm(&mut self, id: u64) -> Verdict {
        match self.impostors.get(&id) {
            None if !self.calm => self.wipe_founder(id),
            None => Ok(()),
            Some(_) => {
                self.put_own_disk_back(id);
                Ok(())
            }
        }
    }

    /// A node that runs replicas has made durable who the members are: a power loss cannot make it a founder again.
    pub(super) fn check_formation(&mut self, id: u64) -> Verdict {
        let Some(node) = self.cluster.nodes.get(&id) else { return Ok(()) };
        let formed = node.process.as_ref().is_some_and(|process| process.shard.is_formed());
        if !formed || !self.formed.insert((id, node.boots)) {
            return Ok(());
        }
        let page = self.world.durable_range(id, Path::new("/data/node/identity"), 0, PAGE_BYTES);
        let durable =
            page.and_then(|page| Identity::decode(&page).ok()).is_some_and(|found| found.formed.is_some());
        ensure(9, durable, || {
            format!("node {id} runs replicas, and its disk may forget that the cluster was formed")
        })
    }

    /// What a machine with another disk did in its turn.
    pub(super) fn check_impostor(&mut self, id: u64) -> Verdict {
        let Some(impostor) = self.impostors.get(&id).cloned() else { return Ok(()) };
        let Some(node) = self.cluster.nodes.get_mut(&id) else { return Ok(()) };
        let sent = node.take_sent();
        node.take_applied();
        let formed = node.process.as_ref().is_some_and(|process| process.shard.is_formed());
        match impostor {
            Impostor::Wiped(_) if formed => {
                // Before the others were formed it is a founder like any other.
                let known = self.profile.nodes.iter().filter(|other| **other != id);
                let known = known.filter_map(|other| identity(self, *other)?.formed).collect::<Vec<_>>();
                let own = identity(self, id).map(|identity| identity.incarnation);
                let counts =
                    known.iter().all(|formed| formed.members.iter().any(|m| Some(m.incarnation) == own));
                ensure(20, counts, || format!("node {id} was emptied, and takes part"))?;
                self.impostors.remove(&id);
                Ok(())
            }
            Impostor::Wiped(_) => {
                // The others formed the cluster with what it was.
                let lost = sent.first().map(|(_, message)| format!("{message:?}"));
                ensure(20, lost.is_none(), || format!("node {id} was emptied, and sent {lost:?}"))?;
                if !self.calm && self.is_formed_without(id) {
                    self.put_own_disk_back(id);
                }
                Ok(())
            }
            Impostor::RolledBack(_) => sent.iter().try_for_each(|(to, message)| {
                let (says, what) = match &message.message {
                    Message::Asserting(Asserting::VoteReply { granted, .. }) => (*granted, "its vote"),
                    Message::Asserting(Asserting::Vote { .. }) => (true, "a vote request"),
                    Message::Asserting(
                        Asserting::AppendReply { matched, .. } | Asserting::HeartbeatReply { matched, .. },
                    ) => (*matched > Index::ZERO, "a confirmation"),
                    _ => (false, ""),
                };
                ensure(20, !says, || {
                    format!("node {id} runs on an older disk, and sent {what} to node {to}: {message:?}")
                })
            }),
        }
    }

    /// Whether the cluster was formed with what this node is now.
    fn is_member_as_it_is(&self, id: u64) -> bool {
        let own = identity(self, id).map(|identity| identity.incarnation);
        let formed = self.profile.nodes.iter().filter_map(|other| identity(self, *other)?.formed);
        own.is_some()
            && formed.flat_map(|formed| formed.members).any(|m| m.node.0 == id && Some(m.incarnation) == own)
    }

    /// Whether the cluster was formed, and not with what this node is now.
    fn is_formed_without(&self, id: u64) -> bool {
        let own = identity(self, id).map(|identity| identity.incarnation);
        let others = self.profile.nodes.iter().filter(|other| **other != id);
        others
            .filter_map(|other| identity(self, *other)?.formed)
            .any(|formed| formed.members.iter().any(|m| m.node.0 == id && Some(m.incarnation) != own))
    }

    /// In the calm: the disk of a follower of every partition is put back as it was before what it confirmed last. Its leaders find it out,
    /// and it takes no part; with its own disk it is a voter again.
    pub(super) fn roll_back_a_disk(&mut self) -> Verdict {
        let partitions = (0..self.profile.partitions).map(PartitionId).collect::<Vec<_>>();
        let leads = |run: &Run, id: u64| {
            partitions.iter().any(|p| run.cluster.replica(id, *p).is_some_and(|replica| replica.is_leader()))
        };
        let holds = |run: &Run, id: u64| {
            partitions
                .iter()
                .filter(|p| run.cluster.replica(id, **p).is_some_and(|r| r.voters().len() > 2))
                .count()
        };
        let nodes = self.profile.nodes.clone();
        let Some(id) = nodes.into_iter().find(|id| !leads(self, *id) && holds(self, *id) > 0) else {
            return Ok(());
        };
        let leaders = |run: &Run| {
            let of = |p: &PartitionId| run.cluster.replica(id, *p).and_then(|replica| replica.leader());
            partitions.iter().map(of).collect::<Vec<_>>()
        };
        let before = leaders(self);
        self.world.crash(id);
        self.cluster.bury(id);
        self.checkers.read_disk(id)?;
        let older = self.world.disk_image(id);
        self.boot(id)?;
        let back = self.world.now() + u64::try_from(self.cluster.patience().as_nanos()).unwrap_or(SECOND);
        self.until(back, |run| run.checkers.led(run.cluster.nodes.values()).is_ok())?;
        let had: Vec<_> =
            partitions.iter().map(|p| self.cluster.replica(id, *p).map(|r| r.marks().high_water)).collect();
        self.progress()?;
        let settle = self.world.now() + SECOND;
        self.until(settle, |_| false)?;
        let has: Vec<_> =
            partitions.iter().map(|p| self.cluster.replica(id, *p).map(|r| r.marks().high_water)).collect();
        if leaders(self) != before || had == has {
            return Ok(()); // another leader does not know what it had confirmed
        }
        self.world.crash(id);
        self.cluster.bury(id);
        self.checkers.read_disk(id)?;
        let own = self.world.disk_image(id);
        self.world.put_back(id, &older);
        self.impostors.insert(id, Impostor::RolledBack(own));
        self.deal(Blow::RollBackDisk);
        let end = self.cluster.boot(id, None);
        ensure(20, end.is_none(), || {
            format!("node {id} does not start on an older disk of its own: {end:?}")
        })?;
        let patience = self.profile.election_timeout * 10 + Duration::from_secs(5);
        let limit = self.world.now() + u64::try_from(patience.as_nanos()).unwrap_or(SECOND);
        let barred = move |run: &mut Run| {
            let process = run.cluster.nodes.get(&id).and_then(|node| node.process.as_ref());
            process.is_some_and(|process| process.shard.identity().barred.is_some())
        };
        let found_out = self.until(limit, barred)?;
        let unchanged = leaders(self).iter().zip(&before).all(|(now, before)| now.is_none() || now == before);
        self.put_own_disk_back(id);
        if !found_out && unchanged {
            return broken(20, format!("node {id} runs on an older disk, and its leaders do not notice"));
        }
        let limit = self.world.now() + u64::try_from(self.cluster.patience().as_nanos()).unwrap_or(SECOND);
        let led = self.until(limit, |run| run.checkers.led(run.cluster.nodes.values()).is_ok())?;
        ensure(18, led, || {
            format!(
                "node {id} has its own disk again, and is not back: {:?}",
                self.checkers.led(self.cluster.nodes.values())
            )
        })
    }
}

/// A copy is refused, or does not get so far.
fn refused(id: u64, end: &Option<End>) -> Verdict {
    ensure(20, end.is_some(), || format!("a copy of node {id}'s directory was opened"))
}
