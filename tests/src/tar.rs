//! Headers of tar archives, byte by byte, for what no tool would write: maps of any length, any claim.

/// How a header tells which parts of a file are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// GNU tar's own headers.
    OldGnu,
    /// PAX records, two for each range.
    Pax00,
    /// One PAX record.
    Pax01,
    /// Before the data.
    Pax10,
}

impl Form {
    pub const ALL: [Self; 4] = [Self::OldGnu, Self::Pax00, Self::Pax01, Self::Pax10];
}

/// A POSIX header with a right checksum.
///
/// # Panics
///
/// The name has more than 100 bytes.
#[must_use]
pub fn header(name: &str, typeflag: u8, size: u64) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    block[124..136].copy_from_slice(&number(size));
    block[156] = typeflag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

/// A pax header and its records.
#[must_use]
pub fn pax(records: &[(&str, String)]) -> Vec<u8> {
    let text: String = records.iter().map(|(key, value)| record(key, value)).collect();
    let mut bytes = header("pax", b'x', text.len() as u64);
    bytes.extend(text.into_bytes());
    padded(bytes)
}

/// All that stands before the data of a sparse file: `map` has offsets and lengths that add up to
/// `stored`.
#[must_use]
pub fn sparse(form: Form, name: &str, size: u64, map: &[(u64, u64)], stored: u64) -> Vec<u8> {
    sparse_with(form, name, size, map, stored, &[])
}

/// As [`sparse`], with `more` records in a PAX form.
#[must_use]
pub fn sparse_with(
    form: Form,
    name: &str,
    size: u64,
    map: &[(u64, u64)],
    stored: u64,
    more: &[(&str, String)],
) -> Vec<u8> {
    let total = ("GNU.sparse.size", size.to_string());
    let count = ("GNU.sparse.numblocks", map.len().to_string());
    let mut records = more.to_vec();
    match form {
        Form::OldGnu => return old_gnu(name, size, map, stored),
        Form::Pax00 => {
            records.extend([total, count]);
            for (offset, length) in map {
                records.push(("GNU.sparse.offset", offset.to_string()));
                records.push(("GNU.sparse.numbytes", length.to_string()));
            }
        }
        Form::Pax01 => {
            let map: Vec<_> =
                map.iter().map(|(offset, length)| format!("{offset},{length}")).collect();
            let name = ("GNU.sparse.name", name.to_owned());
            records.extend([total, count, name, ("GNU.sparse.map", map.join(","))]);
        }
        Form::Pax10 => {
            let mut text = format!("{}\n", map.len());
            map.iter().for_each(|(offset, length)| text += &format!("{offset}\n{length}\n"));
            let text = padded(text.into_bytes());
            records.extend([
                ("GNU.sparse.major", "1".to_owned()),
                ("GNU.sparse.minor", "0".to_owned()),
                ("GNU.sparse.name", name.to_owned()),
                ("GNU.sparse.realsize", size.to_string()),
                ("size", (text.len() as u64 + stored).to_string()),
            ]);
            return [pax(&records), header(name, b'0', 0), text].concat();
        }
    }
    [pax(&records), header(name, b'0', stored)].concat()
}

/// The zeros that fill up a block after so many bytes.
#[must_use]
pub fn zeros(after: u64) -> Vec<u8> {
    vec![0; usize::try_from(after.next_multiple_of(512) - after).expect("below 512")]
}

fn old_gnu(name: &str, size: u64, map: &[(u64, u64)], stored: u64) -> Vec<u8> {
    let (inline, more) = map.split_at(map.len().min(4));
    let mut block = header(name, b'S', stored);
    block[257..265].copy_from_slice(b"ustar  \0");
    put_pairs(&mut block[386..482], inline);
    block[482] = u8::from(!more.is_empty());
    block[483..495].copy_from_slice(&number(size));
    seal(&mut block);
    let mut chunks = more.chunks(21).peekable();
    while let Some(chunk) = chunks.next() {
        let mut extension = [0; 512];
        put_pairs(&mut extension[..504], chunk);
        extension[504] = u8::from(chunks.peek().is_some());
        block.extend(extension);
    }
    block
}

fn put_pairs(place: &mut [u8], pairs: &[(u64, u64)]) {
    for (place, (offset, length)) in place.chunks_exact_mut(24).zip(pairs) {
        place[..12].copy_from_slice(&number(*offset));
        place[12..].copy_from_slice(&number(*length));
    }
}

/// A number as GNU tar writes it: octal, base-256 where that is too small.
fn number(value: u64) -> [u8; 12] {
    let mut field = [0; 12];
    if value < 1 << 33 {
        field[..11].copy_from_slice(format!("{value:011o}").as_bytes());
    } else {
        field[0] = 0x80;
        field[4..].copy_from_slice(&value.to_be_bytes());
    }
    field
}

fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    format!("{length} {key}={value}\n")
}

fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block[..512].iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}
