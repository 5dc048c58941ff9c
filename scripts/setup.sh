#!/bin/sh
# Installs what `make test` needs and does not find: Debian packages, Rust
# targets and components, cargo programs, Python packages. Running it again changes nothing.
set -eu
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		echo "make setup installs packages: run it as root, or install sudo." >&2
		exit 1
	fi
}

updated=
update() {
	[ -n "$updated" ] || as_root apt-get update -q </dev/null
	updated=yes
}

install() {
	update
	as_root env DEBIAN_FRONTEND=noninteractive \
		apt-get install -q -y --no-install-recommends "$@" </dev/null
}

# QEMU 10.0.x: the oracle, and the emulator of the labs, which must be of one version. Debian 13 has it; Debian 12 has
# it in backports, which is added with the server that the machine already uses and pinned to these packages.
setup_qemu() {
	case $(qemu-img --version 2>/dev/null) in
	'qemu-img version 10.0.'*) command -v qemu-system-aarch64 >/dev/null && command -v qemu-system-x86_64 >/dev/null && return ;;
	esac
	update
	if ! apt-cache madison qemu-utils | grep -q '| *1:10\.0\..*Packages'; then
		codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
		if [ "$codename" != bookworm ]; then
			echo "make setup finds no qemu-utils 10.0.x for this system ($codename): Debian 12 and 13 have it." >&2
			exit 1
		fi
		server=$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
			sed -n 's/^bookworm //p' | head -n 1)
		[ -n "$server" ] || {
			echo "make setup finds no Debian server in this system's apt sources." >&2
			exit 1
		}
		printf 'Types: deb\nURIs: %s\nSuites: bookworm-backports\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' \
			"$server" | as_root tee /etc/apt/sources.list.d/instar-backports.sources >/dev/null
		updated=
	fi
	# Debian 12's seabios is too old for it.
	printf 'Package: %s\nPin: %s\nPin-Priority: 990\n\n' 'qemu-utils qemu-system-*' 'version 1:10.0.*' \
		seabios 'release n=bookworm-backports' | as_root tee /etc/apt/preferences.d/instar-qemu >/dev/null
	update
	version=$(apt-cache madison qemu-utils | sed -n 's/^ *qemu-utils | *\(1:10\.0\.[^ ]*\) .*Packages$/\1/p' | head -n 1)
	install "qemu-utils=$version" "qemu-system-arm=$version" "qemu-system-x86=$version"
}

setup_programs() {
	while read -r program kind package; do
		case $program in '#'* | '') continue ;; esac
		command -v "$program" >/dev/null && continue
		case $kind in
		deb) install "$package" ;;
		cargo) cargo install --locked "$package" </dev/null ;;
		esac
	done <scripts/tools.txt
}

setup_rust() {
	while read -r target; do
		[ -d "$(rustc --print target-libdir --target "$target")" ] || rustup target add "$target" </dev/null
	done <scripts/targets.txt
	rustfmt --version >/dev/null 2>&1 || rustup component add rustfmt
	clippy-driver --version >/dev/null 2>&1 || rustup component add clippy
}

# What parses qemu-img's output elsewhere, in a Python of its own in the target folder.
setup_python() {
	python=${CARGO_TARGET_DIR:-target}/python
	"$python/bin/python3" -c 'import oslo_utils.imageutils' 2>/dev/null && return
	python3 -c 'import venv, ensurepip' 2>/dev/null || install python3 python3-venv
	python3 -m venv --clear "$python"
	"$python/bin/python3" -m pip install --quiet --requirement scripts/python.txt </dev/null
}

setup_qemu
setup_programs
setup_rust
setup_python
sh scripts/lab-arm64.sh
sh scripts/lab-x86_64.sh
sh scripts/lab-image.sh
# So that what follows needs no network.
cargo fetch --locked
echo "make setup: everything that make test needs is here."
