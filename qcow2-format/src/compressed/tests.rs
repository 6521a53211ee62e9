//! Descriptors at every cluster size, and payloads that are whole, long, short and nonsense.

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
        }
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
}
