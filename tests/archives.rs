//! Archives at their limits, in bounded memory: gigabytes in a member, 200,000 extents, maps and records
//! of megabytes. And frames as other programs make them.
//!
//! Each archive is written to a file as small as zstd makes it, and extracted by a child whose address
//! space is limited: what would be held in memory does not fit there. Frames decoded ahead are given up
//! where memory is short, so with threads the child also says how much it took when it had all it wanted.

use std::fs::{self, File};
use std::io::Write;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use disk_engine::ops::{ExtractOptions, extract};
use disk_engine::source::{Limits, Source};
use testkit::tar::{Form, header, pax, sparse, zeros};
use testkit::tool::{available, memory_folder};

const SOURCE: &str = "ARCHIVES_SOURCE";
const DESTINATION: &str = "ARCHIVES_DESTINATION";
const THREADS: &str = "ARCHIVES_THREADS";
const EXTENTS: &str = "ARCHIVES_EXTENTS";

/// Address space of a child, in KiB: program, stacks, zstd's window, windows of the disk, a sparse map.
const MEMORY: u64 = 256 << 10;
/// As good as none.
const UNLIMITED: u64 = 64 << 30;

/// Not a test: what the others start in little memory.
#[test]
#[ignore = "started by the other tests"]
fn child() {
    let Some(source) = std::env::var_os(SOURCE) else { return };
    let destination = PathBuf::from(std::env::var_os(DESTINATION).unwrap());
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<usize>().unwrap());
    let mut limits = Limits::default();
    limits.max_extents = number(EXTENTS).unwrap_or(limits.max_extents);
    let threads = NonZeroUsize::new(number(THREADS).unwrap()).unwrap();
    let source = Source::path(source).with_limits(limits).with_threads(threads);
    match extract(source, &destination, &ExtractOptions::default()) {
        Ok(report) => println!(
            "\nextracted {} bytes, {} frames, {} threads, {:?}, at most {} KiB",
            report.transfer.virtual_size,
            report.transfer.frames,
            report.transfer.threads,
            report.transfer.sparse_form,
            peak()
        ),
        Err(error) => println!("\n{}: {error}", error.kind().code()),
    }
}

/// The most address space this process took, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

/// What a child with `memory` KiB of address space says when it extracts.
fn extracted(source: &Path, destination: &Path, threads: usize, memory: u64) -> String {
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -v \"$0\"; exec \"$@\""])
        .arg(memory.to_string())
        .arg(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(SOURCE, source)
        .env(DESTINATION, destination)
        .env(THREADS, threads.to_string())
        // An allocator that reserves 64 MiB for each thread would be all that is seen.
        .env("MALLOC_ARENA_MAX", "1")
        .stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().find(|line| line.starts_with("extracted ") || line.contains(": "));
    lines.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr))).to_owned()
}

/// An archive being written, compressed, to a file.
struct Archive {
    path: PathBuf,
    encoder: zstd::Encoder<'static, File>,
}

impl Archive {
    fn new(path: PathBuf) -> Self {
        let encoder = encoder(File::create(&path).unwrap());
        Self { path, encoder }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.encoder.write_all(bytes).unwrap();
    }

    /// Ends the frame, and begins another.
    fn next_frame(&mut self) {
        let file = self.encoder.get_ref().try_clone().unwrap();
        std::mem::replace(&mut self.encoder, encoder(file)).finish().unwrap();
    }

    fn end(mut self) -> PathBuf {
        self.put(&[0; 1024]);
        self.encoder.finish().unwrap();
        self.path
    }
}

/// With a checksum, as `zstd` writes frames.
fn encoder(file: File) -> zstd::Encoder<'static, File> {
    let mut encoder = zstd::Encoder::new(file, 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder
}

/// Bytes of a member in each frame.
const FRAME: u64 = 16 << 20;

/// The stored gigabytes of a member: zeros but for a mark in the last block of each frame.
fn put_gigabytes(archive: &mut Archive, gigabytes: u64) {
    let mut piece = vec![0; usize::try_from(FRAME).unwrap()];
    let end = piece.len();
    piece[end - 512..].fill(7);
    archive.next_frame();
    let from = archive.encoder.get_ref().metadata().unwrap().len();
    archive.put(&piece);
    archive.next_frame();
    // The same frame again and again.
    let file = archive.encoder.get_ref().try_clone().unwrap();
    let to = file.metadata().unwrap().len();
    let mut frame = vec![0; usize::try_from(to - from).unwrap()];
    File::open(&archive.path).unwrap().read_exact_at(&mut frame, from).unwrap();
    for _ in 1..(gigabytes << 30) / FRAME {
        (&file).write_all(&frame).unwrap();
    }
}

#[test]
fn members_of_gigabytes_are_extracted_in_bounded_memory() {
    const STORED: u64 = 9 << 30;
    let folder = memory_folder();
    let destination = folder.path().join("disk");
    for (what, size, from) in [
        ("dense, base-256", STORED, 0),
        ("dense, pax", STORED, 0),
        ("old GNU, base-256", 20 << 30, 1 << 30),
        ("pax 1.0", 20 << 30, 1 << 30),
    ] {
        let mut archive = Archive::new(folder.path().join("a.tar.zst"));
        let map = [(from, STORED), (size, 0)];
        match what {
            "dense, base-256" => archive.put(&header("disk.img", b'0', STORED)),
            "dense, pax" => {
                archive.put(&pax(&[("size", STORED.to_string())]));
                archive.put(&header("disk.img", b'0', 0));
            }
            "old GNU, base-256" => {
                archive.put(&sparse(Form::OldGnu, "disk.img", size, &map, STORED))
            }
            _ => archive.put(&sparse(Form::Pax10, "disk.img", size, &map, STORED)),
        }
        put_gigabytes(&mut archive, STORED >> 30);
        let archive = archive.end();
        assert!(fs::metadata(&archive).unwrap().len() < 4 << 20);
        for (threads, memory) in [(1, MEMORY), (2, MEMORY), (2, UNLIMITED)] {
            let said = extracted(&archive, &destination, threads, memory);
            assert!(said.starts_with(&format!("extracted {size} bytes,")), "{what}: {said}");
            assert!(said.contains(&format!(" {threads} threads")), "{what}: {said}");
            let peak = said.rsplit(' ').nth(1).unwrap().parse::<u64>().unwrap();
            // 128 MiB of frames on their way, and one being told.
            assert!(peak <= MEMORY, "{what}: {said}");
            let disk = File::open(&destination).unwrap();
            for mark in [from + FRAME - 512, from + STORED - 1, from + STORED / 2 - 512] {
                let mut byte = [0];
                disk.read_exact_at(&mut byte, mark).unwrap();
                assert_eq!(byte, [7], "{what}: {mark:#x}");
            }
            assert!(testkit::disks::allocated(&destination) < 4 << 20, "{what}");
            fs::remove_file(&destination).unwrap();
        }
        fs::remove_file(archive).unwrap();
    }
}

/// A disk with so many pieces of 512 bytes, each second sector, in that form.
fn pieces(path: PathBuf, form: Form, count: u64) -> PathBuf {
    let map: Vec<_> = (0..count).map(|at| (at * 1024, 512)).collect();
    let mut archive = Archive::new(path);
    archive.put(&sparse(form, "disk.img", count * 1024, &map, count * 512));
    for at in 0..count {
        // Most hold nothing, so that the disk takes little room.
        let mut piece = [0; 512];
        if at % 1000 == 999 {
            piece[..8].copy_from_slice(&at.to_be_bytes());
        }
        archive.put(&piece);
    }
    archive.put(&zeros(count * 512));
    archive.end()
}

#[test]
fn maps_of_200_000_entries_are_extracted_in_bounded_memory_and_no_larger_ones() {
    const MOST: u64 = 200_000;
    let folder = memory_folder();
    let destination = folder.path().join("disk");
    for form in Form::ALL {
        let archive = pieces(folder.path().join("a.tar.zst"), form, MOST);
        for threads in [1, 2] {
            let said = extracted(&archive, &destination, threads, MEMORY);
            assert!(
                said.starts_with(&format!("extracted {} bytes", MOST * 1024)),
                "{form:?}: {said}"
            );
            assert!(said.contains(&format!(", {form:?},")), "{form:?}: {said}");
            let disk = File::open(&destination).unwrap();
            for at in [999, 100_999, MOST - 1] {
                let mut mark = [0; 8];
                disk.read_exact_at(&mut mark, at * 1024).unwrap();
                assert_eq!(u64::from_be_bytes(mark), at, "{form:?}");
            }
            fs::remove_file(&destination).unwrap();
        }
        let archive = pieces(archive, form, MOST + 1);
        let said = extracted(&archive, &destination, 1, MEMORY);
        assert!(said.starts_with("limit: ") && said.contains("--max-extents"), "{form:?}: {said}");
        fs::remove_file(archive).unwrap();
    }
}

#[test]
fn maps_that_never_end_end_at_the_limit_in_bounded_memory() {
    let folder = memory_folder();
    let destination = folder.path().join("disk");
    // Extension headers that go on, a count of 10^18, a map and records of a gigabyte, and text.
    for what in ["extension headers", "count", "map", "offsets", "comment", "long name"] {
        let mut archive = Archive::new(folder.path().join("a.tar.zst"));
        let (option, repeated) = match what {
            "extension headers" => {
                let map: Vec<_> = (0..26).map(|_| (0, 0)).collect();
                let headers = sparse(Form::OldGnu, "disk.img", 1 << 20, &map, 0);
                archive.put(&headers[..512]);
                // It announces another one.
                ("--max-extents", headers[512..1024].to_vec())
            }
            "count" => {
                archive.put(&pax(&[
                    ("GNU.sparse.major", "1".into()),
                    ("GNU.sparse.minor", "0".into()),
                    ("GNU.sparse.realsize", "1048576".into()),
                ]));
                archive.put(&header("disk.img", b'0', 1 << 40));
                archive.put(b"1000000000000000000\n");
                ("--max-extents", b"0\n0\n".repeat(1000))
            }
            "map" | "offsets" | "comment" => {
                archive.put(&header("pax", b'x', 1 << 30));
                match what {
                    "map" => {
                        archive.put(b"1073741824 GNU.sparse.map=");
                        ("--max-extents", b"0,0,".repeat(1000))
                    }
                    "offsets" => {
                        let pair = "23 GNU.sparse.offset=0\n25 GNU.sparse.numbytes=0\n";
                        ("--max-extents", pair.repeat(100).into_bytes())
                    }
                    _ => {
                        archive.put(b"1073741824 comment=");
                        ("--max-metadata", vec![b'x'; 10_000])
                    }
                }
            }
            _ => {
                archive.put(&header("././@LongLink", b'L', 1 << 30));
                ("--max-metadata", vec![b'x'; 10_000])
            }
        };
        let mut written = 0;
        while written < 64 << 20 {
            archive.put(&repeated);
            written += repeated.len();
        }
        let archive = archive.end();
        for threads in [1, 2] {
            let said = extracted(&archive, &destination, threads, MEMORY);
            assert!(said.starts_with("limit: ") && said.contains(option), "{what}: {said}");
        }
        fs::remove_file(archive).unwrap();
    }
}

#[test]
fn pax_maps_of_megabytes_are_maps_and_other_records_of_megabytes_are_refused() {
    let folder = memory_folder();
    let destination = folder.path().join("disk");
    for (length, fits) in [((1 << 20) - 2000, true), ((1 << 20) + 1, false)] {
        for form in [Form::Pax00, Form::Pax01] {
            let map: Vec<_> = (0..150_000).map(|at| ((1 << 40) + at * 512, 512)).collect();
            let size = (1 << 40) + 150_000 * 512;
            let more = [("comment", "x".repeat(length))];
            let mut archive = Archive::new(folder.path().join("a.tar.zst"));
            let headers = testkit::tar::sparse_with(form, "d", size, &map, 150_000 * 512, &more);
            assert!(headers.len() > 2 << 20);
            archive.put(&headers);
            (0..150).for_each(|_| archive.put(&[0; 512_000]));
            let said = extracted(&archive.end(), &destination, 1, MEMORY);
            if fits {
                assert!(said.starts_with(&format!("extracted {size} bytes")), "{form:?}: {said}");
                fs::remove_file(&destination).unwrap();
            } else {
                assert!(said.starts_with("limit: ") && said.contains("--max-metadata"), "{said}");
            }
        }
    }
}

#[test]
fn the_limit_on_memory_is_one() {
    // The window of 128 MiB that a source may ask for does not fit into less.
    let archive =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/archives/window-27.img.zst");
    let folder = memory_folder();
    let destination = folder.path().join("disk");
    let said = extracted(&archive, &destination, 2, 100 << 10);
    assert!(said.starts_with("limit: ") && said.contains("no memory"), "{said}");
    let said = extracted(&archive, &destination, 2, MEMORY + (64 << 10));
    assert!(said.starts_with("extracted 314572800 bytes"), "{said}");
}

#[test]
fn what_pzstd_compresses_is_decoded_on_several_threads() {
    if !available("frames by pzstd", &["pzstd"]) {
        return;
    }
    let folder = memory_folder();
    let (disk, archive) = (folder.path().join("disk"), folder.path().join("disk.zst"));
    let mut state = 1_u64;
    let bytes: Vec<u8> = (0..24 << 20)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .collect();
    fs::write(&disk, &bytes).unwrap();
    let status = Command::new("pzstd")
        .args(["-q", "-1", "-p", "4"])
        .arg(&disk)
        .arg("-o")
        .arg(&archive)
        .status()
        .unwrap();
    assert!(status.success());
    for count in [1, 2, 3] {
        let threads = NonZeroUsize::new(count).unwrap();
        let destination = folder.path().join(format!("disk-{count}"));
        let source = Source::path(&archive).with_threads(threads);
        let report = extract(source, &destination, &ExtractOptions::default()).unwrap();
        assert!(report.transfer.frames > 2, "{report:?}");
        assert_eq!(report.transfer.threads, count);
        assert!(fs::read(destination).unwrap() == bytes);
    }
}
