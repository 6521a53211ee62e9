//! A test over many drawn values: as many as asked for, or as long; what fails is made small first.
//!
//! ```text
//! seed ─▶ value, value, … ─▶ test ── ok ──▶ counted
//!                               └── wrong ─▶ simplified while it stays wrong ─▶ panic, with the seed
//! ```
//!
//! For a suite that calls itself `CRASH`, `CRASH_PROGRAMS` is how many, `CRASH_SECONDS` how long,
//! `CRASH_SEED` what is drawn; `SHRINK_SECONDS` bounds the making small. Callers: the suites of the image writer.

use std::env;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use proptest::strategy::{Strategy, ValueTree};

use crate::random::Random;
use crate::tool::tell;

/// How long a failing value may be made smaller, in seconds, unless `SHRINK_SECONDS` says otherwise.
const SHRINKING: u64 = 90;

/// How much is tried.
#[derive(Clone, Debug)]
pub struct Sweep {
    name: String,
    /// Values at most.
    pub programs: u64,
    /// Seconds at most.
    pub seconds: u64,
    /// What is drawn.
    pub seed: u64,
}

impl Sweep {
    /// As the environment says, else so many values or as long, whatever comes first. Asked for
    /// seconds, it does not count values, and the other way round.
    #[must_use]
    pub fn new(name: &str, programs: u64, seconds: u64) -> Self {
        let number = |what: &str| {
            let text = env::var(format!("{name}_{what}")).ok()?;
            Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name}_{what}: no number")))
        };
        let (asked, limit) = (number("PROGRAMS"), number("SECONDS"));
        let sweep = Self {
            programs: asked.unwrap_or(if limit.is_some() { u64::MAX } else { programs }),
            seconds: limit.unwrap_or(if asked.is_some() { u64::MAX } else { seconds }),
            seed: number("SEED").unwrap_or_else(Random::fresh_seed),
            name: name.to_owned(),
        };
        tell(&format!("{}: {name}_SEED={}", sweep.label(), sweep.seed));
        sweep
    }

    /// Prints a line that says what was tried.
    pub fn tell(&self, what: &str) {
        tell(&format!("{}: {what}", self.label()));
    }

    fn label(&self) -> String {
        format!("{} suite", self.name.to_lowercase())
    }

    /// Runs `test` on values of the strategy. Returns how many there were.
    ///
    /// # Panics
    ///
    /// A test fails or panics; the panic shows the smallest value found that does.
    pub fn run<V: Display>(
        &self,
        strategy: impl Strategy<Value = V>,
        mut test: impl FnMut(&V, &mut Random) -> Result<(), String>,
    ) -> u64 {
        let (started, mut seeds) = (Instant::now(), Random(self.seed));
        let mut done = 0;
        while done < self.programs && started.elapsed().as_secs() < self.seconds {
            let seed = seeds.word();
            let mut tree = strategy.new_tree(&mut Random(seed).runner()).unwrap();
            let mut attempt = |value: &V| {
                let once = || test(value, &mut Random(seed));
                match catch_unwind(AssertUnwindSafe(once)) {
                    Ok(result) => result,
                    Err(panic) => Err(words(&*panic)),
                }
            };
            if let Err(first) = attempt(&tree.current()) {
                let (value, error) = shrink(&mut tree, first, attempt);
                let Self { name, seed, .. } = self;
                panic!("{name}_SEED={seed}, value {done}\n{value}\n{error}");
            }
            done += 1;
        }
        done
    }
}

/// The smallest value that still fails, and how.
fn shrink<T: ValueTree>(
    tree: &mut T,
    first: String,
    mut attempt: impl FnMut(&T::Value) -> Result<(), String>,
) -> (T::Value, String) {
    let started = Instant::now();
    let limit = env::var("SHRINK_SECONDS").map_or(SHRINKING, |text| text.parse().unwrap());
    let limit = Duration::from_secs(limit);
    let (mut smallest, mut error) = (tree.current(), first);
    let mut goes_on = tree.simplify();
    while goes_on && started.elapsed() < limit {
        let value = tree.current();
        goes_on = match attempt(&value) {
            Err(other) => {
                (smallest, error) = (value, other);
                tree.simplify()
            }
            Ok(()) => tree.complicate(),
        };
    }
    (smallest, error)
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("without words"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_made_small() {
        let sweep = Sweep { name: "SWEEP".to_owned(), programs: 1000, seconds: u64::MAX, seed: 5 };
        let failed = catch_unwind(|| {
            sweep.run(0..100_000_u32, |value, _| {
                assert!(*value < 4321);
                Ok(())
            })
        });
        let text = words(&*failed.unwrap_err());
        assert!(text.contains("SWEEP_SEED=5") && text.contains("\n4321\n"), "{text}");
        assert_eq!(sweep.run(0..5_u32, |_, _| Ok(())), 1000);
    }
}
