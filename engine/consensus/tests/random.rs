//! Seeded random runs of one to five replicas over a network that loses, doubles and reorders, disks that are
//! slow, hang and forget, answers that come in a later leadership of the same node, crashes, pauses and wrong clocks; invariants 1 to 9, 12 and 14 after every event, and
//! agreement with progress at the end.

mod world;

use core::time::Duration;
use std::collections::BTreeMap;
use tidelog_consensus::{Admitted, Refused, Retention, quorum};
use tidelog_consensus::{Asserting, Disk, Health, Message};
use tidelog_types::{Index, Sequence, SessionId, SessionKey, SessionRef};
use world::disk::Stored;
use world::{ELECTION, Node, Outcome, Packet, World};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A client of one session: sends a sequence until it knows where it is.
struct Client {
    key: u128,
    session: Option<SessionId>,
    sequence: u64,
    placed: Vec<(String, Index)>,
    /// Whether its sessions may expire.
    expires: bool,
}

/// An answer to a leader.
fn is_answer(packet: &Packet) -> bool {
    use Asserting::{AppendRefused, AppendReply, HeartbeatReply};
    matches!(
        &packet.message,
        Message::Asserting(AppendReply { .. } | AppendRefused { .. } | HeartbeatReply { .. })
    )
}

/// Whether it would reach a later leadership of the node that it answers.
fn is_late(world: &World, packet: &Packet) -> bool {
    let replica = world.node(packet.to).replica.as_ref();
    replica.is_some_and(|replica| replica.is_leader() && replica.generation() > packet.message.generation())
}

/// How bad this run's world is: each seed draws its own.
struct Weather {
    loss: u64,
    doubling: u64,
    disk_lag: u64,
    crash: u64,
    cut_off: u64,
    pause: u64,
    /// Disks that hang for a while.
    hang: u64,
    /// Entries whose bytes are lost, each with a good copy left elsewhere; and writes that end as suspects.
    rot: u64,
    /// Longest step of time between two events.
    step_us: u64,
}

#[derive(Default)]
struct Totals {
    commits: u64,
    elections: u64,
    crashes: u64,
    cuts: u64,
    reads: u64,
    retries: u64,
    snapshots: u64,
    raised: u64,
    starts: u64,
    rotted: u64,
    decided: u64,
    suspects: u64,
    hangs: u64,
    handed_over: u64,
    late: u64,
    expired: u64,
    reused: u64,
}

/// Another client writes into the same session, with payloads of its own.
fn rival(world: &mut World, client: &Client, on: u64, random: &mut Random, number: u64) {
    let Some(session) = client.session else { return };
    let sequence = Sequence((client.sequence + random.below(3)).saturating_sub(1));
    world.propose(on, &format!("r{number}"), Some(SessionRef { session, sequence }), None);
}

fn client_turn(world: &mut World, client: &mut Client, on: u64, totals: &mut Totals) {
    let Some(session) = client.session else {
        let name = format!("open{}", client.key);
        if let Some(Ok(Admitted::New(_) | Admitted::Known(_))) =
            world.propose(on, &name, None, Some(SessionKey(client.key)))
            && let Some(Outcome::Acked(at)) = world.outcomes.get(&name)
        {
            client.session = Some(SessionId(at.0));
        }
        return;
    };
    let request = SessionRef { session, sequence: Sequence(client.sequence) };
    let name = format!("s{}.{}", client.key, client.sequence);
    match world.outcomes.get(&name) {
        Some(Outcome::Acked(at)) => {
            client.placed.push((name, *at));
            client.sequence += 1;
            return;
        }
        // Definite: what another client put there stays, and the own payload never comes.
        Some(Outcome::Refused(Refused::SequenceReused { .. })) => {
            totals.reused += 1;
            client.sequence += 1;
            return;
        }
        Some(Outcome::Refused(Refused::SessionExpired)) => {
            totals.expired += 1;
            (client.session, client.sequence, client.key) = (None, 1, client.key + 100);
            return;
        }
        _ => {}
    }
    totals.retries += 1;
    let answer = world.propose(on, &name, Some(request), None);
    let unexpected = match answer {
        Some(Err(Refused::SessionExpired)) => !client.expires,
        Some(Err(Refused::SequenceGap { .. } | Refused::SequenceTooOld)) => true,
        _ => false,
    };
    // An old leader may not know the session; the leader of the newest generation must.
    assert!(
        !unexpected || world.leader() != Some(on) || world.replica(on).marks().high_water.0 < session.0,
        "{}: {name} got {answer:?}",
        world.event
    );
}

/// A node takes a snapshot, raises its low-water mark, or proposes a later log start. Never over what another node
/// lacks: nothing here could bring that one back.
fn shorten(world: &mut World, node: u64, random: &mut Random, totals: &mut Totals) {
    let (on_all, replica) = (world.on_all(), world.replica(node));
    let covered = on_all.min(replica.marks().applicable());
    let low = replica.marks().low_water;
    let may = replica.snapshot().index.next().max(replica.log_start()).min(covered.next());
    match random.below(3) {
        0 if covered > replica.snapshot().index && covered >= low.prev() && !replica.is_marking() => {
            totals.snapshots += u64::from(world.snapshot(node, covered));
        }
        1 if may > low && !replica.is_raising() => {
            world.raise_low_water(node, Index(low.0 + 1 + random.below(may.0 - low.0)));
            totals.raised += 1;
        }
        2 => {
            let bytes = (!random.one_in(3)).then(|| 128 * random.below(200));
            let age = random.one_in(2).then(|| Duration::from_millis(random.below(2000)));
            totals.starts += u64::from(world.retain(node, Retention { age, bytes }));
        }
        _ => {}
    }
}

/// Whether a good copy of an entry is durable on a node other than `on`.
fn has_copy(world: &World, on: u64, entry: &Stored) -> bool {
    let index = entry.meta.position.index;
    let at = usize::try_from(index.0).unwrap() - 1;
    let mut others = world.nodes.iter().filter(|(id, _)| **id != on);
    others.any(|(_, n)| n.disk.durable.get(at) == Some(entry) && !n.disk.is_damaged(index))
}

/// The atlas: what the damage leaves can always be decided. Each damaged entry has a good copy elsewhere, or so many nodes
/// that never got it that no quorum can have.
fn may_lose(world: &World, on: u64, entries: &[Stored]) -> bool {
    let voters = world.nodes.len();
    entries.iter().all(|entry| {
        let lacks = |(id, n): &(&u64, &Node)| **id != on && !n.disk.durable.contains(entry);
        has_copy(world, on, entry) || quorum::blocked(world.nodes.iter().filter(lacks).count(), voters)
    })
}

/// The nodes that have a good copy of an entry go down, if they are a minority: the rest must not take it for never committed.
fn hide_copies(world: &mut World, of: u64, index: u64, totals: &mut Totals) {
    let at = usize::try_from(index).unwrap() - 1;
    let entry = world.node(of).disk.durable[at].clone();
    let holds = |(id, n): &(&u64, &Node)| {
        **id != of && n.disk.durable.get(at) == Some(&entry) && !n.disk.is_damaged(Index(index))
    };
    let holders: Vec<u64> = world.nodes.iter().filter(holds).map(|(id, _)| *id).collect();
    if holders.len() < quorum::majority(world.nodes.len()) {
        for id in holders.into_iter().filter(|id| world.is_up(*id)).collect::<Vec<_>>() {
            world.crash(id, 0);
            totals.crashes += 1;
        }
    }
}

fn run(voters: u64, seed: u64, events: u64, damage: bool, totals: &mut Totals) {
    let mut random = Random(seed.wrapping_mul(voters));
    // In every second world, sessions expire within the run.
    let expires = seed.is_multiple_of(2);
    let expiry = Duration::from_millis(if expires { 20 + random.below(200) } else { 3_600_000 });
    let mut world = World::with_expiry(voters, seed, expiry);
    let draw = |random: &mut Random, worst: u64| {
        if random.one_in(3) { u64::MAX } else { worst + random.below(worst) }
    };
    let weather = Weather {
        loss: draw(&mut random, 10),
        doubling: draw(&mut random, 10),
        disk_lag: 1 + random.below(4),
        crash: draw(&mut random, 400),
        cut_off: draw(&mut random, 300),
        pause: draw(&mut random, 500),
        hang: draw(&mut random, 1200),
        rot: if damage { 20 + random.below(200) } else { u64::MAX },
        step_us: [200, 600, 2_000, 5_000][usize::try_from(random.below(4)).unwrap()],
    };
    world.fit_max = 1 + random.below(6);
    world.inquires = true;
    for id in 1..=voters {
        if random.one_in(4) {
            world.node_mut(id).skew_ms = i64::try_from(random.below(2_000_000)).unwrap() - 1_000_000;
        }
    }
    let mut clients: Vec<Client> =
        (1..=3).map(|key| Client { key, session: None, sequence: 1, placed: Vec::new(), expires }).collect();
    // Nodes on the far side of a split, and whether only their own packets are lost.
    let mut split: Option<(u64, bool)> = None;
    let mut number = 0u64;
    // Nodes whose disks take nothing, and until which event.
    let mut hung: BTreeMap<u64, u64> = BTreeMap::new();
    let mut late: Vec<Packet> = Vec::new();

    for event in 0..events {
        world.event = format!("voters {voters} seed {seed} event {event}");
        let node = 1 + random.below(voters);
        world.wait(Duration::from_micros(random.below(weather.step_us)));
        world.tick_due();
        match random.below(100) {
            0..55 if !world.wire.is_empty() => {
                let soon = if random.one_in(4) { world.wire.len() } else { world.wire.len().min(3) };
                let at = usize::try_from(random.below(soon as u64)).unwrap();
                let packet = world.wire.remove(at);
                let far = |mask: u64, node: u64| mask >> node & 1 == 1;
                let cut = split.is_some_and(|(mask, one_way)| {
                    let (from, to) = (far(mask, packet.from), far(mask, packet.to));
                    from != to && (from || !one_way)
                });
                if cut || random.one_in(weather.loss) {
                    continue;
                }
                if random.one_in(weather.doubling) {
                    world.wire.push(packet.clone());
                }
                if is_answer(&packet) && late.len() < 64 && random.one_in(4) {
                    late.push(packet.clone());
                }
                world.deliver(packet);
            }
            55..75 if world.is_up(node) && !hung.contains_key(&node) && random.one_in(weather.disk_lag) => {
                let steps = 1 + usize::try_from(random.below(5)).unwrap();
                world.durable(node, steps);
            }
            75..83 => {
                let on = world.leader().filter(|_| !random.one_in(5)).unwrap_or(node);
                number += 1;
                world.propose(on, &format!("p{number}"), None, None);
            }
            83..91 => {
                let on = world.leader().filter(|_| !random.one_in(5)).unwrap_or(node);
                let client = usize::try_from(random.below(3)).unwrap();
                if random.one_in(8) {
                    number += 1;
                    rival(&mut world, &clients[client], on, &mut random, number);
                }
                client_turn(&mut world, &mut clients[client], on, totals);
            }
            91..95 => {
                number += 1;
                if world.is_up(node) && world.read(node, number).is_some_and(|r| r.is_ok()) {
                    totals.reads += 1;
                }
            }
            // What peers no longer keep cannot be fetched from them: only a snapshot heals that.
            95 if world.is_up(node) && !damage => shorten(&mut world, node, &mut random, totals),
            96 => {
                let peer = 1 + random.below(voters);
                let up = random.one_in(2);
                world.channel(node, peer, up);
            }
            _ => {}
        }
        if random.one_in(weather.hang) && hung.len() < usize::try_from(voters).unwrap() / 2 {
            hung.insert(node, event + 50 + random.below(600));
            totals.hangs += 1;
        }
        let health = &mut world.node_mut(node).health;
        let oldest_ms = if hung.contains_key(&node) { random.below(400) } else { 0 };
        *health = match health.health {
            Health::Stalled | Health::Behind if oldest_ms < 200 && !random.one_in(100) => {
                Disk { oldest_ms, health: Health::Behind }
            }
            _ if oldest_ms >= 200 => Disk { oldest_ms, health: Health::Stalled },
            _ => Disk { oldest_ms, health: Health::Steady },
        };
        hung.retain(|_, until| *until > event);
        if random.one_in(8)
            && let Some(at) = late.iter().position(|packet| is_late(&world, packet))
        {
            world.deliver(late.swap_remove(at));
            totals.late += 1;
        }
        if random.one_in(weather.rot) {
            let entries = world.node(node).disk.durable.len() as u64;
            let index = 1 + if random.one_in(2) {
                random.below(entries)
            } else {
                entries.saturating_sub(1 + random.below(4))
            };
            let entry = world.node(node).disk.durable.get(usize::try_from(index).unwrap() - 1).cloned();
            if entry.is_some_and(|e| has_copy(&world, node, &e)) && world.rot(node, index) {
                totals.rotted += 1;
                if random.one_in(if voters == 3 { 2 } else { 8 }) {
                    hide_copies(&mut world, node, index, totals);
                }
            }
        }
        if damage && random.one_in(20) {
            // Mostly what is damaged first, and now and then what lies behind it.
            let end = world.node(node).disk.durable.len() as u64;
            let from = if random.one_in(3) { 1 + random.below(end.max(1)) } else { 1 };
            world.fetch_from(node, 1 + random.below(voters), Index(from));
        }
        let suspect = damage
            && world.is_up(node)
            && world.node(node).disk.next().is_some_and(|all| may_lose(&world, node, all));
        if suspect && random.one_in(weather.crash) {
            world.crash_suspect(node);
            totals.suspects += 1;
        } else if world.is_up(node) && random.one_in(weather.crash) {
            let survives = usize::try_from(random.below(world.node(node).disk.pending() as u64 + 1)).unwrap();
            world.crash(node, survives);
            totals.crashes += 1;
        } else if !world.is_up(node) && random.one_in(30) {
            world.start(node);
        }
        if random.one_in(weather.cut_off) {
            split = Some((random.next(), random.one_in(2)));
        } else if random.one_in(200) {
            split = None;
        }
        if world.is_up(node) && random.one_in(weather.pause) {
            world.wait(ELECTION * 2);
            world.paused(node);
        }
        if world.wire.len() > 400 {
            world.wire.drain(..200);
        }
    }

    // Healed, everyone agrees and goes on.
    for node in world.nodes.values_mut() {
        node.health = Disk::default();
    }
    world.event = format!("voters {voters} seed {seed} healed");
    let all: Vec<u64> = (1..=voters).collect();
    for id in &all {
        if !world.is_up(*id) {
            world.start(*id);
        }
        for peer in &all {
            world.channel(*id, *peer, true);
        }
    }
    world.run(&all, ELECTION * 10);
    let leader = world.leader().unwrap_or_else(|| {
        let state = |id: &u64| {
            let replica = world.replica(*id);
            (replica.last(), replica.repair_wanted(), replica.damaged_entries(), replica.marks())
        };
        panic!(
            "{}: no leader after ten time-outs: {:#?}",
            world.event,
            all.iter().map(state).collect::<Vec<_>>()
        )
    });
    world.propose(leader, "last", None, None);
    world.run(&all, ELECTION);
    let Some(Outcome::Acked(last)) = world.outcomes.get("last").cloned() else {
        panic!("{}: no progress: {:?}", world.event, world.outcomes.get("last"));
    };
    for id in &all {
        let node = world.node(*id);
        assert_eq!(node.disk.durable, world.node(leader).disk.durable, "{}: logs differ", world.event);
        assert_eq!(node.replica().marks().high_water, last, "{}: node {id}", world.event);
        assert_eq!(node.replica().damaged_entries(), 0, "{}: node {id} is not whole", world.event);
        assert_eq!(node.replica().malformed(), 0, "{}: node {id} got nonsense", world.event);
    }
    for client in &clients {
        for (name, index) in &client.placed {
            let entry = world.node(leader).disk.entry(*index).unwrap();
            assert_eq!(&entry.payload, name, "{}", world.event);
        }
    }
    totals.commits += world.checker.committed_index().0;
    totals.elections += world.checker.elections;
    totals.cuts += world.checker.cuts;
    totals.decided += world.decided;
    totals.handed_over += world.handed_over;
}

fn campaign(voters: u64, seeds: core::ops::Range<u64>, events: u64, damage: bool) {
    let mut totals = Totals::default();
    let count = seeds.end - seeds.start;
    for seed in seeds {
        run(voters, seed, events, damage, &mut totals);
    }
    let Totals {
        commits,
        elections,
        crashes,
        cuts,
        reads,
        retries,
        snapshots,
        raised,
        starts,
        rotted,
        suspects,
        decided,
        hangs,
        handed_over,
        late,
        expired,
        reused,
    } = totals;
    println!(
        "{voters} voters, {count} seeds: {commits} commits, {elections} elections, {crashes} crashes, {cuts} cuts, {reads} reads, {retries} session requests, {snapshots} snapshots, {raised} low-water marks, {starts} log starts, {rotted} rotten entries, {suspects} suspect writes, {decided} decided by denials, {hangs} hung disks, {handed_over} vote requests after a hand-over, {late} late answers, {expired} sessions expired, {reused} sequences used by another"
    );
    // A campaign in which nothing happened proves nothing.
    assert!(
        commits > 50 * count && elections > 2 * count && crashes > count && reads > count && retries > count
    );
    assert!(expired > count / 50 && reused > count / 10, "{expired} {reused}");
    let shortened = snapshots > count && raised > count && starts > count / 4;
    assert!(damage || shortened, "{snapshots} {raised} {starts}");
    assert!(
        // Damaged replicas are not asked to lead: with those there are few hand-overs.
        hangs > count && late > count && (voters < 3 || damage || handed_over > count / 10),
        "{hangs} {late} {handed_over}"
    );
    assert!(cuts > count / 20, "only {cuts} cuts");
    assert!(!damage || (rotted > 10 * count && suspects > count / 10 && decided > 0));
}

#[test]
fn three_replicas() {
    campaign(3, 0..300, 6_000, false);
}

#[test]
fn three_replicas_with_damage() {
    campaign(3, 1000..1300, 6_000, true);
}

#[test]
fn four_replicas_with_damage() {
    campaign(4, 1000..1080, 6_000, true);
}

#[test]
fn five_replicas_with_damage() {
    campaign(5, 1000..1100, 8_000, true);
}

#[test]
fn four_replicas() {
    campaign(4, 0..80, 6_000, false);
}

#[test]
fn five_replicas() {
    campaign(5, 0..150, 8_000, false);
}

#[test]
fn one_replica() {
    let mut totals = Totals::default();
    for seed in 0..20 {
        run(1, seed, 3_000, false, &mut totals);
    }
    assert!(totals.commits > 1000 && totals.crashes > 10);
}

#[test]
fn a_seed_replays_exactly() {
    let trace = || {
        let mut totals = Totals::default();
        run(3, 77, 4_000, true, &mut totals);
        (totals.commits, totals.elections, totals.crashes, totals.cuts, totals.reads, totals.retries)
    };
    assert_eq!(trace(), trace());
}
