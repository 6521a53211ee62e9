//! Images that random programs have left, over the whole option space: checked, damaged by chance, checked
//! and repaired, beside `qemu-img check`.
//!
//! ```text
//! program ─▶ writer ─▶ image ─▶ qemu-img bitmap ─▶ both checks: the same numbers
//!     damaged ─┬▶ both checks: ours finds what QEMU's finds
//!              └▶ our repair ─▶ qemu-img check: clean; content: what QEMU's repair keeps, or more
//! ```
//!
//! `RANDOM_PROGRAMS`, `RANDOM_SECONDS`, `RANDOM_SEED`: see `testkit::sweep`.

use std::fs::{self, File};
use std::path::Path;

use qcow2_format::Header;
use qcow2_format::image::check::{CheckOptions, Finding, Fix, check};
use testkit::damage::by_chance;
use testkit::faulty::Faults;
use testkit::program::image::ImageTarget;
use testkit::program::{Lab, Program, program, run};
use testkit::qemu::img;
use testkit::random::Random;
use testkit::sweep::Sweep;
use testkit::tool;
use testkit::verdict::{Sectors, Verdict, repair_all, repair_by_qemu};

/// Damages of an image.
const HARMS: usize = 4;

#[derive(Default)]
struct Told {
    images: u64,
    damages: u64,
    repaired: u64,
    refused: u64,
    compared: u64,
}

#[test]
fn random_images_are_judged_alike_and_repaired() {
    if !tool::available("checks of random images", &["qemu-img", "timeout"]) {
        return;
    }
    let sweep = Sweep::new("RANDOM", 40, 40);
    let mut told = Told::default();
    sweep.run(program(14), |program, random| image(program, random, &mut told));
    let Told { images, damages, repaired, refused, compared } = told;
    sweep.tell(&format!(
        "{images} images, {damages} damages: {repaired} repaired, {refused} refused; content \
         compared of {compared}"
    ));
    assert!(images > 0);
}

fn image(program: &Program, random: &mut Random, told: &mut Told) -> Result<(), String> {
    let shape = &program.shape;
    let lab = Lab::new(shape);
    let mut target = ImageTarget::new(&lab, shape, lab.create(), Faults::default());
    run(program, &mut target, false)?;
    target.close().map_err(|error| format!("close: {error}"))?;
    lab.store(&target.recording.files());
    let path = lab.path("image");
    if shape.version > 2 {
        for number in 0..random.below(4) {
            let name = format!("bitmap {number}");
            // Granularities that are too fine for the disk are refused.
            let granularity = (512 << random.below(8)).to_string();
            let words = ["bitmap", "--add", "-g", &granularity, path.to_str().unwrap(), &name];
            let _ = img(words);
        }
    }
    told.images += 1;
    let (theirs, ours) = (Verdict::of_qemu(&path), Verdict::of_ours(&File::open(&path).unwrap()));
    if !ours.agrees(&theirs) {
        return Err(format!("undamaged: qemu {theirs:?}\nours {ours:?}"));
    }
    let bytes = fs::read(&path).unwrap();
    for _ in 0..HARMS {
        let in_header = random.once_in(6);
        let (what, damaged) = by_chance(&bytes, in_header, random);
        told.damages += 1;
        one(&lab, program, &damaged, in_header, told)
            .map_err(|error| format!("{what}\n{error}"))?;
    }
    Ok(())
}

fn one(
    lab: &Lab,
    program: &Program,
    bytes: &[u8],
    in_header: bool,
    told: &mut Told,
) -> Result<(), String> {
    let shape = &program.shape;
    let (path, other) = (lab.path("image"), lab.path("theirs"));
    fs::write(&path, bytes).unwrap();
    fs::write(&other, bytes).unwrap();
    let (theirs, ours) = (Verdict::of_qemu(&path), Verdict::of_ours(&File::open(&path).unwrap()));
    let said = format!(
        "qemu {} {:?}\n{}ours {} {:?}\n{}",
        theirs.exit, theirs.counts, theirs.words, ours.exit, ours.counts, ours.words
    );
    // Rules that qemu-img does not know: see `image_check`.
    let own_rules = shape.version == 2 || shape.extended_l2 || shape.data_file.is_some();
    let differs = match (&theirs.counts, &ours.counts) {
        (Some(_), Some(_)) if own_rules || in_header => rank(&ours) < rank(&theirs),
        (Some(_), Some(_)) => !theirs.agrees(&ours),
        (Some(_), None) => !in_header,
        (None, _) => false,
    };
    if differs {
        return Err(said);
    }
    let overlaps = overlaps(&path);
    let snapshots = snapshots(&path);
    let before: Vec<_> = snapshots.iter().map(|id| Sectors::read(&path, id.as_deref())).collect();
    let _ = repair_by_qemu(&other);
    let theirs_after = Verdict::of_qemu(&other);
    let (report, fixes) = match repair_all(&path) {
        Ok(repaired) => repaired,
        Err(_) => {
            told.refused += 1;
            // Nothing that QEMU repairs is refused.
            return if theirs_after.exit == 0 && theirs.exit != 0 && !in_header {
                Err(format!("repair refused: {said}"))
            } else {
                Ok(())
            };
        }
    };
    told.repaired += 1;
    let lost = fixes.iter().any(|fix| matches!(fix, Fix::SnapshotLost { .. }));
    let fixes: Vec<_> = fixes.iter().take(12).map(ToString::to_string).collect();
    let after = Verdict::of_qemu(&path);
    // Counts that are too narrow for the references stay wrong, as in QEMU.
    let overflows = shape.refcount_bits < 8 && report.after.corruptions > 0;
    // Which of two that share a cluster is right nobody can tell.
    let excused = overflows || overlaps && theirs_after.exit != 0;
    if after.exit != 0 && !excused && (theirs.counts.is_some() || !in_header) {
        return Err(format!("unclean: {said}{fixes:#?}\n{after:?}"));
    }
    // A name with a NUL is nothing to our reader.
    if overlaps || in_header && Header::read(&File::open(&path).unwrap()).is_err() {
        return Ok(());
    }
    told.compared += 1;
    // Of what was read before and QEMU keeps nothing is lost. What it writes over is another matter.
    for (snapshot, before) in snapshots.iter().zip(before) {
        let kept = Sectors::read(&other, snapshot.as_deref());
        let own = Sectors::read(&path, snapshot.as_deref());
        let Some(kept) = kept.zip(before).map(|(kept, before)| kept.common(&before)) else {
            continue;
        };
        // QEMU keeps a snapshot whose L1 table is something else: ours is dropped by name.
        if own.is_none() && snapshot.is_some() && lost {
            continue;
        }
        let less = own.map_or(Some(0), |own| own.first_less_than(&kept));
        if let Some(sector) = less {
            return Err(format!("content: {snapshot:?} sector {sector}: {said}{fixes:#?}"));
        }
    }
    Ok(())
}

/// How bad it is said to be.
fn rank(verdict: &Verdict) -> u32 {
    match verdict.exit {
        0 => 0,
        3 => 1,
        2 => 2,
        _ => 3,
    }
}

/// Whether something of the guest's is metadata as well: what a repair changes then changes what is read.
fn overlaps(path: &Path) -> bool {
    let mut overlap = false;
    let checked = check(&File::open(path).unwrap(), &CheckOptions::new(), |finding, _| {
        overlap |= matches!(finding, Finding::Overlap { .. });
    });
    overlap || checked.is_err()
}

/// The disk, and the ids of the snapshots that QEMU lists.
fn snapshots(path: &Path) -> Vec<Option<String>> {
    let said = img(["info", "-f", "qcow2", "--output=json", path.to_str().unwrap()]);
    let json = serde_json::from_str::<serde_json::Value>(&said.stdout).unwrap_or_default();
    let listed = json["snapshots"].as_array().cloned().unwrap_or_default();
    let ids = listed.iter().filter_map(|snapshot| Some(snapshot["id"].as_str()?.to_owned()));
    std::iter::once(None).chain(ids.map(Some)).collect()
}
