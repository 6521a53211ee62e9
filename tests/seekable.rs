//! Packed disks read from anywhere, against the raw disk: packs of ours and of the format's reference
//! writer, tables that lie, and how much is read for how little.

use std::fs::{self, File};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use disk_engine::ErrorKind;
use disk_engine::disk::DiskContent;
use disk_engine::ops::pack::{PackOptions, pack, pack_into};
use disk_engine::source::seekable::{SeekableDisk, SeekableOptions};
use disk_engine::source::{Limits, Source};
use disk_engine::transfer::{TransferOptions, extract_into};
use proptest::prelude::*;
use qcow2_format::io::ReadAt;
use testkit::tool::memory_folder;
use zstd::zstd_safe::seekable::SeekableCStream;
use zstd::zstd_safe::{InBuffer, OutBuffer};

const FRAME: u64 = 64 << 10;

/// Bytes of an archive, and how many of them were read.
#[derive(Clone)]
struct Counting {
    bytes: Arc<Vec<u8>>,
    read: Arc<AtomicU64>,
}

impl Counting {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes: Arc::new(bytes), read: Arc::default() }
    }

    /// Bytes read since the last time.
    fn taken(&self) -> u64 {
        self.read.swap(0, Ordering::SeqCst)
    }
}

impl ReadAt for Counting {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let count = self.bytes.as_slice().read_at(buffer, offset)?;
        self.read.fetch_add(count as u64, Ordering::SeqCst);
        Ok(count)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .collect()
}

/// 40 MiB, of which some stretches hold data.
fn disk(path: &Path) -> Vec<u8> {
    let file = File::create(path).unwrap();
    file.set_len(40 << 20).unwrap();
    for (offset, length) in
        [(0, 9000), (1 << 20, 3 << 20), (20 << 20, 300_000), ((40 << 20) - 70_000, 70_000)]
    {
        file.write_all_at(&noise(offset, length), offset).unwrap();
    }
    fs::read(path).unwrap()
}

fn packed(disk: &Path, frame_size: u64) -> Vec<u8> {
    let threads = NonZeroUsize::new(2);
    let options =
        PackOptions { frame_size: Some(frame_size), threads, level: 1, ..PackOptions::default() };
    let mut bytes = Vec::new();
    pack_into(disk, &mut bytes, Path::new("memory"), &options).unwrap();
    bytes
}

fn open(bytes: &[u8]) -> Result<SeekableDisk, disk_engine::Error> {
    open_with(bytes, &SeekableOptions::default())
}

fn open_with(bytes: &[u8], options: &SeekableOptions) -> Result<SeekableDisk, disk_engine::Error> {
    SeekableDisk::of(Counting::new(bytes.to_vec()), "memory", options)
}

/// All of the disk, by its runs.
fn assert_holds(disk: &SeekableDisk, raw: &[u8], what: &str) {
    assert_eq!(disk.size(), raw.len() as u64, "{what}");
    let mut at = 0;
    while at < disk.size() {
        let run = disk.run_at(at).unwrap();
        let start = usize::try_from(at).unwrap();
        let mut bytes = vec![1; usize::try_from(run.length).unwrap()];
        let expected = &raw[start..start + bytes.len()];
        assert!(!run.zero || expected.iter().all(|byte| *byte == 0), "{what}: {at:#x}");
        disk.read_at(&mut bytes, at).unwrap();
        assert!(bytes == expected, "{what}: at {at:#x}");
        at += run.length;
    }
    assert_eq!(disk.run_at(at).unwrap_err().kind(), ErrorKind::InvalidInput);
    let error = disk.read_at(&mut [0; 2], at - 1).unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::InvalidInput, Some(Path::new("memory"))));
}

#[test]
fn a_pack_reads_like_its_disk_from_anywhere_and_by_many_threads() {
    let folder = memory_folder();
    let path = folder.path().join("disk");
    let raw = disk(&path);
    for frame_size in [FRAME, 1_000_003, 8 << 20] {
        let archive = folder.path().join("a.tar.zst");
        let options =
            PackOptions { frame_size: Some(frame_size), level: 1, ..PackOptions::default() };
        let report = pack(&path, &archive, &options).unwrap();
        let opened = SeekableDisk::open(&archive, &SeekableOptions::default()).unwrap();
        assert_eq!((opened.member(), opened.frames()), (Some("disk.img"), report.frames));
        let memory = open(&fs::read(&archive).unwrap()).unwrap();
        assert_holds(&memory, &raw, &format!("frames of {frame_size}"));
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let (opened, raw) = (&opened, &raw);
                scope.spawn(move || {
                    let mut state = seed;
                    for _ in 0..200 {
                        state =
                            noise(state, 8).iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
                        let start = usize::try_from(state % (40 << 20)).unwrap();
                        let length = (usize::try_from(state >> 40).unwrap() % 200_000)
                            .min(raw.len() - start);
                        let mut bytes = vec![1; length];
                        opened.read_at(&mut bytes, start as u64).unwrap();
                        assert!(bytes == raw[start..start + length], "{start:#x}, {length}");
                    }
                });
            }
        });
        fs::remove_file(archive).unwrap();
    }
}

#[test]
fn a_range_costs_the_frames_it_lies_in_and_a_hole_costs_nothing() {
    let folder = memory_folder();
    let path = folder.path().join("disk");
    let raw = disk(&path);
    let archive = Counting::new(packed(&path, FRAME));
    // Noise does not compress: a frame takes about as much as it holds.
    let frame = FRAME + 1000;
    let options = SeekableOptions { cache_bytes: 4 * FRAME, ..SeekableOptions::default() };
    let opened = SeekableDisk::of(archive.clone(), "memory", &options).unwrap();
    let table = 12 * opened.frames() + 17;
    let cost = archive.taken();
    assert!(cost <= table + 17 + 2 * frame, "opening read {cost} bytes");
    assert!(archive.bytes.len() as u64 > 20 * cost);
    let read = |at: u64, length: usize| {
        let mut bytes = vec![1; length];
        opened.read_at(&mut bytes, at).unwrap();
        let at = usize::try_from(at).unwrap();
        assert!(bytes == raw[at..at + length], "{at:#x}");
        archive.taken()
    };
    assert_eq!(read(10 << 20, 5 << 20), 0, "a hole");
    for (at, length, frames) in [
        ((2 << 20) + 5, 10, 1..=1),
        // Kept.
        ((2 << 20) + 6, 20, 0..=0),
        ((2 << 20) + 700_000, 65_536, 2..=2),
        ((20 << 20) - 9000, 10_000, 1..=1),
        ((3 << 20) - 100_000, 200_000, 4..=5),
        // Not kept any more.
        ((2 << 20) + 5, 10, 1..=1),
    ] {
        let cost = read(at, length);
        let most = frame * frames.end();
        let least = (FRAME - 1000) * frames.start();
        assert!((least..=most).contains(&cost), "{at:#x}, {length}: {cost} bytes");
    }
}

/// A source by the reference implementation of the seekable format.
fn by_reference(content: &[u8], frame_size: usize, sums: bool) -> Vec<u8> {
    let mut stream = SeekableCStream::create();
    stream.init(1, sums, u32::try_from(frame_size).unwrap()).unwrap();
    let (mut bytes, mut memory) = (Vec::new(), vec![0; 1 << 20]);
    let mut input = InBuffer::around(content);
    while input.pos() < content.len() {
        let mut out = OutBuffer::around(&mut memory[..]);
        stream.compress_stream(&mut out, &mut input).unwrap();
        bytes.extend_from_slice(out.as_slice());
    }
    loop {
        let mut out = OutBuffer::around(&mut memory[..]);
        let left = stream.end_stream(&mut out).unwrap();
        bytes.extend_from_slice(out.as_slice());
        if left == 0 {
            return bytes;
        }
    }
}

#[test]
fn what_the_reference_writer_makes_is_read_with_and_without_sums() {
    let folder = memory_folder();
    let path = folder.path().join("disk");
    let raw = disk(&path);
    let plain = zstd::decode_all(&packed(&path, FRAME)[..]).unwrap();
    for sums in [true, false] {
        for frame_size in [50_000, 1 << 20] {
            let what = format!("frames of {frame_size}, sums {sums}");
            let archive = by_reference(&plain, frame_size, sums);
            let opened = open(&archive).unwrap();
            assert_eq!(opened.frames(), plain.len().div_ceil(frame_size) as u64, "{what}");
            assert_holds(&opened, &raw, &what);
            // A bare disk, too.
            let bare = open(&by_reference(&raw[1 << 20..5 << 20], frame_size, sums)).unwrap();
            assert_eq!(bare.member(), None);
            assert_holds(&bare, &raw[1 << 20..5 << 20], &what);
        }
    }
    // Its frames have no checksums of their own: the table's are the ones that are looked at.
    let mut archive = by_reference(&plain, 50_000, true);
    let sum = archive.len() - 9 - 12 * 30 - 4;
    archive[sum] ^= 1;
    let opened = open(&archive).unwrap();
    let outcomes: Vec<_> = (1..5_u64 << 20)
        .step_by(30_000)
        .filter_map(|at| opened.read_at(&mut [0; 1], at).err())
        .collect();
    assert!(
        outcomes.iter().all(|error| error.kind() == ErrorKind::Corrupt) && !outcomes.is_empty()
    );
    assert!(outcomes[0].message().contains("sum in the seek table"), "{}", outcomes[0]);
}

#[test]
fn members_are_chosen_as_extracting_chooses_them() {
    let disk = noise(1, 300_000);
    let archive_of = |members: &[(&str, &[u8])]| {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, bytes) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            archive.append_data(&mut header, name, *bytes).unwrap();
        }
        by_reference(&archive.into_inner().unwrap(), 40_000, true)
    };
    let decoy = [b"QFI\xfb", &noise(2, 100_000)[..]].concat();
    let several = archive_of(&[("notes", &decoy), ("disk.img", &disk), ("more", &decoy)]);
    let opened = open(&several).unwrap();
    assert_eq!(opened.member(), Some("disk.img"));
    assert_holds(&opened, &disk, "the member by its name");
    for (archive, member) in [
        (&several, Some("more")),
        (&several, Some("none")),
        (&archive_of(&[("a", &disk), ("b", &disk)]), None),
        (&archive_of(&[("disk.img", &disk), ("./disk.img", &disk)]), None),
        (&archive_of(&[("a", &decoy)]), None),
        (&by_reference(&decoy, 40_000, true), None),
        (&by_reference(&disk, 40_000, true), Some("a")),
        (&by_reference(&disk[..0], 40_000, true), None),
    ] {
        let member = member.map(str::to_owned);
        let options = SeekableOptions { member: member.clone(), ..SeekableOptions::default() };
        let error = open_with(archive, &options).unwrap_err();
        let mut source = Source::reader(io::Cursor::new(archive.clone()), "memory");
        if let Some(member) = member {
            source = source.with_member(member);
        }
        let file = tempfile::tempfile().unwrap();
        let other = extract_into(source, &file, Path::new("x"), &TransferOptions::default());
        let other = other.map(|_| ()).unwrap_err();
        // How far it was read is another matter.
        let said =
            |error: &disk_engine::Error| error.message().split(" (byte").next().map(str::to_owned);
        assert_eq!((error.kind(), said(&error)), (other.kind(), said(&other)));
    }
}

/// Where the parts of a table lie, seen from the end.
fn table_length(archive: &[u8]) -> usize {
    let footer = &archive[archive.len() - 9..];
    let count = footer[..4].iter().rev().fold(0, |count, byte| count << 8 | usize::from(*byte));
    count * if footer[4] & 0x80 != 0 { 12 } else { 8 } + 17
}

#[test]
fn tables_that_lie_are_refused() {
    let folder = memory_folder();
    let path = folder.path().join("disk");
    let raw = disk(&path);
    let archive = packed(&path, FRAME);
    let table = archive.len() - table_length(&archive);
    let frames = (table_length(&archive) - 17) / 12;
    let entry = |number: usize| table + 8 + number * 12;
    let with = |changes: &[(usize, u8)]| {
        let mut archive = archive.clone();
        changes.iter().for_each(|(at, byte)| archive[*at] = archive[*at].wrapping_add(*byte));
        archive
    };
    let end = archive.len();
    for (what, archive, kind) in [
        ("no table", archive[..table].to_vec(), ErrorKind::Unsupported),
        ("nothing", Vec::new(), ErrorKind::Unsupported),
        ("another magic", with(&[(end - 1, 1)]), ErrorKind::Unsupported),
        ("a reserved bit", with(&[(end - 5, 4)]), ErrorKind::Unsupported),
        ("one frame more", with(&[(end - 9, 1)]), ErrorKind::Corrupt),
        ("one frame less", with(&[(end - 9, 0xff)]), ErrorKind::Corrupt),
        ("frames without end", with(&[(end - 6, 0xf0)]), ErrorKind::Corrupt),
        ("no sums", with(&[(end - 5, 0x80)]), ErrorKind::Corrupt),
        ("another beginning", with(&[(table, 1)]), ErrorKind::Corrupt),
        ("another length", with(&[(table + 4, 1)]), ErrorKind::Corrupt),
        ("a longer frame", with(&[(entry(1), 1)]), ErrorKind::Corrupt),
        ("a huge frame", with(&[(entry(1) + 3, 0x7f)]), ErrorKind::Limit),
        ("much content", with(&[(entry(1) + 7, 0x7f)]), ErrorKind::Limit),
        ("bytes before", [&[0; 7][..], &archive].concat(), ErrorKind::Corrupt),
        ("a first frame that is none", with(&[(0, 1)]), ErrorKind::Corrupt),
        ("a first frame with other content", with(&[(entry(0) + 4, 0xff)]), ErrorKind::Corrupt),
        ("a first frame with another sum", with(&[(entry(0) + 8, 1)]), ErrorKind::Corrupt),
        ("a last frame that is damaged", with(&[(table - 1, 1)]), ErrorKind::Corrupt),
    ] {
        let error = open(&archive).map(|_| ()).expect_err(what);
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert_eq!(error.path(), Some(Path::new("memory")), "{what}");
    }
    // What is wrong with a frame in the middle is found when it is read, and then only.
    for (what, changes) in [
        (
            "moved content",
            // 0x10001 and 0xffff, instead of 0x10000 twice.
            vec![
                (entry(20) + 4, 1),
                (entry(21) + 4, 0xff),
                (entry(21) + 5, 0xff),
                (entry(21) + 6, 0xff),
            ],
        ),
        ("a moved frame", vec![(entry(20), 1), (entry(21), 0xff)]),
        ("another sum", vec![(entry(20) + 8, 1)]),
        ("damage", vec![(40 * 60_000, 1)]),
    ] {
        let opened = open(&with(&changes)).unwrap();
        let mut bytes = vec![0; raw.len()];
        let error = opened.read_at(&mut bytes, 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
        assert!(error.offset().is_some() && error.path().is_some(), "{what}: {error}");
        opened.read_at(&mut bytes[..50_000], 1 << 20).unwrap();
        assert!(bytes[..50_000] == raw[1 << 20..][..50_000], "{what}");
    }
    assert!(frames > 50);
    // Content that the table does not tell of is not passed over: a frame said to be empty, and not.
    let hidden = {
        let mut hidden = zstd::encode_all(&b"hidden"[..], 1).unwrap();
        let length = u8::try_from(hidden.len()).unwrap();
        hidden.extend(&archive[..table]);
        let count = frames + 1;
        let body = u32::try_from(count * 12 + 9).unwrap();
        hidden.extend(&archive[table..table + 4]);
        hidden.extend(body.to_le_bytes());
        hidden.extend([length, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        hidden.extend(&archive[table + 8..end - 9]);
        hidden.extend(u32::try_from(count).unwrap().to_le_bytes());
        hidden.extend(&archive[end - 5..]);
        hidden
    };
    assert_eq!(open(&hidden).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn limits_hold_for_frames_windows_and_sizes() {
    let folder = memory_folder();
    let path = folder.path().join("disk");
    disk(&path);
    let archive = packed(&path, 1 << 20);
    let with = |frame_max, limits| {
        open_with(&archive, &SeekableOptions { frame_max, limits, ..SeekableOptions::default() })
    };
    let limits = Limits::default();
    assert!(with(1 << 20, limits).is_ok());
    for (frame_max, limits) in [
        ((1 << 20) - 1, limits),
        (1 << 20, Limits { max_window: 512 << 10, ..limits }),
        (1 << 20, Limits { max_image_size: 39 << 20, ..limits }),
        (1 << 20, Limits { max_extents: 3, ..limits }),
    ] {
        let error = with(frame_max, limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
        assert!(error.hint().is_some(), "{error}");
    }
}

#[test]
fn sources_that_are_no_files_are_refused() {
    let folder = memory_folder();
    for (path, kind) in [
        (folder.path().to_path_buf(), ErrorKind::InvalidInput),
        (folder.path().join("none"), ErrorKind::NotFound),
        ("/dev/null".into(), ErrorKind::InvalidInput),
    ] {
        let error = SeekableDisk::open(&path, &SeekableOptions::default()).unwrap_err();
        assert_eq!((error.kind(), error.path()), (kind, Some(path.as_path())));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the bytes, what is read is what extracting gives, or an error.
    #[test]
    fn mutated_archives_read_right_or_not_at_all(
        sums: bool,
        changes in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
        in_table: bool,
    ) {
        let content = noise(7, 20_000);
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, "disk.img", &content[..]).unwrap();
        let mut archive = by_reference(&archive.into_inner().unwrap(), 3000, sums);
        let length = table_length(&archive);
        let from = if in_table { archive.len() - length } else { 0 };
        for (index, change) in changes {
            let at = from + index.index(archive.len() - from);
            archive[at] ^= change;
        }
        let Ok(disk) = open(&archive) else { return Ok(()) };
        let mut bytes = vec![0; usize::try_from(disk.size()).unwrap().min(1 << 20)];
        let read = disk.read_at(&mut bytes, 0);
        // Without sums only lengths tell.
        if read.is_ok() && sums {
            prop_assert!(bytes == content[..bytes.len().min(content.len())]);
        }
    }
}

/// Keeps the helper honest: what it says it made, `zstd` reads.
#[test]
fn the_reference_writer_writes_zstd() {
    let content = noise(3, 100_000);
    let mut bytes = Vec::new();
    zstd::stream::copy_decode(&by_reference(&content, 30_000, true)[..], &mut bytes).unwrap();
    bytes.flush().unwrap();
    assert!(bytes == content);
}
