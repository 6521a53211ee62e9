//! Descriptors at every cluster size; payloads that are whole, long, short and nonsense; payloads
//! made here, of clusters that compress and clusters that do not.

use super::*;

#[test]
fn the_descriptor_is_split_where_the_cluster_size_says() {
    for bits in 9..=21 {
        let cluster_bits = ClusterBits::new(bits).unwrap();
        let shift = 62 - (bits - 8);
        let most = (1_u64 << (bits - 8)) - 1;
        for (additional, host) in [(0, 0), (most, (1 << shift) - 1), (1, 0x1_2345), (most, 512)] {
            let raw = 1 << 62 | additional << shift | host;
            let descriptor = CompressedDescriptor::decode(raw, cluster_bits);
            assert_eq!(descriptor.host().to_u64(), host);
            assert_eq!(u64::from(descriptor.sectors()), additional + 1);
            assert_eq!(descriptor.length(), (additional + 1) * 512 - host % 512);
            assert!(descriptor.length() <= 2 * cluster_bits.bytes());
            assert_eq!(descriptor.encode(cluster_bits), raw & !(1 << 62));
        }
    }
}

#[test]
fn a_descriptor_counts_every_sector_its_payload_touches() {
    for bits in 9..=21 {
        let cluster_bits = ClusterBits::new(bits).unwrap();
        let size = cluster_bits.bytes();
        let new = |host, length| CompressedDescriptor::new(HostOffset(host), length, cluster_bits);
        for host in [0, 1, 511, 512, 3 * size + 300, (1 << (70 - bits)) - 1] {
            for length in [1, 2, 511, 512, 513, size - 1, size] {
                let sectors = (host % 512 + length).div_ceil(512);
                let Some(descriptor) = new(host, length) else {
                    assert!(sectors > size / 256 && length >= size, "{bits} {host} {length}");
                    continue;
                };
                assert_eq!(u64::from(descriptor.sectors()), sectors);
                assert_eq!(descriptor.host().to_u64(), host);
                assert!(descriptor.length() >= length);
                assert!(descriptor.length() < length + 512);
                let raw = descriptor.encode(cluster_bits);
                assert_eq!(raw >> 62, 0);
                assert_eq!(CompressedDescriptor::decode(raw, cluster_bits), descriptor);
            }
        }
        assert_eq!(new(1 << (70 - bits), 1), None, "beyond what the offset's bits hold");
        assert_eq!(new(u64::MAX, 1), None);
        assert_eq!(new(size, 0), None);
        assert!(new(size + 511, size - 1).is_some());
        assert!(new(size, size / 256 * 512).is_some());
        assert_eq!(new(size, size / 256 * 512 + 1), None);
        assert_eq!(new(size, u64::MAX), None);
    }
}

/// A cluster whose content repeats, 32 KiB apart.
#[cfg(any(feature = "deflate", feature = "zstd"))]
fn content(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(32_000)
    .collect();
    noise.into_iter().cycle().take(length).collect()
}

#[cfg(any(feature = "deflate", feature = "zstd"))]
fn decode_as(compression: CompressionType, payload: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut cluster = vec![0xaa; 65_536];
    Decoder::default().decode(compression, payload, &mut cluster).unwrap().map(|()| cluster)
}

/// Bytes that no compression makes smaller.
#[cfg(any(feature = "deflate", feature = "zstd"))]
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0]
    })
    .take(length)
    .collect()
}

/// Clusters of every size and of several kinds go there and back, with one encoder for all.
#[cfg(any(feature = "deflate", feature = "zstd"))]
fn round_trips(compression: CompressionType) {
    let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
    let mut payload = Vec::new();
    for bits in (9..=21).chain([9, 16]) {
        let cluster_bits = ClusterBits::new(bits).unwrap();
        let size = 1_usize << bits;
        let mut half = noise(size);
        half[size / 2..].fill(0);
        let text = "one sector, two sectors, ".bytes().cycle().take(size).collect();
        for cluster in [vec![0; size], vec![0xff; size], text, half] {
            assert!(encoder.encode(compression, &cluster, &mut payload).unwrap());
            assert!(payload.len() < size);
            let mut alone = vec![7; 3];
            Encoder::default().encode(compression, &cluster, &mut alone).unwrap();
            assert!(payload == alone, "what was encoded before makes a difference");

            // In a file, on no boundary, with other things around it.
            let mut file = vec![0xa5; 777];
            file.extend(&payload);
            file.extend([0x5a; 700]);
            let host = HostOffset(777);
            let descriptor =
                CompressedDescriptor::new(host, payload.len() as u64, cluster_bits).unwrap();
            let mut back = vec![1; size];
            decoder
                .read(file.as_slice(), compression, descriptor, GuestOffset(0), &mut back)
                .unwrap();
            assert!(back == cluster);
        }
        // More than once: what did not fit is no burden to the encoder.
        for _ in 0..20 {
            let worse = encoder.encode(compression, &noise(size), &mut payload).unwrap();
            assert!(!worse, "noise of {size} bytes became smaller");
        }
    }
}

#[test]
fn a_compression_that_was_left_out_is_named() {
    for compression in [CompressionType::Zlib, CompressionType::Zstd] {
        let there = match compression {
            CompressionType::Zlib => cfg!(feature = "deflate"),
            CompressionType::Zstd => cfg!(feature = "zstd"),
        };
        match Encoder::default().encode(compression, &[0; 512], &mut Vec::new()) {
            Ok(smaller) => assert!(there && smaller),
            Err(error) => {
                assert!(!there && error.to_string().contains(compression.as_str()), "{error}");
            }
        }
    }
}

#[cfg(feature = "deflate")]
mod deflate {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::DeflateEncoder;

    use super::*;

    fn deflated(content: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn one_cluster_comes_out_or_an_error() {
        let cluster = content(65_536);
        // Larger distances than QEMU's own window allows.
        let payload = deflated(&cluster);
        assert!(payload.len() < 40_000, "the window was used");
        let good = Ok(cluster.clone());
        assert_eq!(decode_as(CompressionType::Zlib, &payload), good);
        assert_eq!(decode_as(CompressionType::Zlib, &[&payload[..], &[0xff; 511]].concat()), good);
        // A bomb costs one cluster.
        assert_eq!(decode_as(CompressionType::Zlib, &deflated(&content(32 << 20))), good);
        let short = decode_as(CompressionType::Zlib, &deflated(&cluster[..65_535]));
        assert_eq!(short, Err("it ends early"));
        assert_eq!(decode_as(CompressionType::Zlib, &payload[..20_000]), Err("it ends early"));
        assert_eq!(decode_as(CompressionType::Zlib, &[]), Err("it ends early"));
        let garbage = decode_as(CompressionType::Zlib, &[0xff; 512]);
        assert_eq!(garbage, Err("it is not a deflate stream"));
    }

    #[test]
    fn a_decoder_forgets_what_it_decoded_before() {
        let mut decoder = Decoder::default();
        let mut cluster = vec![0; 65_536];
        let payload = deflated(&content(65_536));
        for payload in [&payload[..], &[0xff; 100], &payload[..]] {
            let result = decoder.decode(CompressionType::Zlib, payload, &mut cluster).unwrap();
            assert_eq!(result.is_ok(), payload.len() != 100);
        }
        assert_eq!(cluster, content(65_536));
    }

    #[test]
    fn clusters_go_there_and_back() {
        round_trips(CompressionType::Zlib);
    }

    /// Small clusters cannot tell; here, what repeats repeats within the window or just beyond it.
    #[test]
    fn what_is_made_looks_back_4_kib_at_most() {
        let cycle =
            |period: usize| -> Vec<u8> { noise(period).into_iter().cycle().take(65_536).collect() };
        let (mut encoder, mut payload) = (Encoder::default(), Vec::new());
        assert!(encoder.encode(CompressionType::Zlib, &cycle(3800), &mut payload).unwrap());
        assert!(payload.len() < 8000, "the window is used");
        let beyond = cycle(4100);
        assert!(!encoder.encode(CompressionType::Zlib, &beyond, &mut payload).unwrap());
        assert!(deflated(&beyond).len() < 8000, "a larger window would have been found out");
    }
}

#[cfg(feature = "zstd")]
mod zstd {
    use super::*;

    fn compressed(content: &[u8]) -> Vec<u8> {
        ::zstd::bulk::compress(content, 3).unwrap()
    }

    #[test]
    fn one_cluster_comes_out_or_an_error() {
        let cluster = content(65_536);
        let good = Ok(cluster.clone());
        let payload = compressed(&cluster);
        let decode = |payload: &[u8]| decode_as(CompressionType::Zstd, payload);
        assert_eq!(decode(&payload), good);
        assert_eq!(decode(&[&payload[..], &[0xff; 511]].concat()), good);
        // Without a content size, as a stream has it.
        let streamed = ::zstd::stream::encode_all(&cluster[..], 3).unwrap();
        assert_eq!(decode(&streamed), good);
        let halves = [compressed(&cluster[..30_000]), compressed(&cluster[30_000..])].concat();
        assert_eq!(decode(&halves), good);

        let long = Err("a frame is damaged or longer than the cluster");
        assert_eq!(decode(&compressed(&content(65_537))), long);
        assert_eq!(decode(&compressed(&vec![0; 1 << 30])), long);
        let incomplete = Err("it is not a complete zstd frame");
        assert_eq!(decode(&compressed(&cluster[..65_535])), incomplete);
        assert_eq!(decode(&payload[..payload.len() - 1]), incomplete);
        assert_eq!(decode(&[]), incomplete);
        assert_eq!(decode(&[0xff; 512]), incomplete);
    }

    #[test]
    fn a_window_is_what_qemu_accepts() {
        let mut payload = ::zstd::stream::encode_all(&content(65_536)[..], 3).unwrap();
        let decode = |payload: &[u8]| decode_as(CompressionType::Zstd, payload);
        payload[5] = 17 << 3;
        assert_eq!(decode(&payload), Ok(content(65_536)), "128 MiB");
        payload[5] = 17 << 3 | 1;
        assert_eq!(decode(&payload), Err("its window is over 128 MiB"));
    }
    #[test]
    fn clusters_go_there_and_back() {
        round_trips(CompressionType::Zstd);
    }

    #[test]
    fn what_is_made_is_one_frame_that_states_its_size() {
        let (mut encoder, mut payload) = (Encoder::default(), Vec::new());
        for bits in 9..=21 {
            let cluster = vec![b'x'; 1 << bits];
            assert!(encoder.encode(CompressionType::Zstd, &cluster, &mut payload).unwrap());
            let frame = ::zstd::zstd_safe::find_frame_compressed_size(&payload).unwrap();
            assert_eq!(frame, payload.len());
            let size = ::zstd::zstd_safe::get_frame_content_size(&payload).unwrap();
            assert_eq!(size, Some(1 << bits));
        }
    }
}
