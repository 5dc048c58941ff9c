#!/bin/sh
# Makes dist/instar-VERSION-MACHINE: the static binary with the operations inside.
set -eu
cd "$(dirname "$0")/.."
machine=$(uname -m)
target=$machine-unknown-linux-musl
[ -d "$(rustc --print target-libdir --target "$target")" ] || {
	echo "make dist needs Rust's \`$target\` target: run \`rustup target add $target\`." >&2
	exit 1
}
cargo build --release --locked -p instar --target "$target"
version=$(cargo metadata --no-deps --format-version 1 --locked |
	sed -n 's/.*"name":"instar","version":"\([^"]*\)".*/\1/p')
file=dist/instar-${version:?}-$machine
mkdir -p dist
cp "${CARGO_TARGET_DIR:-target}/$target/release/instar" "$file"
"$file" --version >/dev/null
ls -l "$file"
