//! Being asked to stop. In a process of its own: handlers are the process's.

use std::sync::mpsc;
use tidelog_io::signals::{Signal, on_termination, send};

#[test]
fn every_request_to_stop_is_heard() {
    let (asked, heard) = mpsc::channel();
    on_termination(move |times| {
        let _gone = asked.send(times);
    })
    .expect("the first");
    assert!(on_termination(|_| {}).is_err(), "the second");
    for times in 1..=3 {
        send(std::process::id(), Signal::Terminate).expect("our own process");
        assert_eq!(heard.recv(), Ok(times));
    }
    assert!(send(0, Signal::Kill).is_err(), "0 is a whole group");
    assert!(send(u32::MAX, Signal::Kill).is_err(), "-1 is everybody");
}
