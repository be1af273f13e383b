//! Names of files in a WAL directory.

use tidelog_types::Lsn;

/// Directory of bytes set aside.
pub(crate) const QUARANTINE: &str = "quarantine";

/// What a name says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Name {
    /// A segment, by its base.
    Segment(Lsn),
    /// A finished spare, by its number.
    Spare(u64),
    /// A file that was being made: worthless.
    Unfinished,
    /// Not ours.
    Other,
}

pub(crate) fn segment(base: Lsn) -> String {
    format!("{:016x}.wal", base.0)
}

pub(crate) fn spare(number: u64) -> String {
    format!("free-{number}.wal")
}

/// A spare that is being filled.
pub(crate) fn filling(number: u64) -> String {
    format!("free-{number}.tmp")
}

/// A segment whose header is being written.
pub(crate) fn heading(base: Lsn) -> String {
    format!("{:016x}.tmp", base.0)
}

/// Reads a name back.
pub(crate) fn parse(name: &str) -> Name {
    let is_base = |stem: &str| stem.len() == 16 && stem.bytes().all(|b| b.is_ascii_hexdigit());
    let number = |stem: &str| stem.strip_prefix("free-").and_then(|n| n.parse::<u64>().ok());
    if let Some(stem) = name.strip_suffix(".wal") {
        if let Some(n) = number(stem) {
            return Name::Spare(n);
        }
        if is_base(stem)
            && let Ok(base) = u64::from_str_radix(stem, 16)
            && segment(Lsn(base)) == name
        {
            return Name::Segment(Lsn(base));
        }
    } else if let Some(stem) = name.strip_suffix(".tmp")
        && (number(stem).is_some() || is_base(stem))
    {
        return Name::Unfinished;
    }
    Name::Other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_and_others_are_left_alone() {
        assert_eq!(parse(&segment(Lsn(0xabc000))), Name::Segment(Lsn(0xabc000)));
        assert_eq!(parse(&spare(12)), Name::Spare(12));
        assert_eq!(parse(&filling(12)), Name::Unfinished);
        assert_eq!(parse(&heading(Lsn(4096))), Name::Unfinished);
        for other in ["LOCK", "quarantine", "ABCDEF0123456789.wal", "1.wal", "free-.wal", "x.tmp", ""] {
            assert_eq!(parse(other), Name::Other, "{other}");
        }
    }
}
