#!/bin/sh
# Makes dist/instar-VERSION-MACHINE, the static binary with the operations inside, and dist/share, the manual pages
# and completions for `instar` and `qemu-img` as they lie below /usr/local.
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
share=dist/share
rm -rf "$share"
mkdir -p "$share/man/man1" "$share/bash-completion/completions" \
	"$share/zsh/site-functions" "$share/fish/vendor_completions.d"
for name in instar qemu-img; do
	"$file" manual --name "$name" "$share/man/man1"
	"$file" completions --name "$name" bash >"$share/bash-completion/completions/$name"
	"$file" completions --name "$name" zsh >"$share/zsh/site-functions/_$name"
	"$file" completions --name "$name" fish >"$share/fish/vendor_completions.d/$name.fish"
done
ls -l "$file"
