//! What befalls whole nodes by itself, as the plan says: crashes, partitions, pauses, jumps, slow and full
//! disks.

use crate::fault;
use crate::state::State;
use crate::world::Step;
use std::time::Duration;

/// What happens in the world, not on one node.
#[derive(Clone, Debug)]
pub(crate) enum WorldEvent {
    /// The driver wanted to be told.
    Alarm { tag: u64 },
    /// The nemesis of a plan.
    Strike { plan: u64, blow: Blow },
    /// Links that carry again.
    Heal { plan: u64, links: Vec<(u64, u64)> },
    /// A disk that has its space again.
    SpaceBack { plan: u64, node: u64, capacity: Option<u64> },
}

/// What a nemesis does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Blow {
    Crash,
    Kill,
    Partition,
    Pause,
    Jump,
    Slow,
    Full,
}

const BLOWS: [Blow; 7] =
    [Blow::Crash, Blow::Kill, Blow::Partition, Blow::Pause, Blow::Jump, Blow::Slow, Blow::Full];

impl State {
    pub(crate) fn schedule_world(&mut self, at: u64, event: WorldEvent) {
        let key = (at.max(self.now), self.next_seq());
        self.world_queue.insert(key, event);
    }

    const fn mean(&self, blow: Blow) -> u64 {
        let n = &self.plan.nemesis;
        match blow {
            Blow::Crash => n.crash_every_ns,
            Blow::Kill => n.kill_every_ns,
            Blow::Partition => n.partition_every_ns,
            Blow::Pause => n.pause_every_ns,
            Blow::Jump => n.jump_every_ns,
            Blow::Slow => n.slow_every_ns,
            Blow::Full => n.full_every_ns,
        }
    }

    /// A new plan takes effect; the nemesis of the old one falls silent.
    pub(crate) fn start_plan(&mut self) {
        self.plan_number += 1;
        for blow in BLOWS {
            self.schedule_blow(blow);
        }
    }

    fn schedule_blow(&mut self, blow: Blow) {
        let mean = self.mean(blow);
        if mean > 0 {
            let at = self.now + self.random.between((mean / 2, mean + mean / 2));
            self.schedule_world(at, WorldEvent::Strike { plan: self.plan_number, blow });
        }
    }

    pub(crate) fn draw_drift(&mut self, id: u64) {
        let max = self.plan.drift_ppm_max;
        if max > 0 {
            let ppm =
                i64::try_from(self.random.below(2 * max + 1)).unwrap_or(0) - i64::try_from(max).unwrap_or(0);
            let now = self.local(id);
            self.node_mut(id).clock.set_drift(now, ppm);
            self.counts.add(fault::DRIFT, 1);
        }
    }

    pub(crate) fn world_event(&mut self, event: WorldEvent) {
        match event {
            WorldEvent::Alarm { tag } => {
                self.trace.note(self.now, 0, "alarm", &[tag]);
                self.reports.push_back(Step::Alarm(tag));
            }
            WorldEvent::Strike { plan, blow } if plan == self.plan_number => {
                self.strike(blow);
                self.schedule_blow(blow);
            }
            WorldEvent::Heal { plan, links } if plan == self.plan_number => {
                for (from, to) in links {
                    self.unblock(from, to);
                }
            }
            WorldEvent::SpaceBack { plan, node, capacity } if plan == self.plan_number => {
                self.node_mut(node).disk.capacity = capacity;
            }
            WorldEvent::Strike { .. } | WorldEvent::Heal { .. } | WorldEvent::SpaceBack { .. } => {}
        }
    }

    fn strike(&mut self, blow: Blow) {
        let nodes = self.plan.nodes.clone();
        let nemesis = self.plan.nemesis;
        let up: Vec<u64> =
            nodes.iter().copied().filter(|id| self.nodes.get(id).is_some_and(|n| n.life.is_some())).collect();
        let Some(id) = self.random.pick(&up).copied() else { return };
        match blow {
            Blow::Crash | Blow::Kill => {
                if nodes.len() - up.len() < nemesis.down_max {
                    self.end_life(id, blow == Blow::Crash);
                    self.reports.push_back(Step::Down(id));
                }
            }
            Blow::Partition => self.draw_partition(&nodes),
            Blow::Pause => {
                let ns = self.random.between(nemesis.pause_for_ns);
                self.pause(id, Duration::from_nanos(ns));
            }
            Blow::Jump => {
                let max = i64::try_from(nemesis.jump_ms_max).unwrap_or(i64::MAX / 4);
                let drawn = self.random.below(2 * max.unsigned_abs() + 1);
                self.jump_wall(id, i64::try_from(drawn).unwrap_or(0) - max);
            }
            Blow::Slow => {
                let factor = self.random.between(nemesis.slow_factor);
                for other in nodes {
                    self.node_mut(other).faults.slow_factor = if other == id { factor } else { 1 };
                }
                self.trace.note(self.now, id, "slow disk", &[factor]);
            }
            Blow::Full => {
                let until = self.now + self.random.between(nemesis.full_for_ns);
                let node = self.node_mut(id);
                let capacity = node.disk.capacity;
                let used = node.disk.used();
                if capacity.is_none_or(|capacity| capacity > used) {
                    node.disk.capacity = Some(used);
                    self.counts.add(fault::FULL_DISK, 1);
                    self.trace.note(self.now, id, "full disk", &[used]);
                    let plan = self.plan_number;
                    self.schedule_world(until, WorldEvent::SpaceBack { plan, node: id, capacity });
                }
            }
        }
    }

    fn draw_partition(&mut self, nodes: &[u64]) {
        let Some(one) = self.random.pick(nodes).copied() else { return };
        let Some(other) = self.random.pick(nodes).copied().filter(|other| *other != one) else { return };
        let both = |a: u64, b: u64| [(a, b), (b, a)];
        let others = nodes.iter().copied().filter(|n| *n != one);
        let links: Vec<(u64, u64)> = match self.random.below(4) {
            0 => {
                let side: Vec<bool> = nodes.iter().map(|_| self.random.coin()).collect();
                let sides = || nodes.iter().zip(&side);
                sides()
                    .flat_map(|(a, x)| sides().filter(move |(_, y)| x != *y).map(move |(b, _)| (*a, *b)))
                    .collect()
            }
            1 => others.flat_map(|b| both(one, b)).collect(),
            2 => both(one, other).to_vec(),
            _ => {
                self.counts.add(fault::ONE_WAY, 1);
                vec![(one, other)]
            }
        };
        let until = self.now + self.random.between(self.plan.nemesis.partition_for_ns);
        for (from, to) in &links {
            self.block(*from, *to);
        }
        self.counts.add(fault::PARTITION, u64::from(!links.is_empty()));
        self.schedule_world(until, WorldEvent::Heal { plan: self.plan_number, links });
    }

    pub(crate) fn block(&mut self, from: u64, to: u64) {
        self.blocked.insert((from, to));
        self.trace.note(self.now, from, "block", &[to]);
    }

    pub(crate) fn heal_all(&mut self) {
        let links: Vec<(u64, u64)> = self.blocked.iter().copied().collect();
        for (from, to) in links {
            self.unblock(from, to);
        }
    }

    pub(crate) fn pause(&mut self, id: u64, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let until = self.local(id).saturating_add(ns);
        let node = self.node_mut(id);
        node.paused_until = node.paused_until.max(until);
        self.counts.add(fault::PAUSE, 1);
        self.trace.note(self.now, id, "pause", &[ns]);
    }

    pub(crate) fn jump_wall(&mut self, id: u64, ms: i64) {
        self.node_mut(id).clock.jump_wall(ms);
        self.counts.add(fault::JUMP, 1);
        self.trace.note(self.now, id, "jump", &[ms.cast_unsigned()]);
    }
}
