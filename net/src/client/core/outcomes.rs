//! How requests end: answered, refused, tried again, unknown.

use super::{ClientCore, Done, Place};
use crate::client::ClientError;
use crate::client::link::State;
use crate::client::route::RouteKey;
use crate::slab::Key;
use crate::wire::Answer;
use core::time::Duration;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use tidelog::request::{Reply, Request, RequestError};
use tidelog_io::Io;
use tidelog_types::Monotonic;

/// Redirects that are followed at once; later ones wait.
const REDIRECTS_MAX: u32 = 3;

impl ClientCore {
    pub(super) fn finish(&mut self, key: Key, result: Result<Reply, ClientError>) {
        let Some(asked) = self.requests.remove(key) else { return };
        if let Request::Append { payload, .. } = &asked.request {
            self.request_bytes -= payload.len();
        }
        if let Some((session, sequence)) = asked.session()
            && let Some(sequences) = self.sessions.get_mut(&session)
        {
            sequences.remove(&sequence);
            if sequences.is_empty() {
                self.sessions.remove(&session);
            }
        }
        if asked.place == Place::Waiting
            && let Some(route) = self.routes.get_mut(&asked.route)
        {
            route.waiting.remove(&asked.order);
            if route.waiting.is_empty() {
                self.waiting.remove(&asked.route);
            }
        }
        if asked.question {
            self.questions.remove(&asked.route);
        } else {
            self.done.push(Done { tag: asked.tag, result });
        }
    }

    /// Ends a request that was not answered: `what` happened.
    pub(super) fn give_up(&mut self, key: Key, what: &str) {
        let Some(asked) = self.requests.get(key) else { return };
        let sent = asked.ambiguous || matches!(asked.place, Place::Sent(_));
        let error = if asked.is_write() && sent {
            ClientError::Unknown { why: asked.unknown(what) }
        } else {
            let why = asked.not_done(what);
            match asked.busy {
                Some(reason) => ClientError::Busy { reason, why },
                None => ClientError::Unavailable { why },
            }
        };
        self.finish(key, Err(error));
    }

    /// Ends a request whose time is up.
    pub(super) fn time_is_up(&mut self, key: Key, now: Monotonic) {
        let Some(asked) = self.requests.get(key) else { return };
        let within = asked.timeout.as_millis();
        let out = match asked.place {
            Place::Sent(link) => self.links.get(link).map(|l| l.address),
            Place::Waiting | Place::Queued(_) => None,
        };
        let named = match asked.route {
            RouteKey::Leader(_) => None,
            RouteKey::Node(node) => self.nodes.get(&node).copied(),
            RouteKey::Address(address) => Some(address),
        };
        let what = match (out, named) {
            (Some(address), Some(_)) => format!("{address} took it and gave no answer within {within} ms"),
            (Some(address), None) => {
                let others = self.tried(Some(address), now);
                format!("{address} took it and gave no answer, and it had {within} ms; {others}")
            }
            (None, Some(address)) => {
                let last = self.last_of(address, now);
                format!("it had {within} ms; {address}: {last}")
            }
            (None, None) => format!("it had {within} ms; {}", self.tried(None, now)),
        };
        self.give_up(key, &what);
    }

    pub(super) fn answered(&mut self, io: &mut dyn Io, link: Key, answer: Answer) {
        let key = Key(answer.number);
        let Some(from) = self.links.get_mut(link) else { return };
        from.in_flight = from.in_flight.saturating_sub(1);
        let address = from.address;
        // Late answers, of requests whose time was up, are dropped.
        let Some(asked) = self.requests.get_mut(key) else { return };
        if asked.place != Place::Sent(link) {
            // Asked elsewhere as well because this node was slow: that it is done is true whoever says it.
            if let Ok(reply) = answer.response
                && asked.earlier.contains(&link)
            {
                self.finish(key, Ok(reply));
            }
            return;
        }
        if let Some(sent_at) = asked.answered_by_leader(&answer.response) {
            let route = asked.route;
            self.leader_answered(route, address, sent_at);
        }
        let Some(asked) = self.requests.get_mut(key) else { return };
        let (now, random) = (io.clock().now, io.random());
        let back_off = self.options.back_off;
        let leads = matches!(asked.route, RouteKey::Leader(_));
        let route = self.routes.entry(asked.route).or_default();
        asked.busy = match &answer.response {
            Err(RequestError::Busy { reason, .. }) => Some(*reason),
            _ => None,
        };
        match answer.response {
            Ok(reply) => {
                route.worked();
                if leads && route.leader.is_none() {
                    route.leader = Some(address);
                }
                self.finish(key, Ok(reply));
            }
            Err(RequestError::NotLeader { hint, address: at }) if leads => {
                let leader = at
                    .and_then(|a| a.parse::<SocketAddr>().ok())
                    .or_else(|| hint.and_then(|n| self.nodes.get(&n).copied()))
                    .filter(|a| *a != address);
                let said = match (leader, hint) {
                    (Some(leader), _) => format!("does not lead, and names {leader} as the leader"),
                    (None, Some(hint)) => {
                        format!("does not lead, and names node {hint}, whose address is not known")
                    }
                    (None, None) => {
                        "does not lead, and knows of no leader: an election may be under way".into()
                    }
                };
                let sites = &self.sites;
                let doubted = |a: &SocketAddr| sites.get(a).is_some_and(|site| site.doubted);
                match leader.filter(|a| !doubted(a)) {
                    Some(leader) => {
                        route.redirected(address, leader);
                        asked.redirects += 1;
                        if asked.redirects > REDIRECTS_MAX {
                            route.hold(now, back_off, Duration::ZERO, random);
                        }
                    }
                    None => {
                        route.not_there(address, &self.addresses);
                        route.hold(now, back_off, Duration::ZERO, random);
                    }
                }
                self.note(address, said);
                self.wait(key);
            }
            Err(error @ (RequestError::Busy { .. } | RequestError::Unavailable(_))) => {
                let at_least = match &error {
                    RequestError::Busy { retry_after, .. } => *retry_after,
                    _ => {
                        route.not_there(address, &self.addresses);
                        Duration::ZERO
                    }
                };
                route.hold(now, back_off, at_least.min(back_off.1), random);
                self.note(address, error.to_string());
                self.wait(key);
            }
            Err(RequestError::Unknown) => {
                if asked.is_plain_append() {
                    let why = format!("{address} stopped leading before it was committed");
                    return self.give_up(key, &why);
                }
                asked.ambiguous = true;
                route.not_there(address, &self.addresses);
                route.hold(now, back_off, Duration::ZERO, random);
                self.note(address, "stopped leading before it was committed");
                self.wait(key);
            }
            // A try before this one may be in the log, or get there: only one that has another payload there settles that.
            Err(error)
                if asked.ambiguous
                    && asked.is_write()
                    && !matches!(
                        error,
                        RequestError::SequenceReused { .. } | RequestError::SequenceGap { .. }
                    ) =>
            {
                let why =
                    format!("what became of an earlier try is not known; {address}, asked again: {error}");
                self.give_up(key, &why);
            }
            Err(error @ RequestError::SequenceGap { .. }) => {
                let earlier = asked.session().is_some_and(|(session, sequence)| {
                    self.sessions.get(&session).and_then(BTreeSet::first).is_some_and(|s| *s < sequence)
                });
                if !earlier && asked.ambiguous {
                    let why = format!(
                        "what became of an earlier try is not known; {address}, asked again: {error}"
                    );
                    return self.give_up(key, &why);
                }
                if !earlier {
                    return self.finish(key, Err(ClientError::Refused(error)));
                }
                // What comes before it was refused for a time and is on its way again.
                route.hold(now, back_off, Duration::ZERO, random);
                self.note(address, error.to_string());
                self.wait(key);
            }
            Err(error) => self.finish(key, Err(ClientError::Refused(error))),
        }
    }

    /// A connection is gone, or never came to be: what it held is placed again or unknown.
    pub(super) fn lost(&mut self, io: &mut dyn Io, key: Key, why: &str) {
        let Some(link) = self.links.get_mut(key).filter(|l| l.state != State::Closed) else { return };
        let (address, lane) = (link.address, link.lane);
        let dialling = link.state == State::Dialling;
        link.state = State::Closed;
        link.queue.clear();
        match &mut link.pipe {
            Some(pipe) => pipe.close(io),
            None => {
                self.links.remove(key);
            }
        }
        self.by_place.remove(&(address, lane));
        if dialling {
            self.abandon_dial(key, address);
        }
        let (now, random) = (io.clock().now, io.random());
        let site = self.sites.entry(address).or_default();
        site.failed(now, self.options.back_off, random);
        site.doubted = false;
        why.clone_into(&mut site.said);
        let held: Vec<Key> = self
            .requests
            .iter()
            .filter(|(_, a)| matches!(a.place, Place::Queued(l) | Place::Sent(l) if l == key))
            .map(|(k, _)| k)
            .collect();
        let why = format!("it was sent to {address}, and no answer came: {why}");
        for request in held {
            let Some(asked) = self.requests.get_mut(request) else { continue };
            let sent = matches!(asked.place, Place::Sent(_));
            self.routes.entry(asked.route).or_default().not_there(address, &self.addresses);
            if sent && asked.is_plain_append() {
                self.give_up(request, &why);
            } else {
                asked.busy = None;
                asked.ambiguous |= sent;
                self.wait(request);
            }
        }
    }
}
