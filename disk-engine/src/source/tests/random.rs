//! Bytes nobody made on purpose: no panic, and no file unless all was well.

use proptest::prelude::*;

use super::*;
use crate::ops::{ExtractOptions, extract};
use crate::source::tar::build::{Archive, seal};
use crate::source::{Limits, SparseForm};

fn never_panics(bytes: Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { max_image_size: 8 << 20, ..Default::default() };
    let source = source_of(bytes).with_limits(limits);
    let outcome = extract(source, &folder.path().join("disk"), &ExtractOptions::default());
    let files = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files, usize::from(outcome.is_ok()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_bytes_never_panic(magic in 0_usize..5, tail in prop::collection::vec(any::<u8>(), 0..2000)) {
        let magics: [&[u8]; 5] = [b"", b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08\x00", b"\xfd7zXZ\0", b"\x50\x2a\x4d\x18"];
        never_panics([magics[magic], &tail].concat());
    }

    #[test]
    fn mutated_archives_never_panic(
        form in 0_usize..4,
        compression in 0_usize..4,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        inside: bool,
        reseal: bool,
    ) {
        let mut disk = vec![0; 40_000];
        let ranges: Vec<_> = (0..9).map(|index| index * 4096..index * 4096 + 512).collect();
        ranges.iter().for_each(|range| disk[range.clone()].fill(7));
        let forms = [SparseForm::OldGnu, SparseForm::Pax00, SparseForm::Pax01, SparseForm::Pax10];
        let mut archive = Archive::default().sparse(forms[form], "disk.img", &disk, &ranges).end();
        let compressions = compressions();
        let compress = compressions[compression % compressions.len()].1;
        let mutate = |bytes: &mut Vec<u8>| {
            for (index, byte) in &changes {
                let at = index.index(bytes.len());
                bytes[at] = *byte;
            }
        };
        if inside {
            // Keep to the first headers: that is where the meaning is.
            let mut start = archive[..2048].to_vec();
            mutate(&mut start);
            archive[..2048].copy_from_slice(&start);
            if reseal {
                for at in [0, 512, 1024] {
                    let mut block = [0; 512];
                    block.copy_from_slice(&archive[at..at + 512]);
                    if &block[257..262] == b"ustar" {
                        seal(&mut block);
                        archive[at..at + 512].copy_from_slice(&block);
                    }
                }
            }
        }
        let mut source = compress(&archive);
        if !inside {
            mutate(&mut source);
        }
        never_panics(source);
    }
}
