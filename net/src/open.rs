//! A cluster's node: the engine over this crate's transport.

use crate::{Limits, NetOptions, NetTransport, descriptors};
use tidelog::config::Config;
use tidelog::engine::no_machines;
use tidelog::shard::MachineFactory;
use tidelog::{Engine, Error};
use tidelog_io::descriptor_limit;

/// Opens a node of the configured cluster and listens. It is there at once; the cluster is formed when all
/// founding nodes have been up once, and a partition takes appends when its replicas have a leader.
///
/// # Errors
/// If the directory cannot be used, the log cannot be recovered, the address is not free, or the process may not have as many
/// descriptors as the log, the peers and the configured connections need.
///
/// # Examples
/// ```no_run
/// use tidelog::config::Config;
/// let node = tidelog_net::open(Config::load("node.toml")?)?;
/// println!("listening on {:?}", node.ready().address);
/// node.join()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn open(config: Config) -> Result<Engine, Error> {
    open_with(config, no_machines())
}

/// Like [`open`], with state machines on the partitions for which `machines` makes one.
///
/// # Errors
/// As [`open`].
pub fn open_with(config: Config, machines: MachineFactory) -> Result<Engine, Error> {
    descriptors::check(&config, descriptor_limit())?;
    let defaults = Limits::default();
    let limits = Limits {
        client_connections_max: config.limits.client_connections,
        requests_in_flight_max: config.limits.requests_in_flight,
        request_bytes_in_flight_max: config.limits.request_bytes_in_flight,
        client_bytes_max: config.limits.client_bytes,
        fresh_connections_max: config.limits.unspoken_connections,
        sessions_per_connection_max: config.limits.sessions_per_connection,
        session_expiry: config.limits.session_expiry,
        ..defaults
    };
    let channel_timeout = config.replication.channel_timeout;
    Engine::start(
        config,
        Box::new(move |options| {
            let net = NetOptions::new(options.node, options.nodes.clone(), options.heartbeat);
            Ok(Box::new(NetTransport::new(NetOptions {
                channel_timeout,
                election_timeout: options.election_timeout,
                limits,
                ..net
            })))
        }),
        machines,
    )
}
