#!/bin/sh
# /init of the initial RAM disk: load the drivers, mount the root, hand over.
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
while read -r module; do
    insmod "/modules/$module"
done < /modules/order
# The disk's partitions appear a moment after its driver.
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    [ -b /dev/vda1 ] && break
    sleep 0.2
done
mount -t ext4 -o rw /dev/vda1 /root || {
    echo "linux error=mount"
    exec sh
}
mount -o move /dev /root/dev
mount -o move /proc /root/proc
exec switch_root /root /sbin/init
