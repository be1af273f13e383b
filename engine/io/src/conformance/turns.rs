//! Time, tokens, randomness, waking.

use super::{Bench, Check};
use crate::{Op, Token, Wait};
use core::time::Duration;
use std::collections::BTreeSet;
use tidelog_types::limits::PAGE_BYTES;

pub(super) const CHECKS: &[Check] = &[
    ("time: stands still between polls", time_stands_still),
    ("time: deadlines are kept", deadlines),
    ("time: a poll without waiting returns", poll_without_waiting),
    ("tokens: come back as they went", tokens),
    ("random: differs", random_differs),
    ("waker: a wake before the wait is not lost", wake_before_wait),
    ("waker: wakes a sleeper", wake_during_wait),
];

fn time_stands_still(b: &mut Bench) {
    b.poll(Wait::No);
    let before = b.setup.io.clock();
    let path = b.path("sub");
    let token = b.submit(Op::CreateDir { path });
    let data = b.pages(256, 1);
    demand!(b, data.len() == 256 * PAGE_BYTES, "some work");
    demand!(b, b.setup.io.clock() == before, "time only moves on in poll");
    b.wait_ok(token);
    demand!(b, b.setup.io.clock().now >= before.now, "and never goes back");
}

fn deadlines(b: &mut Bench) {
    b.poll(Wait::No);
    for millis in [1u64, 3, 10] {
        let deadline = b.setup.io.clock().now.after(Duration::from_millis(millis));
        let mut polls = 0;
        while b.setup.io.clock().now < deadline {
            demand!(b, b.poll(Wait::Until(deadline)) == 0, "nothing was submitted");
            polls += 1;
            demand!(b, polls < 100, "a wait lasts until its deadline, or nearly");
        }
    }
    // a brief wait ends no earlier, whether the moment is near or not
    for micros in [0u64, 10, 50, 100, 2000] {
        let deadline = b.setup.io.clock().now.after(Duration::from_micros(micros));
        let mut polls = 0;
        while b.setup.io.clock().now < deadline {
            demand!(b, b.poll(Wait::Briefly(deadline)) == 0, "nothing was submitted");
            polls += 1;
            demand!(b, polls < 100, "a wait lasts until its deadline, or nearly");
        }
    }
    // a deadline that has passed does not wait
    let past = b.setup.io.clock().now;
    demand!(b, b.poll(Wait::Until(past)) == 0, "nothing was submitted");
    // a completion comes before a late deadline
    let far = b.setup.io.clock().now.after(Duration::from_secs(3600));
    let path = b.path("sub");
    let token = b.submit(Op::CreateDir { path });
    while !b.done.contains_key(&token) {
        b.poll(Wait::Until(far));
    }
    demand!(b, b.setup.io.clock().now < far, "completions end a wait");
    b.wait_ok(token);
}

fn poll_without_waiting(b: &mut Bench) {
    let before = b.setup.io.clock().now;
    for _ in 0..10 {
        demand!(b, b.poll(Wait::No) == 0, "nothing was submitted");
    }
    demand!(b, b.setup.io.clock().now >= before, "time does not go back");
}

fn tokens(b: &mut Bench) {
    let sent = [Token::wal(0), Token::net(1), Token::engine((1 << 56) - 1)];
    for token in sent {
        b.waiting.insert(token);
        let path = b.path("sub");
        b.setup.io.submit(token, Op::CreateDir { path });
    }
    for token in sent {
        b.wait_ok(token);
    }
}

fn random_differs(b: &mut Bench) {
    let drawn: BTreeSet<u64> = (0..100).map(|_| b.setup.io.random()).collect();
    demand!(b, drawn.len() == 100, "a hundred draws, no two alike");
}

fn wake_before_wait(b: &mut Bench) {
    b.setup.io.waker().wake();
    b.setup.io.waker().wake();
    demand!(b, b.poll(Wait::Forever) == 0, "a wake-up is not a completion");
    // waking again after that works as well
    b.setup.io.waker().wake();
    demand!(b, b.poll(Wait::Forever) == 0, "a wake-up is not a completion");
}

fn wake_during_wait(b: &mut Bench) {
    for _ in 0..200 {
        let waker = b.setup.io.waker();
        let other = std::thread::spawn(move || waker.wake());
        demand!(b, b.poll(Wait::Forever) == 0, "a wake-up is not a completion");
        if other.join().is_err() {
            b.fail("the waking thread");
        }
    }
    // However far away the moment of a brief wait is.
    for micros in [40u64, 3_600_000_000] {
        let waker = b.setup.io.waker();
        let other = std::thread::spawn(move || waker.wake());
        let until = b.setup.io.clock().now.after(Duration::from_micros(micros));
        demand!(b, b.poll(Wait::Briefly(until)) == 0, "a wake-up is not a completion");
        if other.join().is_err() {
            b.fail("the waking thread");
        }
        b.poll(Wait::No); // the short wait may have ended before its wake-up
    }
}
