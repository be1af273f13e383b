//! One node's disk: names, and the files they lead to. It outlives the node's processes.
//!
//! Names follow the same rule as bytes: a directory has entries that survive a power loss, and changes since
//! its last sync, each of which may be lost by itself. A sync of a file saves its bytes and not its name.

use crate::file::{File, PageRun};
use crate::random::Random;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};
use tidelog_io::{IoErrorKind, PIECES_MAX, Place, Space};
use tidelog_types::limits::PAGE_BYTES;

/// A file or directory by number, whatever its name.
pub(crate) type Inode = u64;

const ROOT: Inode = 1;
/// So many numbers of files a simulated file system shows.
const INODES: u64 = 7;

/// What a disk without a limit says of itself.
const UNLIMITED_BYTES: u64 = 1 << 40;

/// Why the disk refuses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Refusal {
    pub(crate) kind: IoErrorKind,
    pub(crate) message: &'static str,
}

impl Refusal {
    pub(crate) const fn new(kind: IoErrorKind, message: &'static str) -> Refusal {
        Refusal { kind, message }
    }
    const NOT_FOUND: Refusal = Refusal::new(IoErrorKind::NotFound, "no such file or directory");
    const EXISTS: Refusal = Refusal::new(IoErrorKind::Exists, "exists already");
    const NOT_A_DIRECTORY: Refusal = Refusal::new(IoErrorKind::Other, "not a directory");
    const IS_A_DIRECTORY: Refusal = Refusal::new(IoErrorKind::Other, "is a directory");
    const PATH: Refusal = Refusal::new(IoErrorKind::Other, "not a path that the simulated disk takes");
    pub(crate) const NO_SPACE: Refusal = Refusal::new(IoErrorKind::NoSpace, "no space left on device");
}

#[derive(Clone, Debug)]
enum Node {
    File(File),
    Directory(Directory),
}

#[derive(Clone, Debug, Default)]
struct Directory {
    now: BTreeMap<String, Inode>,
    durable: BTreeMap<String, Inode>,
    /// Changes since the last sync, by the number of the operation.
    pending: Vec<(u64, Change)>,
}

#[derive(Clone, Debug)]
enum Change {
    Link { name: String, inode: Inode },
    Unlink { name: String },
    Rename { from: String, to: String, inode: Inode },
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, Inode>) {
        match self {
            Change::Link { name, inode } => {
                names.insert(name.clone(), *inode);
            }
            Change::Unlink { name } => {
                names.remove(name);
            }
            Change::Rename { from, to, inode } => {
                if names.get(from) == Some(inode) {
                    names.remove(from);
                }
                names.insert(to.clone(), *inode);
            }
        }
    }
    fn touches(&self, name: &str) -> bool {
        match self {
            Change::Link { name: n, .. } | Change::Unlink { name: n } => n == name,
            Change::Rename { from, to, .. } => from == name || to == name,
        }
    }
    const fn inode(&self) -> Option<Inode> {
        match self {
            Change::Link { inode, .. } | Change::Rename { inode, .. } => Some(*inode),
            Change::Unlink { .. } => None,
        }
    }
}

impl Directory {
    /// Other numbers for the same names.
    fn renumber(&mut self, moved: &impl Fn(Inode) -> Inode) {
        for inode in self.now.values_mut().chain(self.durable.values_mut()) {
            *inode = moved(*inode);
        }
        for (_, change) in &mut self.pending {
            match change {
                Change::Link { inode, .. } | Change::Rename { inode, .. } => *inode = moved(*inode),
                Change::Unlink { .. } => {}
            }
        }
    }

    fn change(&mut self, seq: u64, change: Change) {
        change.apply(&mut self.now);
        self.pending.push((seq, change));
    }
}

/// What a power loss took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Lost {
    pub(crate) sectors: u64,
    pub(crate) names: u64,
}

/// The disk of one node.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    nodes: BTreeMap<Inode, Node>,
    next_inode: Inode,
    /// Number of the last change applied; what a sync saves is told by it.
    seq: u64,
    /// Bytes that fit; `None`: no limit.
    pub(crate) capacity: Option<u64>,
    /// Bytes that were ever written.
    pub(crate) written: u64,
    /// Whether the file system keeps a file's time of birth.
    pub(crate) keeps_births: bool,
}

fn split(path: &Path) -> Result<Vec<String>, Refusal> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => names.push(name.to_str().ok_or(Refusal::PATH)?.to_owned()),
            Component::ParentDir | Component::Prefix(_) => return Err(Refusal::PATH),
        }
    }
    Ok(names)
}

impl Disk {
    /// An empty disk with the directory `/data`.
    pub(crate) fn new() -> Disk {
        let mut disk = Disk {
            nodes: BTreeMap::from([(ROOT, Node::Directory(Directory::default()))]),
            next_inode: ROOT + 1,
            seq: 0,
            capacity: None,
            written: 0,
            keeps_births: true,
        };
        disk.make_durable_directory(Path::new("/data"));
        disk
    }

    /// The number of the last change: a sync that begins now saves everything up to it.
    pub(crate) const fn seq(&self) -> u64 {
        self.seq
    }

    fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    fn directory(&self, inode: Inode) -> Result<&Directory, Refusal> {
        match self.nodes.get(&inode) {
            Some(Node::Directory(directory)) => Ok(directory),
            Some(Node::File(_)) => Err(Refusal::NOT_A_DIRECTORY),
            None => Err(Refusal::NOT_FOUND),
        }
    }

    fn directory_mut(&mut self, inode: Inode) -> Result<&mut Directory, Refusal> {
        match self.nodes.get_mut(&inode) {
            Some(Node::Directory(directory)) => Ok(directory),
            Some(Node::File(_)) => Err(Refusal::NOT_A_DIRECTORY),
            None => Err(Refusal::NOT_FOUND),
        }
    }

    fn walk(&self, names: &[String]) -> Result<Inode, Refusal> {
        let mut at = ROOT;
        for name in names {
            at = *self.directory(at)?.now.get(name).ok_or(Refusal::NOT_FOUND)?;
        }
        Ok(at)
    }

    pub(crate) fn lookup(&self, path: &Path) -> Result<Inode, Refusal> {
        self.walk(&split(path)?)
    }

    /// The directory that a path lies in, and its last name.
    fn parent(&self, path: &Path) -> Result<(Inode, String), Refusal> {
        let mut names = split(path)?;
        let name = names.pop().ok_or(Refusal::PATH)?;
        let parent = self.walk(&names)?;
        self.directory(parent)?;
        Ok((parent, name))
    }

    pub(crate) fn file(&self, inode: Inode) -> Option<&File> {
        match self.nodes.get(&inode) {
            Some(Node::File(file)) => Some(file),
            _ => None,
        }
    }

    pub(crate) fn file_mut(&mut self, inode: Inode) -> Option<&mut File> {
        match self.nodes.get_mut(&inode) {
            Some(Node::File(file)) => Some(file),
            _ => None,
        }
    }

    /// The file at a path.
    pub(crate) fn open(&self, path: &Path) -> Result<(Inode, u64), Refusal> {
        let inode = self.lookup(path)?;
        self.file(inode).map(|f| (inode, f.size())).ok_or(Refusal::IS_A_DIRECTORY)
    }

    /// As a file system shows it: the numbers of files that are gone come back, so that only the time of birth tells some apart.
    pub(crate) fn place(&self, inode: Inode) -> Place {
        Place { inode: inode % INODES, born_ns: self.keeps_births.then_some(inode) }
    }

    /// The same names and bytes in other files: what copying or restoring makes of a disk.
    pub(crate) fn copied(&self) -> Disk {
        let mut copy = self.clone();
        let first = self.next_inode;
        let moved = |inode: Inode| if inode == ROOT { ROOT } else { inode + first };
        copy.nodes = std::mem::take(&mut copy.nodes)
            .into_iter()
            .map(|(inode, mut node)| {
                if let Node::Directory(directory) = &mut node {
                    directory.renumber(&moved);
                }
                (moved(inode), node)
            })
            .collect();
        copy.next_inode = first + first;
        copy
    }

    /// With as much room as another one.
    pub(crate) fn with_capacity_of(self, other: &Disk) -> Disk {
        Disk { capacity: other.capacity, ..self }
    }

    /// Nothing is left of it but the directory `/data`.
    pub(crate) fn wiped(&self) -> Disk {
        let mut disk = Disk { next_inode: self.next_inode, keeps_births: self.keeps_births, ..Disk::new() };
        disk.nodes.retain(|inode, _| *inode == ROOT);
        disk.nodes.insert(ROOT, Node::Directory(Directory::default()));
        (disk.seq, disk.capacity, disk.written) = (self.seq, self.capacity, self.written);
        disk.make_durable_directory(Path::new("/data"));
        disk
    }

    fn add(&mut self, path: &Path, node: Node) -> Result<Inode, Refusal> {
        let (parent, name) = self.parent(path)?;
        if self.directory(parent)?.now.contains_key(&name) {
            return Err(Refusal::EXISTS);
        }
        let inode = self.next_inode;
        self.next_inode += 1;
        let seq = self.next_seq();
        self.directory_mut(parent)?.change(seq, Change::Link { name, inode });
        self.nodes.insert(inode, node);
        Ok(inode)
    }

    pub(crate) fn create(&mut self, path: &Path) -> Result<Inode, Refusal> {
        self.add(path, Node::File(File::default()))
    }

    /// An existing directory is fine.
    pub(crate) fn create_directory(&mut self, path: &Path) -> Result<(), Refusal> {
        if split(path)?.is_empty() {
            return Ok(());
        }
        match self.add(path, Node::Directory(Directory::default())) {
            Err(e) if e == Refusal::EXISTS => {
                let inode = self.lookup(path)?;
                self.directory(inode).map(|_| ())
            }
            other => other.map(|_| ()),
        }
    }

    /// A directory and its ancestors that were there before the world began.
    pub(crate) fn make_durable_directory(&mut self, path: &Path) {
        let mut at = std::path::PathBuf::from("/");
        for component in path.components() {
            let parent = at.clone();
            at.push(component);
            if self.create_directory(&at).is_ok() {
                let upto = self.seq;
                // The parent was just walked through.
                let _ = self.sync_directory(&parent, upto);
            }
        }
    }

    pub(crate) fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Refusal> {
        let (parent, old) = self.parent(from)?;
        let (other, new) = self.parent(to)?;
        if parent != other {
            return Err(Refusal::new(IoErrorKind::Other, "rename across directories"));
        }
        let directory = self.directory(parent)?;
        let inode = *directory.now.get(&old).ok_or(Refusal::NOT_FOUND)?;
        if let Some(Node::Directory(_)) = directory.now.get(&new).and_then(|i| self.nodes.get(i)) {
            return Err(Refusal::IS_A_DIRECTORY);
        }
        if old != new {
            let seq = self.next_seq();
            self.directory_mut(parent)?.change(seq, Change::Rename { from: old, to: new, inode });
        }
        Ok(())
    }

    pub(crate) fn remove(&mut self, path: &Path) -> Result<(), Refusal> {
        let (parent, name) = self.parent(path)?;
        let inode = *self.directory(parent)?.now.get(&name).ok_or(Refusal::NOT_FOUND)?;
        if self.file(inode).is_none() {
            return Err(Refusal::IS_A_DIRECTORY);
        }
        let seq = self.next_seq();
        self.directory_mut(parent)?.change(seq, Change::Unlink { name });
        Ok(())
    }

    pub(crate) fn list(&self, path: &Path) -> Result<Vec<String>, Refusal> {
        Ok(self.directory(self.lookup(path)?)?.now.keys().cloned().collect())
    }

    pub(crate) fn sync_directory(&mut self, path: &Path, upto: u64) -> Result<(), Refusal> {
        let inode = self.lookup(path)?;
        let directory = self.directory_mut(inode)?;
        let (saved, left) =
            std::mem::take(&mut directory.pending).into_iter().partition(|(seq, _)| *seq <= upto);
        directory.pending = left;
        let saved: Vec<(u64, Change)> = saved;
        for (_, change) in saved {
            change.apply(&mut directory.durable);
        }
        Ok(())
    }

    /// Room for a file to grow to `end`.
    pub(crate) fn has_room(&self, inode: Inode, end: u64) -> bool {
        let Some(capacity) = self.capacity else { return true };
        let size = self.file(inode).map_or(0, File::size);
        end <= size || self.used() + (end - size) <= capacity
    }

    /// What a process is told of it.
    pub(crate) fn space(&self) -> Space {
        let total_bytes = self.capacity.unwrap_or(UNLIMITED_BYTES);
        Space { free_bytes: total_bytes.saturating_sub(self.used()), total_bytes }
    }

    pub(crate) fn used(&self) -> u64 {
        self.nodes.values().map(|node| if let Node::File(file) = node { file.size() } else { 0 }).sum()
    }

    /// A completed write. `mask` says which sectors of each page arrived.
    pub(crate) fn write(
        &mut self,
        inode: Inode,
        offset: u64,
        data: &[Bytes],
        doomed: bool,
        mask: impl FnMut(u64) -> u8,
    ) {
        let seq = self.next_seq();
        self.written += crate::file::total(data);
        if let Some(file) = self.file_mut(inode) {
            file.write(seq, offset, data, doomed, mask);
        }
    }

    /// A write that was under way when the power failed; exactly these of its sectors arrived.
    pub(crate) fn write_sectors(&mut self, inode: Inode, offset: u64, data: &[Bytes], mask: u64) {
        self.next_seq();
        if let Some(file) = self.file_mut(inode) {
            file.write_sectors(offset, data, mask);
        }
    }

    /// A completed write that is durable.
    pub(crate) fn write_durable(&mut self, inode: Inode, offset: u64, data: &[Bytes]) -> Vec<PageRun> {
        self.next_seq();
        self.written += crate::file::total(data);
        self.file_mut(inode).map_or_else(Vec::new, |file| file.write_durable(offset, data))
    }

    /// The power fails.
    pub(crate) fn power_loss(&mut self, random: &mut Random) -> Lost {
        let mut lost = Lost::default();
        for node in self.nodes.values_mut() {
            match node {
                Node::File(file) => lost.sectors += file.power_loss(random),
                Node::Directory(directory) => {
                    let odds = *random.pick(&[0, 1, 2, 3, 4]).unwrap_or(&2);
                    for (_, change) in std::mem::take(&mut directory.pending) {
                        if random.below(4) < odds {
                            change.apply(&mut directory.durable);
                        } else {
                            lost.names += 1;
                        }
                    }
                    directory.now = directory.durable.clone();
                }
            }
        }
        self.collect(&BTreeSet::new());
        lost
    }

    /// Forgets what no name leads to, now or after a power loss, and no process has open.
    pub(crate) fn collect(&mut self, open: &BTreeSet<Inode>) {
        let mut reached = BTreeSet::from([ROOT]);
        let mut todo = vec![ROOT];
        reached.extend(open);
        while let Some(inode) = todo.pop() {
            if let Some(Node::Directory(directory)) = self.nodes.get(&inode) {
                let pending = directory.pending.iter().filter_map(|(_, change)| change.inode());
                let names = directory.now.values().chain(directory.durable.values()).copied();
                todo.extend(names.chain(pending).filter(|inode| reached.insert(*inode)));
            }
        }
        self.nodes.retain(|inode, _| reached.contains(inode));
    }

    /// The file that a path surely leads to after a power loss.
    pub(crate) fn durable_lookup(&self, path: &Path) -> Option<&File> {
        let mut at = ROOT;
        for name in split(path).ok()? {
            let directory = self.directory(at).ok()?;
            if directory.pending.iter().any(|(_, change)| change.touches(&name)) {
                return None;
            }
            at = *directory.durable.get(&name)?;
        }
        self.file(at)
    }

    /// All files by path.
    pub(crate) fn files(&self) -> Vec<(String, Inode)> {
        let mut out = Vec::new();
        let mut todo = vec![(String::new(), ROOT)];
        while let Some((path, inode)) = todo.pop() {
            match self.nodes.get(&inode) {
                Some(Node::File(_)) => out.push((path, inode)),
                Some(Node::Directory(directory)) => {
                    todo.extend(directory.now.iter().map(|(name, inode)| (format!("{path}/{name}"), *inode)));
                }
                None => {}
            }
        }
        out.sort();
        out
    }
}

/// Whether a write keeps to the rules of direct I/O and of the seam.
pub(crate) fn is_aligned(offset: u64, data: &[Bytes]) -> bool {
    offset.is_multiple_of(PAGE_BYTES as u64)
        && (1..=PIECES_MAX).contains(&data.len())
        && data.iter().all(|piece| {
            !piece.is_empty()
                && piece.len().is_multiple_of(PAGE_BYTES)
                && piece.as_ptr().addr().is_multiple_of(PAGE_BYTES)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_after(script: impl Fn(&mut Disk)) -> BTreeSet<Vec<String>> {
        (0..200)
            .map(|seed| {
                let mut disk = Disk::new();
                script(&mut disk);
                disk.power_loss(&mut Random::new(seed));
                disk.list(Path::new("/data")).unwrap()
            })
            .collect()
    }

    fn sync(disk: &mut Disk) {
        let upto = disk.seq();
        disk.sync_directory(Path::new("/data"), upto).unwrap();
    }

    #[test]
    fn a_name_is_safe_only_after_a_sync_of_its_directory() {
        let both = names_after(|disk| {
            disk.create(Path::new("/data/a")).unwrap();
            sync(disk);
            disk.create(Path::new("/data/b")).unwrap();
        });
        let of = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(both, BTreeSet::from([of(&["a"]), of(&["a", "b"])]));
    }

    #[test]
    fn an_unsynced_rename_leaves_the_old_name_or_the_new_and_each_change_stands_alone() {
        let seen = names_after(|disk| {
            disk.create(Path::new("/data/a")).unwrap();
            disk.create(Path::new("/data/b")).unwrap();
            sync(disk);
            disk.rename(Path::new("/data/a"), Path::new("/data/c")).unwrap();
            disk.remove(Path::new("/data/b")).unwrap();
        });
        let of = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(seen, BTreeSet::from([of(&["a"]), of(&["a", "b"]), of(&["b", "c"]), of(&["c"])]));
    }

    #[test]
    fn a_name_in_flux_is_not_surely_there() {
        let mut disk = Disk::new();
        disk.create(Path::new("/data/a")).unwrap();
        assert!(disk.durable_lookup(Path::new("/data/a")).is_none());
        sync(&mut disk);
        assert!(disk.durable_lookup(Path::new("/data/a")).is_some());
        disk.remove(Path::new("/data/a")).unwrap();
        assert!(disk.durable_lookup(Path::new("/data/a")).is_none());
    }

    #[test]
    fn a_lost_directory_takes_its_files_along() {
        let mut lost = false;
        for seed in 0..50 {
            let mut disk = Disk::new();
            disk.create_directory(Path::new("/data/d")).unwrap();
            disk.create(Path::new("/data/d/f")).unwrap();
            let upto = disk.seq();
            disk.sync_directory(Path::new("/data/d"), upto).unwrap();
            disk.power_loss(&mut Random::new(seed));
            match disk.list(Path::new("/data/d")) {
                Ok(names) => assert_eq!(names, ["f"]),
                Err(e) => {
                    assert_eq!(e, Refusal::NOT_FOUND);
                    assert_eq!(disk.nodes.len(), 2);
                    lost = true;
                }
            }
        }
        assert!(lost);
    }

    #[test]
    fn a_removed_file_is_kept_while_open_or_while_its_name_may_come_back() {
        let mut disk = Disk::new();
        let inode = disk.create(Path::new("/data/a")).unwrap();
        sync(&mut disk);
        disk.remove(Path::new("/data/a")).unwrap();
        disk.collect(&BTreeSet::new());
        assert!(disk.file(inode).is_some());
        sync(&mut disk);
        disk.collect(&BTreeSet::from([inode]));
        assert!(disk.file(inode).is_some());
        disk.collect(&BTreeSet::new());
        assert!(disk.file(inode).is_none());
    }

    #[test]
    fn refusals() {
        let mut disk = Disk::new();
        let path = Path::new;
        assert_eq!(disk.create(path("/nowhere/a")), Err(Refusal::NOT_FOUND));
        disk.create(path("/data/a")).unwrap();
        assert_eq!(disk.create(path("/data/a")), Err(Refusal::EXISTS));
        assert_eq!(disk.create_directory(path("/data/a")), Err(Refusal::NOT_A_DIRECTORY));
        assert_eq!(disk.remove(path("/data")), Err(Refusal::IS_A_DIRECTORY));
        assert_eq!(disk.open(path("/data/../etc")), Err(Refusal::PATH));
        assert_eq!(disk.create_directory(path("/data")), Ok(()));
    }
}
