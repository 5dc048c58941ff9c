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
# RUNS (default 5).
set -eu
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
export INSTAR_BIN="${INSTAR_BIN:-$target/release/instar}" INSTAR_RUNS="${RUNS:-5}"
[ -x "$INSTAR_BIN" ] || {
	echo "make bench-linux measures $INSTAR_BIN, which is not there: run \`make build\`." >&2
	exit 1
}
INSTAR_BIN=$(readlink -f "$INSTAR_BIN")
INSTAR_VSOCK_TOOL=$(readlink -f "$target/x86_64-unknown-linux-musl/release/vsock-tool")
export INSTAR_VSOCK_TOOL
LAB_SECONDS=${LAB_SECONDS:-3000} exec scripts/lab.sh sh tests/linux/bench.sh
