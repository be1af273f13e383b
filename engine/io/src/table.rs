//! Open files, connections and listeners by id. An id is never used twice.

/// Up to 65,536 values under ids that name the place (low 16 bits) and a running number (the rest), so that
/// looking one up is an index and a comparison.
pub(crate) struct Table<T> {
    places: Vec<Option<(u64, T)>>,
    free: Vec<u16>,
    capacity: usize,
    made: u64,
}

const PLACE_BITS: u32 = 16;

/// The place in the table that an id names.
pub(crate) fn place(id: u64) -> usize {
    usize::from(id as u16)
}

impl<T> Table<T> {
    pub(crate) fn new(capacity: u16) -> Table<T> {
        Table { places: Vec::new(), free: Vec::new(), capacity: usize::from(capacity), made: 0 }
    }

    /// Whether nothing more can be put in.
    pub(crate) fn is_full(&self) -> bool {
        self.free.is_empty() && self.places.len() >= self.capacity
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }

    /// The new value's id; gives the value back if the table is full.
    pub(crate) fn insert(&mut self, value: T) -> Result<u64, T> {
        let at = match self.free.pop() {
            Some(at) => at,
            None if self.places.len() < self.capacity => {
                self.places.push(None);
                (self.places.len() - 1) as u16
            }
            None => return Err(value),
        };
        self.made += 1;
        let id = (self.made << PLACE_BITS) | u64::from(at);
        self.places[usize::from(at)] = Some((id, value));
        Ok(id)
    }

    pub(crate) fn get(&self, id: u64) -> Option<&T> {
        match self.places.get(place(id)) {
            Some(Some((found, value))) if *found == id => Some(value),
            _ => None,
        }
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        match self.places.get_mut(place(id)) {
            Some(Some((found, value))) if *found == id => Some(value),
            _ => None,
        }
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<T> {
        self.get(id)?;
        let (_, value) = self.places.get_mut(place(id))?.take()?;
        self.free.push(id as u16);
        Some(value)
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.places.iter_mut().flatten().map(|(_, value)| value)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.places.iter().flatten().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_never_used_twice_and_the_bound_holds() {
        let mut table = Table::new(2);
        let a = table.insert('a').unwrap();
        let b = table.insert('b').unwrap();
        assert!(table.is_full());
        assert_eq!(table.insert('c'), Err('c'));
        assert_eq!(table.remove(a), Some('a'));
        assert_eq!(table.remove(a), None);
        let c = table.insert('c').unwrap();
        assert_ne!(a, c);
        assert_eq!(place(a), place(c));
        assert_eq!(table.get(a), None);
        assert_eq!(table.get(c), Some(&'c'));
        assert_eq!(table.get_mut(b), Some(&mut 'b'));
        assert_eq!(table.get(0), None);
        assert_eq!(table.get(u64::MAX), None);
    }
}
