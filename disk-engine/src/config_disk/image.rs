//! A planned config disk, written through `fatfs`.
//!
//! ```text
//! format ─▶ folders and files, in order ─▶ unmount ─▶ the label's date
//! ```
//!
//! `fatfs` works on anything that reads, writes and seeks; what is read here was written before. In
//! memory, for it reads a folder's entries byte by byte. Caller: `config_disk`.

use std::collections::HashSet;
use std::io::{self, Read, Seek, SeekFrom, Write};

use fatfs::{Date, DateTime, Dir, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider};

use crate::config_disk::Plan;
use crate::config_disk::geometry::{SECTOR, TRACK};
use crate::config_disk::name;
use crate::config_disk::shared::Shared;
use crate::config_disk::tree::{NodeKind, Tree};

/// FAT's first moment, for every file: a clock would make every image another one.
#[derive(Debug)]
struct Epoch;

impl TimeProvider for Epoch {
    fn get_current_date(&self) -> Date {
        Date { year: 1980, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> DateTime {
        let time = Time { hour: 0, min: 0, sec: 0, millis: 0 };
        DateTime { date: self.get_current_date(), time }
    }
}

static EPOCH: Epoch = Epoch;

/// That moment's date as an entry has it, with the time before it: 1980-01-01 is year 0, month 1, day 1.
const LABEL_TIME: [u8; 4] = [0, 0, 0x21, 0];
/// Where an entry has it.
const ENTRY_TIME: u64 = 22;

/// Writes the image to `storage`, which is empty and grows as it is written.
pub(super) fn write<S: Read + Write + Seek>(plan: &Plan<'_>, storage: S) -> io::Result<()> {
    let geometry = &plan.geometry;
    let number = |value: u64| u32::try_from(value).map_err(io::Error::other);
    let options = FormatVolumeOptions::new()
        .bytes_per_sector(u16::try_from(SECTOR).map_err(io::Error::other)?)
        .bytes_per_cluster(number(geometry.cluster_sectors * SECTOR)?)
        .total_sectors(number(geometry.sectors)?)
        .max_root_dir_entries(u16::try_from(geometry.root_entries).map_err(io::Error::other)?)
        .sectors_per_track(u16::try_from(TRACK).map_err(io::Error::other)?)
        .drive_num(0x80)
        .volume_id(volume_id(plan))
        .volume_label(plan.label.bytes());
    let shared = Shared::new(storage);
    let mut storage = &shared;
    fatfs::format_volume(storage, options)?;
    let system = FileSystem::new(storage, FsOptions::new().time_provider(&EPOCH))?;
    fill(&shared, &system.root_dir(), &plan.tree)?;
    system.unmount()?;
    // The label is the root's first entry, and the only one that formatting leaves without a date.
    storage.seek(SeekFrom::Start(geometry.root() + ENTRY_TIME))?;
    storage.write_all(&LABEL_TIME)?;
    storage.flush()
}

fn fill<S: Read + Write + Seek>(
    storage: &Shared<S>,
    folder: &Dir<'_, &Shared<S>>,
    tree: &Tree<'_>,
) -> io::Result<()> {
    for node in tree.nodes() {
        storage.watch();
        let places;
        match &node.kind {
            NodeKind::File(content) => {
                let mut file = folder.create_file(node.name)?;
                places = storage.watched();
                file.write_all(content)?;
                // Dropped, it would swallow the error.
                file.flush()?;
            }
            NodeKind::Folder(inner) => {
                let folder = folder.create_dir(node.name)?;
                places = storage.watched();
                storage.mend_folder()?;
                fill(storage, &folder, inner)?;
            }
        }
        // Nothing of `fatfs` remembers the entry any more, so none of it is written again.
        if name::is_extension(node.name) {
            storage.mend_name(&places, &free_base(folder, node.name)?)?;
        }
    }
    Ok(())
}

/// What makes a short name that is new to `folder` of an extension: `~1`, or the first number that is
/// free.
fn free_base<S: Read + Write + Seek>(
    folder: &Dir<'_, &Shared<S>>,
    extension: &str,
) -> io::Result<String> {
    let mut taken = HashSet::new();
    for entry in folder.iter() {
        taken.insert(entry?.short_file_name_as_bytes().to_ascii_uppercase());
    }
    (1..=9_999_999)
        .map(|number: u32| format!("~{number}"))
        .find(|base| !taken.contains(format!("{base}{extension}").to_ascii_uppercase().as_bytes()))
        .ok_or_else(|| io::Error::other("no short name is left"))
}

/// Tells this disk from any other in the same guest, and is the same for the same content.
fn volume_id(plan: &Plan<'_>) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&plan.label.bytes());
    plan.tree.tell(&mut |bytes| hasher.update(bytes));
    hasher.finalize()
}
