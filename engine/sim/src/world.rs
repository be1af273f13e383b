//! The world as tests and the simulator see it.

use crate::config::WorldConfig;
use crate::disk::Inode;
use crate::fault::{self, DiskFault, DiskFaults, FaultPlan, NetFaults};
use crate::file::PageRun;
use crate::nemesis::WorldEvent;
use crate::network::ip;
use crate::node::{Moment, WriteShape};
use crate::sim_io::SimIo;
use crate::state::{FrameLength, State};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tidelog_types::limits::PAGE_BYTES;
use tidelog_types::{Clock, Monotonic};

/// What the driver does next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Step {
    /// This node has a turn: completions, or its deadline came. Its code polls and acts, and says by
    /// [`World::sleep_until`] when it wants its next one.
    Node(u64),
    /// This node's process ended by [`World::crash_at`] or the plan's nemesis. Drop what it was; boot it with
    /// [`World::node`] when you like.
    Down(u64),
    /// What [`World::alarm`] ordered.
    Alarm(u64),
}

/// A disk at some moment.
#[derive(Clone, Debug)]
pub struct DiskImage(crate::disk::Disk);

/// Bytes that a power loss can no longer take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DurableRange {
    /// The file, by the path that it has now.
    pub path: String,
    /// From which byte.
    pub offset: u64,
    /// How many.
    pub len: usize,
}

/// A simulated world: nodes, their disks and clocks, the network between them. Clones are the same world.
///
/// # How a driver uses it
/// ```
/// use tidelog_sim::{Step, World};
/// use tidelog_io::{Io, Op, Token, Wait};
///
/// let world = World::new(7);
/// let mut io = world.node(1);
/// io.submit(Token::wal(1), Op::List { path: "/data".into() });
/// let mut out = Vec::new();
/// while let Some(step) = world.step() {
///     if step == Step::Node(1) {
///         io.poll(Wait::No, &mut out); // the node's turn: poll without waiting, act, return
///         if !out.is_empty() {
///             break;
///         }
///     }
/// }
/// assert_eq!(out[0].token, Token::wal(1));
/// ```
/// - [`World::step`] moves true time on to the next thing that concerns a node's process, and says whose turn
///   it is. The turn polls with [`tidelog_io::Wait::No`], submits, and returns; before it returns to `step`,
///   the driver passes the node's next deadline to [`World::sleep_until`] (it is forgotten at every turn).
/// - A poll with `Until` or `Forever` *blocks*, and runs only the polling node forward: its own disk, its
///   timers and what is already on its way to it. The node is ahead of the world afterwards and gets its next
///   turn when the world has caught up, so recovery may block without stopping the other nodes. Waiting for
///   ever for what another node would have to do panics.
/// - A world of one node needs no driver: blocking polls and [`tidelog_io::Foreground`] are enough.
#[derive(Clone, Debug)]
pub struct World {
    pub(crate) state: Rc<RefCell<State>>,
}

impl World {
    /// A world without faults, of common timing.
    pub fn new(seed: u64) -> World {
        World::with(seed, WorldConfig::default())
    }

    /// A world without faults.
    pub fn with(seed: u64, config: WorldConfig) -> World {
        World { state: Rc::new(RefCell::new(State::new(seed, config))) }
    }

    fn with_state<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.borrow_mut())
    }

    /// Its seed.
    pub fn seed(&self) -> u64 {
        self.with_state(|s| s.seed)
    }

    /// True time in nanoseconds.
    pub fn now(&self) -> u64 {
        self.with_state(|s| s.now)
    }

    // Nodes.

    /// Boots a node: a new process on the disk that an earlier one left. Its ids are 1 to 2^24 - 1.
    ///
    /// # Panics
    /// If its process still runs.
    pub fn node(&self, id: u64) -> SimIo {
        let (life, pool_bytes) = self.with_state(|s| (s.boot(id), s.config.pool_idle_bytes));
        SimIo::new(self.clone(), id, life, pool_bytes)
    }

    /// Whether the node's process runs.
    pub fn is_up(&self, id: u64) -> bool {
        self.with_state(|s| s.nodes.get(&id).is_some_and(|n| n.life.is_some()))
    }

    /// Whether the node ran once and does not now.
    pub fn is_crashed(&self, id: u64) -> bool {
        self.with_state(|s| s.nodes.get(&id).is_some_and(|n| n.life.is_none() && n.lives > 0))
    }

    /// The machine loses power. Of what was not synced, any part survives. Also after a [`World::kill`]: then
    /// it takes what the kill left in memory.
    pub fn crash(&self, id: u64) {
        self.with_state(|s| s.end_life(id, true));
    }

    /// The process dies; the machine goes on. Completed writes stay, of those under way any part; what was
    /// not synced is still at risk of a later power loss.
    pub fn kill(&self, id: u64) {
        self.with_state(|s| {
            if s.nodes.get(&id).is_some_and(|n| n.life.is_some()) {
                s.end_life(id, false);
            }
        });
    }

    /// The machine will lose power at the `boundary`-th (from 0) operation of its current life (or its next,
    /// if it is down) that changes the disk: writes, syncs, creations, renames, removals, directory creations
    /// and syncs, in order of submission. [`Step::Down`] reports it.
    pub fn crash_at(&self, id: u64, boundary: u64, moment: Moment) {
        self.with_state(|s| s.node_mut(id).crash_at = Some((boundary, moment)));
    }

    /// How many operations of its current life (or its last, if it is down) changed the disk: the boundaries
    /// of [`World::crash_at`] and [`World::fail_at`].
    pub fn disk_ops(&self, id: u64) -> u64 {
        self.with_state(|s| {
            s.nodes.get(&id).map_or(0, |n| n.life.as_ref().map_or(n.disk_ops_last, |l| l.disk_ops))
        })
    }

    // Turns and time.

    /// Runs the world up to the next thing for the driver to do. `None`: nothing will ever happen again.
    pub fn step(&self) -> Option<Step> {
        self.with_state(|s| s.step(u64::MAX))
    }

    /// The same, no further than to true time `limit_ns`. `None`: that is reached.
    pub fn step_until(&self, limit_ns: u64) -> Option<Step> {
        self.with_state(|s| s.step(limit_ns))
    }

    /// When the node wants its next turn if nothing completes before, by its own clock. Each turn forgets it.
    pub fn sleep_until(&self, id: u64, deadline: Option<Monotonic>) {
        self.with_state(|s| {
            if let Some(node) = s.nodes.get_mut(&id) {
                node.deadline = deadline.map(|d| node.clock.true_time(d));
            }
        });
    }

    /// The node gets a turn now, as a wake-up by another thread would give it one.
    pub fn wake(&self, id: u64) {
        self.with_state(|s| {
            let now = s.now;
            if let Some(node) = s.nodes.get_mut(&id) {
                node.deadline = Some(now);
                node.offered = false;
            }
        });
    }

    /// [`Step::Alarm`] comes at true time `at_ns`, or at once if that is past.
    pub fn alarm(&self, at_ns: u64, tag: u64) {
        self.with_state(|s| s.schedule_world(at_ns, WorldEvent::Alarm { tag }));
    }

    /// What the node's clocks say.
    pub fn clock(&self, id: u64) -> Clock {
        self.with_state(|s| s.clock(id))
    }

    /// The node gets no turn for `duration`; its disk, its clock and its kernel go on.
    pub fn pause(&self, id: u64, duration: Duration) {
        self.with_state(|s| s.pause(id, duration));
    }

    /// The node's clocks gain so many millionths from now on.
    pub fn set_drift(&self, id: u64, ppm: i64) {
        self.with_state(|s| {
            let now = s.local(id);
            s.node_mut(id).clock.set_drift(now, ppm);
            s.counts.add(fault::DRIFT, 1);
        });
    }

    /// The node's wall clock jumps.
    pub fn jump_wall(&self, id: u64, ms: i64) {
        self.with_state(|s| s.jump_wall(id, ms));
    }

    // Network.

    /// Where the node listens for others. 127.0.0.1 leads each node to itself.
    pub fn address(&self, id: u64, port: u16) -> SocketAddr {
        SocketAddr::new(ip(id), port)
    }

    /// Connections between two of `nodes` carry frames: whole ones are dropped and duplicated as the plan
    /// says.
    pub fn frames(&self, nodes: &[u64], length: FrameLength) {
        self.with_state(|s| {
            s.frame_length = Some(length);
            s.framed_nodes = nodes.iter().copied().collect();
        });
    }

    /// Nothing goes from `from` to `to`. Streams stall; attempts to connect time out.
    pub fn partition_one_way(&self, from: u64, to: u64) {
        self.with_state(|s| {
            s.block(from, to);
            s.counts.add(fault::ONE_WAY, 1);
        });
    }

    /// Nothing goes between two nodes.
    pub fn partition(&self, a: u64, b: u64) {
        self.with_state(|s| {
            s.block(a, b);
            s.block(b, a);
            s.counts.add(fault::PARTITION, 1);
        });
    }

    /// Nothing goes between a node and all others that there are.
    pub fn isolate(&self, id: u64) {
        self.with_state(|s| {
            let others: Vec<u64> = s.nodes.keys().copied().filter(|other| *other != id).collect();
            for other in others {
                s.block(id, other);
                s.block(other, id);
            }
            s.counts.add(fault::PARTITION, 1);
        });
    }

    /// Both ways between two nodes carry again. What stalled arrives, or its connection is lost: drawn.
    pub fn heal(&self, a: u64, b: u64) {
        self.with_state(|s| {
            s.unblock(a, b);
            s.unblock(b, a);
        });
    }

    /// Every link carries again.
    pub fn heal_all(&self) {
        self.with_state(State::heal_all);
    }

    /// Breaks every connection between two nodes; what is under way is lost.
    pub fn break_connections(&self, a: u64, b: u64) {
        self.with_state(|s| s.break_between(a, b));
    }

    // Faults.

    /// Sets all faults.
    pub fn set_plan(&self, plan: FaultPlan) {
        self.with_state(|s| {
            s.plan = plan;
            let ids: Vec<u64> = s.nodes.keys().copied().collect();
            for id in ids {
                let disk = if s.plan.nodes.contains(&id) { s.plan.disk } else { DiskFaults::NONE };
                s.node_mut(id).faults = disk;
                s.draw_drift(id);
            }
            s.start_plan();
        });
    }

    /// Ends all faults: rates, ordered ones, partitions, pauses, full, slow and hung disks. Nodes that are down
    /// stay so; clocks stay as wrong as they are.
    pub fn calm(&self) {
        self.with_state(|s| {
            s.plan = FaultPlan::none();
            s.start_plan();
            for node in s.nodes.values_mut() {
                node.faults = DiskFaults::NONE;
                node.next_faults.clear();
                node.faults_at.clear();
                node.crash_at = None;
                node.paused_until = 0;
                node.disk.capacity = None;
            }
            s.heal_all();
            let ids: Vec<u64> = s.nodes.keys().copied().collect();
            ids.into_iter().for_each(|id| s.thaw(id));
        });
    }

    /// How often one node's disk fails.
    pub fn set_disk_faults(&self, id: u64, faults: DiskFaults) {
        self.with_state(|s| s.node_mut(id).faults = faults);
    }

    /// How often the network fails.
    pub fn set_net_faults(&self, faults: NetFaults) {
        self.with_state(|s| s.plan.net = faults);
    }

    /// The node's next operation that can fail in this way does; ordered ones add up. They end with its life.
    pub fn fail_next(&self, id: u64, fault: DiskFault) {
        self.with_state(|s| s.node_mut(id).next_faults.push(fault));
    }

    /// The node's `number`-th operation (from 0, as [`World::crash_at`] counts) fails: in this way, or, if it
    /// cannot, in its own.
    pub fn fail_at(&self, id: u64, number: u64, fault: DiskFault) {
        self.with_state(|s| s.node_mut(id).faults_at.insert(number, fault));
    }

    /// Bytes that fit the node's disk; `None`: no limit.
    pub fn set_capacity(&self, id: u64, bytes: Option<u64>) {
        self.with_state(|s| s.node_mut(id).disk.capacity = bytes);
    }

    /// What the node's file system says of its space.
    pub fn disk_space(&self, id: u64) -> Option<tidelog_io::Space> {
        self.with_state(|s| s.nodes.get(&id).map(|n| n.disk.space()))
    }

    /// Bytes that the node's files take.
    pub fn disk_used(&self, id: u64) -> u64 {
        self.with_state(|s| s.nodes.get(&id).map_or(0, |n| n.disk.used()))
    }

    /// Bytes that were ever written to the node's disk.
    pub fn disk_written(&self, id: u64) -> u64 {
        self.with_state(|s| s.nodes.get(&id).map_or(0, |n| n.disk.written))
    }

    /// Files that the node's process has open.
    pub fn open_files(&self, id: u64) -> usize {
        let life = |s: &mut crate::state::State| Some(s.nodes.get(&id)?.life.as_ref()?.files.len());
        self.with_state(|s| life(s).unwrap_or(0))
    }

    /// Every operation of the node's disk takes so many times as long.
    pub fn slow_disk(&self, id: u64, factor: u64) {
        self.with_state(|s| s.node_mut(id).faults.slow_factor = factor);
    }

    /// The node's disk hangs: for `duration` no operation on it ends, reads included, and none fails.
    pub fn hang_disk(&self, id: u64, duration: Duration) {
        self.with_state(|s| {
            let until = s.now.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
            s.thaw(id);
            s.node_mut(id).hung_until = until;
            s.counts.add(fault::HANG, 1);
            s.trace.note(s.now, id, "hang", &[until]);
        });
    }

    /// It takes up its operations again before that.
    pub fn thaw_disk(&self, id: u64) {
        self.with_state(|s| s.thaw(id));
    }

    /// How often each fault fired, those that never did included.
    pub fn fault_counts(&self) -> BTreeMap<&'static str, u64> {
        self.with_state(|s| s.counts.all())
    }

    // Disks, from outside.

    /// Makes a directory and its ancestors, durably: what was there before the world began. `/data` always
    /// is.
    pub fn make_directory(&self, id: u64, path: impl AsRef<Path>) {
        self.with_state(|s| s.node_mut(id).disk.make_durable_directory(path.as_ref()));
    }

    /// The node's disk as it is, to be put back later.
    pub fn disk_image(&self, id: u64) -> DiskImage {
        self.with_state(|s| DiskImage(s.node_mut(id).disk.clone()))
    }

    /// Puts a disk into a machine that is down, in the place of its own: the very files that the image was taken of, as they were
    /// then (a device's snapshot). How much fits stays as it is.
    ///
    /// # Panics
    /// If the node's process runs.
    pub fn put_back(&self, id: u64, image: &DiskImage) {
        self.replace_disk(id, |disk| image.0.clone().with_capacity_of(disk));
    }

    /// Puts a copy of a disk into a machine that is down, in the place of its own: the same names and bytes in other files.
    ///
    /// # Panics
    /// If the node's process runs.
    pub fn put_copy(&self, id: u64, image: &DiskImage) {
        self.replace_disk(id, |disk| image.0.copied().with_capacity_of(disk));
    }

    /// Empties the disk of a machine that is down.
    ///
    /// # Panics
    /// If the node's process runs.
    pub fn wipe(&self, id: u64) {
        self.replace_disk(id, |disk| disk.wiped());
    }

    fn replace_disk(&self, id: u64, with: impl FnOnce(&crate::disk::Disk) -> crate::disk::Disk) {
        self.with_state(|s| {
            let node = s.node_mut(id);
            assert!(node.life.is_none(), "node {id} has its disk in use");
            node.disk = with(&node.disk);
            node.durable_version += 1;
        });
    }

    /// Whether the node's file system keeps a file's time of birth.
    pub fn keep_births(&self, id: u64, keep: bool) {
        self.with_state(|s| s.node_mut(id).disk.keeps_births = keep);
    }

    /// All files of a node: path and size.
    pub fn files(&self, id: u64) -> Vec<(String, u64)> {
        self.with_state(|s| {
            let disk = &s.node_mut(id).disk;
            let size = |inode: Inode| disk.file(inode).map_or(0, crate::file::File::size);
            disk.files().into_iter().map(|(path, inode)| (path, size(inode))).collect()
        })
    }

    /// A file as a reader sees it now, unreadable parts aside.
    pub fn read_raw(&self, id: u64, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        self.with_state(|s| {
            let disk = &s.node_mut(id).disk;
            let (inode, bytes) = disk.open(path.as_ref()).ok()?;
            let mut out = vec![0; usize::try_from(bytes).ok()?];
            for (page, chunk) in out.chunks_mut(PAGE_BYTES).enumerate() {
                let _ = disk.file(inode)?.read((page * PAGE_BYTES) as u64, chunk);
            }
            Some(out)
        })
    }

    fn damage(&self, id: u64, path: &Path, f: impl FnOnce(&mut crate::file::File)) -> bool {
        self.with_state(|s| {
            s.counts.add(fault::DAMAGE, 1);
            let node = s.node_mut(id);
            node.durable_version += 1;
            let Ok((inode, _)) = node.disk.open(path) else { return false };
            node.disk.file_mut(inode).map(f).is_some()
        })
    }

    /// Overwrites bytes, durably, behind everyone's back. False: no such file.
    pub fn write_raw(&self, id: u64, path: impl AsRef<Path>, offset: u64, bytes: &[u8]) -> bool {
        self.damage(id, path.as_ref(), |file| file.write_raw(offset, bytes))
    }

    /// Flips a bit of a byte, durably. False: no such file.
    pub fn flip(&self, id: u64, path: impl AsRef<Path>, offset: u64) -> bool {
        self.damage(id, path.as_ref(), |file| file.flip(offset))
    }

    /// Reads of these bytes' pages fail until they are written again. False: no such file.
    pub fn make_unreadable(&self, id: u64, path: impl AsRef<Path>, offset: u64, len: u64) -> bool {
        self.damage(id, path.as_ref(), |file| file.make_unreadable(offset, len))
    }

    /// Cuts a file short, durably. False: no such file.
    pub fn truncate(&self, id: u64, path: impl AsRef<Path>, bytes: u64) -> bool {
        self.damage(id, path.as_ref(), |file| file.truncate(bytes))
    }

    /// What of a file would surely survive a power loss now, with [`crate::UNCERTAIN`] in each sector that
    /// may come out either way. `None`: the name itself may be lost, or there is none.
    pub fn durable_contents(&self, id: u64, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        self.durable_range(id, path, 0, usize::MAX)
    }

    /// The same for a range of the file; shorter at the end of what is durable.
    pub fn durable_range(&self, id: u64, path: impl AsRef<Path>, offset: u64, len: usize) -> Option<Vec<u8>> {
        self.with_state(|s| {
            let file = s.node_mut(id).disk.durable_lookup(path.as_ref())?;
            let left = usize::try_from(file.durable_size().saturating_sub(offset)).ok()?;
            Some(file.durable(offset, len.min(left)))
        })
    }

    /// A number that changes whenever what is durable on the node may have.
    pub fn durable_version(&self, id: u64) -> u64 {
        self.with_state(|s| s.nodes.get(&id).map_or(0, |n| n.durable_version))
    }

    /// From now on, ranges that become durable are collected for [`World::take_durable`].
    pub fn watch_durable(&self, id: u64) {
        self.with_state(|s| {
            s.node_mut(id).durable_log.get_or_insert_default();
        });
    }

    /// The ranges that became durable since the last call, in order. Of a file that has no name, nothing.
    pub fn take_durable(&self, id: u64) -> Vec<DurableRange> {
        self.with_state(|s| {
            let node = s.node_mut(id);
            let Some(log) = node.durable_log.as_mut().map(std::mem::take) else { return Vec::new() };
            if log.is_empty() {
                return Vec::new();
            }
            let paths: BTreeMap<Inode, String> =
                node.disk.files().into_iter().map(|(path, inode)| (inode, path)).collect();
            let range = |(inode, run): (Inode, PageRun)| {
                let path = paths.get(&inode)?.clone();
                let len = usize::try_from(run.count).ok()? * PAGE_BYTES;
                Some(DurableRange { path, offset: run.first * PAGE_BYTES as u64, len })
            };
            log.into_iter().filter_map(range).collect()
        })
    }

    /// From now on, the shapes of completed writes are collected for [`World::take_writes`].
    pub fn watch_writes(&self, id: u64) {
        self.with_state(|s| {
            s.node_mut(id).write_log.get_or_insert_default();
        });
    }

    /// The writes since the last call, in the order of their completion.
    pub fn take_writes(&self, id: u64) -> Vec<WriteShape> {
        self.with_state(|s| s.node_mut(id).write_log.as_mut().map(std::mem::take).unwrap_or_default())
    }

    // The trace.

    /// A hash of everything that happened so far.
    pub fn trace_hash(&self) -> u64 {
        self.with_state(|s| s.trace.hash())
    }

    /// How much has happened so far.
    pub fn events(&self) -> u64 {
        self.with_state(|s| s.trace.events())
    }

    /// Adds something of the driver's own to the trace.
    pub fn note(&self, node: u64, what: &str, words: &[u64]) {
        self.with_state(|s| s.trace.note(s.now, node, what, words));
    }

    /// Keeps the last `lines` of the trace in words. Off (0) at first.
    pub fn keep_log(&self, lines: usize) {
        self.with_state(|s| s.trace.keep_lines(lines));
    }

    /// The lines kept.
    pub fn log(&self) -> Vec<String> {
        self.with_state(|s| s.trace.lines())
    }
}
