//! A data directory that was copied or restored is refused where it lies; one that lies where it was written is not.

use std::path::Path;
use tidelog::adoption::adopt;
use tidelog::config::Config;
use tidelog::engine::no_machines;
use tidelog::identity::{Identity, Loaded};
use tidelog::transport::NoTransport;
use tidelog::{Commands, Options, Shard};
use tidelog_io::{Foreground, Op};
use tidelog_sim::{DiskFault, Moment, World};

const NODE: u64 = 1;
const DIR: &str = "/data/n";

fn options() -> Options {
    Options { segment_bytes: 8192 + (10 << 20), scrub_rate: 0, ..Options::from(&Config::single(DIR)) }
}

/// Opens and ends, as a crash does. What was said if it was refused.
fn start(world: &World, options: Options) -> Result<(), String> {
    let mut io = world.node(NODE);
    let opened = Shard::open(&mut io, options, Box::new(NoTransport), Commands::none(), no_machines());
    world.crash(NODE);
    opened.map(drop).map_err(|error| error.to_string())
}

fn load(world: &World) -> Loaded {
    let loaded = Identity::load(&mut Foreground::new(&mut world.node(NODE)), Path::new(DIR));
    world.crash(NODE);
    loaded.unwrap().unwrap()
}

fn adopted(world: &World, apply: bool) -> (bool, bool) {
    let adoption = adopt(&mut world.node(NODE), Path::new(DIR), apply, false).unwrap();
    world.crash(NODE);
    (adoption.in_place, adoption.adopted)
}

#[test]
fn a_copy_is_refused_until_it_is_adopted_and_is_not_touched() {
    let world = World::new(1);
    start(&world, options()).unwrap();
    start(&world, options()).unwrap();
    let original = world.disk_image(NODE);
    world.put_copy(NODE, &original);
    let before = load(&world);
    for _ in 0..2 {
        let said = start(&world, options()).unwrap_err();
        assert!(said.contains("copied or restored") && said.contains("tidelog node adopt /data/n"), "{said}");
    }
    assert_eq!(load(&world), before, "a refused copy stays as it is");
    assert_eq!(adopted(&world, false), (false, false), "only looked at");
    assert!(start(&world, options()).is_err());
    assert_eq!(adopted(&world, true), (false, true));
    assert_eq!(adopted(&world, true), (true, false), "nothing is left to adopt");
    start(&world, options()).unwrap();
    // And the other way round: the original is a copy now to whoever adopted.
    world.put_back(NODE, &original);
    start(&world, options()).expect("what the original says of itself is still so");
}

#[test]
fn the_key_turns_the_check_off() {
    let world = World::new(1);
    start(&world, options()).unwrap();
    world.put_copy(NODE, &world.disk_image(NODE));
    start(&world, Options { place_checked: false, ..options() }).unwrap();
    assert!(start(&world, options()).is_err(), "the file still names the place where it was written");
}

/// A reused inode number is told from the original by its birth, where the file system keeps that.
#[test]
fn without_a_birth_the_inode_decides() {
    let mut taken = 0;
    for copies in 1..=16 {
        let world = World::new(1);
        world.keep_births(NODE, false);
        start(&world, options()).unwrap();
        for _ in 0..copies {
            world.put_copy(NODE, &world.disk_image(NODE));
        }
        let found = load(&world);
        let (written, found) = (found.found.identity.place.unwrap(), found.place);
        assert_eq!((written.born_ns, found.born_ns), (None, None));
        assert_eq!(start(&world, options()).is_ok(), written.inode == found.inode);
        taken += u32::from(written.inode == found.inode);
        // It was written when births were kept, and is found where they are: never the same twice.
        let world = World::new(1);
        start(&world, options()).unwrap();
        for _ in 0..copies {
            world.put_copy(NODE, &world.disk_image(NODE));
        }
        assert!(start(&world, options()).is_err());
    }
    assert!(taken > 0, "the simulated numbers do come back");
}

/// The build before wrote no place: the first start writes it, whatever happens meanwhile, and a copy made later is refused.
#[test]
fn a_directory_of_the_build_before_gets_its_place_at_the_first_start() {
    let old = |seed| {
        let world = World::new(seed);
        start(&world, options()).unwrap();
        let mut page = load(&world).found.identity.encode();
        page[12] = 1;
        page[76..128].fill(0);
        let crc = crc32c::crc32c(&page[12..]);
        page[8..12].copy_from_slice(&crc.to_le_bytes());
        assert!(world.write_raw(NODE, "/data/n/identity", 0, &page.repeat(2)));
        assert_eq!(load(&world).found.identity.place, None);
        world
    };
    let operations = {
        let world = old(1);
        start(&world, options()).unwrap();
        world.disk_ops(NODE)
    };
    for number in 0..operations {
        for moment in [Moment::Before, Moment::Inside, Moment::After] {
            let world = old(number);
            world.crash_at(NODE, number, moment);
            drop(start(&world, options()));
            let identity = load(&world).found.identity;
            assert!(identity.has_log, "nothing else is lost: {identity:?}");
            start(&world, options()).expect("it begins again");
            let loaded = load(&world);
            assert_eq!(loaded.found.identity.place, Some(loaded.place));
            world.put_copy(NODE, &world.disk_image(NODE));
            assert!(start(&world, options()).is_err());
        }
    }
}

#[test]
fn moving_within_a_file_system_keeps_the_place() {
    let world = World::new(1);
    start(&world, options()).unwrap();
    let mut io = world.node(NODE);
    let mut fg = Foreground::new(&mut io);
    for (from, to) in [("identity", "aside"), ("aside", "identity")] {
        fg.run(Op::Rename { from: Path::new(DIR).join(from), to: Path::new(DIR).join(to) }).unwrap();
    }
    fg.run(Op::SyncDir { path: DIR.into() }).unwrap();
    drop(fg);
    world.crash(NODE);
    start(&world, options()).unwrap();
}

/// The name that a process gave the file just before it ended was taken for durable by the next one: a node could run as a member, and be a
/// founder again after a power loss.
#[test]
fn an_identity_that_a_dead_process_left_is_made_durable_before_anything_rests_on_it() {
    let world = World::new(6);
    start(&world, options()).unwrap();
    // None while a power loss may take the name back.
    let durable = || {
        let bytes = world.durable_contents(NODE, Path::new(DIR).join("identity"))?;
        Some(Identity::decode(&bytes[..4096]).unwrap())
    };
    let old = load(&world).found.identity;
    let mut io = world.node(NODE);
    // Removing what was left, creating, writing, syncing, renaming; and then the sync of the directory.
    world.fail_at(NODE, 5, DiskFault::NameError);
    let stored = old.clone().store(&mut Foreground::new(&mut io), Path::new(DIR));
    assert!(stored.unwrap_err().to_string().contains("sync directory"));
    drop(io);
    world.kill(NODE);
    assert_eq!(durable(), None, "a power loss may bring the old one back");

    let mut io = world.node(NODE);
    let shard = Shard::open(&mut io, options(), Box::new(NoTransport), Commands::none(), no_machines());
    let shard = shard.unwrap();
    assert_ne!(shard.identity().place, old.place);
    assert_eq!(durable().as_ref(), Some(shard.identity()));
}
