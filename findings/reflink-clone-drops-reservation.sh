#!/bin/bash
# A reflink clone takes the reservation away from the ORIGINAL as well. A file
# that was allocated whole with fallocate(2), so that writing into it can never
# meet a full disk, meets one after it was cloned once, although nothing about
# the file itself was changed.
#
# What is shown, on xfs: the disk is filled to the last block by somebody else.
# Before the clone every page of the preallocated file can be written. After a
# clone (cp --reflink), which is only there and is never written, writing the
# first pages of the original fails with ENOSPC: what both share has to be copied
# at the first write, and there is no block to copy it to. Deleting the clone
# brings the reservation back.
#
# Whoever keeps disk images preallocated so that a guest filesystem never loses a
# write has to keep the image's size free once more for as long as it has a clone.
#
# Needs: root, loop devices, python3, apt.
# Seen on: Linux 6.18.44, xfsprogs 6.1.0-1. Output then: the last lines below.
set -euo pipefail

version=6.1.0-1
dir=$(mktemp -d)
cleanup() {
  mountpoint -q "$dir/mnt" && umount "$dir/mnt"
  rm -rf "$dir"
}
trap cleanup EXIT

cd "$dir"
apt-get download -q "xfsprogs=$version" >apt.log 2>&1 || { cat apt.log; exit 2; }
dpkg -x xfsprogs_*.deb progs
progs/sbin/mkfs.xfs -V

truncate -s 600M disk
progs/sbin/mkfs.xfs -q -m reflink=1 disk
mkdir mnt
mount -o loop disk mnt
cd mnt

# overwrite FILE: its first 8 MiB, in place and on the disk, not beyond its end.
overwrite() {
  python3 - "$1" <<'PY'
import errno, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
try:
    for at in range(0, 8 << 20, 1 << 16):
        os.pwrite(fd, os.urandom(1 << 16), at)
    os.fsync(fd)
except OSError as e:
    if e.errno != errno.ENOSPC:
        raise
    print("ENOSPC")
else:
    print("written")
PY
}

# fill takes all the room there is.
fill() {
  python3 - "$1" <<'PY'
import errno, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_APPEND)
block = bytes(1 << 20)
while block:
    try:
        while True:
            os.write(fd, block)
            os.fsync(fd)
    except OSError as e:
        if e.errno != errno.ENOSPC:
            raise
        block = block[:len(block) // 2] if len(block) > 4096 else b""
PY
}

fallocate -l 100M image
dd if=/dev/urandom of=image bs=1M count=100 conv=notrunc,fsync status=none # no unwritten extents
fill others
echo "full disk, preallocated file: $(overwrite image)" | tee -a ../seen
rm others
cp --reflink=always image clone
fill others
echo "full disk, after a clone that nobody writes: $(overwrite image)" | tee -a ../seen
rm clone
sync
fill others # what the clone alone had
echo "full disk, clone deleted: $(overwrite image)" | tee -a ../seen
cd ..

cat >want <<'EOT'
full disk, preallocated file: written
full disk, after a clone that nobody writes: ENOSPC
full disk, clone deleted: written
EOT
diff want seen && echo "as described"
