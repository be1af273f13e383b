//! What a test's process has allocated.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts only: no other memory hangs on it.
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counting. A test that declares it its global one asks [`allocated`].
#[derive(Debug)]
pub struct Counting;

/// Bytes allocated now and not given back; 0 without [`Counting`].
pub fn allocated() -> usize {
    LIVE.load(Ordering::Relaxed)
}

// SAFETY: every call is passed to the system's allocator as it is, and its answer is passed back.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps what `GlobalAlloc` asks, for the same arguments.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above; `at` came from `System` through `alloc` or `realloc`.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        LIVE.fetch_add(bytes, Ordering::Relaxed);
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, bytes) }
    }
}
