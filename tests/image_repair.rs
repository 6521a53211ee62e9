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
use testkit::qemu::{img_in, io};
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

/// A claim that is too long has nothing behind it mended away: what could be read reads the same after a
/// repair, for QEMU, and its check is clean.
#[test]
fn claims_that_are_too_long_cost_nothing() {
    if !tool::available("repairs of tables that claim too much", &["qemu-img", "qemu-io"]) {
        return;
    }
    let folder = tool::memory_folder();
    let path = |name: &str| folder.path().join(name);
    let image = path("image");
    let write = |commands: &[&str]| {
        let mut words = vec!["-f", "qcow2", "-d", "unmap"];
        commands.iter().for_each(|command| words.extend(["-c", command]));
        words.push(image.to_str().unwrap());
        assert!(io(words).status.success());
    };
    let read = |snapshot: &[&str]| {
        let words = ["convert", "-f", "qcow2", "-O", "raw"];
        img_in(folder.path(), &[&words[..], snapshot, &["image", "raw"]].concat());
        std::fs::read(path("raw")).unwrap()
    };
    let number = |bytes: &[u8], at: usize| {
        usize::try_from(u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap()
    };
    // Which bytes are damaged, and how.
    type Harm = fn(&mut [u8], &dyn Fn(&[u8], usize) -> usize);
    let rows: [(&str, bool, Harm); 4] = [
        ("the disk's L1 table, alone", false, |bytes, _| {
            bytes[36..40].copy_from_slice(&0x40001_u32.to_be_bytes());
        }),
        ("the disk's L1 table", true, |bytes, _| {
            bytes[36..40].copy_from_slice(&0x40001_u32.to_be_bytes())
        }),
        ("a snapshot's L1 table", true, |bytes, number| {
            let snapshot = number(bytes, 64);
            bytes[snapshot + 8..snapshot + 12].copy_from_slice(&0x20001_u32.to_be_bytes());
        }),
        ("an entry that points to its own table", true, |bytes, number| {
            let table = number(bytes, number(bytes, 40)) & 0x00ff_ffff_ffff_fe00;
            let entry = 1 << 63 | (table as u64 + 0x200);
            // Nothing is stored there.
            bytes[table + 8 * 100..][..8].copy_from_slice(&entry.to_be_bytes());
        }),
    ];
    for (what, has_snapshot, harm) in rows {
        img_in(folder.path(), &["create", "-q", "-f", "qcow2", "image", "8M"]);
        write(&["write -P 1 0 200k", "write -P 2 1M 64k"]);
        if has_snapshot {
            img_in(folder.path(), &["snapshot", "-c", "s", "image"]);
            write(&["write -P 3 64k 256k", "write -P 4 5M 100k"]);
        }
        let disks = || (read(&[]), has_snapshot.then(|| read(&["-l", "s"])));
        let before = disks();
        let mut bytes = std::fs::read(&image).unwrap();
        harm(&mut bytes, &number);
        std::fs::write(&image, bytes).unwrap();
        let file = std::fs::File::options().read(true).write(true).open(&image).unwrap();
        let report = mend(&file).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(report.before.corruptions > 0 && report.after.is_sound(), "{what}: {report:?}");
        img_in(folder.path(), &["check", "-q", "-f", "qcow2", "image"]);
        assert!(disks() == before, "{what}");
    }
}
