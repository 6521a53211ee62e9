"""Makes the corrupt archives: each from a good one, with the one defect its name says."""

import gzip
import subprocess
import sys
from pathlib import Path

here = Path(sys.argv[1])


def unpack(name):
    tool = {"zst": "zstd", "gz": "gzip", "xz": "xz"}[name.rsplit(".", 1)[1]]
    return subprocess.run([tool, "-dc", here / name], stdout=subprocess.PIPE, check=True).stdout


def put(name, data):
    (here / ("corrupt-" + name)).write_bytes(data)


def packed(name, data):
    put(name + ".gz", gzip.compress(data, 9, mtime=0))


def sealed(block):
    """A header with a right checksum."""
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def with_field(tar, at, field):
    """The archive with `field` at byte `at` of its first header."""
    return sealed(tar[:at] + field + tar[at + len(field) : 512]) + tar[512:]


def twelve(number):
    return b"%011o\0" % number


zst = (here / "gnu-sparse.tar.zst").read_bytes()
bare = (here / "bare.img.zst").read_bytes()
tar = unpack("gnu-sparse.tar.zst")
pax = unpack("pax-0.1.tar.zst")
pax10 = unpack("pax-1.0.tar.zst")

# Compression.
put("cut.tar.zst", zst[: len(zst) // 2])
put("checksum.img.zst", bare[:-1] + bytes([bare[-1] ^ 1]))
put("trailing.img.zst", bare + b"trailing")
xz = (here / "bare.img.xz").read_bytes()
put("cut.img.xz", xz[:-12])
gz = (here / "bare.img.gz").read_bytes()
put("crc.img.gz", gz[:-8] + bytes([gz[-8] ^ 1]) + gz[-7:])
put("trailing.img.gz", gz + b"\0" * 16)

# The archive.
packed("no-end.tar", tar.rstrip(b"\0").ljust((len(tar.rstrip(b"\0")) + 511) // 512 * 512, b"\0"))
packed("trailing.tar", tar + b"x" * 512)
packed("header.tar", b"D" + tar[1:])
packed("size-not-octal.tar", with_field(tar, 124, b"0000000009x\0"))
packed("size-negative.tar", with_field(tar, 124, b"\xff" * 12))

# Sparse maps. The first pair is at 386 (offset) and 398 (numbytes), realsize at 483.
packed("map-overlap.tar", with_field(tar, 410, twelve(0)))
packed("map-sum.tar", with_field(tar, 398, twelve(1024)))
packed("map-past-end.tar", with_field(tar, 483, twelve(4096)))
packed("map-ends-early.tar", with_field(tar, 398 + 24, b"\0" * 12))

# pax records; the first header is the pax header, its records follow.
at = pax.index(b"GNU.sparse.size=")
packed("pax-length.tar", pax[: at - 2] + b"9" + pax[at - 1 :])
at = pax.index(b"GNU.sparse.map=") + len(b"GNU.sparse.map=")
packed("pax-map-not-a-number.tar", pax[:at] + b"x" + pax[at + 1 :])
at = pax.index(b"GNU.sparse.numblocks=") + len(b"GNU.sparse.numblocks=")
packed("pax-count.tar", pax[:at] + b"99" + pax[at + 2 :])
# The map of PAX 1.0 stands where the data does: block 3 of this archive.
packed("pax-1.0-count.tar", pax10[:1536] + b"99" + pax10[1538:])

# Two members of one name: which one is the disk?
put("twice.tar.gz", gzip.compress(tar.rstrip(b"\0").ljust((len(tar.rstrip(b"\0")) + 511) // 512 * 512, b"\0") + tar, 9, mtime=0))
