#!/bin/sh
# SPDX-License-Identifier: MIT
# run.sh - owns the runs of mailbox.pml: all of its states without a fault, then each seeded fault,
# which Spin must find. Runs: run.sh [quick] from anywhere; needs spin and a C compiler.
# BUILD (default build/ at the top level), CC.
# The last line is "N passed, N failed".
set -u

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
build=${BUILD:-$top/build}/spin
cc=${CC:-gcc}
faults="NO_RECHECK OVER_ARM STALE_OWNER PLAIN_DISARM CLEAR_ALL PLAIN_QUEUE"
passed=0 failed=0

command -v spin >/dev/null || {
	echo "spin is not installed"
	echo "0 passed, 1 failed"
	exit 1
}

# verify NAME STEPS FREES [FAULT]: builds and runs a verifier; its report is $build/NAME/report
verify() {
	dir=$build/$1
	rm -rf "$dir" && mkdir -p "$dir" && cd "$dir" || return 1
	spin -a "-DOWNER_STEPS=$2" "-DFREES=$3" ${4:+"-D$4"} "$here/mailbox.pml" >report 2>&1 &&
		$cc -O2 -w -DSAFETY -DCOLLAPSE -DMEMLIM=3000 -o pan pan.c >>report 2>&1 &&
		./pan -m100000 -n >report 2>&1
}

value() {
	awk -v what="$2" 'index($0, what) { print $1; exit }' "$build/$1/report"
}

sound() {
	verify "$1" "$2" "$3"
	if grep -q 'errors: 0' "$build/$1/report" &&
		! grep -qi 'search not completed\|max search depth' "$build/$1/report"; then
		printf '  %-14s %10s states, %s\n' "$1" "$(value "$1" 'states, stored')" "no error"
		passed=$((passed + 1))
	else
		printf '  %-14s FAILED, see %s\n' "$1" "$build/$1/report"
		failed=$((failed + 1))
	fi
}

fault() {
	verify "$1" "$2" "$3" "$1"
	if grep -q 'errors: [1-9]' "$build/$1/report"; then
		what=$(sed -n "s/^pan:[0-9]*: \(.*\) (at depth.*/\1/p" "$build/$1/report")
		printf '  %-14s found: %s\n' "$1" "$what"
		passed=$((passed + 1)) found=$((found + 1))
	else
		printf '  %-14s NOT FOUND, see %s\n' "$1" "$build/$1/report"
		failed=$((failed + 1))
	fi
}

echo "The mailbox, all states; then each seeded fault"
if test "${1:-}" = quick; then
	sound short 2 1
else
	sound short 3 1
	sound long 3 2
fi
found=0 all=0
for f in $faults; do
	all=$((all + 1))
	fault "$f" 3 1
done
echo "$found of $all found"
echo "$passed passed, $failed failed"
test "$failed" = 0
