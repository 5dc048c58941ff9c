#!/bin/sh
# Linux guests of instar beside QEMU's -M pc and -M microvm, in the lab (scripts/lab.sh): same kernel, initial file system
# and disk, one after the other, RUNS times. The times come from the lab's kernel (tracepoints of KVM), so they are
# taken alike for all three:
#   start   exec to the first entry of a guest
#   boot    that to the first command of init, which writes a byte to port 0x3f0
#   exits   VM exits of a whole run, to power-off
#   memory  private memory of all processes of the machine beyond guest memory, when init has begun, KiB
#   read, write, net   what a guest reads from its disk, writes to it, and sends through a tap device, MiB/s
# RUNS (default 5).
set -eu
cd "$(dirname "$0")/.."
export INSTAR_BIN="${INSTAR_BIN:-${CARGO_TARGET_DIR:-target}/release/instar}" INSTAR_RUNS="${RUNS:-5}"
[ -x "$INSTAR_BIN" ] || {
	echo "make bench-linux measures $INSTAR_BIN, which is not there: run \`make build\`." >&2
	exit 1
}
INSTAR_BIN=$(readlink -f "$INSTAR_BIN")
LAB_SECONDS=${LAB_SECONDS:-3000} exec scripts/lab.sh sh tests/linux/bench.sh
