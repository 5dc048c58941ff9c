#!/bin/sh
# The long versions of the seeded tests, in stages, and a table of what was done:
#   kills   each operation killed, interrupted, and failed at every call that changes a file
#   chains  random chains of changes and copies beside qemu-img
#   repair  damaged images, repaired beside qemu-img
#   seeds   all seeded tests with new seeds
# Each of these can be set:
#   SOAK_STAGES         the stages, in order
#   SOAK_KILLS          kills of each command
#   SOAK_CHAIN_SECONDS  how long there are new chains
#   SOAK_CHAINS         chains of each test between two looks at the clock
#   SOAK_REPAIRS        seeds of 200 damaged images
#   SOAK_SEEDS          seeds of the last stage
#   INSTAR_SEED         the first seed
# A stage goes on after a failure; the log has the seed that repeats it.
set -eu
cd "$(dirname "$0")/.."
: "${SOAK_STAGES:=kills chains repair seeds}" "${SOAK_KILLS:=500}" "${SOAK_CHAIN_SECONDS:=3600}"
: "${SOAK_CHAINS:=50}" "${SOAK_REPAIRS:=12}" "${SOAK_SEEDS:=20}"
seed=${INSTAR_SEED:-$(date +%s)}
log=$(mktemp -d)
failed=0

# Runs the tests that nextest's arguments choose, with these variables; the log is named by the stage and the seed.
tests() {
	variables=$1
	shift
	echo "soak: $stage, INSTAR_SEED=$seed"
	# shellcheck disable=SC2086 # several words
	env INSTAR_SEED="$seed" $variables cargo nextest run --locked --profile soak --no-fail-fast --no-tests fail \
		--success-output final "$@" >"$log/$stage.$seed" 2>&1 || {
		failed=$((failed + 1))
		grep -E '^ *(FAIL|TIMEOUT|SIG[A-Z]+|error)' "$log/$stage.$seed" | sort -u || true
	}
	seed=$((seed + 1))
}

# What the logs of a stage add up to.
totals() {
	sed -n -e 's/^ *total \([0-9]*\) \(.*\)/\1 \2/p' \
		-e 's/^ *REPAIR_SEED=[0-9]*: \([0-9]*\) cases, \([0-9]*\) failed.*/\1 damaged images\n\2 of them repaired wrongly/p' \
		-e 's/^ *Summary.* \([0-9]*\) tests run: .*/\1 tests/p' "$log/$stage".* |
		awk '{ n = $1; sub(/^[0-9]+ /, ""); sum[$0] += n } END { for (w in sum) print sum[w], w }' | sort -k 2
}

kills() {
	tests "INSTAR_KILLS=$SOAK_KILLS" -p instar-tests -E 'test(_faults::) + test(_kills::)'
}

chains() {
	end=$(($(date +%s) + SOAK_CHAIN_SECONDS))
	while [ "$(date +%s)" -lt "$end" ]; do
		tests "INSTAR_CHAINS=$SOAK_CHAINS" -p instar-tests -E 'test(_chains::)'
	done
}

repair() {
	last=$((seed + SOAK_REPAIRS))
	while [ "$seed" -lt "$last" ]; do
		tests "REPAIR_SEED=$seed REPAIR_CASES=200" -p instar-plan-repair -E 'test(damaged_images_are_repaired)'
	done
}

seeds() {
	last=$((seed + SOAK_SEEDS))
	while [ "$seed" -lt "$last" ]; do
		variables="CHECK_CASES=3000 INSTAR_MUTATIONS=4000 INSTAR_SCRIPTS=8000 INSTAR_CONVERSIONS=400"
		for test in AMEND BITMAP CHECK COMMIT CREATE LAYERS REBASE REPAIR RESIZE SNAPSHOT WRITE; do
			variables="$variables ${test}_SEED=$seed"
		done
		tests "$variables" --workspace
	done
}

for stage in $SOAK_STAGES; do
	started=$(date +%s)
	"$stage"
	echo "soak: $stage took $(($(date +%s) - started)) s"
	totals
done
echo "soak: $failed runs failed; the logs are in $log"
[ "$failed" = 0 ]
