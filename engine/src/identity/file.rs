//! The file `identity`: a page, and the same page again.
//!
//! Both copies are written to `identity.tmp`, made durable, renamed to `identity`, directory synced: a reader sees the old file
//! or the new one. It is one of the three things that are not in the log (the others are the lock and snapshots), so it
//! carries its own second copy: one damaged page costs nothing. Whoever opens the directory to serve from it writes the file
//! again first ([`Flaw`]); until then the good copy is the only one.
//!
//! Where no copy is whole, where both are whole and differ, or where a whole one is of a version that this program does not know,
//! nothing is guessed: the directory is refused.

use super::{Identity, IdentityError};
use crate::error::Error;
use std::path::Path;
use tidelog_io::{FileId, Foreground, IoError, IoErrorKind, Op, OpenMode, Output, Place};
use tidelog_types::limits::PAGE_BYTES;

/// Bytes of the file.
const FILE_BYTES: usize = 2 * PAGE_BYTES;

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Copy {
    /// The first page.
    First,
    /// The second page.
    Second,
}

impl std::fmt::Display for Copy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Copy::First => "first",
            Copy::Second => "second",
        })
    }
}

/// What an identity file says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Who the directory is.
    pub identity: Identity,
    /// What is wrong with the file nevertheless: it is to be written again before anything else is done.
    pub flaw: Option<Flaw>,
}

/// An identity file, and where it lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loaded {
    /// What it says.
    pub found: Found,
    /// Its place now; [`Identity::place`] is where it was written.
    pub place: Place,
}

/// What is wrong with a file that is understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Flaw {
    /// It is as it was before there were two copies, or has lost its second page as a whole.
    #[error("it has one copy only")]
    OneCopy,
    /// One of the copies is not whole.
    #[error("the {copy} of its two copies is not whole: {why}")]
    Damaged {
        /// Which.
        copy: Copy,
        /// In which way.
        why: IdentityError,
    },
}

/// Why a file is not an identity.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FileError {
    /// Not a file of ours.
    #[error("it has {0} bytes, more than its two copies")]
    Size(u64),
    /// No copy is whole.
    #[error("neither of its two copies is whole; the first: {first}; the second: {second}")]
    Neither {
        /// The first copy's damage.
        first: IdentityError,
        /// The second's.
        second: IdentityError,
    },
    /// Somebody has put two files together.
    #[error("its two copies are both whole, and say different things")]
    Disagree,
    /// From another version of this program, in all likelihood.
    #[error("the {copy} of its two copies is whole, but {why}")]
    NotKnown {
        /// Which.
        copy: Copy,
        /// What is not known.
        why: IdentityError,
    },
}

impl Found {
    /// Judges the bytes of a whole file, whatever is in them.
    ///
    /// # Errors
    /// Says in which way they are not an identity.
    pub fn decode(file: &[u8]) -> Result<Found, FileError> {
        let (first, second) = file.split_at_checked(PAGE_BYTES).unwrap_or((file, &[]));
        Found::judge(file.len() as u64, Identity::decode(first), Identity::decode(second))
    }

    fn judge(
        bytes: u64,
        first: Result<Identity, IdentityError>,
        second: Result<Identity, IdentityError>,
    ) -> Result<Found, FileError> {
        if bytes > FILE_BYTES as u64 {
            return Err(FileError::Size(bytes));
        }
        for (copy, read) in [(Copy::First, &first), (Copy::Second, &second)] {
            if let Err(why) = read
                && !why.is_damage()
            {
                return Err(FileError::NotKnown { copy, why: why.clone() });
            }
        }
        match (first, second) {
            (Ok(first), Ok(second)) if first != second => Err(FileError::Disagree),
            (Ok(identity), Ok(_)) => Ok(Found { identity, flaw: None }),
            (Ok(identity), Err(_)) if bytes == PAGE_BYTES as u64 => {
                Ok(Found { identity, flaw: Some(Flaw::OneCopy) })
            }
            (Ok(identity), Err(why)) => {
                Ok(Found { identity, flaw: Some(Flaw::Damaged { copy: Copy::Second, why }) })
            }
            (Err(why), Ok(identity)) => {
                Ok(Found { identity, flaw: Some(Flaw::Damaged { copy: Copy::First, why }) })
            }
            (Err(first), Err(second)) => Err(FileError::Neither { first, second }),
        }
    }
}

impl Identity {
    /// The bytes of the file.
    ///
    /// # Panics
    /// As [`Identity::encode`].
    pub fn encode_file(&self) -> Vec<u8> {
        self.encode().repeat(2)
    }

    /// Reads the identity of `directory`; none if it has no identity file.
    ///
    /// # Errors
    /// If the file cannot be read or is not a valid identity.
    pub fn load(fg: &mut Foreground<'_>, directory: &Path) -> Result<Option<Loaded>, Error> {
        let path = directory.join("identity");
        let (file, bytes) = match fg.run(Op::Open { path: path.clone(), mode: OpenMode::Read }) {
            Ok(Output::Opened { file, bytes }) => (file, bytes),
            Err(e) if e.kind == IoErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e.into()),
            Ok(_) => return Err(unexpected("open", &path)),
        };
        // One by one: a page that cannot be read must not take the other one with it.
        let mut copy = |offset: u64| {
            let buffer = fg.io().buffers().take(PAGE_BYTES);
            match fg.run(Op::Read { file, offset, buffer }) {
                Ok(Output::Read { buffer, bytes }) => Identity::decode(buffer.get(..bytes).unwrap_or(&[])),
                Ok(_) => Err(IdentityError::Unreadable("unexpected result".into())),
                Err(error) => Err(IdentityError::Unreadable(error.to_string())),
            }
        };
        let (first, second) = (copy(0), copy(PAGE_BYTES as u64));
        let place = locate(fg, file, &path);
        fg.run(Op::CloseFile { file })?;
        let place = place?;
        Found::judge(bytes, first, second).map(|found| Some(Loaded { found, place })).map_err(|why| Error::Directory {
            path: directory.to_owned(),
            why: format!(
                "the file `identity` is not valid: {why}. Restore it from a backup of this directory; do not create a new one, the node would no longer be the member that it was"
            ),
        })
    }

    /// Makes it the identity of `directory`, durably, in both copies, and notes its place.
    ///
    /// # Errors
    /// If any step fails. The old identity, or none, is then still in place; if only the last step failed, the new one is, and a power
    /// loss may bring the old one back.
    pub fn store(&mut self, fg: &mut Foreground<'_>, directory: &Path) -> Result<(), Error> {
        let (tmp, path) = (directory.join("identity.tmp"), directory.join("identity"));
        match fg.run(Op::Remove { path: tmp.clone() }) {
            Err(e) if e.kind != IoErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
        let Output::Opened { file, .. } = fg.run(Op::Open { path: tmp.clone(), mode: OpenMode::Create })?
        else {
            return Err(unexpected("open", &tmp));
        };
        // The file keeps its place when it gets its name.
        let placed = locate(fg, file, &tmp).map(|place| self.place = Some(place));
        let mut pages = fg.io().buffers().take(FILE_BYTES);
        pages.copy_from_slice(&self.encode_file());
        let written = placed.and_then(|()| {
            fg.run(Op::WriteDurable { file, offset: 0, data: vec![pages.freeze()] }).map_err(no_space)?;
            fg.run(Op::Sync { file })?;
            Ok(())
        });
        fg.run(Op::CloseFile { file })?;
        written?;
        fg.run(Op::Rename { from: tmp, to: path })?;
        fg.run(Op::SyncDir { path: directory.to_owned() })?;
        Ok(())
    }
}

/// A new file of two pages that is not written to its end lacks space, also where the file system calls it a short write.
fn no_space(mut error: IoError) -> IoError {
    if matches!(error.kind, IoErrorKind::NoSpace | IoErrorKind::ShortWrite) {
        error.kind = IoErrorKind::NoSpace;
        error.message.push_str(
            ". There is no space for the identity file, which takes 8 KiB: make room on that file system and start the node again; what was there before is still in place",
        );
    }
    error
}

fn locate(fg: &mut Foreground<'_>, file: FileId, path: &Path) -> Result<Place, Error> {
    match fg.run(Op::Locate { file })? {
        Output::Located(place) => Ok(place),
        _ => Err(unexpected("locate", path)),
    }
}

fn unexpected(operation: &'static str, path: &Path) -> Error {
    Error::Io(IoError {
        kind: IoErrorKind::Other,
        operation,
        subject: path.display().to_string(),
        message: "unexpected result".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;
    use tidelog_sim::{DiskFault, Moment, World};
    use tidelog_types::Incarnation;

    const NODE: u64 = 1;
    const DIR: &str = "/data";
    const FILE: &str = "/data/identity";

    fn other() -> Identity {
        Identity { incarnation: Incarnation(78), ..sample() }
    }

    /// A page that is whole, and of a later version.
    fn later() -> [u8; PAGE_BYTES] {
        let mut page = sample().encode();
        page[12] = 9;
        let crc = crc32c::crc32c(&page[12..]);
        page[8..12].copy_from_slice(&crc.to_le_bytes());
        page
    }

    #[test]
    fn a_flip_of_any_byte_costs_one_copy() {
        let good = sample().encode_file();
        assert_eq!(Found::decode(&good), Ok(Found { identity: sample(), flaw: None }));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            let found = Found::decode(&bad).unwrap_or_else(|e| panic!("byte {at}: {e}"));
            assert_eq!(found.identity, sample(), "byte {at}");
            let struck = if at < PAGE_BYTES { Copy::First } else { Copy::Second };
            assert!(
                matches!(&found.flaw, Some(Flaw::Damaged { copy, .. }) if *copy == struck),
                "byte {at}: {:?}",
                found.flaw
            );
            // The same byte of the other copy, too.
            bad[(at + PAGE_BYTES) % FILE_BYTES] ^= 1 << (at % 8);
            assert!(matches!(Found::decode(&bad), Err(FileError::Neither { .. })), "byte {at}, twice");
        }
    }

    #[test]
    fn files_of_every_length() {
        let mut good = sample().encode_file();
        for bytes in 0..FILE_BYTES {
            let found = Found::decode(&good[..bytes]);
            match bytes {
                0..PAGE_BYTES => assert!(matches!(found, Err(FileError::Neither { .. })), "{bytes}"),
                PAGE_BYTES => assert_eq!(found, Ok(Found { identity: sample(), flaw: Some(Flaw::OneCopy) })),
                _ => {
                    let why = IdentityError::Size(bytes - PAGE_BYTES);
                    let flaw = Some(Flaw::Damaged { copy: Copy::Second, why });
                    assert_eq!(found, Ok(Found { identity: sample(), flaw }));
                }
            }
        }
        good.push(0);
        assert_eq!(Found::decode(&good), Err(FileError::Size(8193)));
    }

    #[test]
    fn what_is_whole_and_not_understood_is_never_passed_over() {
        let file = |first: [u8; PAGE_BYTES], second: [u8; PAGE_BYTES]| [first, second].concat();
        assert_eq!(Found::decode(&file(sample().encode(), other().encode())), Err(FileError::Disagree));
        let mut bad = sample().encode();
        bad[100] ^= 1;
        for (first, second, copy) in [
            (later(), later(), Copy::First),
            (later(), sample().encode(), Copy::First),
            (sample().encode(), later(), Copy::Second),
            (later(), bad, Copy::First),
            (bad, later(), Copy::Second),
        ] {
            let why = IdentityError::Version(9);
            assert_eq!(Found::decode(&file(first, second)), Err(FileError::NotKnown { copy, why }));
        }
    }

    /// What is found, its place aside.
    fn load(world: &World) -> Result<Option<Found>, Error> {
        let loaded = Identity::load(&mut Foreground::new(&mut world.node(NODE)), Path::new(DIR))?;
        Ok(loaded.map(|Loaded { mut found, place }| {
            assert_eq!(found.identity.place, Some(place), "it names its own place");
            found.identity.place = sample().place;
            found
        }))
    }

    fn stored(seed: u64, identity: &Identity) -> World {
        let world = World::new(seed);
        world.make_directory(NODE, DIR);
        identity.clone().store(&mut Foreground::new(&mut world.node(NODE)), Path::new(DIR)).unwrap();
        world
    }

    #[test]
    fn a_page_that_cannot_be_read_is_like_a_damaged_one() {
        for (page, struck) in [(0, Copy::First), (1, Copy::Second)] {
            let world = stored(1, &sample());
            assert!(world.make_unreadable(NODE, FILE, page * PAGE_BYTES as u64, 10));
            let found = load(&world).unwrap().unwrap();
            assert_eq!(found.identity, sample());
            let why = |why: &IdentityError| matches!(why, IdentityError::Unreadable(_));
            assert!(
                matches!(&found.flaw, Some(Flaw::Damaged { copy, why: w }) if *copy == struck && why(w)),
                "{:?}",
                found.flaw
            );
            assert!(world.make_unreadable(NODE, FILE, (1 - page) * PAGE_BYTES as u64, 10));
            let said = load(&world).unwrap_err().to_string();
            assert!(said.contains("`identity` is not valid") && said.contains("Restore it"), "{said}");
        }
    }

    /// A file system without space may take a part of the write (tmpfs does): it is no space all the same, and the error says what to do.
    #[test]
    fn a_file_that_finds_no_space_says_so_and_leaves_the_old_one() {
        for fault in [DiskFault::ShortWrite, DiskFault::NoSpace] {
            let mut said = 0;
            for number in 0..8 {
                let world = stored(1, &sample());
                world.fail_at(NODE, number, fault);
                let stored = other().store(&mut Foreground::new(&mut world.node(NODE)), Path::new(DIR));
                let Err(Error::Io(error)) = stored else { continue };
                if error.to_string().contains("make room on that file system") {
                    assert_eq!(error.kind, IoErrorKind::NoSpace);
                    assert_eq!(load(&world).unwrap().unwrap().identity, sample());
                    said += 1;
                }
            }
            assert_eq!(said, 1, "the one write");
        }
    }

    /// Writing it again, with a crash or a fault at each step, leaves the old file or the new one, and one of them each time.
    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let again = |world: &World| {
            let mut io = world.node(NODE);
            other().store(&mut Foreground::new(&mut io), Path::new(DIR))
        };
        let operations = {
            let world = stored(1, &sample());
            again(&world).unwrap();
            world.disk_ops(NODE)
        };
        assert!(operations >= 4, "a write, a sync, a rename, a directory's sync");
        let (mut old, mut new) = (0, 0);
        let mut check = |world: &World, done: bool| {
            let found = load(world).unwrap().expect("there is one");
            assert_eq!(found.flaw, None);
            if found.identity == sample() {
                assert!(!done, "what was done stays");
                old += 1;
            } else {
                assert_eq!(found.identity, other());
                new += 1;
            }
        };
        for number in 0..operations {
            for seed in 1..=8 {
                for moment in [Moment::Before, Moment::Inside, Moment::After] {
                    let world = stored(seed, &sample());
                    world.crash_at(NODE, number, moment);
                    let done = again(&world).is_ok();
                    world.crash(NODE);
                    check(&world, done);
                }
                for fault in [
                    DiskFault::WriteError,
                    DiskFault::ShortWrite,
                    DiskFault::SyncError,
                    DiskFault::NoSpace,
                    DiskFault::NameError,
                ] {
                    let world = stored(seed, &sample());
                    world.fail_at(NODE, number, fault);
                    let done = again(&world).is_ok();
                    world.crash(NODE);
                    check(&world, done);
                }
            }
        }
        assert!(old > 0 && new > 0, "{old} old, {new} new");
    }
}
