#!/bin/sh
# Runs each fuzz target for the given number of seconds; ends at the first
# failure, whose input cargo-fuzz names.
set -eu
cd "$(dirname "$0")/.."
command -v cargo-fuzz >/dev/null || {
	echo "make fuzz needs cargo-fuzz: run \`cargo install --locked cargo-fuzz\`." >&2
	exit 1
}
cargo run --quiet --locked -p instar-microvm-tests --example seeds -- fuzz/corpus
for file in fuzz/fuzz_targets/*.rs; do
	target=$(basename "$file" .rs)
	echo "fuzz: $target for $1 s"
	# The code is safe Rust almost everywhere, and the address sanitizer cannot look into a guest.
	cargo fuzz run -s none "$target" -- -max_total_time="$1"
done
