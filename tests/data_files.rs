//! Images whose clusters lie in another file, read as `qemu-img convert` reads them.
//!
//! ```text
//! qemu-img create, qemu-io ─▶ image + data file ─┬─▶ qemu-img convert ─▶ raw ─┐
//!                                                └─▶ disk, by pieces ─────────┴─▶ the same bytes
//! ```

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use disk_engine::ErrorKind;
use disk_engine::base::BaseFormat;
use disk_engine::disk::policy::BackingPolicy;
use disk_engine::disk::{Disk, DiskContent, DiskOptions};
use testkit::qemu::img_in;
use testkit::tool::{available, memory_folder};

const SIZE: usize = (5 << 20) + 1536;

fn opened(path: &Path, data_files: BackingPolicy) -> disk_engine::Result<Disk> {
    let mut options = DiskOptions::default();
    options.data_files = data_files;
    Disk::open(path, BaseFormat::Qcow2, &options)
}

/// All bytes of the disk, asked for in pieces of `step`; what is said to be zeros has to be.
fn content(disk: &Disk, step: usize) -> Vec<u8> {
    let mut bytes = vec![7; usize::try_from(disk.size()).unwrap()];
    for (index, piece) in bytes.chunks_mut(step).enumerate() {
        disk.read_at(piece, (index * step) as u64).unwrap();
    }
    let mut at = 0;
    while at < bytes.len() {
        let run = disk.run_at(at as u64).unwrap();
        let end = at + usize::try_from(run.length).unwrap();
        assert!(!run.zero || bytes[at..end].iter().all(|byte| *byte == 0), "{at}");
        at = end;
    }
    bytes
}

#[test]
fn what_lies_in_a_data_file_reads_as_qemu_reads_it() {
    if !available("data files of qcow2 images", &["qemu-img", "qemu-io"]) {
        return;
    }
    for options in [
        "data_file_raw=off",
        "data_file_raw=on",
        "data_file_raw=off,cluster_size=4k",
        "data_file_raw=off,extended_l2=on",
        "data_file_raw=off,backing_file=base,backing_fmt=raw",
    ] {
        let place = memory_folder();
        let folder = place.path();
        fs::write(folder.join("base"), vec![9; 3 << 20]).unwrap();
        let options = format!("data_file=data,{options}");
        img_in(folder, &["create", "-q", "-f", "qcow2", "-o", &options, "vm", &SIZE.to_string()]);
        let vm = folder.join("vm");
        // QEMU looks for the data file where it runs, not beside the image.
        let written = Command::new("qemu-io")
            .current_dir(folder)
            .args(["-f", "qcow2", "-d", "unmap", "-c", "write -P 1 0 100k"])
            .args(["-c", "write -P 2 1000k 1M", "-c", "write -z 64k 8k", "-c", "discard 1M 256k"])
            .args(["-c", "write -P 3 5243392 1024", "vm"])
            .output()
            .unwrap();
        assert!(written.status.success(), "{options}: {written:?}");
        for cut in [false, true] {
            if cut {
                // What the data file has no more of reads as zeros.
                File::options()
                    .write(true)
                    .open(folder.join("data"))
                    .unwrap()
                    .set_len(70_000)
                    .unwrap();
            }
            img_in(folder, &["convert", "-f", "qcow2", "-O", "raw", "vm", "flat"]);
            let expected = fs::read(folder.join("flat")).unwrap();
            let disk = opened(&vm, BackingPolicy::default()).unwrap();
            for step in [SIZE, 65_536, 1000] {
                assert!(content(&disk, step) == expected, "{options}, cut: {cut}, {step}");
            }
        }
        let error = opened(&vm, BackingPolicy::Deny).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        fs::remove_file(folder.join("data")).unwrap();
        let error = opened(&vm, BackingPolicy::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        // A data file that is the image itself.
        fs::hard_link(&vm, folder.join("data")).unwrap();
        let error = opened(&vm, BackingPolicy::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
}
