//! Things with short numeric names that are not used again soon.

/// Name of an entry: its slot (low 24 bits) and how often the slot has been used (next 24 bits). Fits the value of
/// a token beside the kind of an operation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Key(pub(crate) u64);

const SLOT_BITS: u32 = 24;
const SLOT_MASK: u64 = (1 << SLOT_BITS) - 1;
/// Bits of a [`Key`].
pub(crate) const KEY_BITS: u32 = 2 * SLOT_BITS;

impl Key {
    fn slot(self) -> usize {
        // The mask makes it fit.
        (self.0 & SLOT_MASK) as usize
    }
}

#[derive(Debug)]
struct Slot<T> {
    epoch: u64,
    value: Option<T>,
}

/// Entries by [`Key`]; freed slots are used again, last freed first, under another key.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Slab<T> {
        Slab { slots: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn insert(&mut self, value: T) -> Key {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { epoch: 0, value: None });
            self.slots.len() - 1
        });
        assert!(slot as u64 <= SLOT_MASK, "bounds elsewhere keep a slab below 2^{SLOT_BITS} entries");
        let entry = &mut self.slots[slot];
        entry.value = Some(value);
        Key(slot as u64 | entry.epoch << SLOT_BITS)
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        let entry = self.slots.get(key.slot())?;
        if key.0 == key.slot() as u64 | entry.epoch << SLOT_BITS { entry.value.as_ref() } else { None }
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let entry = self.slots.get_mut(key.slot())?;
        if key.0 == key.slot() as u64 | entry.epoch << SLOT_BITS { entry.value.as_mut() } else { None }
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key)?;
        let entry = self.slots.get_mut(key.slot())?;
        entry.epoch = (entry.epoch + 1) & SLOT_MASK;
        self.free.push(key.slot());
        entry.value.take()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.slots.iter().enumerate().filter_map(|(slot, entry)| {
            entry.value.as_ref().map(|value| (Key(slot as u64 | entry.epoch << SLOT_BITS), value))
        })
    }

    pub(crate) fn keys(&self) -> Vec<Key> {
        self.iter().map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_one_entry_only() {
        let mut slab = Slab::new();
        let a = slab.insert('a');
        let b = slab.insert('b');
        assert_eq!((slab.get(a), slab.get(b), slab.len()), (Some(&'a'), Some(&'b'), 2));
        assert_eq!(slab.remove(a), Some('a'));
        let c = slab.insert('c');
        assert_ne!(a, c);
        assert_eq!((slab.get(a), slab.get(c)), (None, Some(&'c')));
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.keys(), [c, b]);
        assert_eq!(slab.get(Key(u64::MAX)), None);
    }
}
