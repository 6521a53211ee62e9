//! What was read last, up to a number of entries. Shared by all who read the image.
//!
//! ```text
//! values  key ─▶ (value, when)       when  ─▶ key, oldest first
//! ```
//!
//! The lock is held to look and to put, never while something is read. Two that miss at once both
//! read, and the later one's value stays. Callers: `tables`, `payload`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

pub(super) struct Cache<K, V> {
    entries: Mutex<Entries<K, V>>,
    capacity: usize,
}

struct Entries<K, V> {
    values: HashMap<K, (V, u64)>,
    by_age: BTreeMap<u64, K>,
    now: u64,
}

impl<K: Copy + Eq + Hash, V: Clone> Cache<K, V> {
    /// Room for `capacity` values, at least one.
    pub(super) fn new(capacity: usize) -> Self {
        let entries = Entries { values: HashMap::new(), by_age: BTreeMap::new(), now: 0 };
        Self { entries: Mutex::new(entries), capacity: capacity.max(1) }
    }

    pub(super) fn get(&self, key: K) -> Option<V> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = &mut *entries;
        let (value, when) = entries.values.get_mut(&key)?;
        // Whoever is youngest already stays so without work.
        if *when != entries.now {
            entries.by_age.remove(when);
            entries.now += 1;
            *when = entries.now;
            entries.by_age.insert(entries.now, key);
        }
        Some(value.clone())
    }

    pub(super) fn put(&self, key: K, value: V) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = &mut *entries;
        entries.now += 1;
        let now = entries.now;
        if let Some((_, before)) = entries.values.insert(key, (value, now)) {
            entries.by_age.remove(&before);
        }
        entries.by_age.insert(now, key);
        if entries.values.len() > self.capacity
            && let Some((_, oldest)) = entries.by_age.pop_first()
        {
            entries.values.remove(&oldest);
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
}
