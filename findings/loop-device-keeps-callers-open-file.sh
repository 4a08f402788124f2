#!/bin/bash
# A write lease is how a program asks the kernel whether it is the only one that
# has a file open (fcntl(2), F_SETLEASE): it is refused while anybody else has the
# file, in whatever process or mount namespace. A loop device counts as anybody
# else, so one call tells, without a look at a thousand devices, whether an image
# is attached. But not if it is asked through the descriptor that the device was
# attached with: the device keeps that very open file and no second one, so the
# lease is granted while the device reads and writes the image.
#
# What is shown: one file, asked through a descriptor of its own and through the
# one given to LOOP_SET_FD, before, while and after a device has it; and that the
# device works while the lease says that nobody has the file.
#
# Whoever asks this way must open the file anew for it.
#
# Needs: root, loop devices, python3, apt.
# Seen on: Linux 6.18.44, mount (losetup) 2.38.1-5+deb12u3. Output then: the last
# lines below.
set -euo pipefail

version=2.38.1-5+deb12u3
dir=$(mktemp -d)
cleanup() {
  for device in $(losetup --noheadings --output NAME --associated "$dir/image"); do
    losetup --detach "$device"
  done
  rm -rf "$dir"
}
trap cleanup EXIT

cd "$dir"
apt-get download -q "mount=$version" >apt.log 2>&1 || { cat apt.log; exit 2; }
dpkg -x mount_*.deb progs
progs/sbin/losetup --version

truncate -s 1M image
python3 - progs/sbin/losetup <<'PY' | tee seen
import fcntl, os, subprocess, sys

LOOP_SET_FD, LOOP_CLR_FD = 0x4C00, 0x4C01
losetup = sys.argv[1]

def lease(fd):
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except BlockingIOError:
        return "refused"
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return "granted"

def anew():
    fd = os.open("image", os.O_RDONLY)
    try:
        return lease(fd)
    finally:
        os.close(fd)

def devices():
    found = subprocess.run([losetup, "--noheadings", "--output", "NAME", "--associated", "image"],
                           capture_output=True, text=True, check=True)
    return len(found.stdout.split())

given = os.open("image", os.O_RDWR)
print("nobody else has the file:", lease(given))
other = os.open("image", os.O_RDONLY)
print("another descriptor is open:", lease(given))
os.close(other)

name = subprocess.run([losetup, "--find"], capture_output=True, text=True, check=True).stdout.strip()
device = os.open(name, os.O_RDWR)
fcntl.ioctl(device, LOOP_SET_FD, given)
print("devices over it:", devices())
print("asked through the descriptor that the device was given:", lease(given))
os.pwrite(device, b"through the device", 0)
os.fsync(device)
print("and the device works:", os.pread(given, 18, 0).decode())
os.close(given)
print("that one closed, asked through a new one:", anew())
fcntl.ioctl(device, LOOP_CLR_FD)
os.close(device)
print("devices over it:", devices(), "lease:", anew())
PY

cat >want <<'EOT'
nobody else has the file: granted
another descriptor is open: refused
devices over it: 1
asked through the descriptor that the device was given: granted
and the device works: through the device
that one closed, asked through a new one: refused
devices over it: 0 lease: granted
EOT
diff want seen && echo "as described"
