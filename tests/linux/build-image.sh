#!/usr/bin/env bash
# Makes a small real Linux from Debian's cloud kernel: a kernel, an initial RAM disk, and a disk whose
# root the kernel mounts from a GPT partition.
#
#   DEST/vmlinuz
#   DEST/initrd              busybox, the virtio modules, init.sh
#   DEST/disk-img.tar.zst    disk.img: GPT, one ext4 partition with busybox and root-init.sh
#
# Usage: build-image.sh DEST     nothing is done if DEST is up to date
# Exit:  0 done, 77 something that is needed cannot be had (the last line says what), 1 failed
#
# Needs apt-get, dpkg, busybox (static), cpio, gzip, sfdisk, mke2fs, tar, zstd; no root.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
dest=${1:?usage: build-image.sh DEST}
size_mib=256
first_mib=1
# The backup GPT takes the last 33 sectors.
root_mib=$((size_mib - 2 * first_mib))
PATH=$PATH:/usr/sbin:/sbin

cannot() {
    echo "$*"
    exit 77
}

for tool in apt-get apt-cache dpkg busybox cpio gzip sfdisk mke2fs tar zstd; do
    command -v "$tool" > /dev/null || cannot "$tool is not installed"
done
busybox=$(command -v busybox)
# A dynamic busybox would need its libraries in both file systems.
if ldd "$busybox" > /dev/null 2>&1; then
    cannot "$busybox is not static: install busybox-static"
fi

stamp=$(cat "$here"/*.sh "$busybox" | sha256sum)
if [ -f "$dest/stamp" ] && [ "$(cat "$dest/stamp")" = "$stamp" ]; then
    exit 0
fi

mkdir -p "$dest"
work=$(mktemp -d "$dest/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

# The kernel package. The meta package names the current version.
package=$(apt-cache depends linux-image-cloud-amd64 2> /dev/null \
    | sed -n 's/^ *Depends: \(linux-image-[^ ]*-cloud-amd64\)$/\1/p' | head -n 1)
[ -n "$package" ] || cannot "apt knows no linux-image-cloud-amd64"
apt-get -q download "$package" > apt.log 2>&1 \
    || cannot "apt-get download $package: $(tail -n 1 apt.log)"
dpkg -x "$package"_*.deb kernel
modules=$(echo kernel/lib/modules/*/kernel)
[ -d "$modules" ] || modules=$(echo kernel/usr/lib/modules/*/kernel)

# A module after all it depends on; one built into the kernel has no file and needs none.
add_module() {
    local name=$1 file depends
    grep -qx "$name.ko" initrd/modules/order && return
    file=$(find "$modules" -name "$name.ko*" | head -n 1)
    [ -n "$file" ] || return 0
    case $file in
    *.xz) xz -dc "$file" > "initrd/modules/$name.ko" ;;
    *.zst) zstd -qdc "$file" > "initrd/modules/$name.ko" ;;
    *) cp "$file" "initrd/modules/$name.ko" ;;
    esac
    depends=$(tr '\0' '\n' < "initrd/modules/$name.ko" | LC_ALL=C sed -n 's/^depends=//p')
    for dependency in ${depends//,/ }; do
        add_module "$dependency"
    done
    echo "$name.ko" >> initrd/modules/order
}

# The initial RAM disk.
mkdir -p initrd/{bin,sbin,dev,proc,root,modules}
touch initrd/modules/order
for module in virtio_pci virtio_blk crc32c_generic ext4; do
    add_module "$module"
done
cp "$busybox" initrd/bin/busybox
for applet in sh mount insmod sleep switch_root; do
    ln -s busybox "initrd/bin/$applet"
done
install -m 0755 "$here/init.sh" initrd/init
(cd initrd && find . | LC_ALL=C sort | cpio --quiet --owner=0:0 -o -H newc) | gzip -1 > initrd.gz

# The root file system and the disk around it.
mkdir -p root/{bin,sbin,dev,proc}
cp "$busybox" root/bin/busybox
for applet in sh cat mount mv reboot sleep sync tr; do
    ln -s busybox "root/bin/$applet"
done
install -m 0755 "$here/root-init.sh" root/sbin/init
truncate -s "${size_mib}M" disk.img
sfdisk --quiet disk.img << TABLE
label: gpt
start=${first_mib}MiB, size=${root_mib}MiB, type=linux, name=root
TABLE
mke2fs -q -t ext4 -F -L root -d root -E "offset=$((first_mib << 20)),root_owner=0:0,nodiscard" \
    disk.img "${root_mib}M"

tar --create --format=gnu --sparse --hole-detection=raw --owner=0 --group=0 --numeric-owner disk.img \
    | zstd -q -T2 -3 --check -o disk-img.tar.zst
mv disk-img.tar.zst "$dest/disk-img.tar.zst"
mv initrd.gz "$dest/initrd"
cp kernel/boot/vmlinuz-* "$dest/vmlinuz"
echo "$stamp" > "$dest/stamp"
