//! Every subject takes a load and gives a whole report. No figure is judged: only that what is counted adds up.

use core::time::Duration;
use tidelog_bench::{AppendOptions, Baseline, BenchError, Pace, Report, Spacing, Subject, append};

fn options(subject: Subject, dir: &tempfile::TempDir) -> AppendOptions {
    AppendOptions {
        seconds: 0.2,
        warm_seconds: 0.02,
        payload_bytes: 300,
        pace: Pace::Closed { writers: 8 },
        device_cell: None,
        ..AppendOptions::new(subject, Some(dir.path().to_owned()))
    }
}

/// What holds of every report.
fn check(report: &Report, dir: &tempfile::TempDir) {
    assert!(report.records > 0 && report.errors == 0, "{report}");
    assert!(report.seconds >= 0.2 && report.records_per_s > 0.0, "{report}");
    assert!(report.latency_us.p50 > 0.0 && report.latency_us.p50 <= report.latency_us.max, "{report}");
    assert!(
        report.cpu_us_per_record > 0.0 && report.cpu_load_us_per_record <= report.cpu_us_per_record,
        "{report}"
    );
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["records"], report.records);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn an_engine_through_its_handle() {
    let dir = tempfile::tempdir().unwrap();
    let report = append(&options(Subject::Engine, &dir)).unwrap();
    check(&report, &dir);
    assert_eq!((report.name.as_str(), report.shape.writers), ("tidelog", Some(8)));
}

#[test]
fn an_engine_on_the_load_s_own_thread_in_several_rounds_beside_the_device() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(Subject::Inline, &dir);
    options.rounds = 2;
    options.partitions = 5;
    options.device_cell = Some(Duration::from_millis(1));
    options.profiles = vec!["laptop".into()];
    let report = append(&options).unwrap();
    check(&report, &dir);
    assert_eq!(report.device.as_ref().unwrap().rounds, 2);
    assert!(report.records_per_batch.unwrap() >= 1.0 && report.profile == "laptop");
}

#[test]
fn an_open_loop_acknowledges_what_it_offered() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(Subject::Engine, &dir);
    options.pace = Pace::Open { per_second: 500.0, spacing: Spacing::Uniform, in_flight_max: 1000 };
    let log = dir.path().join("latency.hlog");
    options.latency_log = Some(log.clone());
    let report = append(&options).unwrap();
    assert!(
        std::fs::read_to_string(&log).unwrap().contains("Tag")
            || std::fs::metadata(&log).unwrap().len() > 100
    );
    std::fs::remove_file(log).unwrap();
    check(&report, &dir);
    // 0.2 s at 500/s, each counted whether it was fast or slow.
    assert!((99..=101).contains(&report.latencies.count()), "{report}");
}

#[test]
fn a_baseline() {
    let dir = tempfile::tempdir().unwrap();
    let report = append(&options(Subject::Baseline { which: Baseline::Blocking, depth: 1 }, &dir)).unwrap();
    check(&report, &dir);
    assert!(report.batches.unwrap() > 0 && report.name == "blocking");
}

#[test]
fn a_node_over_the_network_one_connection_a_writer_and_pipelined() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let node = tidelog_net::open(tidelog::config::Config::single(data.path())).unwrap();
    let addresses = vec![node.ready().address.unwrap()];
    for (connections, used) in [(None, 8), (Some(2), 2)] {
        let subject = Subject::Cluster { addresses: addresses.clone(), connections, servers: Vec::new() };
        let report = append(&options(subject, &dir)).unwrap();
        check(&report, &dir);
        assert_eq!((report.shape.connections, report.name.as_str()), (Some(used), "tidelog1"));
    }
    node.close().unwrap();
}

#[test]
fn a_cluster_that_is_not_there_is_an_error() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let subject = Subject::Cluster { addresses: vec![nobody], connections: None, servers: Vec::new() };
    let mut options = options(subject, &dir);
    options.ready = Duration::from_millis(300);
    options.timeout = Duration::from_millis(100);
    assert!(matches!(append(&options), Err(BenchError::Target(_))));
}

#[test]
fn options_that_do_not_fit_are_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |change: fn(&mut AppendOptions)| {
        let mut options = options(Subject::Engine, &dir);
        change(&mut options);
        assert!(matches!(append(&options), Err(BenchError::Options(_))), "{options:?}");
    };
    refused(|o| o.seconds = 0.0);
    refused(|o| o.seconds = f64::NAN);
    refused(|o| o.warm_seconds = -1.0);
    refused(|o| o.rounds = 0);
    refused(|o| o.payload_bytes = 3);
    refused(|o| o.partitions = 0);
    refused(|o| o.dir = None);
    refused(|o| o.pace = Pace::Closed { writers: 0 });
    refused(|o| {
        o.subject = Subject::Cluster { addresses: Vec::new(), connections: None, servers: Vec::new() };
    });
    let mut options = options(Subject::Engine, &dir);
    options.profiles = vec!["no such profile".into()];
    assert!(matches!(append(&options), Err(BenchError::Config(_))));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
