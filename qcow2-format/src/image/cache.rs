//! What was read last, up to a number of entries. Shared by all who read the image.
//!
//! ```text
//! values  key ─▶ (value, when)       when  ─▶ key, oldest first
//! ```
//!
//! The lock is held to look and to put, never while something is read. Two that miss at once both
//! read, and the later one's value stays, unless what they read has changed meanwhile: who changes
//! a value replaces it here, and a value read before the latest change is not put. Callers:
//! `tables`, `payload`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(super) struct Cache<K, V> {
    entries: Mutex<Entries<K, V>>,
    capacity: usize,
}

struct Entries<K, V> {
    values: HashMap<K, (V, u64)>,
    by_age: BTreeMap<u64, K>,
    now: u64,
    /// How often a value was changed.
    changes: u64,
}

impl<K: Copy + Eq + Hash, V: Clone> Cache<K, V> {
    /// Room for `capacity` values, at least one.
    pub(super) fn new(capacity: usize) -> Self {
        let entries =
            Entries { values: HashMap::new(), by_age: BTreeMap::new(), now: 0, changes: 0 };
        Self { entries: Mutex::new(entries), capacity: capacity.max(1) }
    }

    pub(super) fn get(&self, key: K) -> Option<V> {
        self.look(key).ok()
    }

    /// The value, or else how many changes there were, for [`Cache::put_unchanged`].
    pub(super) fn look(&self, key: K) -> Result<V, u64> {
        let mut entries = self.lock();
        let entries = &mut *entries;
        let Some((value, when)) = entries.values.get_mut(&key) else {
            return Err(entries.changes);
        };
        // Whoever is youngest already stays so without work.
        if *when != entries.now {
            entries.by_age.remove(when);
            entries.now += 1;
            *when = entries.now;
            entries.by_age.insert(entries.now, key);
        }
        Ok(value.clone())
    }

    pub(super) fn put(&self, key: K, value: V) {
        self.lock().put(key, value, self.capacity);
    }

    /// Puts what was read after [`Cache::look`] told of `changes`; says whether nothing changed
    /// since.
    pub(super) fn put_unchanged(&self, key: K, value: V, changes: u64) -> bool {
        let mut entries = self.lock();
        let unchanged = entries.changes == changes;
        if unchanged {
            entries.put(key, value, self.capacity);
        }
        unchanged
    }

    /// Puts a value that is new.
    pub(super) fn change(&self, key: K, value: V) {
        let mut entries = self.lock();
        entries.changes += 1;
        entries.put(key, value, self.capacity);
    }

    /// Forgets a value that is no longer right.
    pub(super) fn forget(&self, key: K) {
        let mut entries = self.lock();
        entries.changes += 1;
        if let Some((_, when)) = entries.values.remove(&key) {
            entries.by_age.remove(&when);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries<K, V>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Eq + Hash, V> Entries<K, V> {
    fn put(&mut self, key: K, value: V, capacity: usize) {
        self.now += 1;
        let now = self.now;
        if let Some((_, before)) = self.values.insert(key, (value, now)) {
            self.by_age.remove(&before);
        }
        self.by_age.insert(now, key);
        if self.values.len() > capacity
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.values.remove(&oldest);
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
    fn the_one_unused_longest_goes() {
        let cache = Cache::new(2);
        cache.put(1, 'a');
        cache.put(2, 'b');
        assert_eq!(cache.get(1), Some('a'));
        cache.put(3, 'c');
        assert_eq!((cache.get(1), cache.get(2), cache.get(3)), (Some('a'), None, Some('c')));
        cache.put(1, 'd');
        cache.put(4, 'e');
        assert_eq!((cache.get(1), cache.get(3), cache.get(4)), (Some('d'), None, Some('e')));
        let entries = cache.entries.lock().unwrap();
        assert_eq!((entries.values.len(), entries.by_age.len()), (2, 2));
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
