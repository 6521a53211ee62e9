#!/bin/sh
# /sbin/init of the disk: count the boot in a file, say it, and do what the kernel's command line asks.
#
#   /boots   one line, "<count> <id>"; the id is drawn at the first boot
if [ -f /boots ]; then
    read -r count id < /boots
else
    count=0
    id=$(tr -d - < /proc/sys/kernel/random/uuid)
fi
count=$((count + 1))
echo "$count $id" > /boots.new && mv /boots.new /boots
sync
# Whoever has seen the line may kill the machine.
root=$(while read -r device folder type _; do
    [ "$folder" = / ] && [ "$type" = ext4 ] && echo "$device $type"
done < /proc/mounts)
echo "linux boot=$count id=$id root=$root"
case " $(cat /proc/cmdline) " in
*" then=reboot "*)
    mount -o remount,ro /
    reboot -f
    ;;
esac
while :; do sleep 3600; done
