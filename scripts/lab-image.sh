#!/bin/sh
# Makes a Debian image for clouds, for the tests of `instar run IMAGE`: debootstrap, the kernel for clouds, systemd,
# cloud-init and an SSH server, ext4 on GPT, GRUB's configuration by grub-mkconfig. Needs root, and this system's apt
# sources. Made again only if this file has changed.
#
# The image is in $CARGO_TARGET_DIR/lab/x86_64/cloud/base.qcow2. INSTAR_DEBS: a folder (absolute) whose packages need not be
# fetched, and that keeps what is fetched.
set -eu
cd "$(dirname "$0")/.."
lab=${CARGO_TARGET_DIR:-target}/lab/x86_64/cloud
recipe=$(sha256sum <scripts/lab-image.sh | cut -c1-64)
[ "$(cat "$lab/recipe" 2>/dev/null)" != "$recipe" ] || exit 0
if [ "$(id -u)" != 0 ]; then
	command -v sudo >/dev/null || {
		echo "make setup makes an image of Debian as root: run it as root, or install sudo." >&2
		exit 1
	}
	exec sudo --preserve-env=CARGO_TARGET_DIR,INSTAR_DEBS sh scripts/lab-image.sh
fi
# What is mounted below is gone when this ends, however it ends.
[ "${1:-}" = inside ] || exec unshare --mount --propagation private sh scripts/lab-image.sh inside
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C DEBIAN_FRONTEND=noninteractive

# dpkg flushes each file to a disk: here it is memory.
root=$(mktemp -d)
mount -t tmpfs -o size=3g,mode=755 tmpfs "$root"
trap 'umount --recursive "$root"; rmdir "$root"' EXIT
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
sources=$(apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
	sed -n "/ $codename\(-security\|-updates\)\{0,1\} main\$/p" | sort -u)
server=$(echo "$sources" | sed -n "s/^deb \(.*\) $codename main\$/\1/p" | head -n 1)
[ -n "$server" ] || {
	echo "make setup finds no Debian server in this system's apt sources." >&2
	exit 1
}
root_uuid=6f1d1c1e-5c0d-4b7e-9d0f-1a5f1d3c0a11

debootstrap --arch=amd64 --variant=minbase ${INSTAR_DEBS:+--cache-dir="$INSTAR_DEBS"} "$codename" "$root" "$server"
echo "$sources" >"$root/etc/apt/sources.list"
printf 'path-exclude=/usr/share/%s/*\n' doc man locale info >"$root/etc/dpkg/dpkg.cfg.d/small"
mkdir -p "$root/etc/initramfs-tools/conf.d" "$root/etc/cloud/cloud.cfg.d" "$root/etc/default/grub.d"
echo 'MODULES=list' >"$root/etc/initramfs-tools/conf.d/small"
printf '%s\n' virtio_pci virtio_mmio virtio_blk ext4 crc32c_generic >"$root/etc/initramfs-tools/modules"
cp /etc/resolv.conf "$root/etc/resolv.conf"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
[ -z "${INSTAR_DEBS:-}" ] || cp "$INSTAR_DEBS"/*.deb "$root/var/cache/apt/archives/"
in_root() {
	chroot "$root" "$@" </dev/null
}
in_root apt-get update -q
in_root apt-get install -q -y --no-install-recommends -o Dpkg::Options::=--force-unsafe-io -o Dpkg::Options::=--force-confold \
	linux-image-cloud-amd64 initramfs-tools zstd systemd systemd-sysv systemd-resolved udev dbus cloud-init openssh-server \
	grub2-common grub-common iproute2 iputils-ping sudo e2fsprogs
[ -z "${INSTAR_DEBS:-}" ] || cp "$root"/var/cache/apt/archives/*.deb "$INSTAR_DEBS/"

# As the image will be seen by its own GRUB tools.
cat >"$root/etc/default/grub" <<'END'
GRUB_DEFAULT=0
GRUB_TIMEOUT=0
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200"
GRUB_TERMINAL=console
END
mkdir -p "$root/boot/grub" "$root/dev/disk/by-uuid"
touch "$root/dev/disk/by-uuid/$root_uuid"
mv "$root/usr/sbin/grub-probe" "$root/usr/sbin/grub-probe.real"
cat >"$root/usr/sbin/grub-probe" <<END
#!/bin/sh
case " \$* " in
*--target=device*) echo /dev/vda1 ;;
*--target=fs_uuid*) echo $root_uuid ;;
*--target=fs\ *) echo ext2 ;;
*--target=partmap*) echo gpt ;;
*--target=compatibility_hint*) echo hd0,gpt1 ;;
*--target=hints_string*) echo --hint-bios=hd0,gpt1 ;;
esac
END
chmod 755 "$root/usr/sbin/grub-probe"
in_root grub-mkconfig -o /boot/grub/grub.cfg
mv "$root/usr/sbin/grub-probe.real" "$root/usr/sbin/grub-probe"
rm -r "$root/dev/disk"

echo "UUID=$root_uuid / ext4 errors=remount-ro 0 1" >"$root/etc/fstab"
echo localhost >"$root/etc/hostname"
: >"$root/etc/machine-id"
# The data source is looked for, not told; networkd is what systemd brings.
cat >"$root/etc/cloud/cloud.cfg.d/90_image.cfg" <<'END'
datasource_list: [NoCloud, None]
system_info:
  network:
    renderers: [networkd]
END
in_root systemctl enable -q systemd-networkd systemd-resolved
in_root systemctl mask -q apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
	e2scrub_reap.service systemd-networkd-wait-online.service
rm -f "$root"/etc/ssh/ssh_host_* "$root/etc/resolv.conf" "$root"/var/cache/apt/archives/*.deb "$root"/var/cache/apt/*.bin
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/log/apt "$root/etc/dpkg/dpkg.cfg.d/small"
ln -s ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
umount "$root/proc" "$root/sys"

# One mebibyte at the end is GPT's.
sectors=$((2 << 21)) first=8192
size=$((sectors - first - 2048))
rm -rf "$lab"
mkdir -p "$lab"
truncate -s "$((sectors * 512))" "$lab/base.raw"
sfdisk -q "$lab/base.raw" <<END
label: gpt
label-id: 5A5B1F0C-9C0E-4F0B-8E47-6B1E37D9D0A1
14: start=2048, size=6144, type=21686148-6449-6E6F-744E-656564454649
1: start=$first, size=$size, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709
END
mke2fs -q -t ext4 -b 4096 -L root -U "$root_uuid" -E "offset=$((first * 512)),lazy_itable_init=0,lazy_journal_init=0" \
	-d "$root" "$lab/base.raw" "$((size / 8))"
qemu-img convert -f raw -O qcow2 "$lab/base.raw" "$lab/base.qcow2"
rm "$lab/base.raw"
echo "$recipe" >"$lab/recipe"
