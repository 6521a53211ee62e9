//! Any bytes as what lies in a cache: a base's manifest, a remembered digest, a lock file's text, a
//! base's record of overlays, and what a caller writes for a key.
//!
//! ```text
//! byte 0    0 a manifest as it is · 1 a manifest's body, its frame put around it
//!           2 a remembered digest as it is · 3 its body, framed · 4 a lock's text · 5 a key
//!           6 a record of overlays
//! ```
//!
//! Invariants:
//!
//! 1. No panic; what does not parse is corrupt, and nothing else.
//! 2. A manifest that parsed encodes to bytes that parse to the same manifest and encode to the same
//!    bytes. Labels and names longer than 4096 bytes are cut once.
//! 3. A damaged byte anywhere makes a manifest corrupt.
//! 4. A digest is remembered only for exactly the facts in the record.
//! 5. A holder read from a text is read from its own four lines again.
//! 6. A record of overlays, put together anew from its notes, has no damage and the same notes.
//! 7. A digest that parses is printed as it was given, but for upper case.

#![no_main]

use disk_engine::fuzzing::{self, Record};
use disk_engine::{ErrorKind, KeyPolicy, Sha256Digest};
use libfuzzer_sys::fuzz_target;
use qcow2_fuzz::Bytes;

/// Bytes of the facts in a remembered digest.
const FACTS: usize = 56;

fuzz_target!(|input: &[u8]| {
    let mut input = Bytes(input);
    let mode = input.byte();
    let bytes = input.rest();
    match mode % 7 {
        0 => manifest(bytes),
        1 => manifest(&fuzzing::sealed(Record::Manifest, bytes)),
        2 => memo(bytes),
        3 => memo(&fuzzing::sealed(Record::Memo, bytes)),
        4 => holder(&String::from_utf8_lossy(bytes)),
        5 => key(&String::from_utf8_lossy(bytes)),
        _ => uses(bytes),
    }
});

fn manifest(bytes: &[u8]) {
    let (encoded, shown) = match fuzzing::manifest(bytes) {
        Ok(parsed) => parsed,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            return;
        }
    };
    let (again, shown_again) = fuzzing::manifest(&encoded).expect("what was encoded parses");
    assert_eq!(again, encoded);
    // A text without quotes at its ends is longer than it: none is cut where the record is short.
    if bytes.len() <= 4096 {
        assert_eq!(shown, shown_again);
    }
    let at = bytes.iter().fold(0, |sum: usize, byte| sum + usize::from(*byte)) % encoded.len();
    let mut damaged = encoded;
    damaged[at] ^= 0x10;
    let error = fuzzing::manifest(&damaged).expect_err("one byte is damaged");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

fn memo(bytes: &[u8]) {
    let facts = bytes.get(16..16 + FACTS).unwrap_or_default();
    if let Some(digest) = fuzzing::memo(bytes, facts)
        && facts.len() == FACTS
    {
        assert_eq!(bytes.len(), 16 + FACTS + digest.len());
        assert_eq!(bytes[16 + FACTS..], digest);
        let mut others = facts.to_vec();
        others[usize::from(digest[0]) % FACTS] ^= 1;
        assert_eq!(fuzzing::memo(bytes, &others), None);
    }
}

fn holder(text: &str) {
    if let Some(holder) = fuzzing::holder(text) {
        let text = format!(
            "pid {}\nhost {}\nsince {}\npurpose {}\n",
            holder.pid, holder.host, holder.since, holder.purpose
        );
        assert_eq!(fuzzing::holder(&text), Some(holder));
    }
}

fn uses(bytes: &[u8]) {
    let (encoded, damaged) = fuzzing::uses(bytes);
    assert_eq!(fuzzing::uses(&encoded), (encoded.clone(), false));
    assert!(encoded.len() <= bytes.len());
    assert!(damaged || bytes.is_empty() || !encoded.is_empty());
}

fn key(text: &str) {
    match text.parse::<KeyPolicy>() {
        Ok(KeyPolicy::Content) => assert_eq!(text, "content"),
        Ok(KeyPolicy::Stated(digest)) => {
            assert_eq!(format!("sha256:{digest}"), text.to_ascii_lowercase());
        }
        Ok(KeyPolicy::Named(name)) => assert_eq!(format!("name:{name}"), text),
        Ok(other) => panic!("{other:?}"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidInput),
    }
    if let Ok(digest) = text.parse::<Sha256Digest>() {
        assert_eq!(digest.to_string(), text.to_ascii_lowercase());
    }
}
