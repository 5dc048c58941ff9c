#!/bin/sh
# Fetches what the x86-64 lab boots: Debian's kernel with KVM for the lab, Debian's kernel for clouds for its guests,
# the modules that they need, and a busybox. Nothing of it is installed: apt works in a folder of its own, and the packages
# are unpacked there.
set -eu
cd "$(dirname "$0")/.."
lab=${CARGO_TARGET_DIR:-target}/lab/x86_64
[ -s "$lab/busybox" ] && exit
mkdir -p "$lab/apt/lists/partial" "$lab/apt/cache/archives/partial"
lab=$(cd "$lab" && pwd)
rm -rf "$lab/packages" "$lab/tree" "$lab/host" "$lab/guest"
mkdir -p "$lab/packages"

apt() {
	program=$1
	shift
	"$program" -o APT::Architecture=amd64 -o APT::Architectures::=amd64 -o APT::Sandbox::User=root -o Dir::State::status=/dev/null \
		-o Dir::State::lists="$lab/apt/lists" -o Dir::Cache="$lab/apt/cache" -q "$@" </dev/null
}

# The package of the newest kernel that this meta package names.
newest() {
	kernel=$(apt apt-cache depends "$1" | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1)
	[ -n "$kernel" ] || {
		echo "make setup finds no kernel in this system's apt sources: Debian has the package $1." >&2
		exit 1
	}
	echo "$kernel"
}

# kernel FOLDER PACKAGE MODULE...: the kernel, and these modules. `order` lists them as they are to be inserted.
kernel() {
	folder=$lab/$1 package=$2
	shift 2
	(cd "$lab/packages" && apt apt-get download "$package")
	dpkg-deb -x "$lab/packages/$package"_*.deb "$lab/tree"
	mkdir -p "$folder"
	mv "$lab"/tree/boot/vmlinuz-* "$folder/vmlinuz"
	for module; do
		find "$lab/tree/lib/modules" -name "$module.ko" -exec mv {} "$folder/" \;
		[ -s "$folder/$module.ko" ] || {
			echo "make setup finds no module $module in the package $package." >&2
			exit 1
		}
		echo "$module.ko"
	done >"$folder/order"
	rm -rf "$lab/tree"
}

apt apt-get update
virtio='virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci'
# shellcheck disable=SC2086
kernel host "$(newest linux-image-amd64)" $virtio netfs fscache 9pnet 9pnet_virtio 9p overlay irqbypass ccp kvm kvm-amd \
	tun crc16 mbcache jbd2 ext4 loop
# shellcheck disable=SC2086
kernel guest "$(newest linux-image-cloud-amd64)" $virtio virtio_mmio virtio_blk virtio_console virtio-rng \
	failover net_failover virtio_net vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport button evdev
(cd "$lab/packages" && apt apt-get download busybox-static)
dpkg-deb -x "$lab"/packages/busybox-static_*.deb "$lab/tree"
mv "$lab/tree/bin/busybox" "$lab/busybox.new"
rm -rf "$lab/packages" "$lab/tree" "$lab/apt"
mv "$lab/busybox.new" "$lab/busybox"
