//! Values of flags as people write them.

use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::Range;
use std::time::Duration;
use tidelog::config::unit;

/// A duration with its unit: `5s`, `50ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    unit::duration(text).map_err(|e| e.to_string())
}

/// Bytes: a bare number, or a size with its unit: `1024`, `16KiB`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    text.parse::<u64>().or_else(|_| unit::size(text).map_err(|e| e.to_string()))
}

/// The address of a node: `IP:port` or `host:port`.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let wrong = |why: String| format!("{why}; write IP:port or host:port, as in 127.0.0.1:7101");
    let mut found = text.to_socket_addrs().map_err(|e| wrong(e.to_string()))?;
    found.next().ok_or_else(|| wrong("the name has no address".into()))
}

/// Seeds `A..B` (without B), `A..=B`, or `N` for the first N.
pub(crate) fn seeds(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("{text:?} is not a range of seeds: write A..B, A..=B, or how many");
    let number = |text: &str| text.trim().parse::<u64>().map_err(|_| wrong());
    let range = if let Some((first, last)) = text.split_once("..=") {
        number(first)?..number(last)?.checked_add(1).ok_or_else(wrong)?
    } else if let Some((first, end)) = text.split_once("..") {
        number(first)?..number(end)?
    } else {
        0..number(text)?
    };
    if range.is_empty() { Err(format!("{text:?} has no seeds in it")) } else { Ok(range) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_with_and_without_a_unit() {
        assert_eq!(bytes("1024"), Ok(1024));
        assert_eq!(bytes("16KiB"), Ok(16384));
        assert!(bytes("16KB").unwrap_err().contains("KiB"));
        assert!(bytes("-1").is_err());
    }

    #[test]
    fn addresses_and_what_is_wrong_with_them() {
        assert_eq!(address("127.0.0.1:7101"), Ok("127.0.0.1:7101".parse().unwrap()));
        assert!(address("127.0.0.1").unwrap_err().contains("IP:port"));
    }

    #[test]
    fn ranges_of_seeds() {
        assert_eq!(seeds("3..7"), Ok(3..7));
        assert_eq!(seeds("3..=7"), Ok(3..8));
        assert_eq!(seeds("200"), Ok(0..200));
        for wrong in ["", "7..3", "0", "a..b", "1..=18446744073709551615", "-1..2"] {
            assert!(seeds(wrong).is_err(), "{wrong}");
        }
    }
}
