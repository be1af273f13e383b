//! Messages in words, as transcripts expect them.

use super::Packet;
use super::disk::Stored;
use tidelog_consensus::{Append, Asserting, Free, Health, Message, Repair};

/// A message, short.
pub fn show(packet: &Packet) -> String {
    let position = |p: tidelog_types::Position| format!("{}@{}", p.index, p.generation);
    match &packet.message {
        Message::Free(m) => match m {
            Free::PreVote { generation, last } => format!("pre-vote g{generation} last {}", position(*last)),
            Free::PreVoteReply { generation, granted } => {
                format!("pre-vote-reply g{generation} {}", if *granted { "yes" } else { "no" })
            }
            Free::Append(Append { generation, prev, high_water, .. }) => {
                let entries: Vec<String> = packet.entries.iter().map(Stored::show).collect();
                format!(
                    "append g{generation} prev {} [{}] high {high_water}",
                    position(*prev),
                    entries.join(" ")
                )
            }
            Free::Heartbeat { generation, high_water, .. } => {
                format!("heartbeat g{generation} high {high_water}")
            }
            Free::Lost { generation, confirmed } => format!("lost g{generation} {}", position(*confirmed)),
            Free::HandOver { generation } => format!("hand-over g{generation}"),
        },
        Message::Repair(m) => match m {
            Repair::Fetch { generation, first, last } => format!("fetch {first}..{last}@{generation}"),
            Repair::Fetched { .. } => {
                format!("fetched {}", packet.entries.iter().map(Stored::show).collect::<Vec<_>>().join(" "))
            }
            Repair::Missing { generation, first, damaged, promised } => {
                let what = if *damaged { " damaged" } else { "" };
                format!("missing {first}@{generation}{what} g{promised}")
            }
        },
        Message::Asserting(m) => match m {
            Asserting::Vote { generation, last, handed_over } => {
                let named = if *handed_over { " handed-over" } else { "" };
                format!("vote g{generation} last {}{named}", position(*last))
            }
            Asserting::VoteReply { generation, granted, .. } => {
                format!("vote-reply g{generation} {}", if *granted { "yes" } else { "no" })
            }
            Asserting::AppendReply { generation, matched, .. } => {
                format!("append-reply g{generation} matched {matched}")
            }
            Asserting::AppendRefused { generation, prev, hint, damaged, .. } => {
                let why = if *damaged { " damaged" } else { "" };
                format!("append-refused g{generation} prev {prev} hint {}{why}", position(*hint))
            }
            Asserting::HeartbeatReply { generation, matched, disk, .. } => {
                let health = match disk.health {
                    Health::Steady => "",
                    Health::Behind => " behind",
                    Health::Stalled => " stalled",
                };
                format!("heartbeat-reply g{generation} matched {matched}{health}")
            }
        },
    }
}
