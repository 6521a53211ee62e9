//! Images that lie, storage that fails, and many writers at once. What QEMU says of what is written
//! is asked by the suites of `testkit`.

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;
use crate::create::{BackingFile, BackingFormat, CreateOptions};
use crate::error::{FieldError, Violation};
use crate::feature::AutoclearFeatures;
use crate::geometry::{ClusterBits, RefcountOrder};
use crate::io::{Memory, ReadAt};

const CLUSTER: u64 = 512;

type Call = fn(&WritableImage<&Memory>) -> Result<()>;

fn options() -> CreateOptions {
    CreateOptions::new(64 * CLUSTER).cluster_bits(ClusterBits::MIN)
}

fn new_image(options: &CreateOptions) -> Memory {
    let storage = Memory::default();
    options.plan().unwrap().write_to(&storage).unwrap();
    storage
}

fn open(storage: &Memory) -> Result<WritableImage<&Memory>> {
    WritableImage::open(storage, &WriteOptions::new().durability(Durability::None))
}

/// An image whose first two clusters hold data.
fn written() -> Memory {
    let storage = new_image(&options());
    open(&storage).unwrap().write_at(&[7; 1024], GuestOffset(0)).unwrap();
    storage
}

fn word(storage: &Memory, at: u64) -> u64 {
    let mut bytes = [0; 8];
    storage.read_full_at(&mut bytes, at).unwrap();
    u64::from_be_bytes(bytes)
}

fn put(storage: &Memory, at: u64, word: u64) {
    storage.write_all_at(&word.to_be_bytes(), at).unwrap();
}

/// Where the first L2 table lies.
fn l2(storage: &Memory) -> u64 {
    let header = Header::read(storage).unwrap();
    word(storage, header.l1_table_offset().0) & 0x00ff_ffff_ffff_fe00
}

/// Where the refcount of the cluster at `host` lies; 16 bits, in the first block.
fn refcount_place(storage: &Memory, host: u64) -> u64 {
    let table = Header::read(storage).unwrap().refcount_table_offset().0;
    word(storage, table) + host / CLUSTER * 2
}

fn violation<T>(result: Result<T>) -> Violation {
    match result {
        Err(Error::Corrupt(FieldError { violation, .. })) => violation,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("no error"),
    }
}

fn bytes(storage: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(storage.length().unwrap()).unwrap()];
    storage.read_full_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn metadata_is_not_overwritten_whatever_an_entry_names() {
    let header = Header::read(&written()).unwrap();
    let table = header.refcount_table_offset().0;
    let storage = written();
    for (host, what) in [
        (0, "header"),
        (table, "refcount table"),
        (word(&storage, table), "refcount block"),
        (header.l1_table_offset().0, "active L1 table"),
        (l2(&storage), "active L2 table"),
    ] {
        // In place, given a new place to, zeroed, discarded.
        let calls: [Call; 4] = [
            |image| image.write_at(&[1; 512], GuestOffset(0)),
            |image| image.write_at(&[1; 100], GuestOffset(10)),
            |image| image.write_zeroes(GuestOffset(0), 512, ZeroMode::Unmap),
            |image| image.discard(GuestOffset(0), 512),
        ];
        for (index, call) in calls.into_iter().enumerate() {
            let storage = written();
            let copied = u64::from(index != 1) << 63;
            if host != 0 {
                put(&storage, l2(&storage), copied | host);
            } else {
                // Offset 0 is no cluster: the entry of a compressed one can name it all the same.
                put(&storage, l2(&storage), 1 << 62);
            }
            let image = open(&storage).unwrap();
            let before = bytes(&storage);
            assert_eq!(violation(call(&image)), Violation::Overlap { what }, "{index}");
            // The corrupt bit, and nothing else.
            let mut after = bytes(&storage);
            assert_eq!(after[79], 2);
            after[79] = 0;
            assert!(before == after, "{what} {index}");
            let again = image.write_at(&[1; 512], GuestOffset(2048)).unwrap_err();
            assert!(matches!(again, Error::Request(RequestError::ReadOnly { .. })));
            assert!(image.flush().is_err());
            drop(image);
            let reopened = open(&storage).unwrap_err();
            assert!(matches!(reopened, Error::Request(RequestError::ReadOnly { .. })));
        }
    }
}

#[test]
fn a_refcount_that_denies_what_an_entry_says_stops_the_write() {
    for (entry_refcount, expected) in
        [(0, Violation::UnusedInUse), (2, Violation::NotTheOnlyReference { refcount: 2 })]
    {
        for of_table in [false, true] {
            let storage = written();
            let data = word(&storage, l2(&storage)) & 0x00ff_ffff_ffff_fe00;
            let host = if of_table { l2(&storage) } else { data };
            let place = refcount_place(&storage, host);
            storage.write_all_at(&[0, entry_refcount], place).unwrap();
            let image = open(&storage).unwrap();
            let at = GuestOffset(if of_table { 4096 } else { 0 });
            assert_eq!(violation(image.write_at(&[1; 10], at)), expected);
            let mut found = [0; 512];
            image.read_at(&mut found, GuestOffset(0)).unwrap();
            assert_eq!(found, [7; 512]);
        }
    }
    // Not the only reference, and says so: it gets a new place. None at all: nothing to drop.
    let storage = written();
    let data = word(&storage, l2(&storage)) & 0x00ff_ffff_ffff_fe00;
    put(&storage, l2(&storage), data);
    storage.write_all_at(&[0, 2], refcount_place(&storage, data)).unwrap();
    open(&storage).unwrap().write_at(&[1; 10], GuestOffset(0)).unwrap();
    assert_ne!(word(&storage, l2(&storage)) & 0x00ff_ffff_ffff_fe00, data);
    let mut count = [0; 2];
    storage.read_full_at(&mut count, refcount_place(&storage, data)).unwrap();
    assert_eq!(count, [0, 1]);
    let mut old = [0; 512];
    storage.read_full_at(&mut old, data).unwrap();
    assert_eq!(old, [7; 512]);
}

#[test]
fn clusters_of_metadata_are_not_handed_out_though_their_refcount_is_zero() {
    let storage = written();
    let l1 = Header::read(&storage).unwrap().l1_table_offset().0;
    storage.write_all_at(&[0, 0], refcount_place(&storage, l1)).unwrap();
    let image = open(&storage).unwrap();
    let what = "active L1 table";
    let found = violation(image.write_at(&[1; 512], GuestOffset(4096)));
    assert_eq!(found, Violation::Overlap { what });
    assert!(Header::read(&storage).unwrap().incompatible_features().0 & 2 != 0);
}

#[test]
fn refcount_tables_that_lie_are_refused_before_anything_is_written() {
    let table = Header::read(&written()).unwrap().refcount_table_offset().0;
    let block = word(&written(), table);
    let file_length = written().length().unwrap();
    for (entry, expected) in [
        (block, Violation::DuplicateRefcountBlock),
        (block | 512 << 40, Violation::StartsBeyondFile { file_length }),
        (block | 1, Violation::ReservedBits { bits: 1 }),
    ] {
        let storage = written();
        put(&storage, table + 8, entry);
        let before = bytes(&storage);
        assert_eq!(violation(open(&storage)), expected);
        assert!(before == bytes(&storage));
    }
}

#[test]
fn tables_that_are_shared_or_past_the_end_are_refused_before_anything_is_written() {
    let storage = new_image(&options().virtual_size(128 * CLUSTER));
    open(&storage).unwrap().write_at(&[7; 512], GuestOffset(0)).unwrap();
    let l1 = Header::read(&storage).unwrap().l1_table_offset().0;
    let file_length = storage.length().unwrap();
    for (entry, expected) in [
        (word(&storage, l1), Violation::SharedL2Table),
        (word(&storage, l1) & !(1 << 63), Violation::SharedL2Table),
        (1 << 40, Violation::StartsBeyondFile { file_length }),
    ] {
        for dirty in [0, 1] {
            put(&storage, l1 + 8, entry);
            put(&storage, 72, dirty);
            put(&storage, 88, 1 << 40);
            let before = bytes(&storage);
            assert_eq!(violation(open(&storage)), expected);
            assert!(before == bytes(&storage));
        }
    }

    // An entry that breaks a rule keeps a dirty image from being counted, and from being changed.
    let storage = written();
    put(&storage, l2(&storage), 1 << 60);
    put(&storage, 72, 1);
    put(&storage, 88, 1 << 40);
    let before = bytes(&storage);
    assert!(open(&storage).is_err());
    assert!(before == bytes(&storage));

    // Snapshots have L1 tables of their own.
    let image = include_bytes!("../../../../testdata/images/snapshots.qcow2");
    let storage = Memory::new(image.to_vec());
    let header = Header::read(&storage).unwrap();
    drop(open(&storage).unwrap());
    let [first, second] = &Snapshot::read_table(&storage, &header).unwrap()[..] else { panic!() };
    let (mut at, place) = (header.snapshots_offset().0, second.l1_table_offset.0);
    while word(&storage, at) != place {
        at += 8;
    }
    put(&storage, at, first.l1_table_offset.0);
    let what = "L1 table of a snapshot";
    assert_eq!(violation(open(&storage)), Violation::Overlap { what });
}

/// A look at the tables says that all is compressed; when it is read, the first is no longer.
#[cfg(feature = "deflate")]
#[test]
fn every_byte_is_read_though_compressed_clusters_change_meanwhile() {
    let storage = new_image(&options());
    let image = open(&storage).unwrap();
    let length = usize::try_from(image.virtual_size()).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        // Also where an assertion fails.
        let _done = Done(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                image.write_compressed(&[1; 512], GuestOffset(0)).unwrap();
                image.write_at(&[1; 512], GuestOffset(0)).unwrap();
            }
        });
        for _ in 0..300 {
            image.write_compressed(&[1; 63 * 512], GuestOffset(512)).unwrap();
            let mut found = vec![9; length];
            image.read_at(&mut found, GuestOffset(0)).unwrap();
            assert!(found[512..].iter().all(|byte| *byte == 1));
            assert!(found[..512].iter().all(|byte| *byte != 9));
        }
    });
}

/// Says that something is done when it is dropped.
#[cfg(feature = "deflate")]
struct Done<'a>(&'a AtomicBool);

#[cfg(feature = "deflate")]
impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_dirty_image_is_counted_anew_before_it_is_written() {
    let storage = written();
    let data = word(&storage, l2(&storage)) & 0x00ff_ffff_ffff_fe00;
    let right = bytes(&storage);
    // Too few, too many, and a cluster that nobody refers to.
    for (host, count) in [(data, 0), (l2(&storage), 9), (data + 10 * CLUSTER, 1)] {
        storage.write_all_at(&[0, count], refcount_place(&storage, host)).unwrap();
    }
    put(&storage, 72, 1);
    assert!(Image::open(&storage, &crate::ReadOptions::new()).unwrap().is_dirty());
    open(&storage).unwrap().close().unwrap();
    assert!(bytes(&storage) == right);

    // One that cannot be counted stays dirty.
    let narrow = new_image(&options().refcount_order(RefcountOrder::new(0).unwrap()));
    open(&narrow).unwrap().write_at(&[7; 1024], GuestOffset(0)).unwrap();
    put(&narrow, l2(&narrow) + 8, word(&narrow, l2(&narrow)));
    put(&narrow, 72, 1);
    let before = bytes(&narrow);
    assert_eq!(violation(open(&narrow)), Violation::RefcountOverflow { bits: 1 });
    assert!(bytes(&narrow) == before);
}

#[test]
fn lazy_refcounts_wait_behind_the_dirty_bit() {
    let storage = new_image(&options().lazy_refcounts(true));
    let image = open(&storage).unwrap();
    image.write_at(&[7; 1024], GuestOffset(0)).unwrap();
    assert_eq!(word(&storage, 72), 1);
    let data = word(&storage, l2(&storage)) & 0x00ff_ffff_ffff_fe00;
    let count = |storage: &Memory| {
        let mut count = [0; 2];
        storage.read_full_at(&mut count, refcount_place(storage, data)).unwrap();
        count
    };
    assert_eq!(count(&storage), [0, 0]);
    // What a killed process leaves is counted by the next.
    let killed = Memory::new(bytes(&storage));
    drop(open(&killed).unwrap());
    assert_eq!((word(&killed, 72), count(&killed)), (0, [0, 1]));
    image.close().unwrap();
    assert_eq!((word(&storage, 72), count(&storage)), (0, [0, 1]));
}

#[test]
fn marks_are_set_at_the_first_write_and_not_before() {
    let storage = written();
    // The second vouches for bitmaps, and there are none.
    put(&storage, 88, 1 << 40 | 1);
    let image = open(&storage).unwrap();
    image.read_at(&mut [0; 512], GuestOffset(0)).unwrap();
    image.flush().unwrap();
    assert_eq!(word(&storage, 88), 1 << 40 | 1);
    image.write_at(&[1], GuestOffset(0)).unwrap();
    assert_eq!(word(&storage, 88), 0);
    assert_eq!(image.header().autoclear_features(), AutoclearFeatures::default());
}

#[test]
fn bitmaps_are_marked_in_use_or_stop_the_write() {
    let original = include_bytes!("../../../../testdata/images/bitmaps.qcow2");
    let storage = Memory::new(original.to_vec());
    let header = Header::read(&storage).unwrap();
    let (directory, length) = bitmaps::directory(&header).unwrap();
    let flags = |storage: &Memory| word(storage, directory + 8) & 0xffff_ffff;
    assert_eq!(flags(&storage) & 1, 0);
    let image = open(&storage).unwrap();
    assert_eq!(flags(&storage) & 1, 0);
    image.write_at(&[1], GuestOffset(0)).unwrap();
    assert_eq!(flags(&storage) & 1, 1);

    let storage = Memory::new(original.to_vec());
    storage.write_all_at(&u16::MAX.to_be_bytes(), directory + 18).unwrap();
    assert!(length < u16::MAX.into());
    let image = open(&storage).unwrap();
    let found = violation(image.write_at(&[1], GuestOffset(0)));
    assert_eq!(found, Violation::BitmapDirectory);
}

#[test]
fn snapshots_and_marked_images_are_not_opened_for_writing() {
    let image = include_bytes!("../../../../testdata/images/snapshots.qcow2");
    let mut options = WriteOptions::new();
    options.read = options.read.snapshot("1");
    let error = WritableImage::open(Memory::new(image.to_vec()), &options).unwrap_err();
    assert!(matches!(error, Error::Request(RequestError::ReadOnly { .. })));
}

#[test]
fn what_the_backing_file_holds_is_not_taken_for_zeros() {
    let backing = BackingFile::new("base", BackingFormat::Raw);
    let storage = new_image(&options().backing(backing));
    let image = open(&storage).unwrap();
    let needed = |result: Result<()>| match result {
        Err(Error::Request(RequestError::BackingFileNeeded { offset })) => Some(offset),
        Ok(()) => None,
        Err(other) => panic!("{other:?}"),
    };
    assert_eq!(needed(image.read_at(&mut [0; 10], GuestOffset(700))), Some(700));
    assert_eq!(needed(image.write_at(&[1; 10], GuestOffset(700))), Some(512));
    assert_eq!(needed(image.write_zeroes(GuestOffset(700), 10, ZeroMode::Keep)), Some(512));
    // What takes whole clusters needs nothing of it.
    assert_eq!(needed(image.write_at(&[1; 512], GuestOffset(512))), None);
    assert_eq!(needed(image.write_zeroes(GuestOffset(0), 512, ZeroMode::Keep)), None);
    assert_eq!(needed(image.discard(GuestOffset(1024), 512)), None);
    let mut found = [9; 1536];
    assert_eq!(needed(image.read_at(&mut found, GuestOffset(0))), None);
    assert_eq!(found[..], [[0; 512], [1; 512], [0; 512]].concat());
    drop(image);
    // Unless there is nothing below, as the caller says.
    let options = WriteOptions::new().below(0);
    let image = WritableImage::open(&storage, &options).unwrap();
    assert_eq!(needed(image.write_at(&[1; 10], GuestOffset(4700))), None);
}

#[test]
fn a_panic_of_what_reads_below_leaves_nobody_waiting() {
    let backing = BackingFile::new("base", BackingFormat::Raw);
    let storage = new_image(&options().backing(backing));
    let image = open(&storage).unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        image.write_over::<Error>(&[1; 10], GuestOffset(700), |_, _| panic!("on purpose"))
    }));
    assert!(panicked.is_err());
    let free = image.lock().next;
    let below = |part: &mut [u8], _| {
        part.fill(3);
        Ok::<_, Error>(())
    };
    image.write_over(&[1; 10], GuestOffset(700), below).unwrap();
    // What had been handed out was given back.
    assert_eq!(image.lock().next, free + 1);
    let mut found = [0; 512];
    image.read_at(&mut found, GuestOffset(512)).unwrap();
    assert_eq!((found[0], found[188], found[198]), (3, 1, 3));
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let storage = written();
    let image = open(&storage).unwrap();
    let size = image.virtual_size();
    for (offset, length) in [(size, 1), (size - 1, 2), (u64::MAX, 1)] {
        let data = vec![1; usize::try_from(length).unwrap()];
        let at = GuestOffset(offset);
        for result in [
            image.write_at(&data, at),
            image.write_zeroes(at, length, ZeroMode::Keep),
            image.discard(at, length),
            image.write_compressed(&data, at),
        ] {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Request(RequestError::OutOfRange { .. })), "{error}");
        }
    }
    for (offset, length) in [(1, 511), (0, 100)] {
        let data = vec![1; length];
        let error = image.write_compressed(&data, GuestOffset(offset)).unwrap_err();
        assert!(matches!(error, Error::Request(RequestError::NotWholeClusters { .. })));
    }
}

/// Storage whose flushes fail when told to.
#[derive(Default)]
struct Unsteady {
    memory: Memory,
    fails: AtomicBool,
}

impl ReadAt for Unsteady {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.memory.read_at(buffer, offset)
    }

    fn length(&self) -> io::Result<u64> {
        self.memory.length()
    }
}

impl WriteAt for Unsteady {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.memory.write_all_at(data, offset)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.memory.set_length(length)
    }

    fn flush(&self) -> io::Result<()> {
        match self.fails.load(Ordering::Relaxed) {
            true => Err(ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

#[test]
fn a_failed_flush_is_final() {
    let storage = Unsteady::default();
    options().plan().unwrap().write_to(&storage).unwrap();
    let image = WritableImage::open(&storage, &WriteOptions::new()).unwrap();
    image.write_at(&[1; 512], GuestOffset(0)).unwrap();
    storage.fails.store(true, Ordering::Relaxed);
    match image.flush().unwrap_err() {
        Error::Io { source, .. } => assert_eq!(source.kind(), ErrorKind::StorageFull),
        other => panic!("{other:?}"),
    }
    storage.fails.store(false, Ordering::Relaxed);
    for result in [image.flush(), image.write_at(&[1; 512], GuestOffset(0))] {
        match result {
            Err(Error::Io { source, .. }) => assert_eq!(source.kind(), ErrorKind::StorageFull),
            other => panic!("{other:?}"),
        }
    }
    let mut found = [0; 512];
    image.read_at(&mut found, GuestOffset(0)).unwrap();
    assert_eq!(found, [1; 512]);
    assert!(image.close().is_err());
}

/// Each thread has sectors of its own, spread so that all share every cluster; one looks all the
/// time, which must find whole sectors of the one it looks at.
#[test]
fn many_writers_and_readers_do_not_disturb_each_other() {
    const SECTORS: u64 = 512;
    for (bits, extended) in [(9, false), (12, false), (14, true)] {
        let options = CreateOptions::new(SECTORS * 512)
            .cluster_bits(ClusterBits::new(bits).unwrap())
            .extended_l2(extended);
        for durability in [Durability::None, Durability::Flush] {
            let storage = new_image(&options);
            let write = WriteOptions::new().durability(durability).l2_cache(1024).l2_slice(512);
            let image = WritableImage::open(&storage, &write).unwrap();
            let done = AtomicBool::new(false);
            let finals: Vec<Vec<(u64, u8)>> = thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    let mut sector = [0; 512];
                    let mut index = 0;
                    while !done.load(Ordering::Relaxed) {
                        index = (index * 5 + 1) % SECTORS;
                        image.read_at(&mut sector, GuestOffset(index * 512)).unwrap();
                        let owner = u8::try_from(index % 4).unwrap();
                        let first = sector[0];
                        assert!(sector.iter().all(|byte| *byte == first), "torn");
                        assert!(first == 0 || first % 4 == owner, "somebody else's");
                    }
                });
                let writers: Vec<_> = (0..4_u64)
                    .map(|owner| {
                        scope.spawn({
                            let image = &image;
                            move || write_own_sectors(image, owner, SECTORS)
                        })
                    })
                    .collect();
                let finals = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
                done.store(true, Ordering::Relaxed);
                reader.join().unwrap();
                finals
            });
            image.close().unwrap();
            let image = Image::open(&storage, &crate::ReadOptions::new()).unwrap();
            for (sector, value) in finals.into_iter().flatten() {
                let mut found = [0; 512];
                image.read_at(&mut found, GuestOffset(sector * 512)).unwrap();
                assert_eq!(found, [value; 512], "sector {sector}");
            }
        }
    }
}

fn write_own_sectors(image: &WritableImage<&Memory>, owner: u64, sectors: u64) -> Vec<(u64, u8)> {
    let mut state = owner + 1;
    let mut last = std::collections::BTreeMap::new();
    for _ in 0..1500 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let sector = (state >> 33) % (sectors / 4) * 4 + owner;
        let at = GuestOffset(sector * 512);
        let value = match (state >> 20) % 8 {
            0 => {
                image.write_zeroes(at, 512, ZeroMode::Unmap).unwrap();
                0
            }
            1 if image.header().geometry().cluster_bits == ClusterBits::MIN => {
                image.discard(at, 512).unwrap();
                0
            }
            2 => {
                image.flush().unwrap();
                continue;
            }
            number => {
                let value = u8::try_from(owner + 4 * (1 + number)).unwrap();
                image.write_at(&[value; 512], at).unwrap();
                value
            }
        };
        last.insert(sector, value);
    }
    last.into_iter().collect()
}

#[test]
fn what_surrounds_a_write_comes_along() {
    let below: Vec<u8> = (0..5000_u32).map(|at| u8::try_from(at % 251 + 1).unwrap()).collect();
    let read = |part: &mut [u8], at: GuestOffset| {
        part.fill(0);
        let start = usize::try_from(at.0).unwrap().min(below.len());
        let count = part.len().min(below.len() - start);
        part[..count].copy_from_slice(&below[start..start + count]);
        Ok::<(), Error>(())
    };
    // Less than a cluster, its start, its end, across two, more than one, past the end below; into
    // new places, and into those that clusters were given up at.
    let requests =
        [(10, 20), (512, 100), (1500, 36), (2000, 100), (2600, 1300), (4900, 200), (6000, 1)];
    for reused in [false, true] {
        let storage = new_image(&options());
        let options = WriteOptions::new().durability(Durability::None).below(5000);
        let image = WritableImage::open(&storage, &options).unwrap();
        let size = image.virtual_size();
        let mut model = vec![0; usize::try_from(size).unwrap()];
        model[..5000].copy_from_slice(&below);
        if reused {
            let junk = size - 16 * CLUSTER..size;
            image.write_at(&[0xee; 16 * 512], GuestOffset(junk.start)).unwrap();
            image.discard(GuestOffset(junk.start), junk.end - junk.start).unwrap();
        }
        for (number, (offset, length)) in (0xd0..).zip(requests) {
            image.write_over(&vec![number; length], GuestOffset(offset), read).unwrap();
            let offset = usize::try_from(offset).unwrap();
            model[offset..offset + length].fill(number);
        }
        let mut found = vec![0; model.len()];
        image.read_over(&mut found, GuestOffset(0), read).unwrap();
        assert!(found == model, "{reused}");
    }
}
