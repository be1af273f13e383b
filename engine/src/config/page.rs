//! The configuration as text for people: the effective one, one key explained, the reference page.

use super::key::{Key, Scope};
use super::profile::{PROFILES, ProfileKind};
use super::relation::RELATIONS;
use super::{Config, Origin, keys};
use std::fmt;
use std::fmt::Write;

/// Everything about one key in one configuration.
pub struct Explanation<'c> {
    /// The key.
    pub key: &'static Key,
    /// Whose value is shown.
    pub(super) config: &'c Config,
}

impl Explanation<'_> {
    /// The value as TOML; none if it has none.
    pub fn value(&self) -> Option<String> {
        self.key.value(self.config)
    }

    /// Where it comes from.
    pub fn origin(&self) -> &Origin {
        self.config.origin(self.key.name)
    }
}

impl Scope {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Scope::Identity => "this node's own",
            Scope::Cluster => "the same on every node, fixed when the cluster is created",
            Scope::Node => "may differ from node to node",
        }
    }
}

impl fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key;
        match self.value() {
            Some(value) => writeln!(f, "{} = {value}", key.name)?,
            None => writeln!(f, "{} is not set", key.name)?,
        }
        writeln!(f, "  effect   {}", key.effect)?;
        writeln!(f, "  origin   {}", self.origin())?;
        writeln!(f, "  unit     {}", key.unit())?;
        writeln!(f, "  bounds   {}", key.bounds())?;
        writeln!(f, "  default  {}", key.default_text())?;
        write!(f, "  scope    {}", key.scope.words())?;
        if let Some(later) = key.later {
            write!(f, "\n  not yet  {later}")?;
        }
        Ok(())
    }
}

/// All keys with their values, as TOML, each with its origin in a comment.
pub(super) fn effective(config: &Config) -> String {
    let mut text = String::new();
    if !config.profile.is_empty() {
        let names: Vec<String> = config.profile.iter().map(|name| format!("{name:?}")).collect();
        let _ = writeln!(text, "profile = [{}]", names.join(", "));
    }
    let mut section = "";
    for key in keys() {
        let Some(value) = key.value(config) else { continue };
        if key.section() != section {
            section = key.section();
            let _ = writeln!(text, "\n[{section}]");
        }
        let _ =
            writeln!(text, "{} = {value} # {}", key.short(), one_line(&config.origin(key.name).to_string()));
    }
    text
}

/// A comment cannot hold control characters, and a file's name can.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The reference of all keys and profiles, in Markdown: `docs/configuration.md`.
pub fn reference() -> String {
    let mut page = String::from(OPENING);
    page.push_str("\n## Profiles\n");
    page.push_str(
        "At most one for the device and one for the goal: the device's is applied first, then the goal's, then the keys of the file. None of\n\
         them changes what an acknowledgement means: it is on stable storage on a majority of the replicas in every profile.\n\n",
    );
    page.push_str("| Profile | For | Sets |\n|---|---|---|\n");
    for profile in PROFILES {
        let kind = if profile.kind == ProfileKind::Device { "device" } else { "goal" };
        let sets: Vec<String> = profile.sets.iter().map(|(key, value)| format!("`{key}` {value}")).collect();
        let sets = if sets.is_empty() { "nothing".into() } else { sets.join(", ") };
        let _ = writeln!(page, "| `{}` ({kind}) | {} | {sets} |", profile.name, profile.summary);
    }
    let mut section = "";
    for key in keys() {
        if key.section() != section {
            section = key.section();
            let _ = writeln!(page, "\n## [{section}]");
        }
        let _ = writeln!(page, "\n### `{}`\n{}\n", key.name, key.effect);
        let _ = writeln!(page, "- Takes: {}; {}.", key.unit(), key.bounds());
        let _ = writeln!(page, "- Default: {}.", key.default_text());
        let _ = writeln!(page, "- Scope: {}.", key.scope.words());
        if let Some(later) = key.later {
            let _ = writeln!(page, "- Not there yet: {later}.");
        }
    }
    page.push_str("\n## Relations\nChecked whenever a configuration is read:\n\n");
    for relation in RELATIONS.iter().filter(|r| !r.rule.is_empty()) {
        let _ = writeln!(page, "- {}", relation.rule);
    }
    page
}

const OPENING: &str = r#"# Configuration

A node is told everything by one TOML file. An unknown key, a value out of bounds, a missing unit or keys that do not go together
are refused before anything is opened, all complaints at once, each with key, value, bound, line and column.

```
tidelog config check node.toml                    # what is wrong, what deserves a second look
tidelog config show node.toml                     # the effective configuration: every key, and where its value comes from
tidelog config explain node.toml wal.segment_size # one key: value, unit, origin, effect
```

A complete example for the first of three nodes; what is not written has its default:

```toml
profile = ["laptop", "balanced"]   # a device profile, then a goal profile

[node]
id = 1
data_dir = "data/n1"
shards = 1

[cluster]
name = "demo"
nodes = [
  { id = 1, address = "127.0.0.1:7101" },
  { id = 2, address = "127.0.0.1:7102" },
  { id = 3, address = "127.0.0.1:7103" },
]
partitions = 8
replication = 3

[io]
backend = "uring"

[wal]
segment_size = "16MiB"
sync = "auto"

[replication]
heartbeat = "50ms"
election_timeout = "500ms"

[snapshot]
every = "64MiB"
```

This page is written by the program from the table that it checks by; a test compares the two.
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_page_is_sound() {
        let example = OPENING.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let config = Config::parse(example, "example").unwrap();
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        assert_eq!(config.profile, ["laptop", "balanced"]);
    }
}
