//! Repairs of damaged images, ended at every write by a kill or a power cut.
//!
//! ```text
//! damaged image ─▶ repair, recorded ─▶ every state a crash leaves ─┬▶ what could be read, reads the same
//!                                                                  └▶ the next repair ends clean
//! ```
//!
//! `REPAIR_PROGRAMS`, `REPAIR_SECONDS`, `REPAIR_SEED`: see `testkit::sweep`.

use proptest::prelude::any;
use qcow2_format::WriteAt;
use qcow2_format::image::check::{RepairMode, RepairOptions, RepairReport, repair};
use testkit::damage::{Damage, base, bases, damages};
use testkit::random::Random;
use testkit::recording::Recording;
use testkit::sparse::Sparse;
use testkit::sweep::Sweep;
use testkit::tool;
use testkit::verdict::Sectors;

/// The disk and its snapshots, where they can be opened.
fn disks(file: &Sparse) -> Vec<Option<Sectors>> {
    let storage = Recording::new(vec![file.clone()]).storage(0);
    let snapshots = [None, Some("1"), Some("2")];
    snapshots.map(|snapshot| Sectors::of(storage.clone(), None, snapshot)).into()
}

fn mend(storage: &(impl WriteAt + Sync)) -> qcow2_format::Result<RepairReport> {
    repair(storage, &RepairOptions::new(RepairMode::All), |_, _| {}, |_| {})
}

/// Whether the guest is shown a table, which a repair is there to change, or a snapshot is taken for
/// what it is not.
fn shows_tables(damage: &str) -> bool {
    ["entry: on ", "entry: another's", "l1_", "snapshot: ", "snapshots"]
        .iter()
        .any(|what| damage.contains(what))
        && !damage.contains("refcount table entry")
}

#[test]
fn a_repair_may_end_anywhere() {
    if !tool::available("repairs ended anywhere", &["qemu-img", "qemu-io"]) {
        return;
    }
    let sweep = Sweep::new("REPAIR", 250, 40);
    let folder = tool::memory_folder();
    let images: Vec<Damage> = bases()
        .filter(|name| *name != "data-file")
        .flat_map(|name| damages(name, &base(folder.path(), name)))
        .filter(|damage| !shows_tables(&damage.name))
        .collect();
    let (mut states, mut cuts) = (0_u64, 0_u64);
    sweep.run(any::<u64>(), |seed, random| {
        let Damage { name, bytes } = &images[Random(*seed).below(images.len())];
        let file = Sparse::new(bytes);
        let before = disks(&file);
        let recording = Recording::new(vec![file]);
        let Ok(whole) = mend(&recording.storage(0)) else { return Ok(()) };
        let mut replay = recording.replay();
        loop {
            let lost = (0..2).map(|_| replay.power_loss(random));
            cuts += 2;
            for files in std::iter::once(replay.killed().to_vec()).chain(lost) {
                states += 1;
                let place = format!("{name}, event {} of {}", replay.at(), replay.events().len());
                for (before, now) in before.iter().zip(disks(&files[0])) {
                    let Some(before) = before else { continue };
                    let less = now.map_or(Some(0), |now| now.first_less_than(before));
                    if let Some(sector) = less {
                        return Err(format!("{place}: sector {sector}"));
                    }
                }
                let again = Recording::new(files);
                let report = mend(&again.storage(0));
                let report = report.map_err(|error| format!("{place}: again: {error}"))?;
                if report.after.corruptions > whole.after.corruptions || report.after.leaks > 0 {
                    return Err(format!("{place}: again: {report:?}"));
                }
            }
            if !replay.advance() {
                return Ok(());
            }
        }
    });
    sweep.tell(&format!("{states} states, {cuts} of them after a power cut"));
    assert!(states > 100);
}
