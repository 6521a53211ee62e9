#!/bin/sh
# Makes every archive of this folder anew. README.md says which tools and versions made them.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
# The tar crate is a library: an example of the workspace packs with it.
cargo build --quiet --manifest-path "$here/../../Cargo.toml" -p testkit --example tar_crate
crate="$here/../../target/debug/examples/tar_crate"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# The disk all good archives hold: 2 MiB + 100 bytes, 40 pieces of data on 512-byte boundaries.
python3 - <<'PYTHON'
with open("disk.img", "wb") as disk:
    for piece in range(40):
        disk.seek(piece * 52224 + (piece % 3) * 512)
        length = 512 * (1 + piece % 5)
        disk.write(bytes((piece * 31 + at * 7) % 255 + 1 for at in range(length)))
    disk.truncate((2 << 20) + 100)
PYTHON
touch -d @0 disk.img
same="--owner=0 --group=0 --numeric-owner --mtime=@0"
gnu="tar $same --format=gnu --sparse --hole-detection=raw"
pax="tar $same --format=posix --pax-option=delete=atime,delete=ctime,exthdr.name=pax --sparse --hole-detection=raw"

zstd -q -19 disk.img -o "$here/bare.img.zst"
gzip -9nc disk.img > "$here/bare.img.gz"
xz -6c disk.img > "$here/bare.img.xz"
$gnu -cf - disk.img | zstd -q -19 > "$here/gnu-sparse.tar.zst"
for version in 0.0 0.1 1.0; do
    $pax --sparse-version=$version -cf - disk.img | zstd -q -19 > "$here/pax-$version.tar.zst"
done
tar $same --format=oldgnu --sparse --hole-detection=raw -cf - disk.img |
    zstd -q -19 > "$here/oldgnu-sparse.tar.zst"
# A name of 144 bytes, for which each dialect has a way of its own.
long=a-folder-with-a-name-that-is-long/
long=$long$long$long${long}disk.img
mkdir -p "${long%/*}"
cp --sparse=always disk.img "$long"
touch -d @0 "$long"
tar $same --format=gnu -cf - "$long" | xz -6 > "$here/gnu.tar.xz"
tar $same --format=posix --pax-option=delete=atime,delete=ctime,exthdr.name=pax -cf - "$long" |
    xz -6 > "$here/posix.tar.xz"
tar $same --format=v7 -cf - disk.img | gzip -9n > "$here/v7.tar.gz"
tar $same --format=ustar -cf - ./disk.img | xz -6 > "$here/ustar.tar.xz"
bsdtar --format pax --uid 0 --gid 0 -cf - disk.img | zstd -q -19 > "$here/bsdtar-pax.tar.zst"
bsdtar --format ustar --uid 0 --gid 0 -cf - disk.img | xz -6 > "$here/bsdtar-ustar.tar.xz"
bsdtar --format v7tar --uid 0 --gid 0 -cf - disk.img | xz -6 > "$here/bsdtar-v7.tar.xz"
bsdtar --format gnutar --uid 0 --gid 0 -cf - disk.img | gzip -9n > "$here/bsdtar-gnutar.tar.gz"
command pax -w -x ustar disk.img | xz -6 > "$here/pax-ustar.tar.xz"
python3 - "$here" <<'PYTHON'
import io, sys, tarfile
data = open("disk.img", "rb").read()
name = "a-folder-with-a-name-that-is-long/" * 4 + "disk.img"
forms = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}
for form, number in forms.items():
    with tarfile.open(f"{sys.argv[1]}/python-{form}.tar.xz", "w:xz", format=number) as archive:
        # POSIX cuts a name in two where it can: after a folder of at most 155 bytes.
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
PYTHON
"$crate" gnu disk.img "$long" | xz -6 > "$here/tar-crate-gnu.tar.xz"
"$crate" ustar disk.img disk.img | xz -6 > "$here/tar-crate-ustar.tar.xz"
"$crate" sparse disk.img disk.img | zstd -q -19 > "$here/tar-crate-sparse.tar.zst"
# Several files, the disk among them.
echo 'not a disk' > README
touch -d @0 README
$gnu -cf - README disk.img | zstd -q -19 > "$here/several.tar.zst"
# Offsets over 8 GiB, which GNU tar writes in base-256.
truncate -s 50G large.img
printf 'far away' | dd of=large.img bs=1 seek=12884902400 conv=notrunc status=none
tar $same --format=gnu --sparse -cf - large.img | zstd -q -19 > "$here/gnu-large.tar.zst"
# Two frames with skippable ones before, between and after; an empty frame.
python3 - "$here" <<'PYTHON'
import subprocess, sys
data = open("disk.img", "rb").read()
frame = lambda part: subprocess.run(["zstd", "-q", "-19", "-c"], input=part, stdout=subprocess.PIPE, check=True).stdout
skip = lambda text: b"\x5a\x2a\x4d\x18" + len(text).to_bytes(4, "little") + text
parts = [skip(b"before"), frame(data[:1000000]), skip(b""), frame(b""), frame(data[1000000:]), skip(b"after")]
open(sys.argv[1] + "/frames.img.zst", "wb").write(b"".join(parts))
PYTHON
# Windows of 128 MiB (accepted by default) and 256 MiB (not).
truncate -s 300M zeros.img
zstd -q -c --single-thread --long=27 zeros.img > "$here/window-27.img.zst"
zstd -q -c --single-thread --ultra --long=28 zeros.img > "$here/window-28.img.zst"

python3 "$here/corrupt.py" "$here"
