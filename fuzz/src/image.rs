//! Images put together by hand, with what an input chose in them.

use qcow2_format::address::HostOffset;
use qcow2_format::compressed::CompressedDescriptor;
use qcow2_format::geometry::ClusterBits;
use qcow2_format::header::CompressionType;
use qcow2_format::{CreateOptions, Header, Memory};

/// An image of two clusters, both of which are the same compressed one. `payload` starts `skip`
/// bytes into a sector; other bytes lie around it. Its descriptor counts it to the end, as far as a
/// descriptor can count.
///
/// # Panics
///
/// No image can be made.
#[must_use]
pub fn compressed(
    cluster_bits: ClusterBits,
    compression: CompressionType,
    payload: &[u8],
    skip: usize,
) -> Vec<u8> {
    let storage = Memory::default();
    CreateOptions::new(2 * cluster_bits.bytes())
        .cluster_bits(cluster_bits)
        .compression_type(compression)
        .plan()
        .and_then(|plan| plan.write_to(&storage))
        .expect("an image");
    let header = Header::read(&storage).expect("its header");
    let mut file = storage.into_bytes();
    let size = usize::try_from(cluster_bits.bytes()).expect("at most 2 MiB");
    let l2 = file.len().next_multiple_of(size);
    file.resize(l2 + size, 0);
    let l1 = usize::try_from(header.l1_table_offset().to_u64()).expect("within the file");
    put(&mut file, l1, 1 << 63 | l2 as u64);
    file.resize(file.len() + skip, 0x5a);
    let host = HostOffset(file.len() as u64);
    file.extend(payload);
    file.extend([0xa5; 1024]);
    let most = (cluster_bits.bytes() * 2 - host.to_u64() % 512).min(payload.len().max(1) as u64);
    let descriptor = CompressedDescriptor::new(host, most, cluster_bits).expect("few sectors");
    let entry = 1 << 62 | descriptor.encode(cluster_bits);
    put(&mut file, l2, entry);
    put(&mut file, l2 + 8, entry);
    file
}

fn put(file: &mut [u8], at: usize, entry: u64) {
    file[at..at + 8].copy_from_slice(&entry.to_be_bytes());
}
