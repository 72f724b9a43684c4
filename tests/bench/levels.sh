#!/bin/sh
# SPDX-License-Identifier: MIT
# levels.sh - owns the figures of the debug levels: time as ratios to level 0; instructions, which no other load of
# the machine can change; and what kslab_check takes for 1,000,000 objects at each level.
#
#   tests/bench/levels.sh [-n rounds]
#
# The library is compiled as for libkslab.so, the three levels are heaps of one process. Wished for: level 1 takes at
# most 1.6 times, level 2 at most 3 times as long as level 0; kslab_check at most 50 ms for 100 MiB of heap. See
# levels.c and check.c for what is measured.
set -eu
cd "$(dirname "$0")/../.."

out=${BUILD:-build}/levels
cc=${CC:-gcc}
rounds=15
while getopts n: option; do
	case $option in
	n) rounds=$OPTARG ;;
	*) exit 2 ;;
	esac
done
mkdir -p "$out"
compile() {
	"$cc" -std=gnu11 -O2 -g -Wall -Wextra -Iinclude -Itests -DKSLAB_CFG_HEADER='"host/port.h"' "$@"
}
for source in tests/host/port.c src/*.c; do
	compile -fno-builtin -c "$source" -o "$out/$(basename "$source" .c).o"
done
compile tests/bench/levels.c "$out"/*.o -pthread -lm -o "$out/levels"
compile tests/bench/check.c "$out"/*.o -pthread -o "$out/check"
"$out/check"
"$out/levels" -n "$rounds" tests/traces/*.trace

command -v valgrind >/dev/null || exit 0
count() { # arguments of levels
	valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect=play \
		"$out/levels" "$@" tests/traces/*.trace 2>&1 | sed -n 's/.*Collected : //p'
}
echo "million instructions, all traces once, from an empty heap"
printf '%-16s %11s %9s %9s\n' '' 'level 0' 'level 1' 'level 2'
for way in -w ''; do
	printf '%s %s %s %s\n' "${way:--}" $(for level in 0 1 2; do count -l $level $way; done)
done | awk '{ printf "%-16s %11.1f %9.2f %9.2f\n", $1 == "-w" ? "with contents" : "calls alone",
	$2 / 1e6, $3 / $2, $4 / $2 }'
