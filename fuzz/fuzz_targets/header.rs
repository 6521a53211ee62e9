//! Any bytes as the start of an image.
//!
//! The first 8 bytes are the file's length, so that lengths far beyond the input are tried as well;
//! the rest is the file.
//!
//! Invariants:
//!
//! 1. Parsing never panics, whatever the bytes and the length.
//! 2. Reading through storage says the same as parsing, when the length is the true one.
//! 3. A header that parses can be encoded, or does not fit its cluster, which happens only to a
//!    header whose end marker or padding the cluster's end had cut off.
//! 4. What was encoded parses to an equal header, and encodes to the same bytes.
//! 5. Naming another backing file keeps everything else, unknown extensions included.
//! 6. Memory stays within a few times the input (the run's `-malloc_limit_mb` watches that).

#![no_main]

use libfuzzer_sys::fuzz_target;
use qcow2_format::create::{BackingFile, BackingFormat};
use qcow2_format::error::OptionsError;
use qcow2_format::feature::AutoclearFeatures;
use qcow2_format::header::extension::HeaderExtension;
use qcow2_format::{Error, Header};

fuzz_target!(|input: &[u8]| {
    let Some((length, file)) = input.split_first_chunk() else { return };
    let length = u64::from_be_bytes(*length);
    // Most lengths are nonsense for most inputs: the true one is tried too.
    for length in [length, file.len() as u64, u64::MAX] {
        if let Ok(header) = Header::parse(file, length) {
            check(&header, length);
        }
    }
    let parsed = Header::parse(file, file.len() as u64).map_err(|error| error.to_string());
    let read = Header::read(file).map_err(|error| error.to_string());
    assert_eq!(parsed, read);
});

fn check(header: &Header, length: u64) {
    let bytes = match header.encode() {
        Ok(bytes) => bytes,
        Err(Error::Options(OptionsError::HeaderTooLarge { needed, cluster_size })) => {
            assert!(needed > cluster_size);
            return;
        }
        Err(error) => panic!("{error}: {header:?}"),
    };
    assert!(bytes.len() as u64 <= header.geometry().cluster_bits.bytes());
    let again = Header::parse(&bytes, length).expect("what was encoded parses");
    assert_eq!(*header, again);
    assert_eq!(again.encode().expect("what was encoded encodes"), bytes);

    let mut rebased = header.clone();
    match rebased.set_backing_file(&BackingFile::new("/base.img", BackingFormat::Qcow2)) {
        Ok(()) => {
            assert_eq!(rebased.backing_file(), Some(&b"/base.img"[..]));
            assert_eq!(rebased.backing_format(), Some(&b"qcow2"[..]));
            assert!(unrelated(&rebased).eq(unrelated(header)));
            let bytes = rebased.encode().expect("a rebased header encodes");
            let again = Header::parse(&bytes, length).expect("a rebased header parses");
            assert_eq!(rebased, again);
        }
        Err(Error::Options(OptionsError::HeaderTooLarge { .. })) => assert_eq!(rebased, *header),
        Err(Error::Options(OptionsError::BackingWithRawExternalData)) => {
            assert!(header.autoclear_features().contains(AutoclearFeatures::RAW_EXTERNAL_DATA));
        }
        Err(error) => panic!("{error}: {header:?}"),
    }
}

/// The extensions that have nothing to do with the backing file.
fn unrelated(header: &Header) -> impl Iterator<Item = &HeaderExtension> {
    header.extensions().iter().filter(|e| !matches!(e, HeaderExtension::BackingFormat(_)))
}
