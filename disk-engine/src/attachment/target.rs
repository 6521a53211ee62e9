//! Names a guest gives its virtio disks: `vda` … `vdz`, `vdaa`, and so on.
//!
//! ```text
//! index   0    1   …  25   26    27   …
//! name    vda  vdb    vdz  vdaa  vdab
//! ```

use std::fmt;
use std::str::FromStr;

/// A virtio disk's name in libvirt, counted from `vda`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target(u32);

impl Target {
    /// The name at `index`; 0 is `vda`.
    #[must_use]
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// The name `count` places on.
    #[must_use]
    pub const fn plus(self, count: u32) -> Self {
        Self(self.0.saturating_add(count))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Bijective base 26, last letter first. Seven letters hold any u32.
        let mut letters = Vec::with_capacity(7);
        let mut rest = u64::from(self.0) + 1;
        while rest > 0 {
            rest -= 1;
            letters.push(('a'..='z').nth(usize::try_from(rest % 26).unwrap_or_default()));
            rest /= 26;
        }
        f.write_str("vd")?;
        letters.iter().rev().flatten().try_for_each(|letter| write!(f, "{letter}"))
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let wrong =
            || format!("'{}' is not a virtio disk's name: write vda, vdb, …", name.escape_debug());
        let letters = name.strip_prefix("vd").filter(|letters| !letters.is_empty());
        let mut number: u32 = 0;
        for letter in letters.ok_or_else(wrong)?.bytes() {
            if !letter.is_ascii_lowercase() {
                return Err(wrong());
            }
            number = number
                .checked_mul(26)
                .and_then(|number| number.checked_add(u32::from(letter - b'a') + 1))
                .ok_or_else(wrong)?;
        }
        Ok(Self(number - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_indexes_are_each_others_inverse() {
        for (index, name) in [(0, "vda"), (25, "vdz"), (26, "vdaa"), (701, "vdzz"), (702, "vdaaa")]
        {
            assert_eq!(Target::new(index).to_string(), name);
            assert_eq!(name.parse(), Ok(Target::new(index)));
        }
        let last = Target::new(u32::MAX - 1);
        assert_eq!(last.to_string().parse(), Ok(last));
    }

    #[test]
    fn other_names_are_refused() {
        for name in ["", "vd", "sda", "vdA", "vd1", "vda1", "vdé", "vdzzzzzzzz"] {
            assert!(name.parse::<Target>().is_err(), "{name}");
        }
    }
}
