//! One page-aligned mapping, handed out in power-of-two blocks: the memory that is registered with a ring.
//!
//! A buddy allocator. Its books are apart from the memory that it hands out, so that whatever is written into a block
//! cannot harm them; they never allocate after the start.

use crate::sys::{self, Errno};
use std::ptr::NonNull;
use tidelog_types::limits::PAGE_BYTES;

/// Orders of blocks: 4 KiB … 2 GiB.
const ORDERS: usize = 20;

/// The mapping and which of its blocks are free.
#[derive(Debug)]
pub(crate) struct Arena {
    start: NonNull<u8>,
    bytes: usize,
    /// First pages of the free blocks, by order.
    free: [Vec<u32>; ORDERS],
    /// For each page that begins a free block: the block's order, and its place in `free`.
    begins: Vec<Option<(u8, u32)>>,
}

// SAFETY: an Arena is the sole owner of its mapping; which thread keeps its books does not matter.
unsafe impl Send for Arena {}

impl Arena {
    /// `bytes` bytes, rounded down to a whole number of pages.
    pub(crate) fn new(bytes: usize) -> Result<Arena, Errno> {
        let bytes = bytes.min(1 << 30) / PAGE_BYTES * PAGE_BYTES;
        let start = NonNull::new(sys::map_huge(bytes)?).ok_or(libc::ENOMEM)?;
        let pages = bytes / PAGE_BYTES;
        let mut arena =
            Arena { start, bytes, free: std::array::from_fn(|_| Vec::new()), begins: vec![None; pages] };
        for (order, list) in arena.free.iter_mut().enumerate() {
            list.reserve(pages >> order);
        }
        // The largest aligned blocks that fit, one behind the other.
        let mut page = 0;
        while page < pages {
            let fits = (pages - page).ilog2();
            let order = if page == 0 { fits } else { fits.min(page.trailing_zeros()) } as usize;
            arena.put(page, order);
            page += 1 << order;
        }
        Ok(arena)
    }

    /// Where it begins, and its bytes.
    pub(crate) fn span(&self) -> (NonNull<u8>, usize) {
        (self.start, self.bytes)
    }

    /// A block of `bytes` bytes, a power of two of pages.
    pub(crate) fn take(&mut self, bytes: usize) -> Option<NonNull<u8>> {
        let wanted = order_of(bytes);
        let mut order = (wanted..ORDERS).find(|order| !self.free[*order].is_empty())?;
        let page = *self.free[order].last()? as usize;
        self.pull(page);
        while order > wanted {
            order -= 1;
            self.put(page + (1 << order), order);
        }
        // SAFETY: the block lies within the mapping.
        Some(unsafe { self.start.add(page * PAGE_BYTES) })
    }

    /// Whether `block` came from here.
    pub(crate) fn holds(&self, block: NonNull<u8>) -> bool {
        let at = block.as_ptr() as usize;
        let start = self.start.as_ptr() as usize;
        (start..start + self.bytes).contains(&at)
    }

    /// Takes back a block of [`Arena::take`] of the same size.
    pub(crate) fn give_back(&mut self, block: NonNull<u8>, bytes: usize) {
        assert!(self.holds(block), "a block goes back to the arena that it came from");
        let mut page = (block.as_ptr() as usize - self.start.as_ptr() as usize) / PAGE_BYTES;
        let mut order = order_of(bytes);
        assert!(self.begins[page].is_none(), "a block is given back once");
        while order + 1 < ORDERS {
            let buddy = page ^ (1 << order);
            match self.begins.get(buddy) {
                Some(Some((found, _))) if usize::from(*found) == order => {
                    self.pull(buddy);
                    page = page.min(buddy);
                    order += 1;
                }
                _ => break,
            }
        }
        self.put(page, order);
    }

    fn put(&mut self, page: usize, order: usize) {
        self.begins[page] = Some((order as u8, self.free[order].len() as u32));
        self.free[order].push(page as u32);
    }

    fn pull(&mut self, page: usize) {
        let (order, at) = self.begins[page].take().expect("the page begins a free block");
        let list = &mut self.free[usize::from(order)];
        list.swap_remove(at as usize);
        if let Some(moved) = list.get(at as usize) {
            self.begins[*moved as usize] = Some((order, at));
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`. Every buffer from it keeps the pool, hence the arena, alive, and the
        // ring that it is registered with takes hold of the pages themselves.
        unsafe { sys::unmap(self.start.as_ptr(), self.bytes) }
    }
}

fn order_of(bytes: usize) -> usize {
    (bytes / PAGE_BYTES).max(1).next_power_of_two().trailing_zeros() as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn free_bytes(arena: &Arena) -> usize {
        arena.free.iter().enumerate().map(|(order, list)| list.len() * (PAGE_BYTES << order)).sum()
    }

    proptest! {
        #[test]
        fn blocks_never_overlap_and_all_come_together_again(
            pages in 1usize..200,
            steps in proptest::collection::vec((any::<bool>(), 0usize..6, any::<prop::sample::Index>()), 0..200),
        ) {
            let mut arena = Arena::new(pages * PAGE_BYTES).unwrap();
            let whole: Vec<Vec<u32>> = arena.free.to_vec();
            let mut held: Vec<(NonNull<u8>, usize)> = Vec::new();
            for (take, order, which) in steps {
                if take {
                    let bytes = PAGE_BYTES << order;
                    if let Some(block) = arena.take(bytes) {
                        let at = block.as_ptr() as usize;
                        prop_assert_eq!(at % PAGE_BYTES, 0);
                        for (other, other_bytes) in &held {
                            let other = other.as_ptr() as usize;
                            prop_assert!(at + bytes <= other || other + other_bytes <= at);
                        }
                        held.push((block, bytes));
                    }
                } else if !held.is_empty() {
                    let (block, bytes) = held.swap_remove(which.index(held.len()));
                    arena.give_back(block, bytes);
                }
                let held_bytes: usize = held.iter().map(|(_, bytes)| bytes).sum();
                prop_assert_eq!(free_bytes(&arena) + held_bytes, pages * PAGE_BYTES);
            }
            for (block, bytes) in held.drain(..) {
                arena.give_back(block, bytes);
            }
            let sorted = |lists: &[Vec<u32>]| -> Vec<Vec<u32>> {
                lists.iter().map(|list| { let mut list = list.clone(); list.sort_unstable(); list }).collect()
            };
            prop_assert_eq!(sorted(&arena.free), sorted(&whole));
        }
    }

    #[test]
    fn an_exhausted_arena_gives_nothing() {
        let mut arena = Arena::new(4 * PAGE_BYTES).unwrap();
        let block = arena.take(4 * PAGE_BYTES).unwrap();
        assert_eq!(arena.take(PAGE_BYTES), None);
        arena.give_back(block, 4 * PAGE_BYTES);
        assert_eq!(arena.take(8 * PAGE_BYTES), None);
        assert!(arena.take(PAGE_BYTES).is_some());
    }
}
