//! What was read last, up to a number of entries. Shared by all who read the image.
//!
//! ```text
//! values  key ─▶ value, used since it was looked over
//! round   [ key ][ key ][ key ] …      looked over from the left when room is needed: a used one
//!                                      goes to the right, unused again; an unused one goes
//! ```
//!
//! The lock is held to look and to put, never while something is read; looking disturbs nobody else
//! who looks. Two that miss at once both read, and the later one's value stays, unless what they
//! read has changed meanwhile: who changes a value replaces it here, and a value read before the
//! latest change is not put. Callers: `tables`, `payload`.

pub(super) mod hash;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hash::PlaceHash;

pub(super) struct Cache<K, V> {
    entries: RwLock<Entries<K, V>>,
    capacity: usize,
}

struct Entries<K, V> {
    values: HashMap<K, (V, AtomicBool), PlaceHash>,
    /// Every key once, and perhaps some that were forgotten.
    round: VecDeque<K>,
    /// How often a value was changed.
    changes: u64,
}

impl<K: Copy + Eq + Hash, V: Clone> Cache<K, V> {
    /// Room for `capacity` values, at least one.
    pub(super) fn new(capacity: usize) -> Self {
        let entries = Entries { values: HashMap::default(), round: VecDeque::new(), changes: 0 };
        Self { entries: RwLock::new(entries), capacity: capacity.max(1) }
    }

    pub(super) fn get(&self, key: K) -> Option<V> {
        self.look(key).ok()
    }

    /// The value, or else how many changes there were, for [`Cache::put_unchanged`].
    pub(super) fn look(&self, key: K) -> Result<V, u64> {
        let entries = self.read();
        let Some((value, used)) = entries.values.get(&key) else { return Err(entries.changes) };
        // A store that changes nothing would still take the line from other processors.
        if !used.load(Ordering::Relaxed) {
            used.store(true, Ordering::Relaxed);
        }
        Ok(value.clone())
    }

    pub(super) fn put(&self, key: K, value: V) {
        self.write().put(key, value, self.capacity);
    }

    /// Puts what was read after [`Cache::look`] told of `changes`; says whether nothing changed
    /// since.
    pub(super) fn put_unchanged(&self, key: K, value: V, changes: u64) -> bool {
        let mut entries = self.write();
        let unchanged = entries.changes == changes;
        if unchanged {
            entries.put(key, value, self.capacity);
        }
        unchanged
    }

    /// Puts a value that is new.
    pub(super) fn change(&self, key: K, value: V) {
        let mut entries = self.write();
        entries.changes += 1;
        entries.put(key, value, self.capacity);
    }

    /// Forgets a value that is no longer right.
    pub(super) fn forget(&self, key: K) {
        let mut entries = self.write();
        entries.changes += 1;
        entries.values.remove(&key);
    }

    fn read(&self) -> RwLockReadGuard<'_, Entries<K, V>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Entries<K, V>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Eq + Hash, V> Entries<K, V> {
    fn put(&mut self, key: K, value: V, capacity: usize) {
        if let Some((place, used)) = self.values.get_mut(&key) {
            *place = value;
            *used.get_mut() = true;
            return;
        }
        self.make_room(capacity);
        self.values.insert(key, (value, AtomicBool::new(false)));
        self.round.push_back(key);
    }

    /// Makes room for one more, and drops keys that were forgotten once they are as many as values.
    fn make_room(&mut self, capacity: usize) {
        if self.round.len() >= capacity.saturating_mul(2) {
            let values = &self.values;
            let mut seen = std::collections::HashSet::new();
            self.round.retain(|key| values.contains_key(key) && seen.insert(*key));
        }
        while self.values.len() >= capacity
            && let Some(key) = self.round.pop_front()
        {
            match self.values.get_mut(&key) {
                Some((_, used)) if used.load(Ordering::Relaxed) => {
                    *used.get_mut() = false;
                    self.round.push_back(key);
                }
                Some(_) => {
                    self.values.remove(&key);
                }
                None => {}
            }
        }
    }
}

impl<K, V> fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_unused_goes_and_those_used_stay() {
        let cache = Cache::new(2);
        cache.put(1, 'a');
        cache.put(2, 'b');
        assert_eq!(cache.get(1), Some('a'));
        cache.put(3, 'c');
        assert_eq!((cache.get(1), cache.get(2)), (Some('a'), None));
        cache.put(1, 'd');
        cache.put(4, 'e');
        assert_eq!((cache.get(1), cache.get(3), cache.get(4)), (Some('d'), None, Some('e')));
        for key in 0..1000 {
            cache.put(key, 'f');
            cache.forget(key);
        }
        let entries = cache.read();
        assert!(entries.values.len() <= 2 && entries.round.len() <= 5);
    }

    #[test]
    fn what_was_read_before_a_change_is_not_kept() {
        let cache = Cache::new(2);
        let before = cache.look(1).unwrap_err();
        cache.change(1, 'n');
        assert!(!cache.put_unchanged(1, 'o', before));
        assert_eq!(cache.get(1), Some('n'));
        let now = cache.look(2).unwrap_err();
        assert!(cache.put_unchanged(2, 'b', now));
        cache.forget(2);
        assert!(!cache.put_unchanged(2, 'b', now));
        assert_eq!(cache.get(2), None);
    }
}
