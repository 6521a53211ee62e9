//! Ranges that may lie over each other, as ranges that do not, with how many lie there.
//!
//! ```text
//! a  ├────────┤                       1   2     1
//! b      ├────────┤         ─▶     ├───┼────┼────┤
//! ```
//!
//! What thousands share, by accident or by intent, is then looked at once. Callers: `walk`,
//! `tables`.

use std::ops::Range;

/// Part of one or more ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) range: Range<u64>,
    /// How many of the ranges it lies in.
    pub(super) times: u64,
    /// Where one of them starts.
    pub(super) start: u64,
}

/// The parts, in order.
pub(super) fn spread(mut ranges: Vec<Range<u64>>) -> Vec<Part> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| range.start);
    let mut ends: Vec<u64> = ranges.iter().map(|range| range.end).collect();
    ends.sort_unstable();
    let (mut starts, mut ends) = (ranges.iter().peekable(), ends.into_iter().peekable());
    let mut parts = Vec::new();
    let (mut at, mut times) = (0, 0_u64);
    // Of those that have started, the one that ends last.
    let mut longest = 0..0;
    loop {
        let next = match (starts.peek(), ends.peek()) {
            (Some(range), Some(end)) => range.start.min(*end),
            (None, Some(end)) => *end,
            _ => return parts,
        };
        if times > 0 && next > at {
            parts.push(Part { range: at..next, times, start: longest.start });
        }
        at = next;
        while ends.next_if(|end| *end == at).is_some() {
            times = times.saturating_sub(1);
        }
        while let Some(range) = starts.next_if(|range| range.start == at) {
            times = times.saturating_add(1);
            if range.end > longest.end {
                longest = range.clone();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_comes_once() {
        let part = |range, times, start| Part { range, times, start };
        assert_eq!(spread(vec![5..5, 7..7]), []);
        assert_eq!(
            spread(vec![10..20, 0..4, 15..30, 15..30, 3..4]),
            [
                part(0..3, 1, 0),
                part(3..4, 2, 0),
                part(10..15, 1, 10),
                part(15..20, 3, 15),
                part(20..30, 2, 15),
            ]
        );
    }
}
