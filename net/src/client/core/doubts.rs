//! Nodes that are slow to answer: after its share of a request's time such a node is in doubt, and others are asked beside it.
//!
//! A doubt costs nothing but a question elsewhere. The connection stays, and the first bytes from it end the doubt; so does the
//! connection's own end. What a node in doubt may have appended is never sent to another one: a plain append that was
//! sent stays where it is until it is answered, its time is up, its connection is given up, or another node has answered as the leader.

use super::{Asked, ClientCore, Place};
use crate::client::link::State;
use crate::client::route::RouteKey;
use crate::slab::Key;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use tidelog::request::{Level, Request};
use tidelog_io::Io;
use tidelog_types::{Index, Monotonic};

/// Shortest and longest patience with a node that has not greeted yet.
const GREETING: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));
/// Shortest patience with one that has.
const ANSWER_MIN: Duration = Duration::from_millis(50);
/// Most slow connections that a request remembers: the answers of others come too late.
const EARLIER_MAX: usize = 8;

impl ClientCore {
    pub(super) fn is_doubted(&self, address: SocketAddr) -> bool {
        self.sites.get(&address).is_some_and(|site| site.doubted)
    }

    /// How long a node may be silent about a request with that deadline: a share for each address, and one to spare.
    fn share(&self, deadline: Monotonic, now: Monotonic) -> Duration {
        let shares = u32::try_from(self.addresses.len()).unwrap_or(u32::MAX).saturating_add(1);
        deadline.since(now) / shares
    }

    /// The longest silence of a node that has requests to answer: it says every half second that it is there.
    fn silence_max(&self) -> Duration {
        self.options.link_timeout / 4
    }

    /// A request was put into the queue of a connection, or sent over it: from now on its silence counts.
    pub(super) fn watch(&mut self, link: Key, deadline: Monotonic, now: Monotonic) {
        let (share, silence_max) = (self.share(deadline, now), self.silence_max());
        let Some(link) = self.links.get_mut(link) else { return };
        let patience = match link.state {
            State::Up => share.max(ANSWER_MIN).min(silence_max),
            _ => share.clamp(GREETING.0, GREETING.1),
        };
        if link.watched.is_none_or(|(_, least)| patience < least) {
            let since = link.watched.map_or(now, |(since, _)| since);
            link.watched = Some((since, patience));
            let due = since.after(patience);
            self.doubt_at = Some(self.doubt_at.map_or(due, |at| at.min(due)));
        }
    }

    /// Looks for connections that have been silent for too long.
    pub(super) fn look_for_doubts(&mut self, now: Monotonic) {
        if self.doubt_at.is_none_or(|at| at > now) {
            return;
        }
        self.doubt_at = None;
        let mut doubted = Vec::new();
        for key in self.links.keys() {
            let Some(link) = self.links.get_mut(key) else { continue };
            let asked = match link.state {
                State::Up => link.in_flight > 0,
                State::Closed => false,
                State::Idle | State::Dialling | State::Greeting => !link.queue.is_empty(),
            };
            let Some((since, patience)) = link.watched.filter(|_| asked) else {
                link.watched = None;
                continue;
            };
            let heard = link.pipe.as_ref().map_or(since, |p| p.last_received.max(since));
            let since = if link.state == State::Up { heard } else { since };
            let due = since.after(patience);
            if due <= now {
                link.watched = None;
                doubted.push((link.address, link.state, now.since(since)));
            } else {
                self.doubt_at = Some(self.doubt_at.map_or(due, |at| at.min(due)));
            }
        }
        for (address, state, silent) in doubted {
            let after = silent.as_millis();
            self.doubt(
                address,
                &match state {
                    State::Up => format!("took requests and has said nothing for {after} ms"),
                    State::Greeting => {
                        format!("accepted the connection, and did not greet within {after} ms")
                    }
                    _ => format!("did not accept the connection within {after} ms"),
                },
            );
        }
    }

    /// Asks others beside `address`.
    pub(super) fn doubt(&mut self, address: SocketAddr, why: &str) {
        let site = self.sites.entry(address).or_default();
        why.clone_into(&mut site.said);
        if !std::mem::replace(&mut site.doubted, true) {
            self.leave_doubted();
        }
    }

    /// Something came from `address`.
    pub(super) fn heard(&mut self, address: SocketAddr) {
        let Some(site) = self.sites.get_mut(&address) else { return };
        if std::mem::take(&mut site.doubted) {
            self.leave_doubted();
        }
    }

    /// Takes from nodes in doubt what may be asked of others: it is placed again.
    fn leave_doubted(&mut self) {
        if self.addresses.iter().all(|a| self.is_doubted(*a)) {
            return; // wherever it lies now is as good as elsewhere
        }
        let mut moved = Vec::new();
        for key in self.requests.keys() {
            let Some(asked) = self.requests.get(key) else { continue };
            let (link, sent) = match asked.place {
                Place::Queued(link) => (link, false),
                Place::Sent(link) => (link, true),
                Place::Waiting => continue,
            };
            let Some(link) = self.links.get(link).filter(|l| self.is_doubted(l.address)) else { continue };
            if matches!(asked.route, RouteKey::Leader(_)) && !(sent && asked.is_plain_append()) {
                moved.push((key, link.address, asked.place));
            }
        }
        for (key, address, place) in moved {
            let Some(asked) = self.requests.get_mut(key) else { continue };
            if let Place::Sent(link) = place {
                asked.ambiguous |= asked.is_write();
                if asked.earlier.len() < EARLIER_MAX {
                    asked.earlier.push(link);
                }
            }
            let route = self.routes.entry(asked.route).or_default();
            route.not_there(address, &self.addresses);
            self.wait(key);
        }
        self.ask_who_leads();
    }

    /// Plain appends that nodes in doubt have taken, with their routes and those nodes.
    fn stuck(&self) -> impl Iterator<Item = (Key, &Asked, SocketAddr)> {
        self.requests.iter().filter_map(|(key, asked)| {
            let Place::Sent(link) = asked.place else { return None };
            let address = self.links.get(link)?.address;
            (asked.is_plain_append() && self.is_doubted(address)).then_some((key, asked, address))
        })
    }

    /// Plain appends wait for a node in doubt, and perhaps no other request looks for the next leader: the client asks for it
    /// itself, by a linearizable read above the end of the log, which only a leader answers, and without a record.
    fn ask_who_leads(&mut self) {
        let mut wanted: BTreeMap<RouteKey, Monotonic> = BTreeMap::new();
        for (_, asked, _) in self.stuck() {
            let deadline = wanted.entry(asked.route).or_insert(asked.deadline);
            *deadline = asked.deadline.max(*deadline);
        }
        for (route, deadline) in wanted {
            let RouteKey::Leader(partition) = route else { continue };
            if self.questions.contains_key(&route) {
                continue;
            }
            self.orders += 1;
            let (from, level) = (Index(u64::MAX), Level::Linearizable);
            let key = self.requests.insert(Asked {
                tag: 0,
                request: Request::Read { partition, from, to: None, bytes_max: 1, level },
                route,
                lane: 0,
                order: self.orders,
                deadline,
                place: Place::Waiting,
                timeout: self.options.timeout,
                sent_at: Monotonic(0),
                earlier: Vec::new(),
                question: true,
                ambiguous: false,
                redirects: 0,
                busy: None,
            });
            self.questions.insert(route, key);
            self.wait(key);
        }
    }

    /// `leader` has answered a request, sent at `sent_at`, as only a leader does. Plain appends that another node took before
    /// that, and is silent about, need not be waited for: that node has been deposed, or will say nothing in good time.
    pub(super) fn leader_answered(&mut self, route: RouteKey, leader: SocketAddr, sent_at: Monotonic) {
        if !self.sites.values().any(|site| site.doubted) {
            return;
        }
        let left: Vec<(Key, SocketAddr)> = self
            .stuck()
            .filter(|(_, asked, at)| asked.route == route && *at != leader && asked.sent_at < sent_at)
            .map(|(key, _, at)| (key, at))
            .collect();
        for (key, at) in left {
            let why = format!("{at} took it and fell silent, and {leader} leads the partition now");
            self.give_up(key, &why);
        }
    }

    /// A connect that this client gave up is still in the kernel's hands.
    pub(super) fn abandon_dial(&mut self, link: Key, address: SocketAddr) {
        let attempt = self.dials.iter().find(|(_, key)| **key == link).map(|(attempt, _)| *attempt);
        if let Some(attempt) = attempt {
            self.dials.remove(&attempt);
            self.abandoned.insert(attempt, address);
            self.sites.entry(address).or_default().abandoned += 1;
        }
    }

    /// It has ended, well or not.
    pub(super) fn abandoned_ended(&mut self, attempt: u64, connected: bool) {
        let Some(address) = self.abandoned.remove(&attempt) else { return };
        if let Some(site) = self.sites.get_mut(&address) {
            site.abandoned = site.abandoned.saturating_sub(1);
            if connected {
                site.retry_at = Monotonic(0);
            }
        }
    }

    /// What each node said or did last, but for one: for people.
    pub(super) fn tried(&self, but: Option<SocketAddr>, now: Monotonic) -> String {
        const NAMED_MAX: usize = 5;
        let known: BTreeSet<SocketAddr> = self.addresses.iter().chain(self.sites.keys()).copied().collect();
        let others: Vec<_> = known.into_iter().filter(|address| Some(*address) != but).collect();
        let named = others.iter().take(NAMED_MAX);
        let mut words: Vec<String> =
            named.map(|address| format!("{address}: {}", self.last_of(*address, now))).collect();
        if others.len() > NAMED_MAX {
            words.push(format!("and {} more nodes", others.len() - NAMED_MAX));
        }
        words.join("; ")
    }

    /// What a node said or did last: for people.
    pub(super) fn last_of(&self, address: SocketAddr, now: Monotonic) -> String {
        let mut links = self.by_place.range((address, 0)..=(address, u32::MAX));
        let coming = links.find_map(|(_, key)| {
            self.links.get(*key).filter(|l| !matches!(l.state, State::Up | State::Closed))
        });
        if let Some(link) = coming {
            let after = now.since(link.since).as_millis();
            return match link.state {
                State::Greeting => format!("accepted the connection, and did not greet within {after} ms"),
                _ => format!("did not accept the connection within {after} ms"),
            };
        }
        match self.sites.get(&address).map(|site| site.said.as_str()) {
            None | Some("") => "not tried yet".into(),
            Some(said) => said.into(),
        }
    }

    /// Notes what a node said or did last.
    pub(super) fn note(&mut self, address: SocketAddr, what: impl Into<String>) {
        self.sites.entry(address).or_default().said = what.into();
    }

    /// A request's time is up while it is out: a node that said nothing since it was sent is in doubt for those behind it.
    pub(super) fn doubt_for(&mut self, key: Key, io: &dyn Io) {
        let Some(asked) = self.requests.get(key) else { return };
        let Place::Sent(link) = asked.place else { return };
        let silent = self
            .links
            .get(link)
            .filter(|l| l.pipe.as_ref().is_some_and(|p| p.last_received <= asked.sent_at));
        if let Some(address) = silent.map(|l| l.address) {
            let after = io.clock().now.since(asked.sent_at).as_millis();
            self.doubt(address, &format!("took requests and has said nothing for {after} ms"));
        }
    }
}
