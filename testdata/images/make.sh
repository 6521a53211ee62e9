#!/bin/bash
# Makes every file of this folder again. Needs qemu-img and qemu-io 10.0 or newer, and GNU
# coreutils. The LUKS images come out different each time (salts are random), the others do not.
set -euo pipefail
cd "$(dirname "$0")"
rm -f ./*.qcow2

# create NAME SIZE [ARGUMENTS]: a new image.
create() {
    local name=$1 size=$2
    shift 2
    qemu-img create -q -f qcow2 "$@" "$name.qcow2" "$size"
}

# --- As qemu-img makes them ---------------------------------------------------------------------

create v3 1M -o cluster_size=512
create v2 1M -o cluster_size=512,compat=0.10
create empty 0 -o cluster_size=512
create one-sector 512 -o cluster_size=512
create feature-names 1M -o cluster_size=8192
for bits in 1 2 4 8 32 64; do
    create "refcount-bits-$bits" 1M -o cluster_size=512,refcount_bits=$bits
done
create extended-l2 1M -o cluster_size=16384,extended_l2=on
create zstd 1M -o cluster_size=512,compression_type=zstd
create lazy-refcounts 1M -o cluster_size=512,lazy_refcounts=on
create preallocated-metadata 32K -o cluster_size=512,preallocation=metadata
create preallocated-falloc 32K -o cluster_size=512,preallocation=falloc
create preallocated-full 32K -o cluster_size=512,preallocation=full

create backing 1M -o cluster_size=512 -u -b /images/base.img -F raw
create backing-v2 1M -o cluster_size=512,compat=0.10 -u -b base.qcow2 -F qcow2
create backing-name-1023 1M -o cluster_size=2048 -u -b "$(printf '/%.0s' {1..1019})base" -F raw
create backing-name-not-utf8 1M -o cluster_size=512 -u -b $'/images/\xff\n\x1b[31m.img' -F raw

# Names a data file of 1 MiB, which is not kept here.
create data-file 1M -o cluster_size=512,data_file=guest.data
create data-file-raw 1M -o cluster_size=512,data_file=guest.data,data_file_raw=on
rm guest.data

secret=(--object "secret,id=key,data=open sesame")
small_luks=encrypt.format=luks,encrypt.key-secret=key,encrypt.cipher-alg=aes-128
small_luks+=,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=plain64,encrypt.iter-time=10
create luks 1M "${secret[@]}" -o "cluster_size=4096,$small_luks"
create aes 1M "${secret[@]}" -o cluster_size=512,encrypt.format=aes,encrypt.key-secret=key

# --- As qemu-img and qemu-io leave them ---------------------------------------------------------

create written 1M -o cluster_size=512
qemu-io -c "write -P 0x5a 64k 3k" written.qcow2 >/dev/null

create compressed 64K -o cluster_size=4096
qemu-io -c "write -c -P 0x5a 0 16k" compressed.qcow2 >/dev/null

create compressed-zstd 64K -o cluster_size=4096,compression_type=zstd
qemu-io -c "write -c -P 0x5a 0 16k" compressed-zstd.qcow2 >/dev/null

# Lazy refcounts, and a writer that was killed.
create dirty 1M -o cluster_size=512,lazy_refcounts=on
(qemu-io -c "write 0 4k" -c "abort" dirty.qcow2 || true) >/dev/null 2>&1

create snapshots 1M -o cluster_size=512
qemu-io -c "write -P 1 0 4k" snapshots.qcow2 >/dev/null
qemu-img snapshot -c first snapshots.qcow2
qemu-img snapshot -c second snapshots.qcow2

create snapshot-deleted 1M -o cluster_size=512
qemu-img snapshot -c first snapshot-deleted.qcow2
qemu-img snapshot -d first snapshot-deleted.qcow2

create bitmaps 1M -o cluster_size=512
qemu-img bitmap --add bitmaps.qcow2 one
qemu-img bitmap --add bitmaps.qcow2 two

create bitmap-removed 1M -o cluster_size=512
qemu-img bitmap --add bitmap-removed.qcow2 one
qemu-img bitmap --remove bitmap-removed.qcow2 one

create grown 1M -o cluster_size=512
qemu-img resize -q grown.qcow2 8M

create shrunk 8M -o cluster_size=512
qemu-img resize -q --shrink shrunk.qcow2 1M

create rebased 1M -o cluster_size=512 -u -b /images/old-and-long-name.img -F raw
qemu-img rebase -u -b /new.img -F qcow2 rebased.qcow2

create backing-removed 1M -o cluster_size=512 -u -b /images/base.img -F raw
qemu-img rebase -u -b "" backing-removed.qcow2

# Amending opens the backing file, which is not kept here.
truncate -s 1M base.img
create upgraded 1M -o cluster_size=512,compat=0.10 -b base.img -F raw
qemu-img amend -o compat=1.1 upgraded.qcow2
create downgraded 1M -o cluster_size=512 -b base.img -F raw
qemu-img amend -o compat=0.10 downgraded.qcow2
rm base.img

create refcounts-widened 1M -o cluster_size=512
qemu-img amend -o refcount_bits=64 refcounts-widened.qcow2

# --- Valid, but nothing qemu-img makes ----------------------------------------------------------

# patch NAME OFFSET HEX: writes bytes over an image.
patch() {
    printf "$(sed 's/../\\x&/g' <<<"$3")" |
        dd of="$1.qcow2" bs=1 seek="$(($2))" conv=notrunc status=none
}

# from ORIGINAL NAME OFFSET HEX [OFFSET HEX]…: a copy with other bytes.
from() {
    local original=$1 name=$2
    shift 2
    cp --reflink=never "$original.qcow2" "$name.qcow2"
    while (($#)); do
        patch "$name" "$1" "$2"
        shift 2
    done
}

# The end marker of v3.qcow2 lies at 112. An extension of an unknown type, of 5 bytes, before it.
from v3 unknown-extension 112 7168706600000005 120 68656c6c6f000000 128 0000000000000000
# 16 bytes more header than qemu-img writes: unknown fields, that must be kept.
from v3 additional-fields 100 00000080 112 0102030405060708090a0b0c0d0e0f10
# A backing file without a format, which qemu-img no longer writes.
from backing backing-without-format 112 0000000000000000 120 0000000000000000
# The name directly behind the header and no end marker, as QEMU wrote it before 0.11.
from v2 backing-v2-without-end-marker 8 0000000000000048 16 0000000a 72 626173652e71636f7732
# A place for a backing file name, and a name of no bytes.
from v3 backing-name-empty 8 0000000000000078
# The LUKS image without its key material, to be small: the pointer names one cluster.
from luks luks-without-keys 128 0000000000001000
truncate -s 20480 luks-without-keys.qcow2
from luks-without-keys luks-without-keys-v2 4 00000002 72 0537be7700000010 80 0000000000004000 \
    88 0000000000001000 96 0000000000000000 104 0000000000000000 112 0000000000000000 \
    120 0000000000000000 128 0000000000000000
# A header that ends before compression_type, as QEMU wrote it before 5.1.
from v3 header-length-104 100 00000068
# A writer who does not know bitmaps cleared the bit that vouches for them.
from bitmaps bitmaps-inconsistent 88 0000000000000000
# The same, and what the extension says is nonsense: nobody vouches for it.
from bitmaps bitmaps-inconsistent-nonsense 88 0000000000000000 136 0000000000000123
# Bits that may be ignored.
from v3 compatible-unknown-bit 80 8000000000000000
from v3 autoclear-unknown-bit 88 8000000000000000
# The corrupt bit: readable, not writable.
from v3 corrupt-bit 72 0000000000000002

# --- Corrupt: one defect each, the file's name says which ---------------------------------------

from v3 bad-magic 0 514649fa
: >bad-empty-file.qcow2
head -c 71 v3.qcow2 >bad-cut-in-v2-header.qcow2
head -c 103 v3.qcow2 >bad-cut-in-v3-header.qcow2
head -c 512 v3.qcow2 >bad-cut-behind-header.qcow2
head -c 1791 v3.qcow2 >bad-cut-in-l1-table.qcow2
from v3 bad-version-1 4 00000001
from v3 bad-version-4 4 00000004
from v3 bad-cluster-bits-8 20 00000008
from v3 bad-cluster-bits-22 20 00000016
from v3 bad-cluster-bits-huge 20 ffffffff
from v3 bad-size-over-limit 24 0000002000000001
from v3 bad-size-huge 24 ffffffffffffffff
from v3 bad-crypt-method 32 00000003
from v3 bad-luks-without-header 32 00000002
from v3 bad-l1-size-too-small 36 0000001f
from v3 bad-l1-size-too-large 36 00400001
from v3 bad-l1-size-huge 36 ffffffff
from v3 bad-l1-table-unaligned 40 0000000000000601
from v3 bad-l1-table-in-header 40 0000000000000000
from v3 bad-l1-table-beyond-file 40 0000000000000800
from v3 bad-l1-table-wraps 40 fffffffffffffe00
from v3 bad-refcount-table-unaligned 48 0000000000000208
from v3 bad-refcount-table-in-header 48 0000000000000000
from v3 bad-refcount-table-beyond-file 48 0000000100000000
from v3 bad-refcount-table-absent 56 00000000
from v3 bad-refcount-table-too-large 56 00004001
from v3 bad-refcount-table-huge 56 ffffffff
from v3 bad-snapshots-too-many 60 00010001
from v3 bad-snapshot-table-in-header 60 00000001
from v3 bad-snapshot-table-unaligned 64 0000000000000001
from snapshots bad-snapshot-table-beyond-file 64 0000000080000000
from v3 bad-incompatible-bit-5 72 0000000000000020
from feature-names bad-incompatible-bit-named 72 0000000000000020 217 05
from v3 bitmaps-bit-alone 88 0000000000000001
from v3 bad-raw-data-bit-alone 88 0000000000000002
from backing bad-raw-data-with-backing 72 0000000000000004 88 0000000000000002
from snapshots bad-data-file-with-snapshots 72 0000000000000004
from v3 bad-refcount-order-7 96 00000007
from v3 bad-header-length-96 100 00000060
from v3 bad-header-length-108 100 0000006c
from v3 bad-header-length-beyond-cluster 100 00000208
from v3 bad-compression-type-unannounced 104 01
from zstd bad-compression-type-missing 104 00
from zstd bad-compression-type-2 104 02
from v3 bad-extended-l2-small-clusters 72 0000000000000010
from backing bad-backing-name-in-header 8 000000000000006f
from backing bad-backing-name-beyond-cluster 8 00000000000001f8
from backing bad-backing-name-offset-wraps 8 ffffffffffffffff
from backing-name-1023 bad-backing-name-1024 16 00000400
from backing bad-backing-name-with-nul 0x90 00
from backing bad-backing-format-too-long 116 00000010
from backing backing-format-with-nul 120 00
from backing bad-extension-too-long 116 00000011
from backing bad-extension-huge 116 ffffffff
from v3 extension-twice 112 e2792aca00000003 120 7261770000000000 \
    128 e2792aca00000003 136 7261770000000000
from bitmaps bad-bitmaps-length 116 00000010
from bitmaps bad-bitmaps-none 120 00000000
from bitmaps bad-bitmaps-too-many 120 00010000
from bitmaps bad-bitmaps-reserved 124 00000001
from bitmaps bad-bitmap-directory-too-small 128 000000000000002f
from bitmaps bad-bitmap-directory-too-large 128 0000000004000001
from bitmaps bad-bitmap-directory-unaligned 136 0000000000000e08
from bitmaps bad-bitmap-directory-beyond-file 136 0000000000100000
from luks-without-keys bad-luks-pointer-without-luks 32 00000000
from luks-without-keys bad-luks-pointer-length 116 00000008
from luks-without-keys bad-luks-pointer-unaligned 120 0000000000004001
from luks-without-keys bad-luks-header-beyond-file 128 0000000100000000
