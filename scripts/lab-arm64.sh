#!/bin/sh
# Fetches what the arm64 lab boots: Debian's arm64 kernel for virtual machines, and a busybox. Nothing of it is
# installed: apt works in a folder of its own, and the packages are unpacked there.
set -eu
cd "$(dirname "$0")/.."
lab=${CARGO_TARGET_DIR:-target}/lab/arm64
[ -s "$lab/vmlinuz" ] && [ -s "$lab/busybox" ] && exit
mkdir -p "$lab/apt/lists/partial" "$lab/apt/cache/archives/partial"
lab=$(cd "$lab" && pwd)
rm -rf "$lab/packages" "$lab/tree"
mkdir -p "$lab/packages" "$lab/tree"

apt() {
	program=$1
	shift
	"$program" -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o APT::Sandbox::User=root -o Dir::State::status=/dev/null \
		-o Dir::State::lists="$lab/apt/lists" -o Dir::Cache="$lab/apt/cache" -q "$@" </dev/null
}

apt apt-get update
kernel=$(apt apt-cache depends linux-image-cloud-arm64 | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1)
[ -n "$kernel" ] || {
	echo "make setup finds no arm64 kernel in this system's apt sources: Debian has the package linux-image-cloud-arm64." >&2
	exit 1
}
(cd "$lab/packages" && apt apt-get download "$kernel" busybox-static)
for package in "$lab"/packages/*.deb; do
	dpkg-deb -x "$package" "$lab/tree"
done
cp "$lab"/tree/boot/vmlinuz-* "$lab/vmlinuz.new"
cp "$lab/tree/bin/busybox" "$lab/busybox"
mv "$lab/vmlinuz.new" "$lab/vmlinuz"
rm -rf "$lab/packages" "$lab/tree" "$lab/apt"
