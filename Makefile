# make setup               installs what the tests need; nothing else installs anything
# make test                everything that must pass
# make test-arm64          the part of it in which the operations run on arm64, in an emulated machine with KVM
# make test-linux          the part of it in which Linux guests run, in an interpreted machine with a genuine KVM
# make lint                the part of it that runs no program of ours
# make check-binary-sizes  the operations are reproducible and within their budget
# make bench               medians and ratios against qemu-img
# make bench-linux         times, memory and throughput of Linux guests against QEMU's
# make bench-serve         the rates of a served qcow2 image against qemu-storage-daemon's
# make dist                the static binary, manual pages and completions, in dist/
# make soak                the long versions of the seeded tests
# make fuzz                each fuzz target for FUZZ_SECONDS

CARGO ?= cargo
# Type checks for macOS: what must compile where there is no KVM.
DARWIN_CRATES := -p instar-shared -p instar-devices -p instar-guest-ops \
	-p instar-storage -p instar-qcow2 -p instar-raw -p instar-crypt -p instar-luks \
	-p instar-plan-check -p instar-plan-txn -p instar-plan-repair \
	-p instar-plan-snapshot -p instar-plan-resize -p instar-plan-amend \
	-p instar-plan-bitmap -p instar-codec -p instar-layers -p instar-plan-create \
	-p instar-plan-convert -p instar-plan-map -p instar-plan-compare -p instar-plan-rebase -p instar-vmm
OPERATIONS := $(CARGO) run --quiet --locked -p instar-operations-tool --

.PHONY: setup tools fmt lint check-binary-sizes build arm64 linux test test-arm64 test-linux bench bench-linux bench-serve dist \
	soak fuzz clean

setup:
	sh scripts/setup.sh

tools:
	@sh scripts/check-tools.sh

fmt:
	$(CARGO) fmt --all

lint: tools
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked --target aarch64-apple-darwin $(DARWIN_CRATES) -- -D warnings
	$(CARGO) clippy --locked --target aarch64-unknown-linux-musl -p instar-vmm -p instar-sandbox -- -D warnings
	$(OPERATIONS) clippy
	$(OPERATIONS) build aarch64
	$(CARGO) machete
	$(CARGO) deny --locked --offline check --hide-inclusion-graph bans licenses sources

check-binary-sizes:
	$(OPERATIONS) sizes

# The tests run the program that users get.
build:
	$(CARGO) build --release --locked -p instar

# The same program for the arm64 lab.
arm64:
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld \
		$(CARGO) build --release --locked -p instar --target aarch64-unknown-linux-musl

test-arm64: tools arm64
	$(CARGO) nextest run --locked -p instar-tests --test arm64

# What runs in Linux guests beside their own programs.
linux:
	$(CARGO) build --release --locked -p instar-test-vsock --target x86_64-unknown-linux-musl

test-linux: tools build linux
	$(CARGO) nextest run --locked -p instar-tests --test linux

test: lint check-binary-sizes build arm64 linux
	$(CARGO) nextest run --locked --workspace

# The file that is handed out is what is measured.
bench: dist
	INSTAR_BIN="$$(ls -t dist/instar-* | head -n 1)" $(CARGO) run --release --quiet --locked -p instar-bench

bench-linux: tools build linux
	sh scripts/bench-linux.sh

bench-serve: tools build
	$(CARGO) run --release --quiet --locked -p instar-bench --bin instar-bench-serve

dist:
	sh scripts/dist.sh

# scripts/soak.sh says what can be set.
soak: tools build
	sh scripts/soak.sh

FUZZ_SECONDS ?= 60
fuzz:
	sh scripts/fuzz.sh $(FUZZ_SECONDS)

clean:
	$(CARGO) clean
	rm -rf dist
