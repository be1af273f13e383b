//! Descriptors: what a node's connections, its log and its peers need together, against what the process may have.
//!
//! A log that cannot open its next file stops the node, so the configuration promises no more connections than fit beside it. The check
//! comes before anything is opened; it does not know what else the process holds, and leaves room for that.

use tidelog::Error;
use tidelog::config::Config;
use tidelog::transport::connections_max;
use tidelog_io::Limit;

/// Ring, listener, lock, snapshots that are written and read, standard streams, and what the embedding program has.
const OTHERS: u64 = 96;
/// Segments that a log has open at most, beside its spare ones.
const SEGMENTS_MAX: u64 = 512;

/// Descriptors that the log of this configuration may have open.
fn log(config: &Config) -> u64 {
    let segments = config.wal.budget.div_ceil(config.wal.segment_size.max(1)).min(SEGMENTS_MAX);
    segments + config.wal.spare_segments as u64
}

/// Whether the configuration fits the process's limit.
///
/// # Errors
/// If it does not, with what to change.
pub(crate) fn check(config: &Config, limit: Limit) -> Result<(), Error> {
    let (connections, log) = (connections_max(config) as u64, log(config));
    let (need, most) = (connections + log + OTHERS, limit.now.max(limit.most));
    if need <= most {
        return Ok(());
    }
    let limits = &config.limits;
    let (clients, unspoken) = (limits.client_connections as u64, limits.unspoken_connections as u64);
    let left = most.saturating_sub(need - clients - unspoken);
    let fitting = match left {
        // Three parts of four to clients, as with the defaults.
        64.. => format!(
            "set [limits] client_connections = {} and unspoken_connections = {}, or",
            left - left / 4,
            left / 4
        ),
        _ => "no number of clients fits beside the log:".to_owned(),
    };
    Err(Error::Config(format!(
        "this configuration needs {need} descriptors ({clients} clients, {unspoken} connections that have not said who they are, \
         {} for refusals and peers, {log} for the log, {OTHERS} others), and this process may have {most}: {fitting} raise the \
         limit (ulimit -Hn, LimitNOFILE= of a systemd unit)",
        connections - clients - unspoken
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(config: &Config, most: u64) -> Option<String> {
        check(config, Limit { now: 256.min(most), most }).err().map(|error| error.to_string())
    }

    #[test]
    fn a_configuration_that_does_not_fit_is_refused_with_one_that_does() {
        let mut config = Config::single("data");
        (config.limits.client_connections, config.limits.unspoken_connections) = (1024, 512);
        assert_eq!(refused(&config, 4096), None);
        let why = refused(&config, 1024).expect("1024 clients do not fit 1024 descriptors");
        let number = |key: &str| -> usize {
            let rest = why.split(key).nth(1).unwrap_or_else(|| panic!("{key} in {why}"));
            rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
        };
        config.limits.client_connections = number("client_connections = ");
        config.limits.unspoken_connections = number("unspoken_connections = ");
        assert!(config.limits.client_connections > 100);
        assert_eq!(refused(&config, 1024), None, "what it says fits");
        assert!(refused(&config, 256).is_some_and(|why| why.contains("no number of clients")));
    }
}
