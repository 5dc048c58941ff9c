#!/bin/sh
# Linux guests of instar beside QEMU's -M pc and -M microvm, in the lab (scripts/lab.sh): same kernel, initial file system
# and disk, one after the other, RUNS times. The times come from the lab's kernel (tracepoints of KVM), so they are
# taken alike for all three:
#   start   exec to the first entry of a guest
#   boot    that to the first command of init, which writes a byte to the serial line
#   exits   VM exits from the first to that one
#   memory  private memory of all processes of the machine beyond guest memory, when init has begun, KiB
#   read, write, send, receive   what a guest reads from its disk and writes to it, in requests of 1 MiB or 4 KiB past its page
#           cache, and moves through a tap device, MiB/s
#   usersend, userreceive, userping   the same through a network of the user's own (--net user, QEMU's -netdev user), and a byte
#           there and back over TCP, microseconds
#   qread, qwrite, qread4k, ...   as read and write, of a qcow2 image's clusters, 4 KiB at random places and one (4k) or eight
#           (4k8) at a time; qnew...: writes where the image has no clusters; qover...: writes to one over a raw image. All use the
#           page cache of the lab (QEMU's default, cache=writeback) and are durable when the guest flushes. Images are in memory.
#   ssh     exec to the greeting of the SSH server of a Debian image for clouds, as an overlay of qcow2, seconds; 768 MiB, user
#           network, the same seed. QEMU is given the kernel, initial RAM disk and command line that instar finds in the image
#   cloudmemory   private memory of all processes beyond guest memory then, KiB
# RUNS (default 5). PARTS (default "boot work qcow2 user cloud"): what is measured.
set -eu
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
export INSTAR_BIN="${INSTAR_BIN:-$target/release/instar}" INSTAR_RUNS="${RUNS:-5}"
export INSTAR_PARTS="${PARTS:-boot work qcow2 user cloud}"
[ -x "$INSTAR_BIN" ] || {
	echo "make bench-linux measures $INSTAR_BIN, which is not there: run \`make build\`." >&2
	exit 1
}
INSTAR_BIN=$(readlink -f "$INSTAR_BIN")
INSTAR_VSOCK_TOOL=$(readlink -f "$target/x86_64-unknown-linux-musl/release/vsock-tool")
export INSTAR_VSOCK_TOOL
LAB_MEMORY=${LAB_MEMORY:-4G} LAB_SECONDS=${LAB_SECONDS:-9000} exec scripts/lab.sh sh tests/linux/bench.sh
