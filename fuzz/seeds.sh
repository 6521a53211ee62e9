#!/bin/bash
# Makes the seeds of all targets again. For header: of each valid image in testdata/images its length,
# as the target expects it, and its header.
set -euo pipefail
cd "$(dirname "$0")"
rm -f corpus/header/*
for image in ../testdata/images/*.qcow2; do
    name=$(basename "$image" .qcow2)
    case $name in
    bad-*) continue ;;
    backing-name-1023) header=1160 ;;
    extended-l2 | feature-names) header=520 ;;
    *) header=512 ;;
    esac
    length=$(printf '%016x' "$(stat -c %s "$image")")
    {
        printf "$(sed 's/../\\x&/g' <<<"$length")"
        head -c "$header" "$image"
    } >"corpus/header/$name"
done

# For image: valid ones as they are, the first byte of the input before them. Of two that differ in
# their header alone one is enough, and large ones would slow the target down.
mkdir -p corpus/image
rm -f corpus/image/*
for name in aes compressed compressed-zstd data-file dirty empty one-sector preallocated-full \
    preallocated-metadata rebased snapshots v2 written; do
    { printf '\42' && cat "../testdata/images/$name.qcow2"; } >"corpus/image/$name"
done
for snapshot in '\102' '\202'; do
    { printf "$snapshot" && cat ../testdata/images/snapshots.qcow2; } >"corpus/image/snapshots-${snapshot#?}"
done

# Small archives by other programs, as they are, and two sparse ones as a tar that the target packs.
rm -f corpus/{decompression,sparse_map,pax,extract,manifest}/*
mkdir -p corpus/extract
for archive in ../testdata/archives/*.{zst,xz,gz}; do
    size=$(stat -c %s "$archive")
    [ "$size" -lt 2048 ] || continue
    { printf '\0\3' && cat "$archive"; } >"corpus/extract/$(basename "$archive")"
done
cargo run --quiet --example seeds -- corpus
