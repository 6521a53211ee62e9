//! Whether files that a crash or a fault left are an image, and hold what they may.
//!
//! ```text
//! files ─┬▶ checker    no corruption; leaks allowed
//!        ├▶ reader     opens; each sector old or new          model at that event
//!        ├▶ snapshots  as they were made                      history
//!        └▶ writer     opens (and repairs), reads the same, goes on, closes; checker again
//! ```
//!
//! Callers: `image_crash`, `image_faults`, `image_kill`.

use qcow2_format::GuestOffset;

use super::image::{below, content, open};
use super::{Call, History, Program, Shape, Step};
use crate::checker::{self, Findings};
use crate::model::{Change, Fill, Model, differ, stamp};
use crate::sparse::{Sparse, SparseStorage};

/// Whether the image is sound and the disk what the model allows.
///
/// # Errors
///
/// What is wrong.
pub fn judge(base: &[u8], files: &[Sparse], model: &Model) -> Result<Findings, String> {
    let findings = checker::check(&files[0])?;
    findings.sound()?;
    let disk = content(files, base, None).map_err(|error| format!("reading: {error}"))?;
    model.judge(&disk, 0).map_err(|foreign| foreign.to_string())?;
    Ok(findings)
}

/// Whether a raw data file, read by itself, is what the model allows. Two files do not change at
/// once: whoever goes on after a crash may find old data on the disk and new data here, and has a
/// model for each from then on.
///
/// # Errors
///
/// What is not.
pub fn judge_raw(shape: &Shape, files: &[Sparse], model: &Model) -> Result<(), String> {
    if shape.data_file != Some(true) {
        return Ok(());
    }
    let raw = files[1].bytes(0, model.now().len());
    model.judge(&raw, 0).map_err(|foreign| format!("the raw data file: {foreign}"))
}

/// Whether a raw data file holds what the disk holds wherever a call has succeeded since the last one that
/// failed or was cut short: that is where an earlier odd moment of the two files is over.
///
/// # Errors
///
/// Where it does not.
pub fn judge_raw_where_touched(
    shape: &Shape,
    history: &History,
    files: &[Sparse],
) -> Result<(), String> {
    if shape.data_file != Some(true) {
        return Ok(());
    }
    let rough = |step: &Step| step.failed.is_some() || matches!(step.call, Call::Kill | Call::Drop);
    let calm = history.steps.iter().rposition(rough).map_or(0, |at| at + 1);
    for change in history.steps[calm..].iter().filter_map(|step| step.begun.as_ref()) {
        let whole = history.model.around(change, shape.grain());
        let found = files[1].bytes(whole.offset, whole.data.len());
        let disk = history.model.part(whole.offset, whole.data.len() as u64);
        differ(&found, disk, whole.offset)
            .map_err(|foreign| format!("the raw data file, touched: {foreign}"))?;
    }
    Ok(())
}

/// Whether the snapshots that exist after `events` events are as they were made.
///
/// # Errors
///
/// Which is not, and where.
pub fn judge_snapshots(
    history: &History,
    base: &[u8],
    files: &[Sparse],
    events: usize,
) -> Result<(), String> {
    for kept in history.kept.iter().filter(|kept| kept.events.contains(&events)) {
        let name = &kept.name;
        let disk = content(files, base, Some(name)).map_err(|error| format!("{name}: {error}"))?;
        differ(&disk, &kept.content, 0).map_err(|foreign| format!("snapshot {name}: {foreign}"))?;
    }
    Ok(())
}

/// Whether a writer can go on: it finds what the reader found, and its image is sound in the end, with
/// no more leaks than before. Returns the files then.
///
/// # Errors
///
/// What is wrong.
pub fn go_on(program: &Program, base: &[u8], files: &[Sparse]) -> Result<Vec<Sparse>, String> {
    let shape = &program.shape;
    let before = checker::check(&files[0])?;
    let disk = content(files, base, None).map_err(|error| format!("reading: {error}"))?;
    let storages: Vec<_> = files.iter().cloned().map(SparseStorage::new).collect();
    let said = |what: &'static str| move |error| format!("going on: {what}: {error}");
    let image = open(shape, storages.iter().collect()).map_err(said("open"))?;
    let mut model = Model::new(disk);
    let mut raw = files.get(1).map(|data| Model::new(data.bytes(0, model.now().len())));
    let mut found = vec![0; model.now().len()];
    let fill = |buffer: &mut [u8], offset| {
        below(base, buffer, offset);
        Ok::<_, qcow2_format::Error>(())
    };
    image.read_over(&mut found, GuestOffset(0), fill).map_err(said("read"))?;
    model.compare(&found, 0).map_err(|foreign| format!("recovered: {foreign}"))?;

    // A write across the beginning, one in the middle, one at the end.
    let size = shape.disk;
    for (number, offset) in [0, size / 2 / 512 * 512, size.saturating_sub(1536)].iter().enumerate()
    {
        let length = (shape.cluster() + 700).min(size - offset).min(70_000);
        let number = u32::try_from(number).unwrap_or(0) + 0x6000_0000;
        let change = Change::new(*offset, stamp(number, *offset, length, Fill::Noise));
        image.write_over(&change.data, GuestOffset(*offset), fill).map_err(said("write"))?;
        model.apply(&change);
        if let Some(raw) = &mut raw {
            raw.apply_beside(&model, &change, shape.grain());
        }
    }
    image.close().map_err(said("close"))?;
    let files: Vec<_> = storages.iter().map(SparseStorage::snapshot).collect();
    let after = checker::check(&files[0])?;
    after.sound().map_err(|error| format!("having gone on: {error}"))?;
    let leaks = if before.dirty { 0 } else { before.leaks + before.beyond };
    if after.dirty || after.leaks > leaks {
        return Err(format!("having gone on: {after:?}, before: {before:?}"));
    }
    let disk = content(&files, base, None).map_err(|error| format!("having gone on: {error}"))?;
    model.compare(&disk, 0).map_err(|foreign| format!("having gone on: {foreign}"))?;
    if let (Some(true), Some(raw)) = (shape.data_file, raw) {
        let found = files[1].bytes(0, raw.now().len());
        raw.compare(&found, 0)
            .map_err(|foreign| format!("having gone on: the raw data file: {foreign}"))?;
    }
    Ok(files)
}
