//! Transcripts: known hard cases of replication, event by event, with verdicts written by hand
//! (`testdata/*.txt`; the language is told in `testdata/README.md`).
//!
//! The world checks its invariants after every line as well.

mod world;

use core::time::Duration;
use std::collections::BTreeMap;
use tidelog_consensus::{Disk, Health, ReadOutcome, Refused, Retention, Role};
use tidelog_types::{Index, Sequence, SessionId, SessionKey, SessionRef};
use world::disk::Stored;
use world::{ELECTION, Outcome, World, show};

struct Script {
    world: World,
    /// Read requests by their names.
    reads: BTreeMap<String, u64>,
    refused_reads: BTreeMap<String, Refused>,
}

type Verdict = Result<(), String>;

fn number<T: core::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word:?} is not a number"))
}

fn numbers(words: &[&str]) -> Result<Vec<u64>, String> {
    words.iter().map(|word| number(word)).collect()
}

/// `1->2`
fn link(word: &str) -> Result<(u64, u64), String> {
    let (from, to) = word.split_once("->").ok_or_else(|| format!("{word:?} is not a link"))?;
    Ok((number(from)?, number(to)?))
}

fn duration(word: &str) -> Result<Duration, String> {
    let ms = word.strip_suffix("ms").ok_or_else(|| format!("{word:?} is not a time in ms"))?;
    Ok(Duration::from_millis(number(ms)?))
}

fn same(what: &str, expected: &str, found: &str) -> Verdict {
    if expected == found { Ok(()) } else { Err(format!("{what}: expected {expected}, found {found}")) }
}

fn refusal(refused: &Refused) -> String {
    match refused {
        Refused::NotLeader { hint: Some(node) } => format!("not-leader {node}"),
        Refused::NotLeader { hint: None } => "not-leader".into(),
        Refused::Busy => "busy".into(),
        Refused::SessionExpired => "session-expired".into(),
        Refused::SequenceGap { expected } => format!("sequence-gap {expected}"),
        Refused::SequenceTooOld => "sequence-too-old".into(),
        Refused::SequenceReused { index } => format!("sequence-reused {index}"),
        Refused::SessionsFull { .. } => "sessions-full".into(),
    }
}

impl Script {
    fn line(&mut self, words: &[&str]) -> Verdict {
        match words {
            ["nodes", n] => self.world = World::new(number(n)?, 1),
            ["wait", d] => self.world.wait(duration(d)?),
            ["tick", node] => {
                let node = number(node)?;
                let deadline = self.world.replica(node).deadline();
                self.world.now = self.world.now.max(deadline);
                self.world.tick(node);
            }
            ["poke", node] => self.world.tick(number(node)?),
            ["run", d, "among", nodes @ ..] => self.world.run(&numbers(nodes)?, duration(d)?),
            ["settle", nodes @ ..] => self.world.settle(&numbers(nodes)?),
            ["elect", node, "among", nodes @ ..] => {
                // Nobody hears a leader for two time-outs; then this node asks first.
                self.world.wait(ELECTION * 2);
                self.world.tick(number(node)?);
                self.world.settle(&numbers(nodes)?);
            }
            ["deliver", l] => self.deliver(l, None)?,
            ["deliver", l, nth] => self.deliver(l, Some(number::<usize>(nth)?))?,
            ["drop", l] => {
                let (from, to) = link(l)?;
                self.world.take(from, to, None);
            }
            ["drop", l, nth] => {
                let (from, to) = link(l)?;
                self.world.take(from, to, Some(number::<usize>(nth)? - 1));
            }
            ["drop-all"] => self.world.wire.clear(),
            ["dup", l] => {
                let (from, to) = link(l)?;
                let packets = self.world.take(from, to, None);
                self.world.wire.extend(packets.clone());
                self.world.wire.extend(packets);
            }
            ["reorder", l] => {
                let (from, to) = link(l)?;
                let packets = self.world.take(from, to, None);
                self.world.wire.extend(packets.into_iter().rev());
            }
            ["durable", node, "all"] => {
                self.world.durable(number(node)?, usize::MAX);
            }
            ["durable", node, steps] => {
                self.world.durable(number(node)?, number(steps)?);
            }
            ["crash", node] => self.world.crash(number(node)?, 0),
            ["start", node] => self.world.start(number(node)?),
            ["restart", node] => {
                self.world.crash(number(node)?, 0);
                self.world.start(number(node)?);
            }
            ["save", node] => self.world.save(number(node)?),
            ["rollback", node] => {
                if !self.world.roll_back(number(node)?) {
                    return Err("no disk was saved".into());
                }
                self.world.start(number(node)?);
            }
            ["snapshot", node, covered] => {
                if !self.world.snapshot(number(node)?, Index(number(covered)?)) {
                    return Err("the sessions as of then are not known".into());
                }
            }
            ["low-water", node, first] => {
                self.world.raise_low_water(number(node)?, Index(number(first)?));
            }
            ["retain", node, "age", d] => {
                let retention = Retention { age: Some(duration(d)?), bytes: None };
                self.world.retain(number(node)?, retention);
            }
            ["retain", node, "bytes", n] => {
                let retention = Retention { age: None, bytes: Some(number(n)?) };
                self.world.retain(number(node)?, retention);
            }
            ["crash", node, "suspect"] => self.world.crash_suspect(number(node)?),
            ["rot", node, index] => {
                if !self.world.rot(number(node)?, number(index)?) {
                    return Err("there is nothing to rot".into());
                }
            }
            ["fetch", node, peer] => {
                if !self.world.fetch(number(node)?, number(peer)?) {
                    return Err("nothing is wanted".into());
                }
            }
            ["fetch", node, peer, "from", index] => {
                let from = tidelog_types::Index(number(index)?);
                if !self.world.fetch_from(number(node)?, number(peer)?, from) {
                    return Err("nothing is wanted there".into());
                }
            }
            ["disk", node, health] => self.disk(node, health, 0)?,
            ["disk", node, health, oldest] => {
                self.disk(node, health, u64::try_from(duration(oldest)?.as_millis()).unwrap_or(u64::MAX))?;
            }
            ["pause", node] => self.world.paused(number(node)?),
            ["down", node, peer] => self.world.channel(number(node)?, number(peer)?, false),
            ["up", node, peer] => self.world.channel(number(node)?, number(peer)?, true),
            ["skew", node, d] => {
                let node = number(node)?;
                self.world.node_mut(node).skew_ms = number(d.trim_end_matches("ms"))?;
            }
            ["fit", n] => self.world.fit_max = number(n)?,
            ["propose", node, payload] => {
                self.world.propose(number(node)?, payload, None, None);
            }
            ["propose", node, payload, "session", s, "sequence", q] => {
                let session = SessionRef { session: SessionId(number(s)?), sequence: Sequence(number(q)?) };
                self.world.propose(number(node)?, payload, Some(session), None);
            }
            ["propose", node, name, "session", s, "sequence", q, "again", payload] => {
                let session = SessionRef { session: SessionId(number(s)?), sequence: Sequence(number(q)?) };
                self.world.propose_as(number(node)?, name, payload, Some(session), None);
            }
            ["expiry", d] => self.world.session_expiry = duration(d)?,
            ["open", node, payload, "key", key] => {
                self.world.propose(number(node)?, payload, None, Some(SessionKey(number(key)?)));
            }
            ["read", node, name] => {
                let id = self.reads.len() as u64 + 1;
                self.reads.insert((*name).into(), id);
                if let Some(Err(refused)) = self.world.read(number(node)?, id) {
                    self.refused_reads.insert((*name).into(), refused);
                }
            }
            ["expect", rest @ ..] => return self.expect(rest),
            _ => return Err("not a line of the language".into()),
        }
        Ok(())
    }

    fn disk(&mut self, node: &str, health: &str, oldest_ms: u64) -> Verdict {
        let health = match health {
            "steady" => Health::Steady,
            "behind" => Health::Behind,
            "stalled" => Health::Stalled,
            _ => return Err(format!("{health:?} is nothing that a disk is")),
        };
        self.world.node_mut(number(node)?).health = Disk { oldest_ms, health };
        Ok(())
    }

    fn deliver(&mut self, word: &str, nth: Option<usize>) -> Verdict {
        let (from, to) = link(word)?;
        let packets = self.world.take(from, to, nth.map(|n| n - 1));
        if packets.is_empty() {
            return Err("nothing to deliver".into());
        }
        for packet in packets {
            self.world.deliver(packet);
        }
        Ok(())
    }

    fn expect(&self, words: &[&str]) -> Verdict {
        match words {
            ["wire", l, "nothing"] => {
                let found = self.on_wire(l)?;
                if found.is_empty() { Ok(()) } else { Err(format!("found {found:?}")) }
            }
            ["wire", l, "no", kind] => {
                let found = self.on_wire(l)?;
                let of_kind = found.iter().any(|m| m.split(' ').next() == Some(kind));
                if of_kind { Err(format!("found {found:?}")) } else { Ok(()) }
            }
            ["wire", l, message @ ..] => {
                let (found, expected) = (self.on_wire(l)?, message.join(" "));
                if found.contains(&expected) { Ok(()) } else { Err(format!("found {found:?}")) }
            }
            ["read", name, answer @ ..] => {
                let found = match (self.refused_reads.get(*name), self.reads.get(*name)) {
                    (Some(refused), _) => format!("refused {}", refusal(refused)),
                    (None, Some(id)) => match self.world.reads.get(id).and_then(|(_, answer)| *answer) {
                        None => "waiting".into(),
                        Some(ReadOutcome::At(index)) => format!("at {index}"),
                        Some(ReadOutcome::NotLeader) => "not-leader".into(),
                    },
                    (None, None) => return Err(format!("there is no read {name}")),
                };
                same("read", &answer.join(" "), &found)
            }
            ["request", payload, outcome @ ..] => {
                let found = match self.world.outcomes.get(*payload) {
                    None => return Err(format!("nobody proposed {payload}")),
                    Some(Outcome::Waiting) => "waiting".into(),
                    Some(Outcome::Acked(index)) => format!("acked {index}"),
                    Some(Outcome::Unknown) => "unknown".into(),
                    Some(Outcome::Refused(refused)) => format!("refused {}", refusal(refused)),
                };
                same("outcome", &outcome.join(" "), &found)
            }
            [node, rest @ ..] => self.expect_node(number(node)?, rest),
            [] => Err("expect what?".into()),
        }
    }

    fn on_wire(&self, word: &str) -> Result<Vec<String>, String> {
        let (from, to) = link(word)?;
        Ok(self.world.wire.iter().filter(|p| p.from == from && p.to == to).map(show).collect())
    }

    fn expect_node(&self, id: u64, words: &[&str]) -> Verdict {
        let node = self.world.node(id);
        let listed = |log: &[Stored]| log.iter().map(Stored::show).collect::<Vec<_>>().join(" ");
        match words {
            ["log", entries @ ..] => same("log", &entries.join(" "), &listed(node.disk.log())),
            ["disk", entries @ ..] => same("disk", &entries.join(" "), &listed(&node.disk.durable)),
            ["mark", n] => same("mark", n, &node.replica().marks().high_water.to_string()),
            ["durable", n] => same("durable", n, &node.replica().marks().durable.to_string()),
            ["generation", n] => same("generation", n, &node.replica().generation().to_string()),
            ["vote", n] => {
                let vote = node.replica().vote().map_or("none".into(), |v| v.to_string());
                same("vote", n, &vote)
            }
            ["leader", n] => {
                let leader = node.replica().leader().map_or("none".into(), |v| v.to_string());
                same("leader", n, &leader)
            }
            ["damaged", n] => same("damaged", n, &node.replica().damaged_entries().to_string()),
            ["suspect", n] => same("suspect", n, &node.replica().suspect_entries().to_string()),
            ["applicable", n] => same("applicable", n, &node.replica().marks().applicable().to_string()),
            ["malformed", n] => same("malformed", n, &node.replica().malformed().to_string()),
            ["low-water", n] => same("low-water", n, &node.replica().marks().low_water.to_string()),
            ["log-start", n] => same("log-start", n, &node.replica().log_start().to_string()),
            ["snapshot", n] => same("snapshot", n, &node.replica().snapshot().index.to_string()),
            ["short", peers @ ..] => {
                let short = node.replica().followers().filter(|peer| peer.needs_snapshot);
                let short: Vec<String> = short.map(|peer| peer.node.to_string()).collect();
                let short = if short.is_empty() { "nobody".into() } else { short.join(" ") };
                same("peers that need a snapshot", &peers.join(" "), &short)
            }
            ["lost", peers @ ..] => {
                let lost: Vec<String> =
                    node.replica().lost_peers().map(|(peer, _)| peer.to_string()).collect();
                let lost = if lost.is_empty() { "nobody".into() } else { lost.join(" ") };
                same("peers that lost what they confirmed", &peers.join(" "), &lost)
            }
            ["barred"] => same("barred", "true", &node.replica().is_barred().to_string()),
            ["not", "barred"] => same("barred", "false", &node.replica().is_barred().to_string()),
            ["stamp", index, ms] => {
                let at = number::<usize>(index)? - 1;
                let entry = node.disk.log().get(at).ok_or("no such entry")?;
                let truth = 1_700_000_000_000 + self.world.now.0 / 1_000_000;
                let off = i128::from(entry.meta.timestamp.0) - i128::from(truth);
                same("stamp, against the true time", ms, &format!("{off}ms"))
            }
            [role] => {
                let found = match node.replica().role() {
                    Role::Leader => "leads",
                    Role::Follower => "follows",
                    Role::Candidate => "campaigns",
                };
                same("role", role, found)
            }
            _ => Err("not a line of the language".into()),
        }
    }
}

fn play(name: &str) {
    let path = format!("{}/tests/testdata/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let mut script =
        Script { world: World::new(3, 1), reads: BTreeMap::new(), refused_reads: BTreeMap::new() };
    let mut expectations = 0;
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.is_empty() {
            continue;
        }
        script.world.event = format!("{name}.txt:{}: {}", at + 1, line.trim());
        expectations += usize::from(words[0] == "expect");
        if let Err(why) = script.line(&words) {
            let wire: Vec<String> =
                script.world.wire.iter().map(|p| format!("  {}->{} {}", p.from, p.to, show(p))).collect();
            panic!("{}\n{why}\non the wire:\n{}", script.world.event, wire.join("\n"));
        }
    }
    assert!(expectations > 0, "{name}.txt expects nothing");
}

macro_rules! transcripts {
    ($($name:ident)*) => {
        $(#[test] fn $name() { play(stringify!($name)); })*

        #[test]
        fn every_transcript_is_played() {
            let dir = format!("{}/tests/testdata", env!("CARGO_MANIFEST_DIR"));
            let mut found: Vec<String> = std::fs::read_dir(dir)
                .unwrap()
                .filter_map(|file| file.unwrap().file_name().into_string().unwrap().strip_suffix(".txt").map(String::from))
                .collect();
            found.sort();
            assert_eq!(found, [$(stringify!($name)),*]);
        }
    };
}

transcripts! {
    check_quorum
    cut_and_reused_index
    damaged_candidate_cuts
    damaged_candidate_is_healed
    damaged_follower
    damaged_is_not_lost
    damaged_longest_log
    deposed_with_requests_waiting
    divergent_follower
    duplicated_and_reordered
    even_voters
    figure_8
    first_append
    follower_behind_the_base
    follower_below_the_base
    hand_over
    hand_over_is_late
    helical_damage
    kip_101
    late_reply
    late_vote
    leader_damaged
    leader_reopened
    log_start
    lost_messages
    low_water_order
    pre_vote
    read_index
    refusals_before_a_confirmation
    repair_below_a_mark_on_its_way
    repair_goes_round
    repetition_backs_off
    replicated_time
    restarted_voter_is_silent
    rolled_back_between_leaderships
    rolled_back_follower
    session_below_the_base
    session_expires
    session_expiry_is_cut
    session_gap_is_cut
    session_over_failover
    session_sequence_reused
    single_voter
    stale_leader
    stale_round
    stalled_leader_leads_on
    stalled_replica_stands_back
    sticky_leader
    suspect_is_cut
    vote_before_reply
    vote_log_check
}
