//! From a text to a configuration: profiles, keys, what is missing, relations; every complaint with its place.

use super::error::{At, Complaint, ConfigError};
use super::profile::{self, Profile, ProfileKind};
use super::relation::RELATIONS;
use super::{Config, Origin, keys, table};
use std::collections::BTreeSet;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Characters of a wrong value that a complaint repeats.
const VALUE_CHARS_MAX: usize = 60;

pub(super) fn read(text: &str, origin: &str) -> Result<Config, ConfigError> {
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut reading = Reading { text, origin, complaints: Vec::new(), wrong: BTreeSet::new() };
    for error in &errors {
        let at = error.span().map(|span| reading.at(span.start));
        reading.complaints.push(Complaint {
            at,
            key: String::new(),
            value: String::new(),
            problem: format!("not TOML: {}", error.message().replace('\n', ", ")),
        });
    }
    if !errors.is_empty() {
        // What a broken text means is a guess: nothing further is said about it.
        return Err(reading.refusal());
    }

    let mut config = Config::defaults();
    for profile in reading.profiles(root.get_ref()) {
        config.set_profile(profile);
    }
    for (name, value) in root.get_ref() {
        if name.get_ref() != "profile" {
            reading.section(&mut config, name.get_ref(), name.span(), value);
        }
    }
    reading.missing(&config, root.get_ref());
    config.derive_rest();
    reading.relations(&mut config);
    if reading.complaints.is_empty() { Ok(config) } else { Err(reading.refusal()) }
}

struct Reading<'t> {
    text: &'t str,
    origin: &'t str,
    complaints: Vec<Complaint>,
    /// Keys that were complained about: relations with them are not judged.
    wrong: BTreeSet<&'static str>,
}

impl Reading<'_> {
    fn refusal(mut self) -> ConfigError {
        self.complaints.sort();
        ConfigError::Invalid { origin: self.origin.into(), complaints: self.complaints }
    }

    fn at(&self, offset: usize) -> At {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        At {
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).map_or(0, |line| line.chars().count()) + 1,
        }
    }

    fn complain(&mut self, key: impl Into<String>, span: Range<usize>, value: bool, problem: String) {
        let written = if value { self.text.get(span.clone()).unwrap_or("") } else { "" };
        let line = written.lines().next().unwrap_or("");
        let mut shown: String = line.chars().take(VALUE_CHARS_MAX).collect();
        if shown.len() < written.len() {
            shown.push_str(" ...");
        }
        let at = Some(self.at(span.start));
        self.complaints.push(Complaint { at, key: key.into(), value: shown, problem });
    }

    /// The profiles named, the device's first.
    fn profiles(&mut self, root: &DeTable<'_>) -> Vec<&'static Profile> {
        let Some(value) = root.get("profile") else { return Vec::new() };
        let names: Vec<(&str, Range<usize>)> = match value.get_ref() {
            DeValue::String(name) => vec![(name, value.span())],
            DeValue::Array(list) if list.iter().all(|v| v.get_ref().is_str()) => {
                list.iter().map(|v| (v.get_ref().as_str().unwrap_or(""), v.span())).collect()
            }
            _ => {
                let problem = "must be a list of names such as [\"laptop\", \"balanced\"]".into();
                self.complain("profile", value.span(), true, problem);
                return Vec::new();
            }
        };
        let mut found: Vec<&'static Profile> = Vec::new();
        for (name, span) in names {
            match profile::named(name) {
                None => self.complain("profile", span, true, profile::unknown(name)),
                Some(profile) => match found.iter().find(|p| p.kind == profile.kind) {
                    Some(other) => {
                        let kind = if profile.kind == ProfileKind::Device { "device" } else { "goal" };
                        let problem =
                            format!("is a second {kind} profile beside {:?}: one of each kind", other.name);
                        self.complain("profile", span, true, problem);
                    }
                    None => found.push(profile),
                },
            }
        }
        found.sort_by_key(|p| p.kind == ProfileKind::Goal);
        found
    }

    fn section(
        &mut self,
        config: &mut Config,
        section: &str,
        span: Range<usize>,
        value: &Spanned<DeValue<'_>>,
    ) {
        let sections: BTreeSet<&str> = keys().iter().map(|k| k.section()).collect();
        if !sections.contains(section) {
            let mut problem = format!("unknown section [{}]", shortened(section));
            if let Some(key) = keys().iter().find(|k| k.short() == section) {
                problem = format!("unknown key at the top: {section} stands in [{}]", key.section());
            } else if let Some(near) = nearest(section, sections.iter().copied().chain(["profile"])) {
                problem = format!("{problem}; is [{near}] meant?");
            } else {
                let all = sections.into_iter().collect::<Vec<_>>().join(", ");
                problem = format!("{problem}; there are {all}");
            }
            self.complain("", span, false, problem);
            return;
        }
        let Some(table) = value.get_ref().as_table() else {
            self.complain(
                section,
                value.span(),
                true,
                format!("must be a table: write [{section}] on a line"),
            );
            self.wrong.extend(keys().iter().filter(|k| k.section() == section).map(|k| k.name));
            return;
        };
        for (name, value) in table {
            let full = format!("{section}.{}", name.get_ref());
            match table::find(&full) {
                Some(key) => {
                    let mut problems = Vec::new();
                    key.read(config, value, &mut |span, problem| problems.push((span, problem)));
                    if problems.is_empty() {
                        let at = self.at(value.span().start);
                        config.origins.insert(key.name, Origin::Text { origin: self.origin.into(), at });
                    } else {
                        self.wrong.insert(key.name);
                    }
                    for (span, problem) in problems {
                        self.complain(key.name, span, true, problem);
                    }
                }
                None => {
                    let mut problem = format!("unknown key {:?} in [{section}]", shortened(name.get_ref()));
                    let here = keys().iter().filter(|k| k.section() == section).map(|k| k.short());
                    if let Some(elsewhere) = keys().iter().find(|k| k.short() == name.get_ref()) {
                        problem = format!("{problem}; it stands in [{}]", elsewhere.section());
                    } else if let Some(near) = nearest(name.get_ref(), here.clone()) {
                        problem = format!("{problem}; is {near:?} meant?");
                    } else {
                        problem = format!("{problem}; there are {}", here.collect::<Vec<_>>().join(", "));
                    }
                    self.complain("", name.span(), false, problem);
                }
            }
        }
    }

    /// Complains about required keys that are not there, at their section's place.
    fn missing(&mut self, config: &Config, root: &DeTable<'_>) {
        for key in keys().iter().filter(|k| k.required()) {
            if self.wrong.contains(key.name) || config.origins.contains_key(key.name) {
                continue;
            }
            self.wrong.insert(key.name);
            let section = root.get_key_value(key.section()).map(|(name, _)| self.at(name.span().start));
            self.complaints.push(Complaint {
                at: section,
                key: key.name.into(),
                value: String::new(),
                problem: format!("is missing: say {} in [{}], {}", key.short(), key.section(), key.unit()),
            });
        }
    }

    fn relations(&mut self, config: &mut Config) {
        for relation in RELATIONS {
            if relation.keys.iter().any(|key| self.wrong.contains(key)) {
                continue;
            }
            let Some(problem) = (relation.check)(config) else { continue };
            let Some(blamed) = relation.keys.first().copied() else { continue };
            // The place of the first key of the relation that stands in the text: another may come from a profile.
            let at = relation.keys.iter().find_map(|key| match config.origin(key) {
                Origin::Text { at, .. } => Some(*at),
                _ => None,
            });
            let value = table::find(blamed).and_then(|key| key.value(config)).unwrap_or_default();
            let value = if value.contains('\n') { String::new() } else { value };
            let complaint = Complaint { at, key: blamed.into(), value, problem };
            if relation.warning {
                config.warnings.push(complaint);
            } else {
                self.complaints.push(complaint);
            }
        }
    }
}

fn shortened(name: &str) -> String {
    name.chars().take(VALUE_CHARS_MAX).collect()
}

/// The name that differs from `wrong` by at most two letters, if there is one.
fn nearest<'n>(wrong: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    if wrong.len() > VALUE_CHARS_MAX {
        return None;
    }
    names.map(|name| (distance(wrong, name), name)).filter(|(d, _)| *d <= 2).min().map(|(_, name)| name)
}

/// Letters to add, drop or change to make one word the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for ((y, above), above_left) in b.chars().zip(row.iter().skip(1)).zip(row.iter()) {
            let left = next.last().copied().unwrap_or(0);
            next.push((above_left + usize::from(x != y)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_between_words() {
        assert_eq!(distance("heartbeat", "heartbeat"), 0);
        assert_eq!(distance("hartbeat", "heartbeat"), 1);
        assert_eq!(distance("segmentsize", "segment_size"), 1);
        assert_eq!(distance("", "sync"), 4);
        assert_eq!(nearest("hartbeet", ["heartbeat", "sync"].into_iter()), Some("heartbeat"));
        assert_eq!(nearest("zzzzzz", ["heartbeat", "sync"].into_iter()), None);
    }
}
