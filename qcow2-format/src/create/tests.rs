//! Options no image can have, each with its error; then arbitrary options, written to storage that
//! remembers the order of writes.

use std::collections::BTreeSet;
use std::io;
use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::image::{Image, ReadOptions, RunKind};
use crate::io::{Memory, ReadAt};

fn small() -> CreateOptions {
    CreateOptions::new(1 << 20).cluster_bits(ClusterBits::MIN)
}

fn on(name: impl Into<Vec<u8>>, format: BackingFormat) -> CreateOptions {
    small().backing(BackingFile::new(name, format))
}

#[test]
fn each_impossible_option_is_named() {
    use OptionsError as O;
    let other = |name: &[u8]| BackingFormat::Other(name.to_vec());
    let v2 = || small().version(Version::V2);
    let needs_v3 = |option| O::NeedsVersion3 { option };
    let protocol = |name: &str| O::BackingNameIsProtocol { protocol: name.into() };
    let max = 128 << 30;
    let rows: Vec<(CreateOptions, O)> = vec![
        (
            CreateOptions::new(max + 1).cluster_bits(ClusterBits::MIN),
            O::VirtualSize { size: max + 1, max },
        ),
        (CreateOptions::new(u64::MAX), O::VirtualSize { size: u64::MAX, max: 2 << 50 }),
        (v2().lazy_refcounts(true), needs_v3("lazy_refcounts")),
        (v2().refcount_order(RefcountOrder::MAX), needs_v3("refcount_bits other than 16")),
        (v2().extended_l2(true), needs_v3("extended_l2")),
        (v2().compression_type(CompressionType::Zstd), needs_v3("compression_type")),
        (
            on("a", BackingFormat::Raw).preallocation(Preallocation::Metadata),
            O::PreallocationOverBacking,
        ),
        (small().extended_l2(true), O::ExtendedL2ClusterSize { cluster_size: 512 }),
        (on("", BackingFormat::Raw), O::BackingNameEmpty),
        (on([b'/'; 1024], BackingFormat::Raw), O::BackingNameTooLong { length: 1024 }),
        (on("a\0b", BackingFormat::Raw), O::Nul { what: "backing file name" }),
        (on("a", other(b"r\0w")), O::Nul { what: "backing format" }),
        (on("nbd:unix:/run/nbd", BackingFormat::Raw), protocol("nbd")),
        (on("json:{}", BackingFormat::Raw), protocol("json")),
        (on("x:base", BackingFormat::Raw), protocol("x")),
        (on(":", BackingFormat::Raw), protocol("")),
        (on("a", other(b"")), O::BackingFormatLength { length: 0 }),
        (on("a", other(&[b'r'; 16])), O::BackingFormatLength { length: 16 }),
        (small().data_file(data_file("", false)), O::DataFileNameEmpty),
        (
            on("base", BackingFormat::Raw).data_file(data_file("data", true)),
            O::BackingWithRawExternalData,
        ),
        (small().unknown_extension(0, Vec::new()), O::ExtensionTypeTaken { extension_type: 0 }),
        (
            small().unknown_extension(0xe279_2aca, b"raw".to_vec()),
            O::ExtensionTypeTaken { extension_type: 0xe279_2aca },
        ),
        (
            on([b'/'; 377], BackingFormat::Raw),
            O::HeaderTooLarge { needed: 112 + 16 + 8 + 377, cluster_size: 512 },
        ),
        (
            small().unknown_extension(7, vec![0; 1 << 20]),
            O::HeaderTooLarge { needed: 112 + 8 + (1 << 20) + 8, cluster_size: 512 },
        ),
    ];
    // A new variant does not compile until it has a name here, and then lacks a row.
    let name = |error: &O| match error {
        O::VirtualSize { .. } => "size",
        O::NeedsVersion3 { .. } => "version",
        O::ExtendedL2ClusterSize { .. } => "extended_l2",
        O::BackingNameEmpty => "no name",
        O::BackingNameTooLong { .. } => "long name",
        O::Nul { .. } => "nul",
        O::BackingNameIsProtocol { .. } => "protocol",
        O::BackingFormatLength { .. } => "format",
        O::PreallocationOverBacking => "preallocation",
        O::DataFileNameEmpty => "no data file name",
        O::BackingWithRawExternalData => "raw external data",
        O::ExtensionTypeTaken { .. } => "extension",
        O::HeaderTooLarge { .. } => "header",
    };
    let mut seen = BTreeSet::new();
    for (options, expected) in rows {
        match options.plan() {
            Err(Error::Options(found)) => assert_eq!(found, expected),
            other => panic!("{expected:?} expected: {other:?}"),
        }
        seen.insert(name(&expected));
    }
    assert_eq!(seen.len(), 13, "each error has a row");
}

fn data_file(name: &str, raw: bool) -> DataFile {
    DataFile { name: name.into(), raw }
}

#[test]
fn what_is_just_possible_is_possible() {
    for options in [
        CreateOptions::new(128 << 30).cluster_bits(ClusterBits::MIN),
        CreateOptions::new(0),
        on([b'/'; 376], BackingFormat::Raw),
        on([b'/'; 1023], BackingFormat::Raw).cluster_bits(ClusterBits::DEFAULT),
        on("./x:base", BackingFormat::Raw),
        on("/x:base", BackingFormat::Raw),
        on([255, b'\n', 27], BackingFormat::Other(vec![b'r'; 15])),
    ] {
        options.plan().unwrap();
    }
}

#[test]
fn sizes_are_rounded_up_to_sectors() {
    for (size, rounded) in [(0, 0), (1, 512), (512, 512), (513, 1024)] {
        let image = CreateOptions::new(size).plan().unwrap();
        assert_eq!(image.header().virtual_size(), rounded);
    }
}

#[test]
fn a_second_extension_of_one_type_replaces_the_first() {
    let options = small().unknown_extension(7, b"a".to_vec()).unknown_extension(8, b"b".to_vec());
    let image = options.unknown_extension(7, b"c".to_vec()).plan().unwrap();
    assert_eq!(image.header().unknown_extension(7), Some(&b"c"[..]));
    assert_eq!(image.header().unknown_extension(8), Some(&b"b"[..]));
    assert_eq!(image.header().extensions().len(), 2);
}

/// One change to the storage.
#[derive(Clone, Debug)]
enum Change {
    Length(u64),
    Write(u64, Vec<u8>),
}

/// Storage as a list of changes to what it held, so that any moment of the past can be read, and
/// terabytes of holes take nothing.
#[derive(Default)]
struct Recording {
    old: Vec<u8>,
    changes: Mutex<Vec<Change>>,
}

impl Clone for Recording {
    fn clone(&self) -> Self {
        Self { old: self.old.clone(), changes: Mutex::new(self.changes.lock().unwrap().clone()) }
    }
}

impl Recording {
    fn new(old: Vec<u8>) -> Self {
        Self { old, ..Self::default() }
    }

    fn changes(&self) -> usize {
        self.changes.lock().unwrap().len()
    }

    /// The storage as it was after the first `count` changes.
    fn after(&self, count: usize) -> Self {
        let changes = self.changes.lock().unwrap()[..count].to_vec();
        Self { old: self.old.clone(), changes: changes.into() }
    }

    fn range(&self, offset: u64, length: usize) -> Vec<u8> {
        let end = offset + length as u64;
        let mut bytes = vec![0; length];
        let mut put = |at: u64, from: &[u8]| {
            let (start, stop) = (at.max(offset), end.min(at + from.len() as u64));
            if start < stop {
                let index = |place: u64| usize::try_from(place).unwrap();
                bytes[index(start - offset)..index(stop - offset)]
                    .copy_from_slice(&from[index(start - at)..index(stop - at)]);
            }
        };
        put(0, &self.old);
        for change in self.changes.lock().unwrap().iter() {
            match change {
                Change::Write(at, data) => put(*at, data),
                Change::Length(at) if *at < end => {
                    let from = offset.max(*at);
                    put(from, &vec![0; usize::try_from(end - from).unwrap()]);
                }
                Change::Length(_) => {}
            }
        }
        bytes
    }
}

impl ReadAt for Recording {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.length()?.saturating_sub(offset);
        let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        buffer[..count].copy_from_slice(&self.range(offset, count));
        Ok(count)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.changes.lock().unwrap().iter().fold(self.old.len() as u64, |length, change| {
            match change {
                Change::Length(length) => *length,
                Change::Write(at, data) => length.max(at + data.len() as u64),
            }
        }))
    }
}

impl WriteAt for Recording {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.changes.lock().unwrap().push(Change::Write(offset, data.to_vec()));
        Ok(())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.changes.lock().unwrap().push(Change::Length(length));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A valid image with something behind it.
fn old_image() -> Vec<u8> {
    let storage = Memory::default();
    CreateOptions::new(1 << 20).plan().unwrap().write_to(&storage).unwrap();
    let mut bytes = storage.into_bytes();
    bytes.resize(bytes.len() + 100_000, 0xaa);
    bytes
}

fn version() -> impl Strategy<Value = Version> {
    prop_oneof![1 => Just(Version::V2), 4 => Just(Version::V3)]
}

fn backing() -> impl Strategy<Value = BackingFile> {
    let format = prop_oneof![
        Just(BackingFormat::Raw),
        Just(BackingFormat::Qcow2),
        prop::collection::vec(1_u8.., 1..16).prop_map(BackingFormat::Other),
    ];
    let name = (prop::collection::vec(1_u8.., 1..20), 0_usize..1023);
    (name, format).prop_map(|((piece, length), format)| {
        let name = [b'/'].into_iter().chain(piece.into_iter().cycle().take(length));
        BackingFile::new(name.collect::<Vec<_>>(), format)
    })
}

prop_compose! {
    /// Options that an image can have, unless the name or an extension is too long for a cluster.
    fn options()(
        version in version(),
        bits in 9_u32..=21,
        order in 0_u32..=6,
        (extended_l2, lazy, zstd) in any::<(bool, bool, bool)>(),
        (size, shift) in (any::<u64>(), 0_u32..64),
        backing in prop::option::of(backing()),
        extensions in prop::collection::vec(
            (1_u32..1000, prop::collection::vec(any::<u8>(), 0..100)), 0..3),
    ) -> CreateOptions {
        let v3 = version == Version::V3;
        let cluster_bits = ClusterBits::new(bits).unwrap();
        let order = if v3 { RefcountOrder::new(order).unwrap() } else { RefcountOrder::DEFAULT };
        let extended_l2 = extended_l2 && v3 && bits >= 14;
        let geometry = Geometry { cluster_bits, refcount_order: order, extended_l2 };
        let size = (size >> shift) % (geometry.max_virtual_size() + 1);
        let mut options = CreateOptions::new(size)
            .version(version)
            .cluster_bits(cluster_bits)
            .refcount_order(order)
            .extended_l2(extended_l2)
            .lazy_refcounts(lazy && v3);
        if zstd && v3 {
            options = options.compression_type(CompressionType::Zstd);
        }
        if let Some(backing) = backing {
            options = options.backing(backing);
        }
        for (extension_type, data) in extensions {
            options = options.unknown_extension(extension_type, data);
        }
        options
    }
}

/// The plan of `options`, unless its header does not fit in its cluster.
fn plan(options: &CreateOptions) -> Option<NewImage> {
    match options.plan() {
        Ok(image) => Some(image),
        Err(Error::Options(OptionsError::HeaderTooLarge { needed, cluster_size })) => {
            assert!(needed > cluster_size);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

proptest! {
    // The longest L1 tables with the smallest clusters take a second each when unoptimised.
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn the_header_read_is_the_header_planned(options in options()) {
        if let Some(image) = plan(&options) {
            let storage = Recording::default();
            image.write_to(&storage).unwrap();
            prop_assert_eq!(&Header::read(&storage).unwrap(), image.header());
            prop_assert_eq!(storage.length().unwrap(), image.layout().file_length);
            let backing = options.backing.as_ref();
            prop_assert_eq!(image.header().backing_file(), backing.map(|b| b.name.as_slice()));
            prop_assert_eq!(image.header().backing_format(), backing.map(|b| b.format.as_bytes()));
        }
    }

    #[test]
    fn no_moment_before_the_last_write_shows_an_image(options in options()) {
        if let Some(image) = plan(&options) {
            let storage = Recording::new(old_image());
            image.write_to(&storage).unwrap();
            let count = storage.changes();
            for moment in 1..count {
                let storage = storage.after(moment);
                prop_assert!(Header::read(&storage).is_err(), "after change {}", moment);
                let length = usize::try_from(storage.length().unwrap().min(512)).unwrap();
                prop_assert!(storage.range(0, length).iter().all(|byte| *byte == 0));
            }
            let last = storage.changes.lock().unwrap()[count - 1].clone();
            prop_assert!(matches!(last, Change::Write(0, data) if data == image.header_bytes));
        }
    }

    #[test]
    fn nothing_of_the_old_file_survives(options in options()) {
        if let Some(image) = plan(&options) {
            let (over, fresh) = (Recording::new(old_image()), Recording::default());
            image.write_to(&over).unwrap();
            image.write_to(&fresh).unwrap();
            prop_assert_eq!(over.length().unwrap(), fresh.length().unwrap());
            let length = usize::try_from(over.length().unwrap().min(400_000)).unwrap();
            prop_assert!(over.range(0, length) == fresh.range(0, length));
        }
    }

    #[test]
    fn tables_are_disjoint_and_each_of_their_clusters_is_counted(options in options()) {
        if let Some(image) = plan(&options) {
            let (layout, geometry) = (image.layout(), image.header().geometry());
            let bits = geometry.cluster_bits;
            let cluster = |offset: HostOffset| offset.to_u64() / bits.bytes();
            let l1 = cluster(layout.l1_table_offset);
            let table = cluster(layout.refcount_table_offset);
            let mut counted: Vec<u64> = vec![0];
            counted.extend(l1..l1 + bits.clusters(layout.l1_size * TABLE_ENTRY_BYTES));
            counted.extend(table..table + layout.refcount_table_clusters);
            let blocks = layout.refcount_blocks.iter().filter(|block| block.to_u64() != 0);
            counted.extend(blocks.map(|block| cluster(*block)));
            counted.sort_unstable();
            let used: Vec<u64> =
                (0..).zip(&layout.used).filter(|(_, used)| **used).map(|(at, _)| at).collect();
            prop_assert_eq!(counted, used);
            for block in used_blocks(layout, geometry) {
                prop_assert!(layout.refcount_blocks[block].to_u64() != 0, "no block {}", block);
            }
            check_counts(&image)?;
        }
    }
}

/// The refcount blocks that count a cluster in use.
fn used_blocks(layout: &Layout, geometry: Geometry) -> Vec<usize> {
    let per_block = usize::try_from(geometry.refcounts_per_block()).unwrap();
    let chunks = layout.used.chunks(per_block).enumerate();
    chunks.filter(|(_, used)| used.contains(&true)).map(|(block, _)| block).collect()
}

/// The refcount table and its blocks stand in the file where and as the layout says.
fn check_counts(image: &NewImage) -> Result<(), TestCaseError> {
    let (layout, geometry) = (image.layout(), image.header().geometry());
    let storage = Recording::default();
    image.write_to(&storage).unwrap();
    let per_block = usize::try_from(geometry.refcounts_per_block()).unwrap();
    let block_bytes = usize::try_from(geometry.cluster_bits.bytes()).unwrap();
    let table =
        storage.range(layout.refcount_table_offset.to_u64(), layout.refcount_blocks.len() * 8);
    for (block, entry) in table.chunks(8).enumerate() {
        let place = u64::from_be_bytes(entry.try_into().unwrap());
        prop_assert_eq!(HostOffset(place), layout.refcount_blocks[block]);
        if let Some(used) = layout.used.chunks(per_block).nth(block).filter(|_| place != 0) {
            let mut counts = refcount::encode_ones(geometry.refcount_order, used.iter().copied());
            counts.resize(block_bytes, 0);
            prop_assert!(storage.range(place, block_bytes) == counts, "block {}", block);
        }
    }
    Ok(())
}

#[test]
fn every_cluster_has_its_place_where_that_is_asked_for() {
    for (options, backing) in [
        (small().virtual_size(100 * 512 - 100), false),
        (CreateOptions::new(9 << 20).cluster_bits(ClusterBits::new(12).unwrap()), false),
        (on("a", BackingFormat::Raw).cluster_bits(ClusterBits::DEFAULT).extended_l2(true), true),
    ] {
        for preallocation in [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full] {
            let storage = Memory::default();
            let plan = options.clone().preallocation(preallocation).plan().unwrap();
            plan.write_to(&storage).unwrap();
            let length = storage.length().unwrap();
            let image = Image::open(&storage, &ReadOptions::new()).unwrap();
            assert_eq!(image.header(), plan.header());
            for run in image.map(0..image.virtual_size()).unwrap() {
                let host = match (run.unwrap().kind, backing) {
                    (RunKind::Data { host }, false) => host,
                    (RunKind::Unallocated { host: Some(host) }, true) => host,
                    (other, _) => panic!("{other:?}"),
                };
                assert!(host.0 < length);
            }
        }
    }
}
