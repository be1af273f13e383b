//! A configuration put together by a program.
//!
//! It writes the text that a person would write and has it read as any other, so that one set of keys, bounds and complaints holds for both.

use super::{Config, ConfigError};
use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::net::SocketAddr;
use std::path::Path;

/// Puts a configuration together; made by [`Config::builder`].
///
/// # Examples
/// ```
/// use tidelog::config::Config;
/// let config = Config::builder("orders")
///     .node(2, "data/n2")
///     .founder(1, "10.0.0.1:7101".parse()?)
///     .founder(2, "10.0.0.2:7101".parse()?)
///     .founder(3, "10.0.0.3:7101".parse()?)
///     .profile("laptop")
///     .set("cluster.partitions", 8)
///     .set("replication.election_timeout", "1s")
///     .build()?;
/// assert_eq!((config.cluster.replication, config.cluster.partitions), (3, 8));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "build() makes the configuration"]
pub struct ConfigBuilder {
    profiles: Vec<String>,
    founders: Vec<(u64, Vec<SocketAddr>)>,
    /// By section and name.
    keys: BTreeMap<(String, String), String>,
}

impl Config {
    /// Begins a configuration for a node of the cluster of this name. What is not set has its default; `cluster.partitions` is 1 unless set.
    pub fn builder(cluster: &str) -> ConfigBuilder {
        ConfigBuilder::default().set("cluster.name", cluster).set("cluster.partitions", 1)
    }
}

impl ConfigBuilder {
    /// Which node this is, and where its data lies.
    pub fn node(self, id: u64, data_dir: impl AsRef<Path>) -> ConfigBuilder {
        self.set("node.id", id).set("node.data_dir", data_dir.as_ref().display())
    }

    /// One more founding node, this one among them, with the address where its shard 0 listens (shard s: port + s).
    pub fn founder(self, id: u64, address: SocketAddr) -> ConfigBuilder {
        self.founder_at(id, [address])
    }

    /// The same with an address for each shard.
    pub fn founder_at(mut self, id: u64, addresses: impl IntoIterator<Item = SocketAddr>) -> ConfigBuilder {
        self.founders.push((id, addresses.into_iter().collect()));
        self
    }

    /// One more profile; keys that are set override it.
    pub fn profile(mut self, name: &str) -> ConfigBuilder {
        self.profiles.push(name.to_owned());
        self
    }

    /// Sets a key by its name, as `docs/configuration.md` lists it, to a number or to text with a unit (`"16MiB"`, `"50ms"`).
    pub fn set(mut self, key: &str, value: impl Display) -> ConfigBuilder {
        let (section, name) = key.split_once('.').unwrap_or(("", key));
        self.keys.insert((section.to_owned(), name.to_owned()), value.to_string());
        self
    }

    /// The configuration, checked.
    ///
    /// # Errors
    /// All that is wrong with it. Places are those of the text that was put together, one key a line.
    pub fn build(&self) -> Result<Config, ConfigError> {
        Config::parse(&self.to_toml(), "the builder's configuration")
    }

    fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut put = |line: std::fmt::Arguments<'_>| {
            text.write_fmt(line).expect("a string grows");
            text.push('\n');
        };
        if !self.profiles.is_empty() {
            put(format_args!("profile = {}", array(self.profiles.iter().map(|name| quoted(name)))));
        }
        let founders = self.founders.iter().map(|(id, addresses)| match addresses.as_slice() {
            [address] => format!("{{ id = {id}, address = {} }}", quoted(&address.to_string())),
            many => {
                let addresses = array(many.iter().map(|address| quoted(&address.to_string())));
                format!("{{ id = {id}, addresses = {addresses} }}")
            }
        });
        put(format_args!("cluster.nodes = {}", array(founders)));
        for ((section, name), value) in &self.keys {
            let value = match value.parse::<u64>() {
                Ok(number) if i64::try_from(number).is_ok() => number.to_string(),
                _ => quoted(value),
            };
            match section.as_str() {
                "" => put(format_args!("{} = {value}", quoted(name))),
                _ => put(format_args!("{}.{} = {value}", quoted(section), quoted(name))),
            }
        }
        text
    }
}

fn array(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

/// A basic TOML string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => write!(quoted, "\\U{:08X}", u32::from(c)).expect("a string grows"),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> ConfigBuilder {
        let builder = Config::builder("demo").node(2, "da\"ta\\\n/\u{1}n2");
        (1..=3).fold(builder, |builder, id| {
            builder.founder(id, SocketAddr::from(([127, 0, 0, 1], 7000 + id as u16)))
        })
    }

    #[test]
    fn what_is_set_is_what_is_read() {
        let config = three().profile("laptop").set("wal.segment_size", "32MiB").set("wal.in_flight", 2);
        let config = config.build().unwrap();
        assert_eq!(config.cluster.name, "demo");
        assert_eq!(config.node.data_dir, Path::new("da\"ta\\\n/\u{1}n2"));
        assert_eq!((config.node.id.get(), config.cluster.nodes.len(), config.cluster.replication), (2, 3, 3));
        assert_eq!((config.wal.segment_size, config.wal.in_flight), (32 << 20, 2));
        assert_eq!(config.profile, ["laptop"]);
    }

    #[test]
    fn what_is_wrong_is_named_all_at_once() {
        let error = three().set("wal.segmentsize", "1MiB").set("wal.in_flight", "many").build().unwrap_err();
        let told = error.to_string();
        assert!(told.contains("\"segmentsize\" in [wal]") && told.contains("wal.in_flight"), "{told}");
        let error = Config::builder("x").build().unwrap_err().to_string();
        assert!(error.contains("node.id") && error.contains("node.data_dir"), "{error}");
    }

    #[test]
    fn a_node_that_is_no_founder_is_refused() {
        let error = Config::builder("x").node(9, "d").founder(1, "127.0.0.1:1".parse().unwrap());
        let told = error.build().unwrap_err().to_string();
        assert!(told.contains('9'), "{told}");
    }
}
