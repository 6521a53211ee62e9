//! The times of one contender, and how they are told.

use std::time::{Duration, Instant};

/// Times of the same work, in seconds.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Times `work` once more.
    pub fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let outcome = work();
        self.add(start.elapsed());
        outcome
    }

    /// Adds one time.
    pub fn add(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64());
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The time in the middle.
    pub fn median(&self) -> f64 {
        median(self.0.clone())
    }

    /// The median, with a unit.
    pub fn typical(&self) -> String {
        with_unit(self.median())
    }

    /// The tenth and ninetieth of a hundred, with units; of a few, the first and the last.
    pub fn spread(&self) -> String {
        let mut times = self.0.clone();
        times.sort_by(f64::total_cmp);
        let tenth = times.len() / 10;
        match (times.get(tenth), times.get(times.len().saturating_sub(tenth + 1))) {
            (Some(low), Some(high)) => format!("{} to {}", with_unit(*low), with_unit(*high)),
            _ => String::new(),
        }
    }

    /// Round by round, this contender's time over the other's: the ratio in the middle. What
    /// disturbs a round disturbs both.
    pub fn over(&self, other: &Self) -> f64 {
        median(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }

    /// Round by round, how much longer this contender took: the difference in the middle.
    pub fn more_than(&self, other: &Self) -> f64 {
        median(self.0.iter().zip(&other.0).map(|(a, b)| a - b).collect())
    }
}

/// A time with three digits and a unit.
pub fn with_unit(seconds: f64) -> String {
    let (value, unit) = match seconds.abs() {
        1.0.. => (seconds, "s"),
        1e-3.. => (seconds * 1e3, "ms"),
        _ => (seconds * 1e6, "µs"),
    };
    let digits = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{value:.digits$} {unit}")
}

/// A ratio in three digits; far below one, as a part of one.
pub fn ratio(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}×"),
        0.095.. => format!("{value:.2}×"),
        _ => format!("1/{:.0}", 1.0 / value),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}
