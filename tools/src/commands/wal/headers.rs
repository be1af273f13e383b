//! The two copies of each segment's header.
//!
//! One good copy is enough to open a segment, and the second page has the same bytes as the first: a bad copy can be written again
//! from the good one. What this does not know: whether the segment is part of the log.

use serde::Serialize;
use std::path::{Path, PathBuf};
use tidelog_io::{BufferPool, FileId, Foreground, Io, IoError, Op, OpenMode, Output};
use tidelog_types::limits::PAGE_BYTES;
use tidelog_wal::format::SegmentHeader;

/// A copy that is not good, beside one that is.
#[derive(Clone, Debug, Serialize)]
pub(super) struct BadCopy {
    #[serde(serialize_with = "as_text")]
    pub(super) file: PathBuf,
    /// Where it lies: the first page or the second.
    pub(super) offset: u64,
    pub(super) why: String,
    /// What belongs there.
    #[serde(skip)]
    pub(super) good: Box<SegmentHeader>,
}

fn as_text<S: serde::Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.display())
}

impl std::fmt::Display for BadCopy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: the copy of the segment header at byte {} is damaged: {}; the other one is good",
            self.file.display(),
            self.offset,
            self.why
        )
    }
}

/// Looks at all segments of a directory. Files that cannot be read, or have no good copy at all, are another's business: the
/// walk over the log names them.
pub(super) fn bad_copies(io: &mut dyn Io, dir: &Path) -> Vec<BadCopy> {
    let pool = io.buffers();
    let mut fg = Foreground::new(io);
    let Ok(Output::Names(names)) = fg.run(Op::List { path: dir.to_owned() }) else { return Vec::new() };
    let is_segment = |name: &String| name.ends_with(".wal") && !name.starts_with("free-");
    names
        .iter()
        .filter(|name| is_segment(name))
        .filter_map(|name| bad_copy(&mut fg, &pool, dir.join(name)).ok().flatten())
        .collect()
}

fn bad_copy(fg: &mut Foreground<'_>, pool: &BufferPool, file: PathBuf) -> Result<Option<BadCopy>, IoError> {
    let Output::Opened { file: id, .. } = fg.run(Op::Open { path: file.clone(), mode: OpenMode::Read })?
    else {
        return Ok(None);
    };
    let mut copies = Vec::new();
    for offset in [0, PAGE_BYTES as u64] {
        let buffer = pool.take(PAGE_BYTES);
        copies.push(match fg.run(Op::Read { file: id, offset, buffer }) {
            Ok(Output::Read { buffer, bytes }) => {
                match SegmentHeader::decode(buffer.get(..bytes).unwrap_or_default()) {
                    // A newer program wrote it: not for this one to judge.
                    Err(error) if error.is_newer() => return close(fg, id).map(|()| None),
                    decoded => decoded.map_err(|error| error.to_string()),
                }
            }
            Ok(_) => Err("the back-end answered with something else".to_owned()),
            Err(error) => Err(error.to_string()),
        });
    }
    close(fg, id)?;
    Ok(match copies.as_slice() {
        [Err(why), Ok(good)] => Some(BadCopy { file, offset: 0, why: why.clone(), good: Box::new(*good) }),
        [Ok(good), Err(why)] => {
            Some(BadCopy { file, offset: PAGE_BYTES as u64, why: why.clone(), good: Box::new(*good) })
        }
        [Ok(good), Ok(other)] if good != other => Some(BadCopy {
            file,
            offset: PAGE_BYTES as u64,
            why: "it says something else than the first".into(),
            good: Box::new(*good),
        }),
        _ => None,
    })
}

fn close(fg: &mut Foreground<'_>, file: FileId) -> Result<(), IoError> {
    fg.run(Op::CloseFile { file }).map(|_| ())
}

/// Writes a bad copy again, durably.
pub(super) fn rewrite(io: &mut dyn Io, bad: &BadCopy) -> Result<(), IoError> {
    let pool = io.buffers();
    let mut fg = Foreground::new(io);
    let mode = OpenMode::ReadWrite;
    let Output::Opened { file, .. } = fg.run(Op::Open { path: bad.file.clone(), mode })? else {
        return Ok(());
    };
    let mut buffer = pool.take_zeroed(PAGE_BYTES);
    if let Some(page) = buffer.first_chunk_mut() {
        bad.good.encode(page);
    }
    let data = vec![buffer.freeze()];
    let written =
        fg.run(Op::WriteDurable { file, offset: bad.offset, data }).and_then(|_| fg.run(Op::Sync { file }));
    fg.run(Op::CloseFile { file })?;
    written.map(|_| ())
}
