#!/bin/sh
# Runs the seeded end-to-end tests with many seeds; stops at the first failure,
# whose seed is the last line that names one.
set -eu
cd "$(dirname "$0")/.."
count=$1
seed=${INSTAR_SEED:-$(date +%s)}
done=0
while [ "$done" -lt "$count" ]; do
	echo "soak: INSTAR_SEED=$seed ($((done + 1)) of $count)"
	INSTAR_SEED=$seed CHECK_SEED=$seed REPAIR_SEED=$seed SNAPSHOT_SEED=$seed RESIZE_SEED=$seed \
		AMEND_SEED=$seed BITMAP_SEED=$seed CHECK_CASES=3000 INSTAR_MUTATIONS=4000 INSTAR_SCRIPTS=8000 \
		INSTAR_CHAINS=400 INSTAR_KILLS=100 \
		cargo nextest run --locked --workspace --profile soak
	seed=$((seed + 1))
	done=$((done + 1))
done
echo "soak: $done seeds passed"
