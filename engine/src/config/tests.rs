//! The table, the profiles, complaints and their places, and the way there and back.

use super::key::Kind;
use super::*;
use crate::options::Options;
use proptest::prelude::*;
use tidelog_consensus::Retention;

/// Three founders; `rest` is put behind it.
fn text(rest: &str) -> String {
    format!(
        "[node]\nid = 1\ndata_dir = \"data/n1\"\n[cluster]\nname = \"demo\"\nnodes = [\n  \
         {{ id = 1, address = \"127.0.0.1:7101\" }},\n  {{ id = 2, address = \"127.0.0.1:7102\" }},\n  \
         {{ id = 3, address = \"127.0.0.1:7103\" }},\n]\npartitions = 8\n{rest}"
    )
}

/// Lines before `rest` in [`text`].
const LINES: usize = 11;

fn complaints(text: &str) -> Vec<Complaint> {
    Config::parse(text, "node.toml").expect_err("should be refused").complaints().to_vec()
}

/// The one complaint about `key = value` in place of whatever the base text says of it.
fn complaint(key: &Key, value: &str) -> Complaint {
    let base = text("");
    let line = format!("{} = ", key.short());
    let changed = if key.scope == Scope::Node || key.name == "cluster.replication" {
        if key.section() == "cluster" {
            format!("{base}{line}{value}\n")
        } else if key.section() == "node" {
            base.replacen("[node]\n", &format!("[node]\n{line}{value}\n"), 1)
        } else {
            format!("{base}[{}]\n{line}{value}\n", key.section())
        }
    } else {
        let start = base.find(&line).expect("the base text says every required key");
        let end = if key.short() == "nodes" {
            base.find("\n]").map(|at| at + 2)
        } else {
            base[start..].find('\n').map(|at| start + at)
        };
        format!("{}{line}{value}{}", &base[..start], &base[end.unwrap()..])
    };
    let found = complaints(&changed);
    let place = changed.lines().position(|l| l.starts_with(&format!("{line}{value}"))).unwrap() + 1;
    let about: Vec<&Complaint> = found.iter().filter(|c| c.key == key.name).collect();
    assert_eq!(about.len(), 1, "{} = {value}: {found:?}", key.name);
    assert_eq!(found.len(), 1, "nothing else is wrong: {found:?}");
    let at = about[0].at.expect("a place");
    assert_eq!((at.line, at.column), (place, line.len() + 1), "{} = {value}", key.name);
    assert!(value.starts_with(about[0].value.trim_end_matches(" ...")), "{}", about[0].value);
    assert!(!about[0].value.is_empty());
    about[0].clone()
}

#[test]
fn every_key_refuses_a_wrong_type() {
    for key in keys() {
        for wrong in ["true", "1.5", "{ a = 1 }", "1979-05-27"] {
            complaint(key, wrong);
        }
        if !matches!(key.kind, Kind::Founders(_)) {
            complaint(key, "[]");
        }
        match key.kind {
            Kind::Count { .. } | Kind::NodeId(_) => drop(complaint(key, "\"many\"")),
            Kind::Size { .. } | Kind::Time { .. } => {
                assert!(complaint(key, "5").problem.contains("unit"));
                assert!(complaint(key, "\"5\"").problem.contains("unit"));
                assert!(complaint(key, "\"5 parsecs\"").problem.contains("unit"));
            }
            _ => drop(complaint(key, "5")),
        }
    }
}

#[test]
fn every_key_refuses_what_is_out_of_bounds_and_names_the_bound() {
    let size = |bytes: u64| format!("\"{}\"", unit::size_text(bytes));
    let time = |d: Duration| format!("\"{}\"", unit::duration_text(d));
    let millisecond = Duration::from_millis(1);
    for key in keys() {
        let wrong = match &key.kind {
            Kind::Count { min, max, .. } => {
                vec![(min - 1).to_string(), (max + 1).to_string(), "-1".into(), u128::MAX.to_string()]
            }
            Kind::Size { min, max, step, .. } => {
                let mut wrong = vec![size(max + step)];
                wrong.extend(min.checked_sub(*step).map(size));
                if *step > 1 {
                    assert!(complaint(key, &size(min + 1)).problem.contains("multiple"));
                }
                wrong
            }
            Kind::Time { min, max, .. } => {
                let below = min.checked_sub(millisecond).map(time);
                below.into_iter().chain([time(*max + millisecond)]).collect()
            }
            Kind::NodeId(_) => vec!["0".into(), "-1".into()],
            Kind::Shards(_) => {
                assert!(complaint(key, "2").problem.contains("not there yet"));
                vec![]
            }
            Kind::Name(_) => vec!["\"\"".into(), format!("\"{}\"", "n".repeat(65)), "\"a b\"".into()],
            Kind::Path(_) => {
                assert!(complaint(key, "\"\"").problem.contains("not empty"));
                vec![]
            }
            Kind::BackEnd(_) | Kind::Sync(_) | Kind::Place(_) => vec!["\"magic\"".into()],
            Kind::Founders(_) => {
                complaint(key, "[]");
                vec![]
            }
        };
        for value in wrong {
            if value.len() > 30 && !value.starts_with('"') {
                // Beyond what TOML's own integers can be: still one complaint, with its place.
                complaint(key, &value);
            } else {
                let complaint = complaint(key, &value);
                assert!(complaint.problem.contains(&key.bounds()), "{}: {}", key.name, complaint.problem);
            }
        }
    }
}

#[test]
fn required_keys_are_asked_for() {
    let found = complaints("");
    let missing: Vec<&str> = keys().iter().filter(|k| k.required()).map(|k| k.name).collect();
    let mut asked: Vec<&str> = found.iter().map(|c| c.key.as_str()).collect();
    asked.sort_by_key(|name| keys().iter().position(|k| k.name == *name));
    assert_eq!(asked, missing);
    let found = complaints(&text("").replace("id = 1\ndata_dir", "data_dir"));
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].key.as_str(), found[0].at), ("node.id", Some(At { line: 1, column: 2 })));
}

#[test]
fn unknown_names_are_refused_with_a_guess() {
    for (rest, line, column, expected) in [
        ("[wal]\nsegmentsize = \"16MiB\"\n", 2, 1, "is \"segment_size\" meant?"),
        ("[wal]\nheartbeat = \"50ms\"\n", 2, 1, "it stands in [replication]"),
        ("[wal]\nfsync = \"off\"\n", 2, 1, "is \"sync\" meant?"),
        ("[wal]\nwhatever = 1\n", 2, 1, "there are segment_size, sync"),
        // Nothing serves it: accepting it would promise something.
        ("[admin]\nlisten = \"127.0.0.1:9644\"\n", 1, 2, "there are cluster, io"),
        ("[wall]\n", 1, 2, "is [wal] meant?"),
        ("[whatever]\n", 1, 2, "there are cluster, io"),
    ] {
        let found = complaints(&text(rest));
        assert_eq!(found.len(), 1, "{rest}: {found:?}");
        assert_eq!(found[0].at, Some(At { line: LINES + line, column }), "{rest}");
        assert!(found[0].problem.contains("unknown") && found[0].problem.contains(expected), "{}", found[0]);
    }
    let found = complaints(&format!("heartbeat = \"50ms\"\n{}", text("")));
    assert!(found[0].problem.contains("stands in [replication]"), "{}", found[0]);
}

#[test]
fn all_complaints_come_at_once_in_the_order_of_the_text() {
    let found = complaints(&text(
        "replication = 12\n[wal]\nsegment_size = \"1MiB\"\nsync = \"never\"\n[replication]\nheartbeat = 50\nelection = 1\n",
    ));
    let places: Vec<(usize, &str)> =
        found.iter().map(|c| (c.at.unwrap().line - LINES, c.key.as_str())).collect();
    assert_eq!(
        places,
        [
            (1, "cluster.replication"),
            (3, "wal.segment_size"),
            (4, "wal.sync"),
            (6, "replication.heartbeat"),
            (7, "")
        ]
    );
    let said = Config::parse(&text("[wal]\nsegment_size = \"1MiB\"\n"), "node.toml").unwrap_err().to_string();
    assert_eq!(
        said,
        "1 error in the configuration\n  node.toml:13:16: wal.segment_size = \"1MiB\": must be within 16MiB to 4GiB, a multiple of 1MiB"
    );
}

#[test]
fn text_that_is_not_toml_is_refused_with_its_place() {
    for (broken, line) in [("[node\nid = 1\n", 1), ("[node]\nid = \n", 2), ("[node]\nid = 1\nid = 2\n", 3)] {
        let found = complaints(broken);
        assert!(found.iter().any(|c| c.at.is_some_and(|at| at.line == line)), "{broken}: {found:?}");
    }
    // Deeper than any stack, were it followed.
    complaints(&format!("a = {}", "[".repeat(200_000)));
}

#[test]
fn founders_are_judged_one_by_one() {
    let with = |nodes: &str| {
        format!(
            "[node]\nid = 1\ndata_dir = \"d\"\n[cluster]\nname = \"demo\"\npartitions = 8\nnodes = [\n{nodes}\n]\n"
        )
    };
    let one = "{ id = 1, address = \"127.0.0.1:7101\" }";
    for (nodes, expected) in [
        ("7".to_string(), "must be a table"),
        ("{ id = 1 }".into(), "address is missing"),
        ("{ address = \"127.0.0.1:7101\" }".into(), "id is missing"),
        ("{ id = 0, address = \"127.0.0.1:7101\" }".into(), "1 or more"),
        ("{ id = 1, address = \"node1:7101\" }".into(), "host names are not looked up"),
        ("{ id = 1, address = 7101 }".into(), "must be a text"),
        ("{ id = 1, addresses = [] }".into(), "must be a list of texts"),
        ("{ id = 1, port = 7101, address = \"127.0.0.1:7101\" }".into(), "unknown key \"port\""),
        (
            "{ id = 1, address = \"127.0.0.1:7101\", addresses = [\"127.0.0.1:7101\"] }".into(),
            "both address and addresses",
        ),
        (format!("{one}, {{ id = 1, address = \"127.0.0.1:7102\" }}"), "id 1 is there twice"),
        (format!("{one}, {{ id = 2, address = \"127.0.0.1:7101\" }}"), "127.0.0.1:7101 is there twice"),
        (format!("{one}, {{ id = 2, address = \"0.0.0.0:7102\" }}"), "cannot be dialled"),
        (format!("{one}, {{ id = 2, address = \"127.0.0.1:0\" }}"), "cannot be dialled"),
    ] {
        let found = complaints(&with(&nodes));
        assert_eq!(found.len(), 1, "{nodes}: {found:?}");
        assert_eq!(found[0].at.unwrap().line, 8, "{nodes}");
        assert!(found[0].problem.contains(expected), "{nodes}: {}", found[0]);
    }
    let many: Vec<String> =
        (1..=65).map(|n| format!("{{ id = {n}, address = \"127.0.0.1:{}\" }}", 7100 + n)).collect();
    assert!(complaints(&with(&many.join(",")))[0].problem.contains("has 65"));

    // Alone, a node may listen on any free port, and on all interfaces.
    let alone = Config::parse(&with("{ id = 1, address = \"0.0.0.0:0\" }"), "alone").unwrap();
    assert_eq!(alone.own().unwrap().address(ShardId(0)), "0.0.0.0:0".parse().ok());
}

#[test]
fn relations_are_judged() {
    for (from, to, rest, key, expected) in [
        ("id = 1\ndata_dir", "id = 9\ndata_dir", "", "node.id", "(ids 1, 2, 3)"),
        ("", "", "replication = 5\n", "cluster.replication", "there are 3"),
        (
            "",
            "",
            "[replication]\nheartbeat = \"200ms\"\n",
            "replication.election_timeout",
            "at least 3 x replication.heartbeat = 600ms",
        ),
        (
            "",
            "",
            "[replication]\nchannel_timeout = \"100ms\"\n",
            "replication.channel_timeout",
            "at least 3 x replication.heartbeat = 150ms",
        ),
        (
            "",
            "",
            "[replication]\nstall_timeout = \"400ms\"\n",
            "replication.stall_timeout",
            "at least replication.election_timeout = 500ms",
        ),
        (
            "{ id = 1, address = \"127.0.0.1:7101\" }",
            "{ id = 1, addresses = [\"127.0.0.1:1\", \"127.0.0.1:2\"] }",
            "",
            "cluster.nodes",
            "lists 2 addresses for node 1",
        ),
    ] {
        let found = complaints(&text(rest).replacen(from, to, 1));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].key, key);
        assert!(found[0].at.is_some() && found[0].problem.contains(expected), "{}", found[0]);
    }
    // A relation with a key that is wrong by itself is not judged.
    let found = complaints(&text("[replication]\nheartbeat = \"1h\"\nelection_timeout = \"20ms\"\n"));
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn what_deserves_a_second_look_is_allowed() {
    for (rest, key, expected) in [
        ("replication = 2\n", "cluster.replication", "than 1 do"),
        ("[replication]\nchannel_timeout = \"400ms\"\n", "replication.channel_timeout", "busy node"),
    ] {
        let config = Config::parse(&text(rest), "node.toml").unwrap();
        assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
        assert_eq!(config.warnings[0].key, key);
        assert!(config.warnings[0].problem.contains(expected), "{}", config.warnings[0]);
    }
}

#[test]
fn profiles_come_first_and_keys_override_them() {
    let config = Config::parse(
        &format!("profile = [\"tiny\", \"nvme\"]\n{}", text("[wal]\nspare_segments = 7\n")),
        "node.toml",
    )
    .unwrap();
    assert_eq!(config.profile, ["nvme", "tiny"], "the device's first");
    assert_eq!(config.wal.segment_size, 16 << 20, "the goal's over the device's");
    assert_eq!(config.wal.spare_segments, 7, "the key over both");
    assert_eq!(config.origin("wal.segment_size").to_string(), "profile tiny");
    assert_eq!(config.origin("wal.spare_segments").to_string(), "node.toml:14:18");
    assert_eq!(config.origin("wal.seal_after").to_string(), "default");
    assert_eq!(
        config.origin("replication.channel_timeout").to_string(),
        "default, 10 x replication.heartbeat"
    );

    // What follows from a key follows from it wherever that comes from.
    let config = Config::parse(&format!("profile = \"latency\"\n{}", text("")), "node.toml").unwrap();
    assert_eq!(config.replication.channel_timeout, Duration::from_millis(200));
    assert_eq!(config.replication.stall_timeout, Duration::from_millis(400));
    assert_eq!(config.cluster.replication, 3);
}

#[test]
fn profiles_that_do_not_go_together() {
    for (profile, column, expected) in [
        ("[\"laptop\", \"hdd\"]", 22, "second device profile beside \"laptop\""),
        ("[\"tiny\", \"latency\"]", 20, "second goal profile"),
        ("[\"turbo\"]", 12, "devices: laptop, cloud-ssd, nvme, nvme-plp, hdd; goals: balanced"),
        ("7", 11, "must be a list of names"),
        ("[7]", 11, "must be a list of names"),
    ] {
        let found = complaints(&format!("profile = {profile}\n{}", text("")));
        assert_eq!(found.len(), 1, "{profile}: {found:?}");
        assert_eq!(found[0].at, Some(At { line: 1, column }), "{profile}");
        assert!(found[0].problem.contains(expected), "{}", found[0]);
    }
}

/// All pairs of profiles are sound, without warnings, and set nothing that nodes have to agree on (R12: hence
/// nothing about what an acknowledgement means, for which there is no key at all).
#[test]
fn every_profile_is_sound() {
    for profile in PROFILES {
        for (name, _) in profile.sets {
            assert_eq!(table::find(name).unwrap().scope, Scope::Node, "{}: {name}", profile.name);
        }
    }
    for device in PROFILES.iter().filter(|p| p.kind == ProfileKind::Device) {
        for goal in PROFILES.iter().filter(|p| p.kind == ProfileKind::Goal) {
            let text = format!("profile = [{:?}, {:?}]\n{}", device.name, goal.name, text(""));
            let config = Config::parse(&text, "node.toml").unwrap();
            assert!(config.warnings.is_empty(), "{:?}", config.warnings);
            assert_same(&config, &Config::parse(&config.to_toml(), "again").unwrap());
        }
    }
}

fn assert_same(a: &Config, b: &Config) {
    for key in keys() {
        assert_eq!(key.value(a), key.value(b), "{}", key.name);
    }
    assert_eq!((&a.profile, &a.node, &a.cluster, &a.io), (&b.profile, &b.node, &b.cluster, &b.io));
    assert_eq!((&a.wal, &a.replication, &a.limits), (&b.wal, &b.replication, &b.limits));
    assert_eq!((&a.snapshot, &a.retention), (&b.snapshot, &b.retention));
    assert_eq!(a.scrub, b.scrub);
}

#[test]
fn the_effective_configuration_says_every_key_and_its_origin() {
    let config = Config::parse(&text("[snapshot]\nevery = \"128MiB\"\n"), "a\n\"b\".toml").unwrap();
    let effective = config.to_toml();
    for key in keys() {
        assert!(effective.contains(&format!("\n{} = ", key.short())), "{}", key.name);
    }
    assert!(effective.contains("segment_size = \"64MiB\" # default\n"), "{effective}");
    assert_same(&config, &Config::parse(&effective, "again").unwrap());
}

#[test]
fn a_configuration_put_together_by_a_program() {
    let mut config = Config::single("some \"where\\ else");
    assert_same(&config, &config.checked().unwrap());
    config.apply_profile("nvme").unwrap();
    config.apply_profile("tiny").unwrap();
    config.apply_profile("laptop").unwrap();
    assert_eq!(config.profile, ["tiny", "laptop"], "one of each kind");
    assert_eq!(config.replication.channel_timeout, Duration::from_millis(500));
    assert!(config.apply_profile("turbo").unwrap_err().to_string().contains("turbo"));

    config.wal.segment_size = 1;
    config.cluster.partitions = 0;
    let error = config.checked().unwrap_err();
    let wrong: Vec<&str> = error.complaints().iter().map(|c| c.key.as_str()).collect();
    assert_eq!(wrong, ["cluster.partitions", "wal.segment_size"]);
}

#[test]
fn numbers_in_every_way_that_toml_has() {
    for eight in ["8", "+8", "0x8", "0o10", "0b1000"] {
        let text = text("").replace("partitions = 8", &format!("partitions = {eight}"));
        assert_eq!(Config::parse(&text, "node.toml").unwrap().cluster.partitions, 8, "{eight}");
    }
    let many = text("").replace("partitions = 8", "partitions = 1_024");
    assert_eq!(Config::parse(&many, "node.toml").unwrap().cluster.partitions, 1024);
}

#[test]
fn shards_have_addresses() {
    let address = |text: &str| text.parse::<SocketAddr>().ok();
    let base = Founder { id: NodeId(1), addresses: vec![address("10.0.0.1:65535").unwrap()] };
    assert_eq!(base.address(ShardId(0)), address("10.0.0.1:65535"));
    assert_eq!(base.address(ShardId(1)), None);
    let listed = ["10.0.0.1:5", "10.0.0.1:9"].map(|a| address(a).unwrap());
    let listed = Founder { id: NodeId(1), addresses: listed.to_vec() };
    assert_eq!(listed.address(ShardId(1)), address("10.0.0.1:9"));
    assert_eq!(listed.address(ShardId(2)), None);
}

#[test]
fn files_that_cannot_be_read() {
    let error = Config::load("/nonexistent/node.toml").unwrap_err().to_string();
    assert!(error.contains("/nonexistent/node.toml"), "{error}");
    assert!(Config::load("/dev/zero").unwrap_err().to_string().contains("larger than 1MiB"));
    let own = Config::load("/").unwrap_err().to_string();
    assert!(own.contains("cannot read"), "{own}");
}

#[test]
fn what_is_kept_is_off_unless_it_is_said() {
    let keep = |rest: &str| Options::from(&Config::parse(&text(rest), "node.toml").unwrap()).keep;
    let by_default = keep("");
    assert_eq!((by_default.retention, by_default.snapshot_interval), (Retention::default(), None));
    assert_eq!((by_default.snapshot_every, by_default.follower_bytes), (64 << 20, 64 << 20));
    let said = keep("[snapshot]\ninterval = \"10min\"\n[retention]\nage = \"7h\"\nbytes = \"1GiB\"\n");
    let age = Some(Duration::from_secs(7 * 3600));
    assert_eq!(said.retention, Retention { age, bytes: Some(1 << 30) });
    assert_eq!(said.snapshot_interval, Some(Duration::from_secs(600)));
    assert!(Config::parse(&text("[retention]\nage = \"200000h\"\n"), "node.toml").is_err());
}

#[test]
fn a_key_is_explained() {
    let config = Config::parse(&text("[snapshot]\nevery = \"128MiB\"\n"), "node.toml").unwrap();
    let said = config.explain("snapshot.every").unwrap().to_string();
    for part in
        ["snapshot.every = \"128MiB\"", "origin   node.toml:13:9", "default  64MiB", "scope    may differ"]
    {
        assert!(said.contains(part), "{said}");
    }
    assert!(config.explain("node.shards").unwrap().to_string().contains("not yet  more than one shard"));
    assert!(config.explain("snapshot").is_none());
    for key in keys() {
        assert!(key.effect.ends_with('.') && !config.explain(key.name).unwrap().to_string().is_empty());
    }
}

/// `docs/configuration.md` is what the table says. To write it anew: `TIDELOG_WRITE_PAGES=1 cargo test -p tidelog config`.
#[test]
fn the_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    if std::env::var_os("TIDELOG_WRITE_PAGES").is_some() {
        std::fs::write(&path, reference()).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap();
    assert!(found == reference(), "{} is stale: see this test's comment", path.display());
}

proptest! {
    #[test]
    fn any_text_is_an_answer(text: String) {
        let _ = Config::parse(&text, "any");
    }

    /// A sound text with a piece replaced by something else: an answer, and each complaint has a place within the text.
    #[test]
    fn a_damaged_text_is_an_answer(
        from in 0usize..400, len in 0usize..12, with in "[ -~\n]{0,12}", cut in proptest::bool::ANY,
    ) {
        let mut damaged: Vec<char> = text("[wal]\nsegment_size = \"16MiB\"\n[replication]\nheartbeat = \"50ms\"\n").chars().collect();
        let from = from.min(damaged.len());
        let to = if cut { damaged.len() } else { (from + len).min(damaged.len()) };
        damaged.splice(from..to, with.chars());
        let damaged: String = damaged.into_iter().collect();
        match Config::parse(&damaged, "damaged") {
            Ok(config) => assert_same(&config, &Config::parse(&config.to_toml(), "again").unwrap()),
            Err(error) => {
                prop_assert!(!error.complaints().is_empty());
                for at in error.complaints().iter().filter_map(|c| c.at) {
                    prop_assert!(at.line <= damaged.matches('\n').count() + 1, "{error}");
                }
            }
        }
    }
}
