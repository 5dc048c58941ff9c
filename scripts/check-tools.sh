#!/bin/sh
# Says in one sentence what the tests need and do not find.
set -eu
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"

need() {
	echo "make test needs $1: run \`make setup\`." >&2
	exit 1
}

while read -r program kind package; do
	case $program in '#'* | '') continue ;; esac
	command -v "$program" >/dev/null || need "\`$program\` from the $kind package $package"
done <scripts/tools.txt

"${CARGO_TARGET_DIR:-target}/python/bin/python3" -c 'import oslo_utils.imageutils' 2>/dev/null ||
	need "the Python packages of scripts/python.txt"

case $(qemu-img --version) in
'qemu-img version 10.0.'*) ;;
*) need "qemu-img 10.0.x, the version whose output the tests compare with, from the deb package qemu-utils" ;;
esac

while read -r target; do
	[ -d "$(rustc --print target-libdir --target "$target")" ] ||
		need "Rust's \`$target\` target"
done <scripts/targets.txt

for component in rustfmt clippy-driver; do
	"$component" --version >/dev/null 2>&1 || need "the toolchain's \`$component\`"
done

if [ ! -r /dev/kvm ] || [ ! -w /dev/kvm ]; then
	echo "make test needs to read and write /dev/kvm: run it on a machine with KVM, as a user of the group kvm." >&2
	exit 1
fi
