//! Spans of time as a person types and reads them: `7d`, `12h`, "3 hours ago".

use std::time::{Duration, SystemTime};

/// Seconds in each unit, the largest first.
const UNITS: [(char, &str, u64); 5] = [
    ('w', "weeks", 604_800),
    ('d', "days", 86_400),
    ('h', "hours", 3600),
    ('m', "minutes", 60),
    ('s', "seconds", 1),
];

/// Parses a whole number and a unit: `90s`, `15m`, `12h`, `7d`, `2w`. For clap's `value_parser`.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("'{}' is not a time: write a number with s, m, h, d or w", text.escape_debug());
    let unit = text.chars().last().ok_or_else(wrong)?;
    let (.., seconds) = UNITS.iter().find(|(letter, ..)| *letter == unit).ok_or_else(wrong)?;
    let number = text.strip_suffix(unit).unwrap_or_default();
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(*seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| format!("'{}' is longer than time is counted", text.escape_debug()))
}

/// How long before `now` a time lies, in whole units.
pub(crate) fn ago(time: i64, now: SystemTime) -> String {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let age = u64::try_from(time).map_or(now, |time| now.saturating_sub(time));
    let unit = UNITS.iter().find(|(.., seconds)| age / seconds >= 2);
    match unit {
        Some((_, name, seconds)) => format!("used {} {name} ago", age / seconds),
        None => "used just now".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_a_number_and_a_unit_and_nothing_else() {
        for (text, seconds) in
            [("0s", 0), ("90s", 90), ("15m", 900), ("7d", 604_800), ("2w", 1_209_600)]
        {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in
            ["", "7", "d", "-7d", "7.5d", "7 d", "7D", "99999999999999999999d", "9999999999999999w"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ages_are_told_in_the_largest_unit_there_are_two_of() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000_000);
        for (age, words) in [
            (-5, "used just now"),
            (1, "used just now"),
            (100, "used 100 seconds ago"),
            (7300, "used 2 hours ago"),
            (90_000, "used 25 hours ago"),
            (2_000_000, "used 3 weeks ago"),
        ] {
            assert_eq!(ago(10_000_000 - age, now), words);
        }
    }
}
