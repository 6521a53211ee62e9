//! Who is under way: requests that have looked a cluster up and may still read or write it.
//!
//! ```text
//! epoch      … 6          7          8 …
//! requests     └ landed   └ a b      └ c d      at most two epochs have any
//!                           what was unlinked in 7 may still be read by a and b, not by c and d
//! ```
//!
//! A cluster that lost its last reference is handed out again only when everybody has landed who
//! might have looked it up before. Nobody waits for that: it is asked. Callers: `write`.

use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
pub(super) struct Flights {
    epoch: AtomicU64,
    /// Requests of the even and of the odd epoch.
    under_way: [AtomicU64; 2],
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Flight<'a>(&'a AtomicU64);

impl Flights {
    pub(super) fn enter(&self) -> Flight<'_> {
        let [even, odd] = &self.under_way;
        loop {
            let epoch = self.epoch.load(Ordering::SeqCst);
            let count = if epoch.is_multiple_of(2) { even } else { odd };
            count.fetch_add(1, Ordering::SeqCst);
            let flight = Flight(count);
            // Counted in the epoch that it is, it holds up the one after the next.
            if self.epoch.load(Ordering::SeqCst) == epoch {
                return flight;
            }
        }
    }

    /// The epoch of what is unlinked now. Never while another thread asks [`Flights::landed`].
    pub(super) fn now(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Whether all requests have landed that were under way in `epoch`. One thread asks at a time.
    pub(super) fn landed(&self, epoch: u64) -> bool {
        let [even, odd] = &self.under_way;
        loop {
            let now = self.epoch.load(Ordering::SeqCst);
            if now >= epoch.saturating_add(2) {
                return true;
            }
            // Requests of the epoch before this one, which share a counter with the next one's.
            let before = if now.is_multiple_of(2) { odd } else { even };
            if before.load(Ordering::SeqCst) != 0 {
                return false;
            }
            self.epoch.store(now + 1, Ordering::SeqCst);
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_unlinked_is_free_once_those_before_have_landed() {
        let flights = Flights::default();
        assert!(flights.landed(flights.now()));
        let early = flights.enter();
        let unlinked = flights.now();
        let late = {
            assert!(!flights.landed(unlinked));
            flights.enter()
        };
        assert!(!flights.landed(unlinked));
        drop(early);
        // The late one entered while the early one was under way, in the next epoch.
        assert!(flights.landed(unlinked));
        let again = flights.now();
        assert!(!flights.landed(again));
        drop(late);
        assert!(flights.landed(again));
    }
}
