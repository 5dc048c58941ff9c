#!/bin/sh
# Makes the initial file system of a guest: busybox, the guest kernel's virtio modules, and what is read from standard
# input as the shell script that init runs when they are in. When it ends, the guest is powered off.
#
#   scripts/lab-initrd.sh FILE [PROGRAM...] <SCRIPT
#
# Each PROGRAM is copied to /bin. The script finds its words on the kernel command line in /proc/cmdline.
set -eu
[ $# -gt 0 ] || {
	sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
	exit 2
}
lab=${LAB:-${CARGO_TARGET_DIR:-$(dirname "$0")/../target}/lab/x86_64}
file=$1
shift
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/bin" "$root/modules" "$root/proc" "$root/sys" "$root/dev" "$root/mnt"
cp "$lab/busybox" "$@" "$root/bin/"
cp "$lab"/guest/*.ko "$lab/guest/order" "$root/modules/"
cat >"$root/script"
cat >"$root/init" <<'END'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do
	insmod "/modules/$module"
done
. /script
sync
poweroff -f
END
chmod 755 "$root/init"
(cd "$root" && find . | cpio --quiet -o -H newc) >"$file"
