//! Which member of an archive is the disk.
//!
//! ```text
//! asked for by name     that one; twice is an error, and so is one that is not a file
//! otherwise             the single file; else the one called "disk.img"
//! otherwise             an error that lists what is there
//! ```
//!
//! An archive is read once, so the first file is taken on trust: if a second one turns up, it is
//! dropped unless it was the disk. Names select; they never become paths. Caller: `tar`.

use crate::error::ErrorKind;
use crate::source::limits::Defect;
use crate::source::tar::header::Kind;

/// The name that decides between several files.
const DISK: &[u8] = b"disk.img";

/// How many names an error lists.
const LISTED: usize = 20;

/// Whether a member's bytes are wanted, as far as is known when it passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// This is the disk; an earlier one was not.
    Take,
    /// This is not the disk.
    Skip,
}

/// Chooses while members pass by.
#[derive(Debug)]
pub(crate) struct Chooser {
    wanted: Option<Vec<u8>>,
    chosen: Option<Vec<u8>>,
    files: u64,
    members: u64,
    list: Vec<String>,
}

impl Chooser {
    /// Looks for the member `wanted`, or for whatever the rule above says.
    pub(crate) fn new(wanted: Option<&str>) -> Self {
        let wanted = wanted.map(|name| plain(name.as_bytes()).to_vec());
        Self { wanted, chosen: None, files: 0, members: 0, list: Vec::new() }
    }

    /// Says what to do with the next member.
    pub(crate) fn consider(&mut self, name: &[u8], kind: Kind) -> Result<Verdict, Defect> {
        let is_file = matches!(kind, Kind::File | Kind::GnuSparse);
        self.members += 1;
        if self.list.len() < LISTED {
            let note = if is_file { String::new() } else { format!(" ({})", kind.describe()) };
            self.list.push(format!("{}{note}", shown(name)));
        }
        self.files += u64::from(is_file);
        let name = plain(name);
        let wanted = match &self.wanted {
            Some(wanted) => wanted.as_slice(),
            None if !is_file => return Ok(Verdict::Skip),
            None => DISK,
        };
        if name == wanted {
            if !is_file {
                return Err(Defect::unsupported(format!(
                    "the member {} is {}, not a file",
                    shown(name),
                    kind.describe()
                )));
            }
            if self.chosen.as_deref() == Some(name) {
                return Err(Defect::corrupt(format!(
                    "the archive holds {} more than once",
                    shown(name)
                )));
            }
            self.chosen = Some(name.to_vec());
            return Ok(Verdict::Take);
        }
        if self.wanted.is_none() {
            if self.files == 1 {
                self.chosen = Some(name.to_vec());
                return Ok(Verdict::Take);
            }
            // Two files and the one so far is not the disk: only a later one can be.
            self.chosen = self.chosen.take().filter(|chosen| chosen == DISK);
        }
        Ok(Verdict::Skip)
    }

    /// Whether no later member can take the place of the one taken last.
    pub(crate) fn is_final(&self) -> bool {
        self.wanted.is_some() || self.chosen.as_deref() == Some(DISK)
    }

    /// Says, at the end, which member was the disk.
    pub(crate) fn conclude(&mut self) -> Result<Vec<u8>, Defect> {
        if let Some(chosen) = self.chosen.take() {
            return Ok(chosen);
        }
        let defect = match &self.wanted {
            Some(wanted) => Defect::new(
                ErrorKind::NotFound,
                format!("the archive has no member {}; it holds {}", shown(wanted), self.listing()),
            ),
            None if self.files == 0 => Defect::new(
                ErrorKind::NotFound,
                format!("the archive holds no file; it holds {}", self.listing()),
            ),
            None => Defect::new(
                ErrorKind::InvalidInput,
                format!(
                    "the archive holds {} files and none is called disk.img: {}",
                    self.files,
                    self.listing()
                ),
            )
            .hint("say which one with --member"),
        };
        Err(defect)
    }

    fn listing(&self) -> String {
        if self.list.is_empty() {
            return "nothing".into();
        }
        let more = self.members.saturating_sub(self.list.len() as u64);
        let mut text = self.list.join(", ");
        if more > 0 {
            text.push_str(&format!(" and {more} more"));
        }
        text
    }
}

/// A name without the `./` that archives of a folder begin with.
pub(crate) fn plain(mut name: &[u8]) -> &[u8] {
    while let Some(rest) = name.strip_prefix(b"./") {
        name = rest;
    }
    name
}

/// A name for a person: quoted, escaped, and cut where it is longer than anybody reads.
fn shown(name: &[u8]) -> String {
    const MOST: usize = 120;
    match name.get(..MOST) {
        Some(start) => format!("\"{}…\"", start.escape_ascii()),
        None => format!("\"{}\"", name.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(wanted: Option<&str>, members: &[(&str, Kind)]) -> Result<String, ErrorKind> {
        let mut chooser = Chooser::new(wanted);
        for (name, kind) in members {
            chooser.consider(name.as_bytes(), *kind).map_err(|defect| defect.at(0, None).kind())?;
        }
        let chosen = chooser.conclude().map_err(|defect| defect.at(0, None).kind())?;
        Ok(String::from_utf8(chosen).unwrap())
    }

    const FOLDER: Kind = Kind::Special("a folder");
    const LINK: Kind = Kind::Special("a symbolic link");

    #[test]
    fn the_rule_is_name_then_single_file_then_disk_img() {
        let file = Kind::File;
        for (wanted, members, outcome) in [
            (None, &[("a", file)][..], Ok("a")),
            (None, &[("./", FOLDER), ("./a", Kind::GnuSparse), ("l", LINK)], Ok("a")),
            (None, &[("a", file), ("disk.img", file), ("b", file)], Ok("disk.img")),
            (None, &[("./disk.img", file), ("b", file)], Ok("disk.img")),
            (None, &[("a", file), ("b", file), ("c", file), ("disk.img", file)], Ok("disk.img")),
            (None, &[("a", file), ("b", file)], Err(ErrorKind::InvalidInput)),
            (None, &[("x/disk.img", file), ("b", file)], Err(ErrorKind::InvalidInput)),
            (None, &[], Err(ErrorKind::NotFound)),
            (None, &[("disk.img", LINK)], Err(ErrorKind::NotFound)),
            (None, &[("disk.img", file), ("./disk.img", file)], Err(ErrorKind::Corrupt)),
            (Some("b"), &[("a", file), ("b", file)], Ok("b")),
            (Some("./b"), &[("a", file), ("b", file)], Ok("b")),
            (Some("b"), &[("disk.img", file)], Err(ErrorKind::NotFound)),
            (Some("b"), &[("b", file), ("./b", file)], Err(ErrorKind::Corrupt)),
            (Some("b"), &[("b", LINK)], Err(ErrorKind::Unsupported)),
        ] {
            assert_eq!(
                choose(wanted, members),
                outcome.map(String::from),
                "{wanted:?} {members:?}"
            );
        }
    }

    #[test]
    fn the_list_is_short_and_escaped() {
        let mut chooser = Chooser::new(Some("none"));
        for number in 0..25 {
            chooser.consider(format!("{number}\n").as_bytes(), Kind::File).unwrap();
        }
        let text = chooser.conclude().unwrap_err().at(0, None).to_string();
        assert!(text.contains("\"19\\n\" and 5 more"), "{text}");
        assert!(!text.contains('\n'));
    }
}
