//! Durations and sizes as people write them: a whole number and a unit, `50ms`, `16MiB`.
//!
//! Used for the configuration and for command-line flags. Every value has one canonical text, in the largest unit that is exact.

use std::time::Duration;

const DURATIONS: [(&str, u64); 5] = [
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("min", 60_000_000_000),
    ("h", 3_600_000_000_000),
];
const SIZES: [(&str, u64); 5] =
    [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// What is wrong with a duration or a size.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnitError {
    /// No digits in front, or something other than digits.
    #[error("{text:?} does not start with a whole number; write {example:?}")]
    Number {
        /// What was written.
        text: String,
        /// What would be right.
        example: &'static str,
    },
    /// The unit is missing or unknown.
    #[error("{text:?} has {} unit; use one of {units}, as in {example:?}", if .unit.is_empty() { "no" } else { "an unknown" })]
    Unit {
        /// What was written.
        text: String,
        /// The part behind the digits.
        unit: String,
        /// The units that there are.
        units: String,
        /// What would be right.
        example: &'static str,
    },
    /// Beyond what can be counted.
    #[error("{text:?} is too large")]
    TooLarge {
        /// What was written.
        text: String,
    },
}

/// A duration: a whole number with `us`, `ms`, `s`, `min` or `h`.
///
/// ```
/// use tidelog::config::unit::duration;
/// assert_eq!(duration("50ms"), Ok(std::time::Duration::from_millis(50)));
/// assert!(duration("50").is_err());
/// ```
///
/// # Errors
/// Says what to write instead.
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    scaled(text, &DURATIONS, "50ms").map(Duration::from_nanos)
}

/// A size in bytes: a whole number with `B`, `KiB`, `MiB`, `GiB` or `TiB`.
///
/// # Errors
/// Says what to write instead.
pub fn size(text: &str) -> Result<u64, UnitError> {
    scaled(text, &SIZES, "16MiB")
}

/// A duration's canonical text. What is below a microsecond is dropped.
pub fn duration_text(duration: Duration) -> String {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    text(nanos - nanos % 1_000, &DURATIONS, "0s")
}

/// A size's canonical text.
pub fn size_text(bytes: u64) -> String {
    text(bytes, &SIZES, "0B")
}

fn scaled(text: &str, units: &[(&str, u64)], example: &'static str) -> Result<u64, UnitError> {
    let shown = || text.chars().take(40).collect::<String>();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(UnitError::Number { text: shown(), example });
    }
    let unit = unit.trim_start_matches(' ');
    let Some((_, scale)) = units.iter().find(|(name, _)| *name == unit) else {
        let units = units.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let unit = unit.chars().take(20).collect();
        return Err(UnitError::Unit { text: shown(), unit, units, example });
    };
    let too_large = || UnitError::TooLarge { text: shown() };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(*scale)).ok_or_else(too_large)
}

fn text(value: u64, units: &[(&str, u64)], zero: &str) -> String {
    if value == 0 {
        return zero.into();
    }
    let exact = units.iter().rev().find(|(_, scale)| value.is_multiple_of(*scale));
    exact.map_or_else(|| value.to_string(), |(name, scale)| format!("{}{name}", value / scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("250us"), Ok(Duration::from_micros(250)));
        assert_eq!(duration("2 min"), Ok(Duration::from_secs(120)));
        assert_eq!(size("16MiB"), Ok(16 << 20));
        assert_eq!(size("0B"), Ok(0));
        assert!(matches!(duration(""), Err(UnitError::Number { .. })));
        assert!(matches!(duration("-5s"), Err(UnitError::Number { .. })));
        assert!(matches!(duration("5"), Err(UnitError::Unit { .. })));
        assert!(matches!(duration("1.5s"), Err(UnitError::Unit { .. })));
        assert!(matches!(size("16MB"), Err(UnitError::Unit { .. })));
        assert!(matches!(size("99999999999GiB"), Err(UnitError::TooLarge { .. })));
        let said = size("16MB").unwrap_err().to_string();
        assert_eq!(said, r#""16MB" has an unknown unit; use one of B, KiB, MiB, GiB, TiB, as in "16MiB""#);
    }

    #[test]
    fn canonical_text_takes_the_largest_exact_unit() {
        assert_eq!(size_text(16 << 20), "16MiB");
        assert_eq!(size_text((16 << 20) + 1), "16777217B");
        assert_eq!(duration_text(Duration::from_millis(1500)), "1500ms");
        assert_eq!(duration_text(Duration::from_secs(7200)), "2h");
        assert_eq!(duration_text(Duration::ZERO), "0s");
    }

    proptest::proptest! {
        #[test]
        fn text_and_back(bytes: u64, micros in 0u64..u64::MAX / 1_000) {
            proptest::prop_assert_eq!(size(&size_text(bytes)), Ok(bytes));
            let d = Duration::from_micros(micros);
            proptest::prop_assert_eq!(duration(&duration_text(d)), Ok(d));
        }

        #[test]
        fn any_text_is_an_answer(text: String) {
            let _ = (duration(&text), size(&text));
        }
    }
}
