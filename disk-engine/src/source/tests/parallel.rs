//! One thread or many: the same disk, or the same refusal.

use std::num::NonZeroUsize;

use proptest::prelude::*;

use super::*;
use crate::control::{CancelToken, Control, Event};
use crate::source::tar::build::Archive;
use crate::source::{Limits, SparseForm};

/// How frames are made.
#[derive(Clone, Copy, Debug)]
struct Making {
    checksum: bool,
    content_size: bool,
    /// Skippable frames stand before each one, as pzstd writes them.
    skippable: bool,
}

const MAKINGS: [Making; 4] = [
    Making { checksum: true, content_size: true, skippable: false },
    Making { checksum: true, content_size: false, skippable: true },
    Making { checksum: false, content_size: true, skippable: false },
    Making { checksum: false, content_size: false, skippable: true },
];

fn frame(bytes: &[u8], making: Making) -> Vec<u8> {
    let mut encoder = ::zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(making.checksum).unwrap();
    encoder.include_contentsize(making.content_size).unwrap();
    encoder.set_pledged_src_size(making.content_size.then_some(bytes.len() as u64)).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn framed(bytes: &[u8], size: usize, making: Making) -> Vec<u8> {
    let mut source = Vec::new();
    for piece in bytes.chunks(size) {
        if making.skippable {
            source.extend(b"\x50\x2a\x4d\x18\x04\0\0\0pzst");
        }
        source.extend(frame(piece, making));
    }
    source
}

fn threads(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap()
}

/// What comes out, and what is said about it.
type Outcome = Result<(Vec<u8>, String), (ErrorKind, String, Option<String>)>;

fn outcome(source: Source, count: usize) -> Outcome {
    let file = tempfile::tempfile_in("/dev/shm").or_else(|_| tempfile::tempfile()).unwrap();
    let options = TransferOptions { hash_source: true, ..Default::default() };
    let source = source.with_threads(threads(count)).with_job(1);
    match extract_into(source, &file, Path::new("disk"), &options) {
        Ok(mut report) => {
            let mut bytes = Vec::new();
            (&file).rewind().unwrap();
            (&file).read_to_end(&mut bytes).unwrap();
            assert!(report.threads <= count, "{} threads", report.threads);
            report.threads = 0;
            Ok((bytes, format!("{report:?}")))
        }
        Err(error) => {
            Err((error.kind(), error.message().to_owned(), error.hint().map(str::to_owned)))
        }
    }
}

fn assert_same(bytes: &[u8], what: &str) -> Outcome {
    let limits = Limits { max_image_size: 64 << 20, ..Limits::default() };
    let of = |count| outcome(source_of(bytes).with_limits(limits), count);
    let one = of(1);
    for count in [2, 3] {
        let many = of(count);
        match (&one, &many) {
            (Err(one), Err(many)) => assert_eq!(one, many, "{what}, {count} threads"),
            (one, many) => assert!(one == many, "{what}, {count} threads: {many:.300?}"),
        }
    }
    one
}

fn tar(form: SparseForm) -> (Vec<u8>, Vec<u8>) {
    let mut disk = vec![0; 40_000];
    let ranges: Vec<_> = (0..9).map(|index| index * 4096..index * 4096 + 1024).collect();
    let data = noise(40_000);
    ranges.iter().for_each(|range| disk[range.clone()].copy_from_slice(&data[range.clone()]));
    let archive = Archive::default().file("README", &data[..3000]);
    (archive.sparse(form, "disk.img", &disk, &ranges).end(), disk)
}

#[test]
fn frames_of_any_size_and_making_give_the_same_disk_and_are_counted() {
    for form in [SparseForm::OldGnu, SparseForm::Pax10] {
        let (archive, disk) = tar(form);
        for making in MAKINGS {
            for size in [1, 100, 512, 5000, 20_000, 100_000] {
                let source = framed(&archive, size, making);
                let (bytes, report) = assert_same(&source, &format!("{making:?} {size}")).unwrap();
                assert!(bytes == disk, "{making:?} {size}");
                let frames = archive.len().div_ceil(size);
                assert!(report.contains(&format!(" frames: {frames},")), "{frames}: {report}");
            }
        }
    }
}

#[test]
fn threads_are_started_for_many_frames_only_and_never_more_than_asked_for() {
    let disk = noise(3 << 20);
    let whole = Making { checksum: true, content_size: true, skippable: false };
    let of = |bytes: Vec<u8>, count: usize, job| {
        let source = source_of(bytes).with_threads(threads(count)).with_job(job);
        let (bytes, report) = run(source).unwrap();
        assert!(bytes == disk);
        (report.frames, report.threads)
    };
    assert_eq!(of(zstd(&disk), 4, 1), (1, 1));
    assert_eq!(of(disk.clone(), 4, 1), (0, 1));
    let many = framed(&disk, 64 << 10, whole);
    assert_eq!(of(many.clone(), 1, 1), (48, 1));
    assert_eq!(of(many.clone(), 2, 1), (48, 2));
    assert_eq!(of(many.clone(), 100, 1), (48, 47));
    // Three jobs of 1 MiB, the first of them the caller's own.
    assert_eq!(of(many, 100, crate::source::decompress::zstd::frames::JOB), (48, 2));
}

#[test]
fn files_of_other_programs_are_the_same_on_any_number_of_threads() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/archives");
    let (mut good, mut bad) = (0, 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        // 50 GiB are too many to read twice.
        if !name.ends_with(".zst") || name == "gnu-large.tar.zst" {
            continue;
        }
        match assert_same(&std::fs::read(&path).unwrap(), name) {
            Ok(_) => good += 1,
            Err(_) => bad += 1,
        }
    }
    assert!(good >= 8 && bad >= 3, "{good} and {bad}");
}

#[test]
fn every_cut_is_refused_alike() {
    let (archive, _) = tar(SparseForm::OldGnu);
    for making in MAKINGS {
        let source = framed(&archive, 3000, making);
        for length in (0..source.len()).filter(|at| at % 7 == 0 || at + 60 > source.len()) {
            let cut = &source[..length];
            let refused = assert_same(cut, &format!("{making:?}, cut at {length}"));
            assert_eq!(refused.unwrap_err().0, ErrorKind::Corrupt, "{making:?}, {length}");
        }
        for tail in
            [&b"x"[..], b"\x28", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18\x09\0\0\0", &noise(999)]
        {
            let refused =
                assert_same(&[&source[..], tail].concat(), &format!("{making:?}, {tail:?}"));
            assert_eq!(refused.unwrap_err().0, ErrorKind::Corrupt, "{making:?}, {tail:?}");
        }
    }
}

#[test]
fn frames_out_of_order_missing_or_twice_are_no_surprise() {
    let (archive, _) = tar(SparseForm::Pax01);
    let frames: Vec<_> = archive.chunks(2000).map(|piece| frame(piece, MAKINGS[0])).collect();
    for (one, other) in [(0, 1), (1, 2), (3, 5)] {
        let mut swapped = frames.clone();
        swapped.swap(one, other);
        let _ = assert_same(&swapped.concat(), "swapped");
        let mut twice = frames.clone();
        twice.insert(one, frames[other].clone());
        let _ = assert_same(&twice.concat(), "twice");
        let mut missing = frames.clone();
        missing.remove(one);
        let _ = assert_same(&missing.concat(), "missing");
    }
}

#[test]
fn a_frame_that_is_not_for_threads_is_decoded_between_those_that_are() {
    let large = vec![7; 33 << 20];
    let disk = [&noise(5000)[..], &large, &noise(6000), &large[..1 << 20], &noise(100)].concat();
    let cuts = [0, 5000, 5000 + (33 << 20), 11_000 + (33 << 20), disk.len()];
    for making in MAKINGS {
        let source: Vec<u8> =
            cuts.windows(2).flat_map(|cut| frame(&disk[cut[0]..cut[1]], making)).collect();
        let (bytes, report) = assert_same(&source, &format!("{making:?}")).unwrap();
        assert!(bytes == disk, "{making:?}");
        assert!(report.contains(" frames: 4,"), "{report}");
    }
}

#[test]
fn a_window_over_the_limit_is_refused_in_any_frame() {
    let frame_of = |log| {
        let mut encoder = ::zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        encoder.write_all(&noise(700)).unwrap();
        encoder.finish().unwrap()
    };
    let source = [frame_of(20), frame_of(20), frame_of(22), frame_of(20)].concat();
    let limits = Limits { max_window: 1 << 20, ..Limits::default() };
    for count in [1, 2] {
        let (kind, message, hint) =
            outcome(source_of(source.clone()).with_limits(limits), count).unwrap_err();
        assert_eq!(kind, ErrorKind::Limit);
        assert!(message.contains("4 MiB") && hint.unwrap().contains("--long"), "{message}");
    }
}

#[test]
fn lying_seek_tables_are_neither_asked_nor_believed() {
    let (archive, disk) = tar(SparseForm::OldGnu);
    let frames = framed(&archive, 3000, MAKINGS[0]);
    for body in [&[0; 9][..], &[0xff; 300], &noise(45)] {
        let mut table = vec![0x5e, 0x2a, 0x4d, 0x18];
        table.extend(u32::try_from(body.len()).unwrap().to_be_bytes().iter().rev());
        table.extend(body);
        assert!(assert_same(&[&frames[..], &table].concat(), "a table").unwrap().0 == disk);
    }
}

#[test]
fn a_reader_that_fails_fails_alike_after_what_it_gave() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::from_raw_os_error(5))
        }
    }
    let disk = noise(9000);
    let frames = framed(&disk, 1000, MAKINGS[0]);
    // Also between two frames, where the end would do.
    for length in [frames.len(), frames.len() - 1, frame(&disk[..1000], MAKINGS[0]).len(), 1, 0] {
        for count in [1, 3] {
            let reader = Cursor::new(frames[..length].to_vec()).chain(Failing);
            let source = Source::reader(reader, "r").with_threads(threads(count)).with_job(1);
            let error = run(source).map(|_| ()).unwrap_err();
            let errno = error.io_error().and_then(std::io::Error::raw_os_error);
            assert_eq!(errno, Some(5), "{length}, {count} threads: {error}");
        }
    }
}

#[test]
fn a_cancel_ends_the_work_while_threads_decode() {
    let frames = framed(&noise(64 << 10), 16 << 10, MAKINGS[0]);
    /// Never ends.
    struct Endless(Vec<u8>, usize);
    impl Read for Endless {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            let count = out.len().min(self.0.len() - self.1);
            out[..count].copy_from_slice(&self.0[self.1..self.1 + count]);
            self.1 = (self.1 + count) % self.0.len();
            Ok(count)
        }
    }
    let cancel = CancelToken::new();
    let at_first = cancel.clone();
    let control = Control::new().with_cancel(cancel).with_observer(move |event| {
        assert!(matches!(event, Event::Progress { source_bytes: 1.., .. }));
        at_first.cancel();
    });
    let options = TransferOptions { control, ..Default::default() };
    let file = tempfile::tempfile().unwrap();
    let source = Source::reader(Endless(frames, 0), "endless").with_threads(threads(3));
    let error = extract_into(source, &file, Path::new("x"), &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn mutated_frames_have_one_outcome(
        making in prop::sample::select(&MAKINGS[..]),
        size in prop::sample::select(&[300_usize, 1000, 4000, 30_000][..]),
        form in prop::sample::select(&[SparseForm::OldGnu, SparseForm::Pax00][..]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0_u8..3), 1..4),
        early: bool,
    ) {
        let (archive, _) = tar(form);
        let mut source = framed(&archive, size, making);
        for (index, byte, how) in changes {
            // Headers of frames and blocks are few: aim at the first ones.
            let at = index.index(if early { 64 } else { source.len() });
            match how {
                0 => source[at] = byte,
                1 => source.insert(at, byte),
                _ => drop(source.remove(at)),
            }
        }
        let _ = assert_same(&source, "mutated");
    }
}
