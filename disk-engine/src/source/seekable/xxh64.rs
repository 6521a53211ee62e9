//! XXH64 with seed 0, as zstd sums content: the low 32 bits of it end a frame or stand in a seek table.
//!
//! ```text
//! 32 bytes ─▶ four sums of 8 bytes each ─▶ … ─▶ one ─▶ what is left ─▶ avalanche
//! ```
//!
//! libzstd sums a frame's own checksum itself; this is for frames that have theirs in the table only.
//! Caller: `seekable::frames`.

use crate::source::decompress::zstd::header::little;

const P1: u64 = 0x9e37_79b1_85eb_ca87;
const P2: u64 = 0xc2b2_ae3d_27d4_eb4f;
const P3: u64 = 0x1656_67b1_9e37_79f9;
const P4: u64 = 0x85eb_ca77_c2b2_ae63;
const P5: u64 = 0x27d4_eb2f_1656_67c5;

/// The sum of `bytes`.
pub(crate) fn xxh64(bytes: &[u8]) -> u64 {
    let mut stripes = bytes.chunks_exact(32);
    let mut sum = if bytes.len() < 32 {
        P5
    } else {
        let mut lanes = [P1.wrapping_add(P2), P2, 0, 0_u64.wrapping_sub(P1)];
        for stripe in &mut stripes {
            for (lane, word) in lanes.iter_mut().zip(stripe.chunks_exact(8)) {
                *lane = round(*lane, little(word));
            }
        }
        let turned = lanes.iter().zip([1, 7, 12, 18]);
        let joined =
            turned.fold(0_u64, |sum, (lane, turn)| sum.wrapping_add(lane.rotate_left(turn)));
        lanes
            .iter()
            .fold(joined, |sum, lane| (sum ^ round(0, *lane)).wrapping_mul(P1).wrapping_add(P4))
    };
    sum = sum.wrapping_add(bytes.len() as u64);
    let mut words = stripes.remainder().chunks_exact(8);
    for word in &mut words {
        sum = (sum ^ round(0, little(word))).rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
    }
    let mut halves = words.remainder().chunks_exact(4);
    for half in &mut halves {
        sum = (sum ^ little(half).wrapping_mul(P1)).rotate_left(23);
        sum = sum.wrapping_mul(P2).wrapping_add(P3);
    }
    for byte in halves.remainder() {
        sum = (sum ^ u64::from(*byte).wrapping_mul(P5)).rotate_left(11).wrapping_mul(P1);
    }
    sum = (sum ^ sum >> 33).wrapping_mul(P2);
    sum = (sum ^ sum >> 29).wrapping_mul(P3);
    sum ^ sum >> 32
}

fn round(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_libzstd() {
        let bytes: Vec<u8> = (0..5000_u32).map(|at| (at * at % 251) as u8).collect();
        for length in (0..200).chain([1000, 4096, 5000]) {
            let mut encoder = ::zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.include_checksum(true).unwrap();
            std::io::Write::write_all(&mut encoder, &bytes[..length]).unwrap();
            let frame = encoder.finish().unwrap();
            let sum = little(frame.last_chunk::<4>().unwrap());
            assert_eq!(xxh64(&bytes[..length]) & 0xffff_ffff, sum, "{length}");
        }
        assert_eq!(xxh64(b""), 0xef46_db37_51d8_e999);
    }
}
