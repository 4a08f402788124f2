#!/bin/bash
# A file that does not grow fills a btrfs volume: under simple quotas, rewriting
# pages of a 30 MiB file in place is refused (EDQUOT) in a volume limited to
# 50 MiB, though du says 30 MiB throughout. With NOCOW the same writes cost nothing.
#
# What is shown: btrfs frees an extent when nothing refers to any part of it any
# more. A rewritten page takes a new extent while the old one, of which other
# pages are still in use, stays charged whole; so the charge of a database file
# that is fully preallocated climbs with every random write up to twice its size.
# Whoever sizes a limit by what du or a file's length says, as for any other
# filesystem, has a database that stops with a disk that is 40% empty.
#
# Needs: root, a kernel with btrfs simple quotas (6.7 or later), python3, apt.
# Seen on: Linux 6.18.44, btrfs-progs 6.2-1+deb12u2. Output then: the last lines below.
set -euo pipefail

version=6.2-1+deb12u2
dir=$(mktemp -d)
cleanup() {
  mountpoint -q "$dir/mnt" && umount "$dir/mnt"
  rm -rf "$dir"
}
trap cleanup EXIT

cd "$dir"
apt-get download -q "btrfs-progs=$version" >apt.log 2>&1 || { cat apt.log; exit 2; }
dpkg -x btrfs-progs_*.deb progs
btrfs=$dir/progs/bin/btrfs
"$btrfs" --version

truncate -s 1G disk
"$dir/progs/sbin/mkfs.btrfs" -q disk >/dev/null
mkdir mnt
mount -o loop disk mnt

# btrfs-progs of this version cannot switch simple quotas on; the kernel can.
python3 - mnt <<'PY'
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
BTRFS_IOC_QUOTA_CTL, ENABLE_SIMPLE_QUOTA = 0xC0109428, 4  # include/uapi/linux/btrfs.h
fcntl.ioctl(fd, BTRFS_IOC_QUOTA_CTL, struct.pack("QQ", ENABLE_SIMPLE_QUOTA, 0))
PY

# rewrite NAME: 20,000 rewrites of 8 KiB at random places of a 30 MiB file, each flushed every hundred.
rewrite() {
  python3 - "$1" <<'PY'
import errno, os, random, sys
size, page = 30 << 20, 8192
fd = os.open(sys.argv[1], os.O_RDWR)
for at in range(0, size, 1 << 20):
    os.pwrite(fd, os.urandom(1 << 20), at)
os.fsync(fd)
random.seed(1)
done = 0
try:
    for done in range(20000):
        os.pwrite(fd, os.urandom(page), random.randrange(size // page) * page)
        if done % 100 == 99:
            os.fsync(fd)
    done += 1
except OSError as e:
    if e.errno != errno.EDQUOT:
        raise
    print("refused, EDQUOT, after some thousand rewrites" if done > 1000 else f"refused after {done} rewrites")
else:
    print(f"{done} rewrites, none refused")
PY
}

for kind in cow nocow; do
  "$btrfs" -q subvolume create "mnt/$kind"
  "$btrfs" qgroup limit 50M "mnt/$kind"
  [ "$kind" = cow ] || chattr +C "mnt/$kind"
  : >"mnt/$kind/data"
  sync
  result=$(rewrite "mnt/$kind/data")
  sync
  echo "$kind: $result; du $(du -m --apparent-size "mnt/$kind/data" | cut -f1) MiB of 50" | tee -a seen
done

cat >want <<'EOT'
cow: refused, EDQUOT, after some thousand rewrites; du 30 MiB of 50
nocow: 20000 rewrites, none refused; du 30 MiB of 50
EOT
diff want seen && echo "as described"
