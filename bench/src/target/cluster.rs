//! A cluster over the network, through the client's machine on the load generator's own thread.

use super::{Rotation, outcome_of};
use crate::clock::{self, Moment};
use crate::error::BenchError;
use crate::load::{Done, Outcome, Target};
use bytes::Bytes;
use core::time::Duration;
use std::net::SocketAddr;
use tidelog_io::{BackEnd, Completion, Io, IoOptions, TokenClass, Wait, open_back_end};
use tidelog_net::{ClientCore, ClientError, ClientOptions, ClientRequest};

/// Most connections to one node.
const CONNECTIONS_MAX: u32 = 4096;

/// How to reach a cluster.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Nodes of it.
    pub addresses: Vec<SocketAddr>,
    /// Connections to a node. As many as writers: one record in flight on each; fewer: they are pipelined.
    pub connections: u32,
    /// Partitions written to.
    pub partitions: u64,
    /// Most records in flight.
    pub in_flight_max: u32,
    /// Length of each payload.
    pub payload_bytes: usize,
    /// A record that is not answered in this time counts as unknown.
    pub timeout: Duration,
    /// What the client runs on.
    pub back_end: BackEnd,
}

/// See the module.
pub struct ClusterTarget {
    io: Box<dyn Io>,
    core: ClientCore,
    rotation: Rotation,
    lanes: u64,
    completions: Vec<Completion>,
    drained: Vec<tidelog_net::client::Done>,
    refused: Vec<Done>,
}

impl ClusterTarget {
    /// Prepares to reach it; connections are made when there is something to send.
    ///
    /// # Errors
    /// If the options are out of bounds or the back-end cannot be opened.
    pub fn open(options: &ClusterOptions) -> Result<ClusterTarget, BenchError> {
        let wrong = |what: String| Err(BenchError::Options(what));
        if options.addresses.is_empty() {
            return wrong("a cluster needs at least one address".into());
        }
        if !(1..=CONNECTIONS_MAX).contains(&options.connections) {
            return wrong(format!(
                "{} connections: 1 to {CONNECTIONS_MAX} are possible",
                options.connections
            ));
        }
        // The leader's, and those to other nodes that redirected to it.
        let sockets = (options.connections as usize).saturating_mul(options.addresses.len().max(3));
        let io_options = IoOptions {
            connections_max: u16::try_from(sockets + 16).unwrap_or(u16::MAX),
            ..IoOptions::small()
        };
        let io = open_back_end(options.back_end, &io_options)?;
        let in_flight = options.in_flight_max as usize;
        let core = ClientCore::new(ClientOptions {
            connections_per_node: options.connections,
            timeout: options.timeout,
            in_flight_max: in_flight,
            in_flight_bytes_max: in_flight.saturating_mul(options.payload_bytes),
            ..ClientOptions::new(options.addresses.clone())
        });
        Ok(ClusterTarget {
            io,
            core,
            rotation: Rotation::new(options.partitions),
            lanes: u64::from(options.connections),
            completions: Vec::new(),
            drained: Vec::new(),
            refused: Vec::new(),
        })
    }
}

fn outcome(error: &ClientError) -> Outcome {
    match error {
        ClientError::Refused(error) => outcome_of(error),
        ClientError::Unknown { .. } => Outcome::Unknown,
        ClientError::Unavailable { .. } | ClientError::Busy { .. } | ClientError::Full => Outcome::Busy,
    }
}

impl Target for ClusterTarget {
    fn submit(&mut self, tag: u64, payload: Bytes) {
        // The low half of a tag is the writer: with a connection for each, each has its own.
        let lane = u32::try_from((tag & 0xFFFF_FFFF) % self.lanes).unwrap_or(0);
        let request = ClientRequest::append(self.rotation.next(), payload).on_lane(lane);
        if self.core.submit(&mut *self.io, request, tag).is_err() {
            self.refused.push(Done { tag, outcome: Outcome::Busy });
        }
    }

    fn poll(&mut self, until: Moment, done: &mut Vec<Done>) -> Result<(), BenchError> {
        done.append(&mut self.refused);
        self.core.flush(&mut *self.io);
        loop {
            let until_here = self.io.clock().now.after(until.since(clock::now()));
            let deadline = self.core.deadline().map_or(until_here, |d| d.min(until_here));
            self.io.poll(Wait::Until(deadline), &mut self.completions);
            for completion in self.completions.drain(..) {
                if completion.token.class == TokenClass::Net {
                    self.core.complete(&mut *self.io, completion);
                }
            }
            self.core.tick(&mut *self.io);
            self.core.flush(&mut *self.io);
            self.core.drain(&mut self.drained);
            done.extend(self.drained.drain(..).map(|end| Done {
                tag: end.tag,
                outcome: end.result.map_or_else(|error| outcome(&error), |_| Outcome::Acked),
            }));
            if !done.is_empty() || clock::now() >= until {
                return Ok(());
            }
        }
    }

    fn close(self: Box<Self>) -> Result<(), BenchError> {
        Ok(())
    }
}
