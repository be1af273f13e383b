//! Aligned buffers, drawn from and returned to a pool.
//!
//! One buffer serves the disk and the peers: filled while owned ([`AlignedBuf`]), then frozen into
//! [`bytes::Bytes`], whose last clone returns the memory to the pool.
//!
//! Buffers are cut from slabs: one mapping for many, instead of a call into the allocator, which may grow its heap by a system
//! call, for each. The larger ones lie in slabs of large pages: a write of a megabyte is one piece of memory for the kernel and the
//! device then, instead of 256, which have to be looked up one by one and may not fit one request. A pool that must not keep the rest
//! of a slab takes from the heap.
//!
//! A pool may have an arena: memory that is registered with a ring, so that the kernel need not look up its pages for
//! every operation. Buffers come from there as long as it has any, then from the heap.

use crate::arena::Arena;
use crate::sys;
use bytes::Bytes;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tidelog_types::limits::PAGE_BYTES;

/// Smallest size class, as a power of two.
const CLASS_MIN: u32 = 12;
/// Number of size classes: 4 KiB … 8 MiB.
const CLASSES: usize = 12;
/// A slab of small buffers, and the largest that is cut from one.
const SLAB_BYTES: usize = 1 << 20;
const OF_SLAB_MAX: usize = SLAB_BYTES / 16;
/// A slab of larger ones; the largest have one of their own.
const LARGE_SLAB_BYTES: usize = sys::HUGE_PAGE_BYTES;

/// A pool of page-aligned buffers in power-of-two classes. Clones share it; it may be used from any thread.
#[derive(Clone, Debug)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    free: [Mutex<Vec<Region>>; CLASSES],
    /// Most idle bytes kept for reuse in each class.
    idle_bytes_max: usize,
    /// Bytes of buffers that are in use.
    live: AtomicUsize,
    /// Memory that is registered with a ring.
    arena: Option<Mutex<Arena>>,
}

/// Owned page-aligned memory.
#[derive(Debug)]
struct Region {
    start: NonNull<u8>,
    capacity: usize,
    /// It belongs to the pool's arena, and goes back there instead of being freed.
    of_arena: bool,
    /// It is a part of this slab, which is unmapped with its last region; none: it is the arena's or the heap's.
    slab: Option<Arc<Slab>>,
}

/// A mapping that regions are cut from.
#[derive(Debug)]
struct Slab {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a Slab only unmaps its memory, when no region of it is left; any thread may do that.
unsafe impl Send for Slab {}
// SAFETY: shared access does nothing but count.
unsafe impl Sync for Slab {}

impl Slab {
    /// How large one is for buffers of this capacity.
    fn bytes_for(capacity: usize) -> usize {
        if capacity <= OF_SLAB_MAX { SLAB_BYTES } else { capacity.max(LARGE_SLAB_BYTES) }
    }

    /// A new one; none if the system has no mapping for it.
    fn new(capacity: usize) -> Option<Arc<Slab>> {
        let bytes = Slab::bytes_for(capacity);
        let large = bytes >= LARGE_SLAB_BYTES;
        let mapping = if large { sys::map_huge(bytes) } else { sys::map_anonymous(bytes) };
        Some(Arc::new(Slab { start: NonNull::new(mapping.ok()?)?, bytes }))
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`; every region of it held this slab, and there is none left.
        unsafe { sys::unmap(self.start.as_ptr(), self.bytes) }
    }
}

// SAFETY: a Region is the sole owner of its memory, which any thread may read, write and free.
unsafe impl Send for Region {}

impl Region {
    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, PAGE_BYTES).expect("classes are small powers of two")
    }
    fn new(capacity: usize) -> Region {
        let layout = Region::layout(capacity);
        // SAFETY: the layout's size is not zero; the memory is ours until the Region is dropped.
        let start = unsafe { alloc_zeroed(layout) };
        Region {
            start: NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout)),
            capacity,
            of_arena: false,
            slab: None,
        }
    }

    /// Regions of a new slab; none without one.
    fn cut(capacity: usize) -> impl Iterator<Item = Region> {
        Slab::new(capacity).into_iter().flat_map(move |slab| {
            (0..slab.bytes / capacity).map(move |at| Region {
                // SAFETY: within the slab's mapping.
                start: unsafe { slab.start.add(at * capacity) },
                capacity,
                of_arena: false,
                slab: Some(Arc::clone(&slab)),
            })
        })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        assert!(!self.of_arena, "the arena's memory goes back to the arena");
        if self.slab.is_some() {
            return; // unmapped with the slab's last region
        }
        // SAFETY: allocated in `new` with the same layout, owned by nobody else.
        unsafe { dealloc(self.start.as_ptr(), Region::layout(self.capacity)) }
    }
}

impl BufferPool {
    /// A pool that keeps at most `idle_bytes_max` bytes of each size class for reuse.
    pub fn new(idle_bytes_max: usize) -> BufferPool {
        BufferPool::with(idle_bytes_max, None)
    }

    /// The same, drawing first on `arena`.
    pub(crate) fn with_arena(idle_bytes_max: usize, arena: Arena) -> BufferPool {
        BufferPool::with(idle_bytes_max, Some(Mutex::new(arena)))
    }

    fn with(idle_bytes_max: usize, arena: Option<Mutex<Arena>>) -> BufferPool {
        let live = AtomicUsize::new(0);
        BufferPool { shared: Arc::new(Shared { free: Default::default(), idle_bytes_max, live, arena }) }
    }

    /// Bytes of its buffers that are in use, owned or frozen, by their capacity.
    pub fn live_bytes(&self) -> usize {
        self.shared.live.load(Ordering::Relaxed)
    }

    /// A buffer of `bytes` bytes, rounded up to whole pages. Its content is arbitrary, but never uninitialised.
    pub fn take(&self, bytes: usize) -> AlignedBuf {
        let len = bytes.max(1).next_multiple_of(PAGE_BYTES);
        let capacity = len.next_power_of_two();
        let region = self
            .take_of_arena(capacity)
            .or_else(|| class_of(capacity).and_then(|class| lock(&self.shared.free[class]).pop()))
            .or_else(|| self.take_of_new_slab(capacity))
            .unwrap_or_else(|| Region::new(capacity));
        self.shared.live.fetch_add(region.capacity, Ordering::Relaxed);
        AlignedBuf { region: Some(region), len, pool: self.clone() }
    }

    fn take_of_arena(&self, capacity: usize) -> Option<Region> {
        let start = lock(self.shared.arena.as_ref()?).take(capacity)?;
        Some(Region { start, capacity, of_arena: true, slab: None })
    }

    /// Cuts a new slab, if the pool may keep the rest of it.
    fn take_of_new_slab(&self, capacity: usize) -> Option<Region> {
        if self.shared.idle_bytes_max < Slab::bytes_for(capacity) || class_of(capacity).is_none() {
            return None;
        }
        let mut regions = Region::cut(capacity);
        let first = regions.next()?;
        regions.for_each(|region| self.give_back(region));
        Some(first)
    }

    /// Like [`Self::take`], all zero.
    pub fn take_zeroed(&self, bytes: usize) -> AlignedBuf {
        let mut buffer = self.take(bytes);
        buffer.fill(0);
        buffer
    }

    fn give_back(&self, mut region: Region) {
        if region.of_arena {
            if let Some(arena) = &self.shared.arena {
                lock(arena).give_back(region.start, region.capacity);
            }
            region.of_arena = false;
            std::mem::forget(region); // the arena owns the memory
            return;
        }
        if let Some(class) = class_of(region.capacity) {
            let mut free = lock(&self.shared.free[class]);
            if (free.len() + 1) * region.capacity <= self.shared.idle_bytes_max.max(region.capacity) {
                free.push(region);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn class_of(capacity: usize) -> Option<usize> {
    let class = capacity.trailing_zeros().checked_sub(CLASS_MIN)? as usize;
    (class < CLASSES).then_some(class)
}

/// A page-aligned buffer that is owned and may be written. Dropping it returns the memory to its pool.
#[derive(Debug)]
pub struct AlignedBuf {
    region: Option<Region>,
    len: usize,
    pool: BufferPool,
}

impl AlignedBuf {
    /// Makes it shorter, to whole pages or not.
    ///
    /// # Panics
    /// If `len` is more than its length.
    pub fn truncate(&mut self, len: usize) {
        assert!(len <= self.len, "truncate only shortens");
        self.len = len;
    }

    /// Ends writing; the result may be cloned and sliced freely and keeps its alignment.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    fn region(&self) -> &Region {
        self.region.as_ref().expect("the region is taken only by drop")
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl core::ops::Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the region is owned by self, initialised at allocation, and at least `len` long.
        unsafe { std::slice::from_raw_parts(self.region().start.as_ptr(), self.len) }
    }
}

impl core::ops::DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.region().start.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if let Some(region) = self.region.take() {
            self.pool.shared.live.fetch_sub(region.capacity, Ordering::Relaxed);
            self.pool.give_back(region);
        }
    }
}

// SAFETY: shared access only reads, and nothing can write while a shared reference exists.
unsafe impl Sync for AlignedBuf {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_reused_up_to_the_bound() {
        let pool = BufferPool::new(8 * PAGE_BYTES);
        let first = pool.take(1);
        assert_eq!(first.len(), PAGE_BYTES);
        assert_eq!(first.as_ptr() as usize % PAGE_BYTES, 0);
        let at = first.as_ptr();
        drop(first.freeze());
        assert_eq!(pool.take(PAGE_BYTES).as_ptr(), at);
        let held: Vec<_> = (0..20).map(|_| pool.take(PAGE_BYTES)).collect();
        assert_eq!(pool.live_bytes(), 20 * PAGE_BYTES);
        drop(held);
        assert_eq!(pool.live_bytes(), 0, "what is kept for reuse is not in use");
        assert_eq!(lock(&pool.shared.free[0]).len(), 8);
    }

    #[test]
    fn small_buffers_share_slabs_that_outlive_their_pool() {
        let pool = BufferPool::new(SLAB_BYTES);
        let held: Vec<_> = (0..SLAB_BYTES / PAGE_BYTES)
            .map(|n| {
                let mut buffer = pool.take(PAGE_BYTES);
                assert!(buffer.iter().all(|byte| *byte == 0), "never uninitialised");
                buffer.fill(n as u8);
                buffer.freeze()
            })
            .collect();
        assert_eq!(lock(&pool.shared.free[0]).len(), 0, "one slab held them all");
        let starts: std::collections::BTreeSet<_> = held.iter().map(|b| b.as_ptr() as usize).collect();
        let span = starts.last().unwrap() - starts.first().unwrap();
        assert_eq!((starts.len(), span), (held.len(), SLAB_BYTES - PAGE_BYTES), "and none overlaps another");
        assert!(
            pool.take(2 * OF_SLAB_MAX).region().slab.is_none(),
            "this pool may not keep the rest of a large slab"
        );
        drop(pool);
        for (n, buffer) in held.iter().enumerate() {
            assert!(buffer.iter().all(|byte| *byte == n as u8));
        }
    }

    #[test]
    fn large_buffers_lie_in_large_pages() {
        let pool = BufferPool::new(2 * LARGE_SLAB_BYTES);
        let mut held: Vec<_> = (0..4).map(|_| pool.take(LARGE_SLAB_BYTES / 4)).collect();
        let mut starts: Vec<_> = held.iter().map(|b| b.as_ptr() as usize).collect();
        starts.sort_unstable();
        assert!(starts[0].is_multiple_of(LARGE_SLAB_BYTES), "a slab begins at a large page");
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] == LARGE_SLAB_BYTES / 4), "one holds all");
        held.push(pool.take(2 * LARGE_SLAB_BYTES));
        for (n, buffer) in held.iter_mut().enumerate() {
            assert!(buffer.iter().all(|byte| *byte == 0), "never uninitialised");
            assert!(n < 4 || (buffer.as_ptr() as usize).is_multiple_of(LARGE_SLAB_BYTES));
            buffer.fill(n as u8 + 1);
        }
        drop(pool);
        for (n, buffer) in held.iter().enumerate() {
            assert!(buffer.iter().all(|byte| *byte == n as u8 + 1));
        }
    }

    #[test]
    fn an_arena_is_used_first_and_then_the_heap() {
        let arena = Arena::new(4 * PAGE_BYTES).unwrap();
        let (start, bytes) = arena.span();
        let pool = BufferPool::with_arena(1 << 20, arena);
        let within = |at: *const u8| {
            (start.as_ptr() as usize..start.as_ptr() as usize + bytes).contains(&(at as usize))
        };
        let mut first = pool.take(3 * PAGE_BYTES);
        first.fill(0xAA);
        let first = first.freeze();
        let second = pool.take(PAGE_BYTES);
        assert!(within(first.as_ptr()));
        assert!(!within(second.as_ptr()), "4 pages of 4 are in use");
        let tail = first.slice(PAGE_BYTES..);
        drop(first);
        assert!(!within(pool.take(PAGE_BYTES).as_ptr()), "a slice keeps the whole buffer");
        drop(pool.clone());
        drop(tail);
        assert!(within(pool.take(4 * PAGE_BYTES).as_ptr()));
        let zeroed = pool.take_zeroed(PAGE_BYTES);
        assert!(within(zeroed.as_ptr()) && zeroed.iter().all(|byte| *byte == 0));
    }
}
