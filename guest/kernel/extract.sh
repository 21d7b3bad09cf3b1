#!/bin/sh
# Takes the ELF kernel out of a bzImage (LZ4): started through PVH, it does not unpack itself in the guest, which is
# slow under software emulation.    extract.sh BZIMAGE ELF
set -eu

# A number of the boot header: offset and size in bytes.
field() {
	od -An -tu"$3" -j"$2" -N"$3" "$1" | tr -d ' '
}

setup_sectors=$(field "$1" 497 1)
payload=$(field "$1" 584 4)
length=$(field "$1" 588 4)
from=$(((setup_sectors + 1) * 512 + payload))
# The last four bytes are the size of the unpacked kernel.
tail -c +$((from + 1)) "$1" | head -c $((length - 4)) | lz4 -dcq > "$2.part"
strip --strip-all "$2.part"
mv "$2.part" "$2"
