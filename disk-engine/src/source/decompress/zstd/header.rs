//! What stands at the head of a zstd frame and of its blocks (RFC 8878, 3.1.1), without decoding.
//!
//! ```text
//! frame   28 b5 2f fd │ descriptor 1 │ window 0-1 │ dictionary 0-4 │ content size 0-8
//!                       └ content size's width 2 bits, single segment, –, reserved, checksum, dictionary's 2
//! block   3 bytes: size 21 bits, type 2 bits, last 1 bit         raw 0, RLE 1, compressed 2
//! skip    5x 2a 4d 18 │ length 4
//! ```
//!
//! All numbers are little-endian. Nothing here is believed: it says where a frame would end and how
//! much it would hold at the most, and libzstd then has its own look. Callers: `zstd::frames`,
//! `zstd::stream`, `source::seekable`.

/// No block decodes to more.
const BLOCK_MAX: u64 = 128 << 10;

/// What a stretch of bytes begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// A frame.
    Frame(FrameHeader),
    /// A skippable frame, whose 8 bytes of header are followed by so many more.
    Skippable(u64),
    /// That takes so many bytes to tell.
    Short(usize),
    /// Something else, or a frame from a future that RFC 8878 reserves.
    Other,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    /// Bytes of the header.
    pub(crate) length: usize,
    /// Bytes a decoder has to remember.
    pub(crate) window: u64,
    /// Bytes the frame says it decodes to, if it does.
    pub(crate) content: Option<u64>,
    /// Whether a checksum of the content ends the frame.
    pub(crate) checksum: bool,
    /// Whether it takes a dictionary to decode it.
    pub(crate) dictionary: bool,
}

/// A block's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockHeader {
    /// Whether it is the frame's last block.
    pub(crate) last: bool,
    /// Bytes that follow the header.
    pub(crate) stored: usize,
    /// Bytes it decodes to at the most.
    pub(crate) room: u64,
}

/// Bytes of a block's header.
pub(crate) const BLOCK_HEADER: usize = 3;
/// Bytes of a frame's checksum.
pub(crate) const CHECKSUM: usize = 4;

/// What `bytes` begin with.
pub(crate) fn parse(bytes: &[u8]) -> Start {
    let Some((magic, rest)) = bytes.split_first_chunk::<4>() else { return Start::Short(4) };
    match magic {
        [0x28, 0xb5, 0x2f, 0xfd] => frame(bytes.len(), rest),
        [low, 0x2a, 0x4d, 0x18] if low & 0xf0 == 0x50 => match rest.first_chunk::<4>() {
            Some(length) => Start::Skippable(little(length)),
            None => Start::Short(8),
        },
        _ => Start::Other,
    }
}

fn frame(at_hand: usize, rest: &[u8]) -> Start {
    let Some((&descriptor, rest)) = rest.split_first() else { return Start::Short(5) };
    let single_segment = descriptor & 0x20 != 0;
    if descriptor & 0x08 != 0 {
        return Start::Other;
    }
    let window_width = usize::from(!single_segment);
    let dictionary_width = [0, 1, 2, 4].get(usize::from(descriptor & 3)).copied().unwrap_or(0);
    let content_width = match descriptor >> 6 {
        0 => usize::from(single_segment),
        log => 1 << log,
    };
    let length = 5 + window_width + dictionary_width + content_width;
    if at_hand < length {
        return Start::Short(length);
    }
    let (window, rest) = rest.split_at(window_width.min(rest.len()));
    let (dictionary, rest) = rest.split_at(dictionary_width.min(rest.len()));
    let content = match little(rest.split_at(content_width.min(rest.len())).0) {
        _ if content_width == 0 => None,
        // Two bytes count from 256 on: one byte holds what is below.
        content if content_width == 2 => Some(content + 256),
        content => Some(content),
    };
    let window = match (window, content) {
        ([window], _) => {
            let base = 1_u64 << (10 + (window >> 3));
            base + base / 8 * u64::from(window & 7)
        }
        (_, content) => content.unwrap_or(0),
    };
    let checksum = descriptor & 0x04 != 0;
    let dictionary = little(dictionary) != 0;
    Start::Frame(FrameHeader { length, window, content, checksum, dictionary })
}

impl FrameHeader {
    /// The block of this frame that `bytes` begin with; `None` for one that no frame may have.
    pub(crate) fn block(&self, bytes: [u8; BLOCK_HEADER]) -> Option<BlockHeader> {
        let header = little(&bytes);
        let size = header >> 3;
        let most = self.window.min(BLOCK_MAX);
        let (stored, room) = match header >> 1 & 3 {
            0 => (size, size),
            1 => (1, size),
            2 => (size, most),
            _ => return None,
        };
        let stored = usize::try_from(stored).ok().filter(|_| size <= BLOCK_MAX && room <= most)?;
        Some(BlockHeader { last: header & 1 != 0, stored, room })
    }
}

/// A little-endian number of up to 8 bytes.
pub(crate) fn little(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of libzstd's, with every width of every field that it writes.
    #[test]
    fn headers_say_what_libzstd_wrote() {
        for (size, checksum, pledged) in [
            (0, false, true),
            (200, true, true),
            (255, false, true),
            (256, true, true),
            (65_791, true, true),
            (65_792, false, true),
            (3 << 20, true, true),
            (700, true, false),
            (3 << 20, false, false),
        ] {
            let mut encoder = ::zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.include_checksum(checksum).unwrap();
            if pledged {
                encoder.set_pledged_src_size(Some(size)).unwrap();
            }
            let content = vec![7; usize::try_from(size).unwrap()];
            std::io::Write::write_all(&mut encoder, &content).unwrap();
            let bytes = encoder.finish().unwrap();
            let Start::Frame(header) = parse(&bytes) else { panic!("{size}") };
            assert_eq!((header.checksum, header.dictionary), (checksum, false));
            assert_eq!(header.content, pledged.then_some(size));
            // The blocks lead to the end.
            let (mut at, mut room) = (header.length, 0);
            loop {
                let block = header.block(*bytes[at..].first_chunk().unwrap()).unwrap();
                at += BLOCK_HEADER + block.stored;
                room += block.room;
                if block.last {
                    break;
                }
            }
            assert_eq!(at + if checksum { CHECKSUM } else { 0 }, bytes.len());
            assert!(room >= size && header.window.max(BLOCK_MAX) >= size.min(BLOCK_MAX));
            for length in 0..header.length {
                assert!(matches!(parse(&bytes[..length]), Start::Short(more) if more > length));
            }
        }
    }

    #[test]
    fn windows_and_skippable_frames_are_the_specifications() {
        let window = |byte| match parse(&[0x28, 0xb5, 0x2f, 0xfd, 0, byte]) {
            Start::Frame(header) => header.window,
            other => panic!("{other:?}"),
        };
        assert_eq!(window(0), 1 << 10);
        assert_eq!(window(17 << 3), 128 << 20);
        assert_eq!(window(17 << 3 | 7), (128 << 20) / 8 * 15);
        assert_eq!(window(0xff), (1 << 41) / 8 * 15);
        assert_eq!(parse(&[0x5f, 0x2a, 0x4d, 0x18, 1, 2, 0, 0]), Start::Skippable(0x201));
        assert_eq!(parse(&[0x60, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]), Start::Other);
        assert_eq!(parse(&[0x28, 0xb5, 0x2f, 0xfd, 8, 0]), Start::Other);
    }

    #[test]
    fn blocks_that_no_frame_may_have_are_none() {
        let Start::Frame(header) = parse(&[0x28, 0xb5, 0x2f, 0xfd, 0, 7 << 3]) else { panic!() };
        let block = |number: u32| {
            header
                .block([number, number >> 8, number >> 16].map(|n| u8::try_from(n & 0xff).unwrap()))
        };
        let size = |size: u32, kind: u32| block(size << 3 | kind << 1);
        let most = 128 << 10;
        assert_eq!(
            size(most, 0),
            Some(BlockHeader { last: false, stored: most as usize, room: most.into() })
        );
        assert_eq!(size(most, 1), Some(BlockHeader { last: false, stored: 1, room: most.into() }));
        for (size_, kind) in [(most + 1, 0), (most + 1, 1), (most + 1, 2), (0, 3)] {
            assert_eq!(size(size_, kind), None);
        }
    }
}
