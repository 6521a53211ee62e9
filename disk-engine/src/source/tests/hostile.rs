//! What is refused.

use super::*;
use crate::ops::{ExtractOptions, extract};
use crate::source::tar::build::{Archive, header, number, record, seal};
use crate::source::{Limits, SparseForm};

fn small_archive() -> Vec<u8> {
    let mut disk = vec![0; 20_000];
    disk[5120..6144].copy_from_slice(&noise(1024));
    Archive::default()
        .file("notes", b"hello")
        .sparse(SparseForm::OldGnu, "disk.img", &disk, &[5120..5632, 5632..6144])
        .end()
}

#[test]
fn every_prefix_of_an_archive_is_refused() {
    let archive = small_archive();
    for (name, compress) in compressions() {
        let whole = compress(&archive);
        // Without compression the last block of zeros may be missing; that is an archive too.
        let last = if name == "none" { whole.len() - 512 } else { whole.len() };
        for length in 0..last {
            let error = refusal(&whole[..length]);
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{name} {length}: {error}");
            assert!(
                error.offset().is_some_and(|at| at <= length as u64),
                "{name} {length}: {error}"
            );
        }
    }
}

#[test]
fn a_source_without_content_is_refused() {
    for (name, compress) in compressions() {
        assert_eq!(kind(compress(&[])), ErrorKind::Corrupt, "{name}");
    }
    assert_eq!(kind(b"\x50\x2a\x4d\x18\0\0\0\0"), ErrorKind::Corrupt);
}

#[test]
fn bytes_after_the_end_are_refused() {
    let archive = small_archive();
    for (name, compress) in compressions() {
        for tail in [&b"x"[..], b"\0\0\0\x01", b"\x28\xb5\x2f\xfd", &noise(2000)] {
            let error = refusal([compress(&archive), tail.to_vec()].concat());
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
            if name != "none" {
                let inside = compress(&[&archive[..], tail].concat());
                assert_eq!(kind(inside), ErrorKind::Corrupt, "{name}, inside");
            }
        }
    }
}

#[test]
fn damage_is_found_by_the_checksums() {
    let disk = noise(3000);
    for (name, compress) in compressions().into_iter().skip(1) {
        let whole = compress(&disk);
        for at in [whole.len() / 2, whole.len() - 6, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            assert_eq!(kind(damaged), ErrorKind::Corrupt, "{name} {at}");
        }
    }
}

#[test]
fn kinds_that_are_not_handled_are_named() {
    for (start, name) in
        [(&b"BZh91AY&SY"[..], "bzip2"), (b"\x04\x22\x4d\x18", "lz4"), (b"QFI\xfb", "qcow2")]
    {
        let source = [start, &noise(1000)].concat();
        for source in
            [source.clone(), zstd(&source), Archive::default().file("disk.img", &source).end()]
        {
            let error = refusal(source);
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.message().contains(name) && error.hint().is_some(), "{error}");
        }
    }
    assert_eq!(kind(zstd(&zstd(&noise(600)))), ErrorKind::Unsupported);
}

#[test]
fn links_and_devices_are_refused_by_kind() {
    for (typeflag, what) in [
        (b'1', "hard link"),
        (b'2', "symbolic link"),
        (b'3', "character device"),
        (b'4', "block device"),
        (b'5', "folder"),
        (b'6', "FIFO"),
    ] {
        let archive = Archive::default().entry("disk.img", typeflag, b"").end();
        let error = run(source_of(archive).with_member("disk.img")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains(what), "{error}");
        let with_data = Archive::default().entry("disk.img", typeflag, b"x").end();
        assert_eq!(kind(with_data), ErrorKind::Corrupt, "{what}");
    }
    for typeflag in [b'M', b'S', b'N'] {
        let archive = Archive::default().entry("disk.img", typeflag, b"x").end();
        assert_eq!(kind(archive), ErrorKind::Unsupported);
    }
}

#[test]
fn gnu_maps_that_lie_are_refused() {
    let wide = u64::MAX >> 1;
    for (name, size, pairs, stored) in [
        ("overlap", 8192, &[(0, 1024), (512, 512)][..], 1536),
        ("descending", 8192, &[(4096, 512), (0, 512)], 1024),
        ("past the end", 512, &[(0, 1024)], 1024),
        ("wrap", wide, &[(512, wide)], 512),
        ("sum too small", 8192, &[(0, 512)], 1024),
        ("sum too large", 8192, &[(0, 1024)], 512),
        ("unaligned", 8192, &[(0, 100), (512, 512)], 612),
        ("unaligned start", 8192, &[(0, 512), (1000, 512)], 1024),
        ("no end", 8192, &[(0, 512), (1024, 512), (2048, 512), (3072, 512), (512, 512)], 2560),
    ] {
        let archive = Archive::default().gnu_sparse("d", size, pairs, stored);
        let data = noise(usize::try_from(stored).unwrap());
        assert_eq!(kind(archive.data(&data).end()), ErrorKind::Corrupt, "{name}");
    }
}

#[test]
fn gnu_headers_that_disagree_with_themselves_are_refused() {
    let good = Archive::default().gnu_sparse("d", 8192, &[(0, 512), (8192, 0)], 512);
    assert!(run_bytes(good.clone().data(&noise(512)).end()).is_ok());
    for (name, at, value) in [
        ("an entry after the end of the map", 386 + 24 * 3 + 12, b'7'),
        ("a flag that is no flag", 482, 2),
        ("a flag that GNU tar reads as yes and others as no", 482, b'0'),
        ("more headers after the end of the map", 482, 1),
        ("a size that is no number", 483, b'x'),
        ("a negative offset", 386, 0xff),
    ] {
        let mut archive = good.clone();
        let mut block = [0; 512];
        block.copy_from_slice(&archive.0[..512]);
        block[at] = value;
        seal(&mut block);
        archive.0[..512].copy_from_slice(&block);
        assert_eq!(kind(archive.data(&noise(512)).end()), ErrorKind::Corrupt, "{name}");
    }
}

#[test]
fn pax_records_that_are_malformed_are_refused() {
    for (name, text) in [
        ("no length", "path=a\n"),
        ("length too short", "5 path=a\n"),
        ("length too long", "99 path=a\n"),
        ("no newline", "9 path=abc"),
        ("no key", "5 =a\n"),
        ("no equals sign", "7 patha\n"),
        ("trailing NUL", "10 path=a\n\0"),
        ("leading space", " 9 path=a\n"),
        ("NUL in a name", "10 path=\0a\n"),
        ("size is not a number", "10 size=a\n"),
        ("size is negative", "11 size=-1\n"),
        ("size is empty", "8 size=\n"),
        ("size over 2^63", "28 size=9223372036854775808\n"),
    ] {
        let text = match text.split_once(' ') {
            // Lengths are right unless that is the defect.
            Some((length, rest)) if !name.contains("length") && length.parse::<u8>().is_ok() => {
                format!("{} {rest}", rest.len() + 1 + (rest.len() + 2).to_string().len())
            }
            _ => text.to_owned(),
        };
        let archive = Archive::default().entry("x", b'x', text.as_bytes()).file("a", b"x").end();
        let error = refusal(archive);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
        assert!(error.message().contains("pax"), "{name}: {error}");
    }
}

#[test]
fn a_global_size_is_refused() {
    let records = record("size", "1");
    let archive = Archive::default().entry("g", b'g', records.as_bytes()).file("a", b"x").end();
    let error = refusal(archive);
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.message().contains("global"), "{error}");
}

#[test]
fn pax_maps_that_lie_are_refused() {
    let size = || ("GNU.sparse.size", "8192".to_owned());
    let map = |map: &str| ("GNU.sparse.map", map.to_owned());
    let one = |key, value: &str| (key, value.to_owned());
    for (name, records) in [
        ("no size", vec![map("0,512")]),
        ("no map", vec![size()]),
        ("odd map", vec![size(), map("0,512,1024")]),
        ("empty entry", vec![size(), map("0,,512")]),
        ("trailing comma", vec![size(), map("0,512,")]),
        ("overlap", vec![size(), map("0,512,256,0")]),
        ("past the end", vec![size(), map("8000,512")]),
        ("wrong count", vec![size(), one("GNU.sparse.numblocks", "2"), map("0,512")]),
        ("two maps", vec![size(), map("0,512"), map("0,512")]),
        (
            "mixed forms",
            vec![
                size(),
                map("0,512"),
                one("GNU.sparse.offset", "1024"),
                one("GNU.sparse.numbytes", "0"),
            ],
        ),
        ("offset alone", vec![size(), one("GNU.sparse.offset", "0")]),
        ("length alone", vec![size(), one("GNU.sparse.numbytes", "512")]),
    ] {
        let archive = Archive::default().pax(&records).file("a", &noise(512)).end();
        assert_eq!(kind(archive), ErrorKind::Corrupt, "{name}");
    }
    let sparse_10 = |map: &str| {
        let mut data = map.as_bytes().to_vec();
        data.resize(512, 0);
        data.extend(noise(512));
        Archive::default()
            .pax(&[
                one("GNU.sparse.major", "1"),
                one("GNU.sparse.minor", "0"),
                one("GNU.sparse.realsize", "8192"),
            ])
            .file("a", &data)
            .end()
    };
    assert!(run_bytes(sparse_10("1\n0\n512\n")).is_ok());
    for map in
        ["", "1\n", "x\n", "2\n0\n512\n", "1\n0\n1024\n", "1\n0\n512", "1\n8000\n512\n", "\n"]
    {
        assert_eq!(kind(sparse_10(map)), ErrorKind::Corrupt, "{map:?}");
    }
    assert_eq!(kind(sparse_10("1000000000000000000\n")), ErrorKind::Limit);
    let version = Archive::default()
        .pax(&[one("GNU.sparse.major", "2"), one("GNU.sparse.minor", "0")])
        .file("a", b"x")
        .end();
    assert_eq!(kind(version), ErrorKind::Unsupported);
}

#[test]
fn each_limit_has_a_kind_and_names_its_option() {
    let limits = Limits {
        max_window: 1 << 20,
        max_extents: 10,
        max_metadata: 2000,
        max_image_size: 1 << 20,
        max_members: 3,
        ..Limits::default()
    };
    let pairs: Vec<_> = (0..11).map(|index| (index * 1024, 512)).collect();
    let text: Vec<_> = pairs.iter().map(|(offset, length)| format!("{offset},{length}")).collect();
    let window = {
        let mut encoder = ::zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(22).unwrap();
        encoder.write_all(&noise(6 << 20)).unwrap();
        encoder.finish().unwrap()
    };
    let files = |count| {
        (0..count).fold(Archive::default(), |archive, index| archive.file(&format!("{index}"), b""))
    };
    for (option, source) in [
        ("max_window", window),
        ("max_extents", Archive::default().gnu_sparse("a", 1 << 20, &pairs, 512 * 11).end()),
        (
            "max_extents",
            Archive::default()
                .pax(&[("GNU.sparse.size", "99999".into()), ("GNU.sparse.map", text.join(","))])
                .file("a", &noise(512 * 11))
                .end(),
        ),
        (
            "max_metadata",
            Archive::default().pax(&[("comment", "x".repeat(3000))]).file("a", b"").end(),
        ),
        ("max_metadata", Archive::default().entry("L", b'L', &[b'x'; 3000]).file("a", b"").end()),
        ("max_metadata", {
            let mut archive = Archive::default();
            archive.0.extend(header(b"L", b'L', &number(1 << 60)));
            archive.0
        }),
        ("max_image_size", vec![1; (1 << 20) + 1]),
        ("max_image_size", zstd(&vec![1; (1 << 20) + 1])),
        ("max_image_size", Archive::default().gnu_sparse("a", 1 << 50, &[(1 << 50, 0)], 0).end()),
        ("max_members", files(4).end()),
    ] {
        let error = run(source_of(source).with_limits(limits)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{option}: {error}");
        let flag = match option {
            "max_window" => "--long",
            "max_extents" => "--max-extents",
            "max_metadata" => "--max-metadata",
            "max_image_size" => "--max-size",
            _ => "--max-members",
        };
        let hint = error.hint().unwrap();
        assert!(hint.contains(option) && hint.contains(flag), "{option}: {error}");
    }
    #[cfg(feature = "xz")]
    {
        let options = liblzma::stream::LzmaOptions::new_preset(6).unwrap();
        let mut filters = liblzma::stream::Filters::new();
        filters.lzma2(&options);
        let stream =
            liblzma::stream::Stream::new_stream_encoder(&filters, liblzma::stream::Check::Crc32)
                .unwrap();
        let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
        encoder.write_all(&noise(100)).unwrap();
        let error = run(source_of(encoder.finish().unwrap()).with_limits(limits)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    }
}

/// Pulls everything out of a source and drops it.
fn pull(source: Source) -> Result<u64> {
    use crate::source::extent::{Extent, ExtentSource};
    let mut opened = source.open(false, &crate::Control::new())?;
    let mut room = vec![0; 256 << 10];
    let mut read = 0;
    while let Some(extent) = opened.next_extent()? {
        let Extent::Data { length, .. } = extent else { continue };
        let mut left = length.unwrap_or(u64::MAX);
        while left > 0 {
            let wanted = usize::try_from(left).map_or(room.len(), |left| left.min(room.len()));
            let count = opened.read(&mut room[..wanted])?;
            (left, read) = (left - count as u64, read + count as u64);
            if count < wanted {
                break;
            }
        }
    }
    opened.finish().map(|_| read)
}

/// `mib` MiB of one byte, which zstd makes 30,000 times smaller, in one frame or in many.
fn monotone(byte: u8, mib: usize, framed: bool) -> Vec<u8> {
    let piece = vec![byte; 1 << 20];
    if framed {
        return zstd(&piece).repeat(mib);
    }
    let mut encoder = ::zstd::Encoder::new(Vec::new(), 1).unwrap();
    (0..mib).for_each(|_| encoder.write_all(&piece).unwrap());
    encoder.finish().unwrap()
}

#[test]
fn what_expands_too_far_is_refused_unless_it_turns_into_holes() {
    let raised = Limits { max_expansion: 40_000, ..Limits::default() };
    for framed in [false, true] {
        let bomb = monotone(7, 1300, framed);
        let error = pull(source_of(bomb.clone())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
        assert!(error.hint().unwrap().contains("max_expansion (--max-expansion)"), "{error}");
        assert!(error.offset().is_some_and(|at| at <= bomb.len() as u64), "{error}");
        assert_eq!(pull(source_of(bomb).with_limits(raised)).unwrap(), 1300 << 20);
        // Zeros of the disk, however many; and a little of anything.
        assert_eq!(pull(source_of(monotone(0, 1400, framed))).unwrap(), 1400 << 20);
        assert_eq!(pull(source_of(monotone(7, 1000, framed))).unwrap(), 1000 << 20);
    }
    // Nobody wants the member, and what is skipped takes no room, but time.
    let header = |name: &[u8], mib: u64| header(name, b'0', &number(mib << 20)).to_vec();
    for byte in [0, 7] {
        let archive = [
            zstd(&header(b"notes", 1300)),
            monotone(byte, 1300, false),
            zstd(&Archive::default().file("disk.img", &noise(700)).end()),
        ]
        .concat();
        let source = || source_of(archive.clone()).with_member("disk.img");
        let error = pull(source()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{byte}: {error}");
        assert_eq!(pull(source().with_limits(raised)).unwrap(), 700);
    }
    #[cfg(feature = "gzip")]
    {
        // gzip ends at 1,032 to one by itself, and stays below 1,000 here.
        let piece = vec![7; 1 << 20];
        let bomb = gzip(&piece).repeat(1300);
        let most = Limits { max_expansion: 10, ..Limits::default() };
        assert_eq!(
            pull(source_of(bomb.clone()).with_limits(most)).unwrap_err().kind(),
            ErrorKind::Limit
        );
        assert!(pull(source_of(bomb)).is_ok());
    }
}

#[test]
fn archives_that_can_be_read_in_two_ways_are_refused() {
    let file = |archive: Archive| archive.file("disk.img", b"x").end();
    for (name, source) in [
        ("two of the same name", file(Archive::default().file("./disk.img", b"y"))),
        ("two pax headers", file(Archive::default().pax(&[]).pax(&[]))),
        (
            "two long names",
            file(Archive::default().entry("L", b'L', b"a\0").entry("L", b'L', b"b\0")),
        ),
        (
            "a description of nothing",
            Archive::default().file("a", b"").pax(&[("path", "b".into())]).end(),
        ),
        (
            "a map for all files",
            file(Archive::default().entry("g", b'g', record("GNU.sparse.map", "0,1").as_bytes())),
        ),
    ] {
        assert_eq!(kind(source), ErrorKind::Corrupt, "{name}");
    }
}

#[test]
fn a_huge_skippable_frame_that_is_cut_ends_quickly() {
    let source = [&b"\x50\x2a\x4d\x18\xff\xff\xff\xff"[..], &[0; 5000]].concat();
    assert_eq!(kind(source), ErrorKind::Corrupt);
}

#[test]
fn a_refused_source_leaves_nothing_and_keeps_what_was_there() {
    use crate::sys::pending::Existing;
    let folder = tempfile::tempdir().unwrap();
    let destination = folder.path().join("disk");
    let source = || source_of(&small_archive()[..3000]);
    extract(source(), &destination, &ExtractOptions::default()).unwrap_err();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    std::fs::write(&destination, "old").unwrap();
    let replace = ExtractOptions { existing: Existing::Replace, ..Default::default() };
    extract(source(), &destination, &replace).unwrap_err();
    let refused = extract(source(), &destination, &ExtractOptions::default()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read_to_string(&destination).unwrap(), "old");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    extract(source_of(small_archive()), &destination, &replace).unwrap();
    assert_eq!(std::fs::metadata(&destination).unwrap().len(), 20_000);
}

#[test]
fn a_full_disk_is_told_with_numbers_before_anything_is_written() {
    let needed = 1_u64 << 60;
    let limits = Limits { max_image_size: u64::MAX, ..Default::default() };
    let archive = Archive::default().gnu_sparse("a", 1 << 61, &[(0, needed)], needed);
    let error = run(source_of(archive.data(&noise(512)).0).with_limits(limits)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert!(error.message().contains(&needed.to_string()), "{error}");
}

#[test]
fn a_cancel_stops_the_work() {
    use crate::control::{CancelToken, Control, Event};
    let cancel = CancelToken::new();
    let at_first = cancel.clone();
    let control = Control::new().with_cancel(cancel).with_observer(move |event| {
        assert!(matches!(event, Event::Progress { source_bytes: 1.., .. }));
        at_first.cancel();
    });
    let options = TransferOptions { control, ..Default::default() };
    let file = tempfile::tempfile().unwrap();
    // As good as endless: only the cancel ends it.
    let source = Source::reader(std::io::repeat(7), "repeat");
    let error = extract_into(source, &file, Path::new("x"), &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}

#[test]
fn a_failing_reader_and_a_failing_file_tell_their_own_errors() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::from_raw_os_error(5))
        }
    }
    let source = Source::reader(Cursor::new(zstd(&noise(9000))).chain(Failing), "r");
    let error = run(source).unwrap_err();
    assert_eq!(error.io_error().and_then(std::io::Error::raw_os_error), Some(5), "{error}");

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("f"), "").unwrap();
    let read_only = File::open(folder.path().join("f")).unwrap();
    let source = Source::reader(std::io::repeat(7), "repeat");
    let error =
        extract_into(source, &read_only, Path::new("f"), &TransferOptions::default()).unwrap_err();
    assert_eq!(error.path(), Some(Path::new("f")));
    assert_eq!(error.io_error().and_then(std::io::Error::raw_os_error), Some(9), "{error}");
}
