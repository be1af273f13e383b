//! One configuration key: what it takes, how a value is read into a [`Config`] and written back.

use super::unit;
use super::{BackEnd, Config, Founder, PlaceCheck, SyncMethod};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;
use tidelog_types::NodeId;
use toml::Spanned;
use toml::de::DeValue;

/// Most founding nodes.
pub(super) const FOUNDERS_MAX: usize = 64;
/// Longest name of a cluster, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// A key of the configuration.
pub struct Key {
    /// Section and name, such as `wal.segment_size`.
    pub name: &'static str,
    /// Who has to agree on it.
    pub scope: Scope,
    /// What it does.
    pub effect: &'static str,
    /// If it is read and checked but does not act yet: what it waits for.
    pub later: Option<&'static str>,
    pub(super) kind: Kind,
    pub(super) default: Default,
}

/// Who has to agree on a key's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Says which node this is.
    Identity,
    /// The same on every node, and fixed when the cluster is created.
    Cluster,
    /// May differ from node to node, and change at a restart. Profiles set only such keys.
    Node,
}

/// A key's value when neither a profile nor the configuration says one.
#[derive(Clone, Copy)]
pub(super) enum Default {
    /// There is none: it has to be said.
    Required,
    /// This, as one would write it.
    Given(&'static str),
    /// Follows from other keys.
    Derived { rule: &'static str, derive: fn(&mut Config) },
}

impl Default {
    pub(super) fn given(&self) -> Option<&'static str> {
        if let Default::Given(text) = self { Some(text) } else { None }
    }
}

/// A whole number in a [`Config`], whatever its type there.
pub(super) struct Number {
    pub(super) get: fn(&Config) -> u64,
    pub(super) set: fn(&mut Config, u64),
}

/// Any other field of a [`Config`].
pub(super) struct Field<T: 'static> {
    pub(super) get: fn(&Config) -> &T,
    pub(super) set: fn(&mut Config) -> &mut T,
}

/// What a key takes.
pub(super) enum Kind {
    Count { field: Number, min: u64, max: u64 },
    Size { field: Number, min: u64, max: u64, step: u64 },
    Time { field: Field<Duration>, min: Duration, max: Duration },
    NodeId(Field<NodeId>),
    Shards(Field<u32>),
    Name(Field<String>),
    Path(Field<PathBuf>),
    BackEnd(Field<BackEnd>),
    Sync(Field<SyncMethod>),
    Place(Field<PlaceCheck>),
    Founders(Field<Vec<Founder>>),
}

const BACK_ENDS: [(&str, BackEnd); 2] = [("uring", BackEnd::Uring), ("blocking", BackEnd::Blocking)];
const PLACES: [(&str, PlaceCheck); 2] =
    [("checked", PlaceCheck::Checked), ("unchecked", PlaceCheck::Unchecked)];
const SYNCS: [(&str, SyncMethod); 3] =
    [("auto", SyncMethod::Auto), ("fdatasync", SyncMethod::Fdatasync), ("dsync", SyncMethod::Dsync)];

/// Takes a complaint about a range of the text.
pub(super) type Complain<'a> = &'a mut dyn FnMut(Range<usize>, String);

impl Key {
    /// The section's name.
    pub fn section(&self) -> &'static str {
        self.name.split_once('.').map_or("", |(section, _)| section)
    }

    /// The name within its section.
    pub fn short(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(_, short)| short)
    }

    /// What kind of value it takes, and in which unit.
    pub fn unit(&self) -> &'static str {
        match self.kind {
            Kind::Count { .. } | Kind::NodeId(_) => "a whole number",
            Kind::Size { .. } => "a size: a whole number with B, KiB, MiB, GiB or TiB",
            Kind::Time { .. } => "a duration: a whole number with us, ms, s, min or h",
            Kind::Shards(_) => "a whole number, or \"auto\"",
            Kind::Name(_) => "a name: letters, digits, '-', '_' and '.'",
            Kind::Path(_) => "a path",
            Kind::BackEnd(_) | Kind::Sync(_) | Kind::Place(_) => "a word",
            Kind::Founders(_) => "a list of { id, address } or { id, addresses = [one for each shard] }",
        }
    }

    /// What is allowed.
    pub fn bounds(&self) -> String {
        match &self.kind {
            Kind::Count { min, max, .. } => format!("{min} to {max}"),
            Kind::Size { min, max, step, .. } => {
                let range = format!("{} to {}", unit::size_text(*min), unit::size_text(*max));
                if *step == 1 { range } else { format!("{range}, a multiple of {}", unit::size_text(*step)) }
            }
            Kind::Time { min, max, .. } => {
                format!("{} to {}", unit::duration_text(*min), unit::duration_text(*max))
            }
            Kind::NodeId(_) => "1 or more".into(),
            Kind::Shards(_) => "1 or \"auto\", which is 1 for now".into(),
            Kind::Name(_) => format!("1 to {NAME_BYTES_MAX} characters"),
            Kind::Path(_) => "not empty".into(),
            Kind::BackEnd(_) => words(&BACK_ENDS),
            Kind::Sync(_) => words(&SYNCS),
            Kind::Place(_) => words(&PLACES),
            Kind::Founders(_) => {
                format!("1 to {FOUNDERS_MAX} nodes, each id and each address once")
            }
        }
    }

    /// The value when nothing says one, as text.
    pub fn default_text(&self) -> String {
        match self.default {
            Default::Required => "none; it has to be said".into(),
            Default::Given(text) => text.into(),
            Default::Derived { rule, .. } => rule.into(),
        }
    }

    /// Whether it has to be said.
    pub fn required(&self) -> bool {
        matches!(self.default, Default::Required)
    }

    /// The value in a configuration as TOML; none if it has none.
    pub fn value(&self, config: &Config) -> Option<String> {
        Some(match &self.kind {
            Kind::Count { field, .. } => (field.get)(config).to_string(),
            Kind::Size { field, .. } => quoted(&unit::size_text((field.get)(config))),
            Kind::Time { field, .. } => quoted(&unit::duration_text(*(field.get)(config))),
            Kind::NodeId(field) => (field.get)(config).to_string(),
            Kind::Shards(field) => (field.get)(config).to_string(),
            Kind::Name(field) => quoted((field.get)(config)),
            Kind::Path(field) => quoted(&(field.get)(config).to_string_lossy()),
            Kind::BackEnd(field) => quoted(word(&BACK_ENDS, (field.get)(config))),
            Kind::Sync(field) => quoted(word(&SYNCS, (field.get)(config))),
            Kind::Place(field) => quoted(word(&PLACES, (field.get)(config))),
            Kind::Founders(field) => {
                let founders = (field.get)(config).iter().map(|founder| match founder.addresses.as_slice() {
                    [address] => format!("  {{ id = {}, address = \"{address}\" }},\n", founder.id),
                    many => {
                        let many: Vec<String> = many.iter().map(|a| quoted(&a.to_string())).collect();
                        format!("  {{ id = {}, addresses = [{}] }},\n", founder.id, many.join(", "))
                    }
                });
                format!("[\n{}]", founders.collect::<String>())
            }
        })
    }

    /// Sets a value that is written as in the table and in profiles: numbers without quotes, the rest without too.
    pub(super) fn set_text(&self, config: &mut Config, text: &str) -> Result<(), String> {
        match (&self.kind, text.parse::<u64>()) {
            (Kind::Count { .. } | Kind::Shards(_) | Kind::NodeId(_), Ok(number)) => {
                self.set_number(config, number)
            }
            _ => self.set_string(config, text),
        }
    }

    /// Reads a TOML value.
    pub(super) fn read(&self, config: &mut Config, value: &Spanned<DeValue<'_>>, complain: Complain<'_>) {
        let result = match (value.get_ref(), &self.kind) {
            (_, Kind::Founders(field)) => {
                if let Some(founders) = founders(value, complain) {
                    *(field.set)(config) = founders;
                }
                return;
            }
            (DeValue::String(text), _) => self.set_string(config, text),
            (DeValue::Integer(number), _) => match u64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => self.set_number(config, number),
                Err(_) => Err(format!("must be {} within {}", self.unit(), self.bounds())),
            },
            (other, _) => Err(format!("must be {}, not {}", self.unit(), named(other))),
        };
        if let Err(problem) = result {
            complain(value.span(), problem);
        }
    }

    fn set_number(&self, config: &mut Config, number: u64) -> Result<(), String> {
        match &self.kind {
            Kind::Count { field, min, max } => {
                self.within(number, *min, *max)?;
                (field.set)(config, number);
            }
            Kind::NodeId(field) => {
                self.within(number, 1, u64::MAX)?;
                *(field.set)(config) = NodeId(number);
            }
            Kind::Shards(field) => {
                if number != 1 {
                    return Err(
                        "must be 1: a node runs one shard for now, more than one is not there yet".into()
                    );
                }
                *(field.set)(config) = 1;
            }
            Kind::Size { .. } | Kind::Time { .. } => {
                return Err(format!("needs its unit: must be {}, in quotes", self.unit()));
            }
            _ => return Err(format!("must be {}, not a number", self.unit())),
        }
        Ok(())
    }

    fn set_string(&self, config: &mut Config, text: &str) -> Result<(), String> {
        match &self.kind {
            Kind::Size { field, min, max, step } => {
                let bytes = unit::size(text).map_err(|e| e.to_string())?;
                self.within(bytes, *min, *max)?;
                if !bytes.is_multiple_of(*step) {
                    return Err(format!("must be a multiple of {}", unit::size_text(*step)));
                }
                (field.set)(config, bytes);
            }
            Kind::Time { field, min, max } => {
                let duration = unit::duration(text).map_err(|e| e.to_string())?;
                self.within(duration, *min, *max)?;
                *(field.set)(config) = duration;
            }
            Kind::Shards(field) if text == "auto" => *(field.set)(config) = 1,
            Kind::Name(field) => {
                let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
                if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.chars().all(allowed) {
                    return Err(format!("must be {}, {}", self.unit(), self.bounds()));
                }
                *(field.set)(config) = text.into();
            }
            Kind::Path(field) => {
                if text.is_empty() || text.contains('\0') {
                    return Err("must be a path that is not empty and has no NUL in it".into());
                }
                *(field.set)(config) = text.into();
            }
            Kind::BackEnd(field) => *(field.set)(config) = chosen(&BACK_ENDS, text)?,
            Kind::Sync(field) => *(field.set)(config) = chosen(&SYNCS, text)?,
            Kind::Place(field) => *(field.set)(config) = chosen(&PLACES, text)?,
            Kind::Count { .. } | Kind::NodeId(_) | Kind::Shards(_) | Kind::Founders(_) => {
                return Err(format!("must be {}, not text", self.unit()));
            }
        }
        Ok(())
    }

    fn within<T: PartialOrd>(&self, value: T, min: T, max: T) -> Result<(), String> {
        if value < min || value > max { Err(format!("must be within {}", self.bounds())) } else { Ok(()) }
    }
}

/// The list of founders, sorted; none if anything in it is wrong.
fn founders(value: &Spanned<DeValue<'_>>, complain: Complain<'_>) -> Option<Vec<Founder>> {
    let Some(list) = value.get_ref().as_array() else {
        complain(value.span(), "must be a list such as [{ id = 1, address = \"10.0.0.1:7101\" }]".into());
        return None;
    };
    if list.is_empty() || list.len() > FOUNDERS_MAX {
        complain(value.span(), format!("must have 1 to {FOUNDERS_MAX} nodes, has {}", list.len()));
        return None;
    }
    let mut found: Vec<Founder> = Vec::new();
    let mut sound = true;
    let mut complain = |span: Range<usize>, problem: String| {
        sound = false;
        complain(span, problem);
    };
    for item in list {
        let Some(founder) = founder(item, &mut complain) else { continue };
        if found.iter().any(|f| f.id == founder.id) {
            complain(item.span(), format!("id {} is there twice", founder.id));
        }
        for address in &founder.addresses {
            if found.iter().any(|f| f.addresses.contains(address)) {
                complain(item.span(), format!("address {address} is there twice"));
            }
            if list.len() > 1 && (address.port() == 0 || address.ip().is_unspecified()) {
                let problem =
                    format!("{address} cannot be dialled by the other nodes: it needs an IP and a port");
                complain(item.span(), problem);
            }
        }
        found.push(founder);
    }
    found.sort_by_key(|f| f.id);
    sound.then_some(found)
}

fn founder(item: &Spanned<DeValue<'_>>, complain: Complain<'_>) -> Option<Founder> {
    let Some(table) = item.get_ref().as_table() else {
        complain(item.span(), "must be a table such as { id = 1, address = \"10.0.0.1:7101\" }".into());
        return None;
    };
    let (mut id, mut addresses, mut sound) = (None, None, true);
    for (name, value) in table {
        let read = match (name.get_ref().as_ref(), value.get_ref()) {
            ("id", DeValue::Integer(n)) => match u64::from_str_radix(n.as_str(), n.radix()) {
                Ok(n) if n > 0 => {
                    id = Some(NodeId(n));
                    Ok(())
                }
                _ => Err("id must be a whole number, 1 or more".into()),
            },
            ("id", _) => Err("id must be a whole number, 1 or more".into()),
            ("address", DeValue::String(text)) => address(text).map(|a| addresses = Some(vec![a])),
            ("addresses", DeValue::Array(list)) if !list.is_empty() => {
                let list: Result<Vec<SocketAddr>, String> = list
                    .iter()
                    .map(|a| match a.get_ref() {
                        DeValue::String(text) => address(text),
                        other => Err(format!(
                            "an address is a text such as \"10.0.0.1:7101\", not {}",
                            named(other)
                        )),
                    })
                    .collect();
                list.map(|list| addresses = Some(list))
            }
            ("address", _) => Err("address must be a text such as \"10.0.0.1:7101\"".into()),
            ("addresses", _) => Err("addresses must be a list of texts, one for each shard".into()),
            (other, _) => Err(format!("unknown key {other:?}; a node has id and address or addresses")),
        };
        if let Err(problem) = read {
            sound = false;
            complain(value.span(), problem);
        }
    }
    if sound && table.contains_key("address") && table.contains_key("addresses") {
        sound = false;
        complain(item.span(), "has both address and addresses: one of them says it".into());
    }
    if !sound {
        return None;
    }
    let missing = if id.is_none() { "id" } else { "address" };
    match (id, addresses) {
        (Some(id), Some(addresses)) => Some(Founder { id, addresses }),
        _ => {
            complain(item.span(), format!("{missing} is missing"));
            None
        }
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is not an address: write IP:port, as in \"10.0.0.1:7101\" or \"[::1]:7101\" (host names are not looked up)")
    })
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.into()).to_string()
}

fn words<T>(all: &[(&str, T)]) -> String {
    all.iter().map(|(name, _)| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

fn word<T: PartialEq>(all: &[(&'static str, T)], value: &T) -> &'static str {
    all.iter().find(|(_, v)| v == value).map_or("", |(name, _)| name)
}

fn chosen<T: Copy>(all: &[(&str, T)], text: &str) -> Result<T, String> {
    let found = all.iter().find(|(name, _)| *name == text);
    found.map(|(_, value)| *value).ok_or_else(|| format!("must be one of {}", words(all)))
}

/// What people call a TOML value's type.
fn named(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
