//! On real files: their bytes, their lengths, their holes.

use super::*;

use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::OFlag;

use crate::sys::sparse;

fn opened(path: &Path) -> ImageFile {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    ImageFile::new(ImageLock::none(options.open(path).unwrap()))
}

/// A new file of 1 MiB of ones.
fn full(path: &Path) -> ImageFile {
    std::fs::write(path, vec![1; 1 << 20]).unwrap();
    opened(path)
}

/// Where the file has data; read before, as a file that was never synced may have none yet.
fn data(file: &ImageFile) -> Vec<std::ops::Range<u64>> {
    let mut found: Vec<std::ops::Range<u64>> = Vec::new();
    while let Some(next) =
        sparse::next_data(file.file(), found.last().map_or(0, |range| range.end)).unwrap()
    {
        found.push(next);
    }
    found
}

/// Where the tests are run: a file system on a disk, and one in memory if there is one.
fn folders() -> Vec<tempfile::TempDir> {
    let disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).or_else(|_| tempfile::tempdir());
    disk.into_iter().chain(tempfile::tempdir_in("/dev/shm")).collect()
}

#[test]
fn parts_lie_one_behind_the_other_however_many() {
    for folder in folders() {
        let path = folder.path().join("file");
        let file = opened(&path);
        let bytes: Vec<u8> = (0..=255).cycle().take(5000).collect();
        let mut parts: Vec<&[u8]> = bytes.chunks(2).collect();
        parts.insert(7, &[]);
        assert!(parts.len() > 2 * SLICES_MAX);
        file.write_parts_at(&parts, 3).unwrap();
        file.write_parts_at(&[], 9000).unwrap();
        file.write_parts_at(&[b"one"], 6000).unwrap();
        let mut expected = [&[0; 3], bytes.as_slice()].concat();
        expected.resize(6000, 0);
        expected.extend(b"one");
        assert_eq!(std::fs::read(&path).unwrap(), expected);
    }
}

#[test]
fn a_write_cut_short_is_continued_and_an_interrupted_one_repeated() {
    let parts: [&[u8]; 4] = [b"ab", b"", b"cdefg", b"h"];
    let mut written: Vec<u8> = Vec::new();
    let mut calls = 0;
    write_slices(&parts, 100, |slices, at| {
        calls += 1;
        if calls % 2 == 0 {
            return Err(Errno::EINTR);
        }
        assert_eq!(at, 100 + written.len() as u64);
        let left = slices.iter().flat_map(|slice| slice.iter());
        written.extend(left.copied().take(3));
        Ok(3.min(8 - usize::try_from(at - 100).unwrap()))
    })
    .unwrap();
    assert_eq!(written, b"abcdefgh");
    let nothing = write_slices(&parts, 0, |_, _| Ok(0)).unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::WriteZero);
    let full = write_slices(&parts, 0, |_, _| Err(Errno::ENOSPC)).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(Errno::ENOSPC as i32));

    let folder = tempfile::tempdir().unwrap();
    let file = opened(&folder.path().join("file"));
    let error = file.write_parts_at(&[b"a", b"b"], u64::MAX).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::EFBIG as i32));
}

#[test]
fn zeros_are_holes_and_grow_the_file() {
    for folder in folders() {
        let path = folder.path().join("file");
        let file = full(&path);
        file.write_zeros_at(256 << 10, 128 << 10).unwrap();
        file.write_zeros_at(600_001, 100).unwrap();
        file.write_zeros_at((1 << 20) - 5000, 3 << 20).unwrap();
        file.write_zeros_at(0, 0).unwrap();
        let mut expected = vec![1; 1 << 20];
        expected[256 << 10..384 << 10].fill(0);
        expected[600_001..600_101].fill(0);
        expected.truncate((1 << 20) - 5000);
        expected.resize((4 << 20) - 5000, 0);
        assert!(std::fs::read(&path).unwrap() == expected, "{folder:?}");
        if !file.cannot_punch.load(Ordering::Relaxed) {
            assert!(file.file().metadata().unwrap().blocks() * 512 < 1 << 20, "{folder:?}");
            assert!(data(&file).iter().any(|range| range.end == 256 << 10), "{:?}", data(&file));
        }
        // Not even an empty range past the end makes the file longer.
        file.write_zeros_at(5 << 20, 0).unwrap();
        assert_eq!(ReadAt::length(&file).unwrap(), expected.len() as u64);
    }
}

#[test]
fn zeros_in_place_keep_their_space() {
    for folder in folders() {
        let path = folder.path().join("file");
        let file = full(&path);
        file.zero_in_place(256 << 10, 2 << 20).unwrap();
        file.zero_in_place(1001, 10).unwrap();
        let mut expected = vec![1; 256 << 10];
        expected[1001..1011].fill(0);
        expected.resize((2 << 20) + (256 << 10), 0);
        assert!(std::fs::read(&path).unwrap() == expected, "{folder:?}");
        assert!(file.file().metadata().unwrap().blocks() * 512 >= expected.len() as u64);
    }
}

#[test]
fn a_punched_range_gives_its_space_back_and_never_moves_the_end() {
    for folder in folders() {
        let path = folder.path().join("file");
        let file = full(&path);
        file.file().sync_data().unwrap();
        file.punch_at(0, 512 << 10).unwrap();
        file.punch_at(2 << 20, 1 << 20).unwrap();
        file.punch_at(1 << 20, 0).unwrap();
        assert_eq!(ReadAt::length(&file).unwrap(), 1 << 20);
        if !file.cannot_punch.load(Ordering::Relaxed) {
            let one = data(&file);
            assert_eq!((one.len(), one[0].clone()), (1, 512 << 10..1 << 20), "{folder:?}");
        }
    }
}

#[test]
fn reserved_space_reads_as_zeros_and_is_taken() {
    for folder in folders() {
        let path = folder.path().join("file");
        let file = full(&path);
        file.allocate_at(1 << 20, 1 << 20).unwrap();
        file.allocate_at(9 << 20, 0).unwrap();
        let mut expected = vec![1; 1 << 20];
        expected.resize(2 << 20, 0);
        assert!(std::fs::read(&path).unwrap() == expected, "{folder:?}");
        assert!(file.file().metadata().unwrap().blocks() * 512 >= 2 << 20);
        file.set_length(100).unwrap();
        file.set_length(5000).unwrap();
        expected.truncate(100);
        expected.resize(5000, 0);
        assert!(std::fs::read(&path).unwrap() == expected, "{folder:?}");
    }
}

#[test]
fn without_holes_the_bytes_are_the_same_and_nobody_asks_twice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let file = full(&path);
    for cannot in [&file.cannot_punch, &file.cannot_zero, &file.cannot_allocate] {
        cannot.store(true, Ordering::Relaxed);
    }
    file.punch_at(0, 64 << 10).unwrap();
    file.write_zeros_at(128 << 10, 200_000).unwrap();
    file.zero_in_place(512 << 10, 5000).unwrap();
    file.allocate_at(1 << 20, 5000).unwrap();
    let mut expected = vec![1; 1 << 20];
    expected[128 << 10..][..200_000].fill(0);
    expected[512 << 10..][..5000].fill(0);
    expected.resize((1 << 20) + 5000, 0);
    assert!(std::fs::read(&path).unwrap() == expected);
}

#[test]
fn a_file_that_knows_no_holes_is_remembered() {
    // A character device has no space to give back. It stands for a file system without holes.
    let file = ImageFile::new(ImageLock::none(
        File::options().read(true).write(true).open("/dev/null").unwrap(),
    ));
    file.punch_at(0, 64 << 10).unwrap();
    assert!(file.cannot_punch.load(Ordering::Relaxed));
    file.write_zeros_at(0, 64 << 10).unwrap_or_else(|error| panic!("{error:?}"));
    file.zero_in_place(0, 64 << 10).unwrap();
    assert!(file.cannot_zero.load(Ordering::Relaxed));
    file.allocate_at(0, 64 << 10).unwrap();
    assert!(file.cannot_allocate.load(Ordering::Relaxed));
}

#[test]
fn a_failed_flush_is_final() {
    // A FIFO cannot be synced.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let fifo = File::options()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(&path)
        .unwrap();
    let file = ImageFile::new(ImageLock::none(fifo));
    let first = file.flush().unwrap_err();
    assert_eq!(first.raw_os_error(), Some(Errno::EINVAL as i32));
    let said = |outcome: io::Result<()>| {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), first.kind());
        let failed = error.get_ref().unwrap().downcast_ref::<FlushFailed>().unwrap();
        assert_eq!(failed.source.raw_os_error(), Some(Errno::EINVAL as i32));
    };
    said(file.flush());
    said(WriteAt::write_all_at(&file, b"x", 0));
    said(file.write_parts_at(&[b"x", b"y"], 0));
    said(file.write_zeros_at(0, 1 << 20));
    said(file.zero_in_place(0, 1));
    said(file.punch_at(0, 1));
    said(file.allocate_at(0, 1));
    said(file.set_length(0));
}

#[test]
fn flushes_of_many_threads_all_return() {
    let folder = tempfile::tempdir().unwrap();
    let file = Arc::new(opened(&folder.path().join("file")));
    let threads: Vec<_> = (0..8u64)
        .map(|thread| {
            let file = Arc::clone(&file);
            std::thread::spawn(move || {
                for round in 0..20 {
                    WriteAt::write_all_at(&*file, b"x", thread * 100 + round).unwrap();
                    file.flush().unwrap();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let asked = file.asked.load(Ordering::Acquire);
    assert_eq!(asked, 160);
    assert!(*file.done.lock().unwrap() <= asked);
}
