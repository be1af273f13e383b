//! The command line from outside: exit codes, where output goes, and its form.

use std::path::PathBuf;
use std::process::{Command, Output};

fn tidelog(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidelog")).args(args).output().expect("the program starts")
}

fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    (output.status.code().expect("an exit code"), text(&output.stdout), text(&output.stderr))
}

/// A file in a directory of its own, gone with the value.
struct File {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl File {
    fn new(content: &str) -> File {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("node.toml");
        std::fs::write(&path, content).expect("a file");
        File { _dir: dir, path }
    }
    fn name(&self) -> &str {
        self.path.to_str().expect("UTF-8")
    }
}

const SOUND: &str = r#"
profile = ["laptop", "balanced"]
[node]
id = 1
data_dir = "data/n1"
[cluster]
name = "demo"
nodes = [{ id = 1, address = "127.0.0.1:7101" }, { id = 2, address = "127.0.0.1:7102" }]
partitions = 8
"#;

#[test]
fn a_sound_configuration() {
    let file = File::new(SOUND);
    let (code, stdout, stderr) = said(&tidelog(&["config", "check", file.name()]));
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("warning: ") && stdout.contains("cluster.replication = 2: is even"), "{stdout}");
    assert!(stdout.contains("is sound: node 1 of cluster \"demo\""), "{stdout}");

    let (code, stdout, _) = said(&tidelog(&["config", "check", file.name(), "--output", "json"]));
    let answer: serde_json::Value = serde_json::from_str(&stdout).expect("one JSON object");
    assert_eq!(code, 0);
    assert_eq!(answer["outcome"], "ok");
    assert_eq!(answer["warnings"][0]["key"], "cluster.replication");
}

#[test]
fn a_wrong_configuration_is_exit_code_2_with_every_complaint() {
    let file = File::new(&format!("{SOUND}[wal]\nsegment_size = \"1MiB\"\nsinc = \"auto\"\n"));
    for command in [["config", "check"], ["config", "show"], ["config", "explain"]] {
        let (code, stdout, stderr) = said(&tidelog(&[command[0], command[1], file.name()]));
        assert_eq!((code, stdout.as_str()), (2, ""));
        assert!(stderr.starts_with("error: 2 errors in the configuration"), "{stderr}");
        for part in [
            "node.toml:11:16: wal.segment_size = \"1MiB\"",
            "node.toml:12:1:",
            "is \"sync\" meant?",
            "next: ",
        ] {
            assert!(stderr.contains(part), "{part}: {stderr}");
        }
    }
    let (code, stdout, _) = said(&tidelog(&["config", "check", file.name(), "--output", "json"]));
    let answer: serde_json::Value = serde_json::from_str(&stdout).expect("one JSON object");
    assert_eq!((code, &answer["outcome"]), (2, &"invalid".into()));
    assert_eq!((&answer["errors"][0]["line"], &answer["errors"][0]["column"]), (&11.into(), &16.into()));
    assert_eq!(answer["errors"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_missing_configuration_is_exit_code_2() {
    for format in ["text", "json"] {
        let (code, stdout, stderr) =
            said(&tidelog(&["config", "check", "/nonexistent/node.toml", "--output", format]));
        assert_eq!((code, stdout.as_str()), (2, ""));
        assert!(stderr.contains("/nonexistent/node.toml"), "{stderr}");
    }
}

#[test]
fn what_is_shown_is_a_configuration() {
    let file = File::new(SOUND);
    let (code, shown, _) = said(&tidelog(&["config", "show", file.name()]));
    assert_eq!(code, 0);
    assert!(shown.contains("segment_size = \"16MiB\" # profile laptop"), "{shown}");
    let (code, again, stderr) = said(&tidelog(&["config", "show", File::new(&shown).name()]));
    assert_eq!(code, 0, "{stderr}");
    let values = |text: &str| -> Vec<String> {
        text.lines().map(|l| l.split(" # ").next().unwrap_or("").to_owned()).collect()
    };
    assert_eq!(values(&shown), values(&again));

    let (_, json, _) = said(&tidelog(&["config", "show", file.name(), "--output", "json"]));
    let answer: serde_json::Value = serde_json::from_str(&json).expect("one JSON object");
    assert_eq!(answer["profile"], serde_json::json!(["laptop", "balanced"]));
    assert_eq!(answer["keys"][0]["key"], "node.id");
}

#[test]
fn keys_are_explained() {
    let file = File::new(SOUND);
    let (code, stdout, _) = said(&tidelog(&["config", "explain", file.name(), "wal.sync"]));
    assert_eq!(code, 0);
    assert!(stdout.starts_with("wal.sync = \"auto\"\n") && stdout.contains("origin   default"), "{stdout}");
    let (_, stdout, _) =
        said(&tidelog(&["config", "explain", file.name(), "node.shards", "--output", "json"]));
    let answer: serde_json::Value = serde_json::from_str(&stdout).expect("one JSON object");
    assert!(answer["not_yet"].as_str().is_some_and(|text| text.contains("more than one shard")), "{stdout}");
    let (_, stdout, _) = said(&tidelog(&["config", "explain", file.name(), "--output", "json"]));
    assert!(stdout.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    let (code, _, stderr) = said(&tidelog(&["config", "explain", file.name(), "wal.magic"]));
    assert_eq!(code, 2);
    assert!(stderr.contains("wal.magic"), "{stderr}");
}

#[test]
fn wrong_usage_is_exit_code_2_and_says_what_is_right() {
    for (args, part) in [
        (&[][..], "Usage:"),
        (&["frobnicate"], "unrecognized subcommand"),
        (&["config", "check"], "<FILE>"),
        (&["append", "--cluster", "nowhere", "--output", "json"], "IP:port"),
        (&["append", "--cluster", "127.0.0.1:1", "--timeout", "5"], "no unit"),
        (&["append", "--cluster", "127.0.0.1:1", "--session", "s"], "--first-sequence"),
        (
            &[
                "append",
                "--cluster",
                "127.0.0.1:1",
                "--session",
                "s",
                "--first-sequence",
                "18446744073709551615",
            ],
            "--first-sequence",
        ),
        (&["read", "--cluster", "127.0.0.1:1", "--from", "0"], "--from"),
        (&["status"], "--cluster"),
        (&["serve"], "--config"),
        (&["serve", "--dev"], "--dir"),
        (&["serve", "--config", "a", "--dev", "--dir", "b"], "cannot be used with"),
        (&["sim", "--seeds", "7..3"], "no seeds"),
        (&["bench", "append"], "--cluster"),
        (&["demo", "--nodes", "0"], "--nodes"),
        (&["wal", "verify"], "<DIR>"),
    ] {
        let (code, stdout, stderr) = said(&tidelog(args));
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}: {stderr}");
        assert!(stderr.contains(part), "{args:?}: {stderr}");
    }
}

/// A command that does not exist is not listed, and is wrong usage.
#[test]
fn what_does_not_exist_is_not_listed() {
    let (_, help, _) = said(&tidelog(&["--help"]));
    for args in [
        &["member", "add", "--cluster", "127.0.0.1:1", "4"][..],
        &["leader", "transfer", "--partition", "0", "--to", "2"],
        &["partition", "list"],
        &["core", "get", "key"],
        &["lease", "grant", "name"],
        &["tune"],
        &["tail", "--cluster", "127.0.0.1:1"],
    ] {
        let (code, stdout, stderr) = said(&tidelog(args));
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}");
        assert!(stderr.starts_with("error: unrecognized subcommand"), "{stderr}");
        assert!(!help.contains(&format!("\n  {} ", args[0])), "{help}");
    }
}

#[test]
fn the_host_is_looked_at() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let name = dir.path().to_str().expect("UTF-8");
    let (code, stdout, stderr) = said(&tidelog(&["doctor", "--dir", name, "--output", "json"]));
    assert_eq!((code, stderr.as_str()), (0, ""));
    let answer: serde_json::Value = serde_json::from_str(&stdout).expect("one JSON object");
    assert!(answer["sync"]["dsync"]["p50_us"].as_u64().is_some_and(|us| us > 0), "{answer}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("the directory").count(), 0, "nothing is left behind");

    let (code, stdout, stderr) = said(&tidelog(&["doctor", "--dir", "/nonexistent"]));
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("/nonexistent") && stderr.contains("next: "), "{stderr}");
}

#[test]
fn help_lists_the_commands() {
    let (code, stdout, _) = said(&tidelog(&["--help"]));
    assert_eq!(code, 0);
    for command in ["demo", "serve", "append", "read", "status", "wal", "config", "bench", "doctor", "sim"] {
        assert!(stdout.contains(&format!("\n  {command} ")), "{stdout}");
    }
    let (code, stdout, _) = said(&tidelog(&["--version"]));
    assert_eq!((code, stdout), (0, format!("tidelog {}\n", env!("CARGO_PKG_VERSION"))));
}
