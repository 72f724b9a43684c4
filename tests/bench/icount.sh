#!/bin/sh
# SPDX-License-Identifier: MIT
# icount.sh - owns the count of instructions per kslab_malloc and kslab_free, which no other load
# of the machine can change.
#
# tests/bench/icount.sh [-o DIR] [-p "PAGES ..."]
# x86_64, gcc -O2 and the flags of the kernel library, one CPU, LEVELS=1 and 4. Means of 20,000
# pairs by callgrind: hot (one object, again and again), random (replacement all over the heap, slow
# paths included), in heaps of 1 to 1,800,000 pages (7 GiB); then the dearest single call, by stepping
# through each. Exits with 1 if a hot mean differs by more than 10 % between the sizes.
set -eu
cd "$(dirname "$0")/../.."

out=build/bench/icount sizes='1 256 10000 100000 1800000'
while getopts o:p: option; do
	case $option in
	o) out=$OPTARG ;;
	p) sizes=$OPTARG ;;
	*) exit 2 ;;
	esac
done
command -v valgrind >/dev/null || { echo 'icount: no valgrind' >&2; exit 2; }
test "$(uname -m)" = x86_64 || { echo 'icount: x86_64 only' >&2; exit 2; }
CC=${CC:-gcc}
flags='-std=gnu11 -O2 -g -fno-pic -fno-stack-protector -mno-red-zone -Iinclude -DKSLAB_CFG_CPUS=1'
library='-ffreestanding -fno-asynchronous-unwind-tables -mgeneral-regs-only'

build() { # levels
	dir=$out/levels-$1
	mkdir -p "$dir"
	rm -f "$dir"/*.o
	for s in src/*.c; do
		# shellcheck disable=SC2086
		$CC $flags $library -DKSLAB_CFG_LEVELS="$1" -c "$s" \
			-o "$dir/$(basename "$s" .c).o" &
	done
	# shellcheck disable=SC2086
	$CC $flags -Wall -Wextra -DKSLAB_CFG_LEVELS="$1" -c tests/bench/icount.c -o "$dir/icount.o"
	wait
	$CC -no-pie -o "$dir/icount" "$dir"/*.o
}

# Inclusive instructions of both functions inside measured_*, per call.
count() { # levels phase pages
	file=$out/callgrind.$1.$2.$3
	valgrind --tool=callgrind --callgrind-out-file="$file" --toggle-collect="measured_$2" \
		"$out/levels-$1/icount" "$2" "$3" >/dev/null 2>&1
	callgrind_annotate --inclusive=yes --threshold=100 "$file" | awk '
		function number(s) { gsub(/,/, "", s); return s + 0 }
		/:kslab_malloc( |$)/ && !m { m = number($1) }
		/:kslab_free( |$)/ && !f { f = number($1) }
		END { printf "%.1f %.1f\n", m / 20000, f / 20000 }'
	rm -f "$file"
}

for levels in 1 4; do build $levels; done
echo "instructions per call ($($CC --version | head -n 1), -O2, one CPU)"
echo "                    hot                random"
echo "LEVELS    pages  malloc    free     malloc    free"
for levels in 1 4; do
	for pages in $sizes; do
		printf '%6d %8d %7.1f %7.1f   %8.1f %7.1f\n' $levels "$pages" \
			$(count $levels hot "$pages") $(count $levels random "$pages")
	done
done | tee "$out/counts.txt"
echo
for levels in 1 4; do
	echo "dearest single call, LEVELS=$levels, 1000 pages"
	"$out/levels-$levels/icount" worst 1000
done
awk '{ for (i = 3; i <= 4; i++) { k = $1 " " i
		if (!(k in low) || $i < low[k]) low[k] = $i
		if ($i > high[k]) high[k] = $i } }
	END { for (k in low) if (high[k] > low[k] * 1.1) {
		print "icount: depends on the heap: LEVELS, column " k ": " low[k] " to " high[k]
		bad = 1 } exit bad }' "$out/counts.txt"
