//! A client's connection to one node.

use crate::pipe::Pipe;
use crate::slab::Key;
use core::time::Duration;
use std::collections::VecDeque;
use std::net::SocketAddr;
use tidelog_types::Monotonic;

/// How far a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Waits for its turn to dial.
    Idle,
    /// The connect is in flight.
    Dialling,
    /// Hello said, answer awaited. No request is sent before it.
    Greeting,
    Up,
    /// Waits for its last completions.
    Closed,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) address: SocketAddr,
    pub(super) lane: u32,
    pub(super) state: State,
    pub(super) since: Monotonic,
    pub(super) pipe: Option<Pipe>,
    /// Requests to be sent.
    pub(super) queue: VecDeque<Key>,
    /// Requests sent and not answered.
    pub(super) in_flight: usize,
    /// When the oldest of them may have been sent: silence before that is nothing to the node.
    pub(super) asked_since: Monotonic,
    /// Most of them that the node reads.
    pub(super) in_flight_max: usize,
    pub(super) dirty: bool,
    /// Since when an answer or a greeting is awaited, and for how long it may take before others are asked as well.
    pub(super) watched: Option<(Monotonic, Duration)>,
}

impl Link {
    pub(super) fn new(address: SocketAddr, lane: u32, now: Monotonic) -> Link {
        Link {
            address,
            lane,
            state: State::Idle,
            since: now,
            pipe: None,
            queue: VecDeque::new(),
            in_flight: 0,
            asked_since: now,
            in_flight_max: usize::MAX,
            dirty: false,
            watched: None,
        }
    }

    /// Whether something is to be sent and may be.
    pub(super) fn is_ready(&self) -> bool {
        self.state == State::Up
            && !self.queue.is_empty()
            && self.in_flight < self.in_flight_max
            && self.pipe.as_ref().is_some_and(|p| !p.is_sending() && !p.is_closing())
    }
}
