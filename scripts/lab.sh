#!/bin/sh
# Runs a command in the x86-64 lab: a machine that QEMU interprets, with a genuine KVM, for Linux guests where /dev/kvm
# is no hardware virtualization. `make setup` fetches what it boots.
#
#   scripts/lab.sh COMMAND [ARGUMENT...]
#
# The command sees this machine's files, and may write to all of them, but what it writes is gone afterwards, except
# below /results, which is the folder LAB_RESULTS (default: one that is removed). It runs as root, in the current folder. Its
# output comes here, both streams as one, and its exit code is this program's; 125 means that the lab failed.
#
# In the lab: $LAB/guest/vmlinuz is the kernel for guests, scripts/lab-initrd.sh makes an initial file system for it, and
# all exported INSTAR_* variables are there.
# LAB_SECONDS (default 300): the longest time. LAB_MEMORY (default 3G). INSTAR_VSOCK_TOOL: tests/vsock-tool, as built; without
# it the lab's clock may be wrong where this machine has much else to do.
#
# It has one processor: interpreted with several, nested guests and the lab itself were seen to fail. What that and the kernel
# are told: without "erms" memory is copied in words, which are interpreted eight times as fast as bytes; a timer interrupt
# that comes late, because this machine has much to do, is no broken one; and how fast the time stamp counter is. A kernel that
# was interrupted while it measured that took 2.6 GHz for 0.3 GHz: its clock and those of its guests then ran eight times as
# fast as their processors, which to watchdogs and time limits had stopped.
set -eu
[ $# -gt 0 ] || {
	sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
	exit 125
}
here=$(cd "$(dirname "$0")/.." && pwd)
lab=$(cd "${CARGO_TARGET_DIR:-$here/target}/lab/x86_64" 2>/dev/null && pwd) && [ -s "$lab/busybox" ] || {
	echo "The lab's kernels are not there: run \`make setup\`, or scripts/lab-x86_64.sh with the same CARGO_TARGET_DIR." >&2
	exit 125
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 125' INT TERM HUP
results=${LAB_RESULTS:-$work/results}
mkdir -p "$results" "$work/initial/bin" "$work/initial/modules"
results=$(cd "$results" && pwd)

quote() {
	printf '%s' "$1" | sed "s/'/'\\\\''/g; 1s/^/'/; \$s/\$/'/"
}
{
	echo 'export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C TZ=UTC HOME=/root'
	echo "export LAB=$(quote "$lab")"
	for name in $(env | sed -n 's/^\(INSTAR_[A-Z0-9_]*\)=.*/\1/p'); do
		eval "value=\$$name"
		echo "export $name=$(quote "$value")"
	done
	echo "cd $(quote "$PWD")"
	for argument; do
		printf '%s ' "$(quote "$argument")"
	done
} >"$work/command"
rm -f "$results/.code"
clock=
if [ -n "${INSTAR_VSOCK_TOOL:-}" ]; then
	clock="tsc_early_khz=$("$INSTAR_VSOCK_TOOL" tsc-khz) tsc=reliable" || exit 125
fi

cp "$lab/busybox" "$work/initial/bin/"
cp "$work/command" "$work/initial/command"
cp "$lab"/host/*.ko "$lab/host/order" "$work/initial/modules/"
cat >"$work/initial/init" <<'END'
#!/bin/busybox sh
B=/bin/busybox
$B mkdir -p /proc /sys /dev /lower /upper /new
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
$B stty -F /dev/ttyS0 raw -echo
while read -r module; do
	$B insmod "/modules/$module" || echo "lab: no module $module"
done </modules/order
$B mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=524288,ro root /lower
$B mount -t tmpfs -o size=90% tmpfs /upper
$B mkdir /upper/files /upper/work
$B mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /new
$B mkdir -p /new/results
$B mount -t 9p -o trans=virtio,version=9p2000.L,cache=none,msize=524288 results /new/results
$B mount -t proc proc /new/proc
$B mount -t sysfs sys /new/sys
$B mount -t devtmpfs dev /new/dev
$B mkdir -p /new/dev/pts /new/dev/shm
$B mount -t devpts devpts /new/dev/pts
$B mount -t tmpfs -o size=90% tmpfs /new/dev/shm
$B mount -t tmpfs -o size=90% tmpfs /new/run
$B ip link set lo up
$B cp /command /new/run/command
# Not below the first root: a process of one that is a part only may make no user namespace, as passt does.
cd /new
$B mount -o move . /
$B chroot . /bin/sh /run/command </dev/null >/dev/ttyS0 2>&1
echo $? >results/.code
$B sync
echo 0 0 0 0 >/proc/sys/kernel/printk
$B poweroff -f
END
chmod 755 "$work/initial/init"
(cd "$work/initial" && find . | cpio --quiet -o -H newc) >"$work/initrd"
rm -rf "$work/initial"

status=0
timeout --foreground -k 5 "${LAB_SECONDS:-300}" qemu-system-x86_64 -accel tcg -cpu max,+svm,+npt,-erms,-fsrm \
	-smp 1 -m "${LAB_MEMORY:-3G}" -M q35 -nodefaults -no-user-config -display none -no-reboot \
	-kernel "$lab/host/vmlinuz" -initrd "$work/initrd" \
	-append "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check cryptomgr.notests $clock" -serial stdio \
	-virtfs local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap \
	-virtfs "local,path=$results,mount_tag=results,security_model=none,multidevs=remap" </dev/null || status=$?
[ "$status" != 124 ] || {
	echo "lab: ended after ${LAB_SECONDS:-300} seconds" >&2
	exit 125
}
[ -s "$results/.code" ] || {
	echo "lab: the machine ended before the command did (QEMU's exit code: $status)" >&2
	exit 125
}
code=$(cat "$results/.code")
rm -f "$results/.code"
exit "$code"
