//! Adopting a data directory that was moved: saying, for its identity file, that here is its place now.
//!
//! A copy tells nobody whether the original is gone; only people know. What this promises: nothing but the place changes, and
//! nothing at all unless it is asked to. It does not know whether the directory is as new as the original was.

use crate::directory::is_same_place;
use crate::error::Error;
use crate::identity::{Identity, Loaded};
use std::path::Path;
use tidelog_io::{Foreground, Io, Place};

/// What a directory was found to be, and what became of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Adoption {
    /// Who the directory is.
    pub identity: Identity,
    /// Where its identity file was written, as far as it says so.
    pub written: Option<Place>,
    /// Where it was found.
    pub found: Place,
    /// Whether it lies where it was written: there was nothing to adopt.
    pub in_place: bool,
    /// Whether it was adopted.
    pub adopted: bool,
}

/// Looks at the directory of a stopped node, whose lock the caller holds, and with `apply` makes its place the one where it
/// lies now, durably. With `lift`, a barred directory takes part again: only people can know that its disk is whole.
///
/// # Errors
/// If there is no valid identity, or it cannot be written.
pub fn adopt(io: &mut dyn Io, dir: &Path, apply: bool, lift: bool) -> Result<Adoption, Error> {
    let mut fg = Foreground::new(io);
    let Some(Loaded { found, place }) = Identity::load(&mut fg, dir)? else {
        return Err(Error::Directory {
            path: dir.to_owned(),
            why: "it has no file `identity`: name a node's data directory, as [node] data_dir does".into(),
        });
    };
    let mut identity = found.identity;
    let written = identity.place;
    let in_place = written.is_some_and(|written| is_same_place(written, place)) && found.flaw.is_none();
    let lifts = lift && identity.barred.is_some();
    let adopted = apply && !in_place;
    if adopted || apply && lifts {
        identity.barred = identity.barred.filter(|_| !lift);
        identity.store(&mut fg, dir)?;
    }
    drop(fg.finish());
    Ok(Adoption { identity, written, found: place, in_place, adopted })
}
