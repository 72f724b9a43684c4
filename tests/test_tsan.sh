#!/bin/sh
# SPDX-License-Identifier: MIT
# test_tsan.sh - owns the verdict of ThreadSanitizer on tests/test_smp.c: silent on the library as it is, loud on each
# copy with one memory order weakened (tests/relaxed_atomics.h). A detector that reports nothing there proves nothing.
# Runs: test_tsan.sh [directory for what it builds]; CC (gcc or clang) and TSAN_SOURCE (default: the repository) from
# the environment. TAP on standard output; status 1 if anything failed.
set -u

cd "$(dirname "$0")/.." || exit 1
out=${1:-build/tsan}
cc=${CC:-gcc}
from=${TSAN_SOURCE:-.}
seconds=${TEST_SECONDS:-600}
mkdir -p "$out" || exit 1
number=0 failed=0

# As in the BUILD line of test_smp.c.
set -- -std=gnu11 -O1 -g -pthread -fsanitize=thread "-I$from/include" "-I$from/src" -Itests \
	'-DKSLAB_CFG_HEADER="fake_cpu.h"' -DKSLAB_CFG_CPUS=16 -DKSLAB_CFG_LEVELS=2

verdict() { # status name
	number=$((number + 1))
	if test "$1" = 0; then
		echo "ok $number - $2"
	else
		failed=$((failed + 1))
		echo "not ok $number - $2"
	fi
}

# build program flags...: of test_smp.c
build() {
	program=$1
	shift
	"$cc" "$@" tests/test_smp.c "$from"/src/*.c -lcmocka -o "$program" 2>"$program.log"
}

# What compiler.h has between "#else" and "#endif" of KSLAB_ATOMICS_HEADER.
sed -n '/^#ifdef KSLAB_ATOMICS_HEADER/,/^#endif/p' "$from/src/compiler.h" | sed '1,/^#else/d; /^#endif/d' \
	>"$out/plain_atomics.h"

# run name: leaves name.tap, name.err and name.races, the functions that raced.
run() {
	TSAN_OPTIONS='halt_on_error=0 exitcode=66' CMOCKA_MESSAGE_OUTPUT=TAP timeout "$seconds" "$out/$1" \
		>"$out/$1.tap" 2>"$out/$1.err"
	status=$?
	sed -n 's/^SUMMARY: ThreadSanitizer: .* in \([A-Za-z0-9_]*\)$/\1/p' "$out/$1.err" | sort -u >"$out/$1.races"
}

echo 1..5
: >"$out/smp.races"
if build "$out/smp" "$@"; then
	run smp
	grep '^not ok' "$out/smp.tap" | grep -v SKIP | sed 's/^/# /'
	sed 's/^/# race in /' "$out/smp.races"
	grep -q '^ok ' "$out/smp.tap" && test "$status" -lt 124 && test ! -s "$out/smp.races"
	verdict $? "the library as it is: no report (status $status)"
else
	verdict 1 "the library as it is: does not build, see $out/smp.log"
fi

for relaxed in 1 2 3 4; do
	name=$(sed -n "s/^ \*     $relaxed  //p" tests/relaxed_atomics.h)
	if build "$out/smp-$relaxed" "$@" "-I$out" '-DKSLAB_ATOMICS_HEADER="relaxed_atomics.h"' -DRELAXED=$relaxed; then
		run smp-$relaxed
		# Only what the library as it is does not show counts.
		found=$(comm -13 "$out/smp.races" "$out/smp-$relaxed.races" | wc -l)
		test "$found" -gt 0
		verdict $? "reported at $found places: $name"
	else
		verdict 1 "does not build: $name, see $out/smp-$relaxed.log"
	fi
done
test "$failed" = 0
