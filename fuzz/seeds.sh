#!/bin/bash
# Makes the seeds of the header target again: of each valid image in testdata/images its length, as
# the target expects it, and its header.
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
