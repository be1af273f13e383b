//! The data directory: `identity`, `LOCK`, `shard-0000/` with the WAL of shard 0.

use crate::error::Error;
use crate::identity::{Flaw, Found, Identity, Loaded};
use crate::options::Options;
use std::path::{Path, PathBuf};
use tidelog_io::{Foreground, Io, IoErrorKind, LockError, Op, Output, Place};
use tidelog_types::{Incarnation, ShardId};

/// How keys find their replicas: the version of the key hash in the low half, of the placement in the high half.
/// Fixed when a cluster is created.
pub const MAP_VERSION: u32 = tidelog_cluster::KEY_HASH_VERSION | tidelog_cluster::PLACEMENT_VERSION << 16;

/// Where the WAL of a shard lies.
pub fn wal_dir(data_dir: &Path, shard: ShardId) -> PathBuf {
    data_dir.join(format!("shard-{:04}", shard.get()))
}

/// Reads the identity of the configured data directory and checks that it is this node's, and where it was written; an empty
/// directory gets a new one. A file with one good copy has two again before this returns.
///
/// # Errors
/// If the directory belongs to another node or cluster, is not empty but has no identity, or cannot be used.
pub(crate) fn open(io: &mut dyn Io, options: &Options) -> Result<Identity, Error> {
    let incarnation = Incarnation(io.random().max(1));
    let mut fg = Foreground::new(io);
    let identity = match Identity::load(&mut fg, &options.data_dir)? {
        Some(Loaded { found: Found { mut identity, flaw }, place }) => {
            check(&identity, options)?;
            stands(&identity, place, options)?;
            // A process that ended between the file's renaming and its directory's sync left a name that a power loss may still take back, and with it who the members
            // are. Nothing may rest on it before.
            fg.run(Op::SyncDir { path: options.data_dir.clone() })?;
            if flaw.is_some() || identity.place.is_none() {
                mend(&mut fg, &options.data_dir, &mut identity, flaw.as_ref())?;
            }
            identity
        }
        None => create(&mut fg, options, incarnation)?,
    };
    // The transport has not started: nobody else has operations in flight.
    drop(fg.finish());
    Ok(identity)
}

fn refuse<T>(options: &Options, why: String) -> Result<T, Error> {
    Err(Error::Directory { path: options.data_dir.clone(), why })
}

/// Whether a file that was written at one place and is found at another may be the same. Where one of the two does not know the time
/// of birth, the inode decides.
pub fn is_same_place(written: Place, found: Place) -> bool {
    written.inode == found.inode
        && written.born_ns.zip(found.born_ns).is_none_or(|(written, found)| written == found)
}

/// A place for people.
pub fn describe_place(place: Place) -> String {
    match place.born_ns {
        Some(born) => {
            format!("inode {}, made at {}.{:09}", place.inode, born / 1_000_000_000, born % 1_000_000_000)
        }
        None => format!("inode {}", place.inode),
    }
}

/// The identity file is where it was written: a copy of it is elsewhere, and what the original has confirmed since is not in the copy.
fn stands(identity: &Identity, place: Place, options: &Options) -> Result<(), Error> {
    if !options.place_checked {
        tracing::warn!(
            directory = %options.data_dir.display(),
            "[node] place = \"unchecked\": a copied or restored data directory is not noticed"
        );
        return Ok(());
    }
    match identity.place {
        Some(written) if !is_same_place(written, place) => refuse(
            options,
            format!(
                "it was copied or restored: its file `identity` was written at {}, and is at {} now. A copy lacks what node {} has confirmed since it was made, so it must not run: use the original. If this directory was moved and the original is gone for good, say so: tidelog node adopt {}",
                describe_place(written),
                describe_place(place),
                identity.node,
                options.data_dir.display()
            ),
        ),
        _ => Ok(()),
    }
}

/// Writes the file again, with two copies and its place, by the path that every change of it takes.
fn mend(
    fg: &mut Foreground<'_>,
    dir: &Path,
    identity: &mut Identity,
    flaw: Option<&Flaw>,
) -> Result<(), Error> {
    let file = dir.join("identity");
    match flaw {
        None => tracing::info!(file = %file.display(), "it does not name its place yet: it is written again"),
        Some(flaw @ Flaw::OneCopy) => {
            tracing::info!(file = %file.display(), "{flaw}: it is written again with two")
        }
        Some(flaw @ Flaw::Damaged { .. }) => {
            tracing::warn!(file = %file.display(), "{flaw}. The other says who this directory is, and the file is written again; check the disk");
        }
    }
    match identity.store(fg, dir) {
        // A full disk must still vote, and the good copy is in its place.
        Err(Error::Io(error)) if error.kind == IoErrorKind::NoSpace => {
            tracing::warn!(%error, "the file stays as it is, with a good copy; the next start tries again");
            Ok(())
        }
        stored => stored,
    }
}

fn check(identity: &Identity, options: &Options) -> Result<(), Error> {
    if identity.cluster_name != options.cluster_name {
        return refuse(
            options,
            format!(
                "it belongs to the cluster named {:?}, the configuration says {:?}: use another [node] data_dir, or correct [cluster] name",
                identity.cluster_name, options.cluster_name
            ),
        );
    }
    if identity.node != options.node {
        return refuse(
            options,
            format!(
                "it belongs to node {}, the configuration says node {}: use that node's own directory, or correct [node] id",
                identity.node, options.node
            ),
        );
    }
    for (what, directory, configured) in [
        ("[cluster] partitions", identity.partitions, options.partitions),
        ("[cluster] replication", u64::from(identity.replication), options.replication as u64),
        ("version of key hash and placement", u64::from(identity.key_hash), u64::from(MAP_VERSION)),
        ("[node] shards", u64::from(identity.shard_count), 1),
    ] {
        if directory != configured {
            return refuse(
                options,
                format!(
                    "it was created with {what} = {directory}, now it is {configured}: this is fixed at creation, correct the configuration"
                ),
            );
        }
    }
    if let Some(formed) = &identity.formed {
        let members: Vec<u64> = formed.members.iter().map(|m| m.node.get()).collect();
        let configured: Vec<u64> = options.nodes.iter().map(|(n, _)| n.get()).collect();
        if members != configured {
            return refuse(
                options,
                format!(
                    "its cluster was formed by the nodes {members:?}, the configuration lists {configured:?}: [cluster] nodes are the founding members, correct the list"
                ),
            );
        }
    }
    Ok(())
}

/// Makes the directory and its parents, each name durable, where they are missing.
///
/// # Errors
/// If one cannot be made.
pub(crate) fn make(io: &mut dyn Io, dir: &Path) -> Result<(), Error> {
    let mut fg = Foreground::new(io);
    make_in(&mut fg, dir)?;
    drop(fg.finish());
    Ok(())
}

/// A directory that cannot be made or written to.
pub(crate) fn unusable(dir: &Path, why: &dyn std::fmt::Display) -> Error {
    let why = format!("{why}. Name a directory that this user may write to under [node] data_dir");
    Error::Directory { path: dir.to_owned(), why }
}

/// A directory whose lock is not to be had.
pub(crate) fn not_held(dir: &Path, error: LockError) -> Error {
    match error {
        LockError::Io(error) => unusable(dir, &error),
        LockError::Held { holder, .. } => {
            let holder = holder.map_or(String::new(), |pid| format!(" (pid {pid})"));
            let why = format!("it is in use by another process{holder}: stop it, or use another directory");
            Error::Directory { path: dir.to_owned(), why }
        }
    }
}

fn make_in(fg: &mut Foreground<'_>, dir: &Path) -> Result<(), Error> {
    let mut missing = Vec::new();
    let mut at = Some(dir);
    while let Some(path) = at.filter(|p| !p.as_os_str().is_empty()) {
        match fg.run(Op::List { path: path.to_owned() }) {
            Err(e) if e.kind == IoErrorKind::NotFound => missing.push(path.to_owned()),
            Err(e) => return Err(e.into()),
            Ok(_) => {
                // A process that was killed may have made it, and not its name durable.
                sync_parent(fg, path)?;
                break;
            }
        }
        at = path.parent();
    }
    for path in missing.into_iter().rev() {
        fg.run(Op::CreateDir { path: path.clone() })?;
        sync_parent(fg, &path)?;
    }
    Ok(())
}

fn sync_parent(fg: &mut Foreground<'_>, path: &Path) -> Result<(), Error> {
    let Some(parent) = path.parent() else { return Ok(()) };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    fg.run(Op::SyncDir { path: parent.to_owned() })?;
    Ok(())
}

fn create(fg: &mut Foreground<'_>, options: &Options, incarnation: Incarnation) -> Result<Identity, Error> {
    let dir = &options.data_dir;
    make_in(fg, dir)?;
    if let Output::Names(names) = fg.run(Op::List { path: dir.clone() })? {
        let known = |n: &str| n == "LOCK" || n == "identity.tmp" || n == "lost+found";
        if let Some(foreign) = names.iter().find(|n| !known(n)) {
            return refuse(
                options,
                format!(
                    "it has no identity file, but is not empty (it holds {foreign:?}): restore the identity file if this was a node's directory, or name an empty one"
                ),
            );
        }
    }
    let mut identity = Identity {
        cluster_name: options.cluster_name.clone(),
        node: options.node,
        incarnation,
        shard_count: 1,
        partitions: options.partitions,
        replication: u32::try_from(options.replication).unwrap_or(u32::MAX),
        key_hash: MAP_VERSION,
        formed: None,
        has_log: false,
        place: None,
        barred: None,
    };
    identity.store(fg, dir)?;
    tracing::info!(directory = %dir.display(), incarnation = format!("{:016x}", incarnation.get()), "data directory created");
    Ok(identity)
}
