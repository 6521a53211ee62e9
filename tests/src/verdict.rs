//! What is said of an image: by `qemu-img check`, and by our check, in the same numbers.
//!
//! ```text
//! exit code   0 clean   1 cannot tell   2 corrupt   3 leaks
//! counts      corruptions, leaks, check errors, clusters: total, allocated, fragmented, compressed; end
//! ```
//!
//! Callers: `image_check`, `image_repair`.

use std::fmt::Write;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use qcow2_format::image::check::{
    CheckOptions, CheckReport, Fix, RepairMode, RepairOptions, RepairReport, check, repair,
};
use qcow2_format::{Error, GuestOffset, Header, Image, ReadAt, ReadOptions, Result};

/// The counts, under qemu-img's names.
pub const FIELDS: [&str; 8] = [
    "corruptions",
    "leaks",
    "check-errors",
    "total-clusters",
    "allocated-clusters",
    "fragmented-clusters",
    "compressed-clusters",
    "image-end-offset",
];

/// What is said of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// qemu-img's exit code.
    pub exit: i32,
    /// The counts, if it came to any.
    pub counts: Option<[u64; 8]>,
    /// What was said beside, for whoever reads a failure.
    pub words: String,
}

impl Verdict {
    /// Whether both say the same, words left aside.
    #[must_use]
    pub fn agrees(&self, other: &Self) -> bool {
        self.exit == other.exit && self.counts == other.counts
    }

    /// What `qemu-img check` says.
    ///
    /// # Panics
    ///
    /// It does not start, or takes longer than a minute.
    #[must_use]
    pub fn of_qemu(image: &Path) -> Self {
        let output = Command::new("timeout")
            .args(["60", "qemu-img", "check", "-f", "qcow2", "--output=json"])
            .arg(image)
            .output()
            .unwrap();
        let counts = serde_json::from_slice::<serde_json::Value>(&output.stdout).ok();
        let exit = output.status.code().unwrap_or(-1);
        assert_ne!(exit, 124, "qemu-img check takes longer than a minute");
        Self {
            exit,
            counts: counts.map(|json| FIELDS.map(|field| json[field].as_u64().unwrap_or(0))),
            words: shortened(&String::from_utf8_lossy(&output.stderr)),
        }
    }

    /// What we say.
    #[must_use]
    pub fn of_ours(image: &(impl ReadAt + Sync)) -> Self {
        let mut words = String::new();
        let report = check(image, &CheckOptions::new(), |finding, times| {
            let _ = writeln!(words, "{finding} ×{times}");
        });
        match report {
            Ok(report) => Self { words: shortened(&words), ..Self::from(&report) },
            Err(error) => Self { exit: 1, counts: None, words: format!("{words}{error}") },
        }
    }
}

impl From<&CheckReport> for Verdict {
    fn from(report: &CheckReport) -> Self {
        let exit = match report {
            CheckReport { check_errors: 1.., .. } => 1,
            CheckReport { corruptions: 1.., .. } => 2,
            CheckReport { leaks: 1.., .. } => 3,
            _ => 0,
        };
        let counts = Some([
            report.corruptions,
            report.leaks,
            report.check_errors,
            report.total_clusters,
            report.allocated_clusters,
            report.fragmented_clusters,
            report.compressed_clusters,
            report.image_end_offset,
        ]);
        Self { exit, counts, words: String::new() }
    }
}

/// Repairs the image at `path`, all of it.
///
/// # Errors
///
/// As [`repair`].
///
/// # Panics
///
/// It cannot be opened.
pub fn repair_all(path: &Path) -> Result<(RepairReport, Vec<Fix>)> {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut fixes = Vec::new();
    let options = RepairOptions::new(RepairMode::All).flush(false);
    let report = repair(&file, &options, |_, _| {}, |fix| fixes.push(fix.clone()))?;
    Ok((report, fixes))
}

/// Has `qemu-img` repair the image at `path`, as far as it does. Returns how many corruptions and leaks it
/// says it mended, if it comes to an end.
///
/// # Panics
///
/// It does not start.
pub fn repair_by_qemu(path: &Path) -> Option<[u64; 2]> {
    let arguments = ["60", "qemu-img", "check", "-f", "qcow2", "--output=json", "-r", "all"];
    let output = Command::new("timeout").args(arguments).arg(path).output().unwrap();
    let json = serde_json::from_slice::<serde_json::Value>(&output.stdout).ok()?;
    Some(["corruptions-fixed", "leaks-fixed"].map(|field| json[field].as_u64().unwrap_or(0)))
}

/// A disk in sectors; those that cannot be read are `None`, and what is left to a backing file is
/// zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sectors(Vec<Option<[u8; 512]>>);

/// Bytes of a disk that is read, at most.
const DISK_MAX: u64 = 256 << 20;

impl Sectors {
    /// The disk in the image at `path`, or a snapshot of it, as our reader has it. `None` if the image
    /// cannot be opened, or is huge.
    ///
    /// # Panics
    ///
    /// The file cannot be opened.
    #[must_use]
    pub fn read(path: &Path, snapshot: Option<&str>) -> Option<Self> {
        let file = File::open(path).unwrap();
        let header = Header::read(&file).ok()?;
        let data = header.external_data_file().map(|name| {
            let name = std::str::from_utf8(name).ok()?;
            File::open(path.with_file_name(name)).ok()
        });
        match data {
            None => Self::of(file, None, snapshot),
            Some(data) => Self::of(file, Some(data?), snapshot),
        }
    }

    /// As [`Sectors::read`], of the image in `storage`, with its data file if it has one.
    pub fn of<S: ReadAt + Sync>(
        storage: S,
        data: Option<S>,
        snapshot: Option<&str>,
    ) -> Option<Self> {
        let options = ReadOptions::new().threads(1);
        let options = snapshot.map_or(options.clone(), |name| options.snapshot(name));
        let image = match data {
            Some(data) => Image::open_with_data(storage, data, &options),
            None => Image::open(storage, &options),
        };
        // Nobody reads a disk of exbibytes, sector by sector.
        let image = image.ok().filter(|image| image.virtual_size() <= DISK_MAX)?;
        let sectors = (0..image.virtual_size() / 512).map(|sector| {
            let mut bytes = [0; 512];
            let at = GuestOffset(sector * 512);
            let read = image.read_over(&mut bytes, at, |part, _| {
                part.fill(0);
                Ok::<(), Error>(())
            });
            read.ok().map(|()| bytes)
        });
        Some(Self(sectors.collect()))
    }

    /// Whether all of it can be read.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.0.iter().all(Option::is_some)
    }

    /// The sectors that are the same in `other`.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        let pairs = self.0.iter().zip(&other.0);
        Self(pairs.map(|(one, other)| one.filter(|_| one == other)).collect())
    }

    /// The first sector that `other` has and that is different here.
    #[must_use]
    pub fn first_less_than(&self, other: &Self) -> Option<usize> {
        (0..other.0.len()).find(|sector| {
            other.0[*sector].is_some() && self.0.get(*sector) != Some(&other.0[*sector])
        })
    }
}

/// The disk in the image at `path` as QEMU reads it, if it reads all of it.
///
/// # Panics
///
/// `qemu-img` does not start.
#[must_use]
pub fn read_by_qemu(path: &Path) -> Option<Vec<u8>> {
    let raw = path.with_extension("raw");
    let arguments = ["20", "qemu-img", "convert", "-f", "qcow2", "-O", "raw"];
    let output = Command::new("timeout").args(arguments).arg(path).arg(&raw).output().unwrap();
    output.status.success().then(|| std::fs::read(&raw).unwrap())
}

/// Where the clusters of the disk start, in bytes, that QEMU does not read; nothing if it does not open
/// the image at `path`.
///
/// # Panics
///
/// `qemu-io` does not start.
#[must_use]
pub fn unreadable_by_qemu(path: &Path) -> Vec<u64> {
    let Ok(header) = Header::read(&File::open(path).unwrap()) else { return Vec::new() };
    let cluster = header.geometry().cluster_bits.bytes();
    let starts = || (0..header.virtual_size()).step_by(cluster as usize);
    let mut command = Command::new("timeout");
    command.args(["20", "qemu-io", "-r", "-f", "qcow2"]);
    for start in starts() {
        let length = cluster.min(header.virtual_size() - start);
        command.arg("-c").arg(format!("read {start} {length}"));
    }
    let output = command.arg(path).output().unwrap();
    // One line for each, those of what was read with more behind.
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let answers: Vec<bool> = said
        .lines()
        .filter(|line| line.starts_with("read "))
        .map(|line| line.starts_with("read failed"))
        .collect();
    assert!(answers.is_empty() || answers.len() == starts().count(), "{said}");
    starts().zip(answers).filter(|(_, failed)| *failed).map(|(start, _)| start).collect()
}

/// So much of what was said that a failure can be read.
fn shortened(words: &str) -> String {
    let mut text = String::new();
    for line in words.lines().take(24) {
        let line: String = line.chars().take(160).collect();
        let _ = writeln!(text, "    {line}");
    }
    text
}
