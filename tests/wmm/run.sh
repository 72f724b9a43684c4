#!/bin/sh
# SPDX-License-Identifier: MIT
# run.sh - owns the model checks of the frees from other CPUs: builds tests/wmm with the real source, runs all
# scenarios, weakens every memory order and seeds every fault of mutants.txt, one at a time.
# Runs: run.sh [quick] from anywhere. quick: the short scenarios, no mutants, under 30 seconds.
# BUILD (default build/ at the top level), CC (gcc or clang), JOBS. The last line is "N passed, N failed".
set -u

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
build=${BUILD:-$top/build}/wmm
jobs=${JOBS:-$(nproc 2>/dev/null || echo 2)}
cc=${CC:-gcc}
mode=${1:-all}
flags="-std=gnu11 -O2 -g -I$here -I$top/include"
warn="-Wall -Wextra -Werror"
hooks='-DKSLAB_ATOMICS_HEADER="wmm_atomics.h" -fsanitize=thread'
sources="object_page sc_allocator bitfield"
passed=0 failed=0

# compile SRC OUT FLAGS: the library's part from SRC, and what depends on its headers.
compile() {
	for f in $sources; do
		# shellcheck disable=SC2086
		$cc $flags $3 $hooks -c "$1/$f.c" -o "$2/$f.o" || return 1
	done
	for f in world scenarios; do
		# shellcheck disable=SC2086
		$cc $flags $3 -DKSLAB_ATOMICS_HEADER='"wmm_atomics.h"' -I"$1" -c "$here/$f.c" -o "$2/$f.o" ||
			return 1
	done
	$cc "$2"/*.o "$build"/checker/*.o -o "$2/wmm"
}

build_all() {
	rm -rf "$build" && mkdir -p "$build/checker" "$build/real" "$build/mutants" || return 1
	for f in wmm plain litmus main; do
		# shellcheck disable=SC2086
		$cc $flags $warn -I"$top/src" -c "$here/$f.c" -o "$build/checker/$f.o" || return 1
	done
	compile "$top/src" "$build/real" "$warn"
}

# add "N passed, N failed" of a file to the totals, and show the rest of it
count() {
	sed '$d' "$1"
	p=0 f=1
	case $(tail -n 1 "$1") in
	*' passed, '*' failed')
		p=$(tail -n 1 "$1" | awk '{ print $1 }')
		f=$(tail -n 1 "$1" | awk '{ print $3 }')
		;;
	*) tail -n 1 "$1" ;;
	esac
	passed=$((passed + p)) failed=$((failed + f))
}

# one mutant: its file of edits -> .verdict
mutant() {
	dir=$1
	mkdir -p "$dir/src" && cp "$top"/src/*.[ch] "$dir/src" || return
	file='' edits=0
	while IFS= read -r line; do
		case $line in
		'@ '*)
			file=$(echo "$line" | cut -d' ' -f2)
			FUNCTION=$(echo "$line" | cut -d' ' -f3)
			export FUNCTION
			;;
		'< '*)
			OLD=${line#< }
			export OLD
			;;
		'> '*)
			NEW=${line#> }
			export NEW
			edits=$((edits + 1))
			awk -f "$here/mutate.awk" "$dir/src/$file" >"$dir/new" || {
				echo "edit $edits does not apply exactly once" >"$dir/verdict"
				return
			}
			mv "$dir/new" "$dir/src/$file"
			;;
		esac
	done <"$dir/edits"
	if ! compile "$dir/src" "$dir" -w >"$dir/log" 2>&1; then
		echo "does not compile, see $dir/log" >"$dir/verdict"
		return
	fi
	"$dir/wmm" caught >"$dir/out" 2>&1
	status=$?
	if test $status = 0; then
		echo "NOT CAUGHT" >"$dir/verdict"
	else
		test $status = 1 || echo "crashes" >"$dir/out"
		head -n 1 "$dir/out" >"$dir/caught"
	fi
}

try_mutants() {
	echo "Faults seeded into the source, and what catches them"
	awk -v dir="$build/mutants" '
	/^#/ { next }
	/^$/ { name = ""; next }
	name == "" {
		name = $0
		out = sprintf("%s/%03d", dir, ++n)
		system("mkdir -p " out)
		print name > (out "/name")
		next
	}
	{ print > (out "/edits") }' "$here/mutants.txt"
	running=0
	for dir in "$build"/mutants/*; do
		mutant "$dir" &
		running=$((running + 1))
		if test $running = "$jobs"; then
			wait
			running=0
		fi
	done
	wait
	all=0 caught=0
	for dir in "$build"/mutants/*; do
		all=$((all + 1))
		if test -e "$dir/caught"; then
			caught=$((caught + 1))
			verdict=$(cat "$dir/caught")
		else
			verdict=$(cat "$dir/verdict")
		fi
		printf '  %-44s %s\n' "$(cat "$dir/name")" "$verdict"
	done
	echo "$caught of $all caught"
	passed=$((passed + caught)) failed=$((failed + all - caught))
}

build_all || {
	echo "tests/wmm does not build"
	echo "0 passed, 1 failed"
	exit 1
}
if test "$mode" = quick; then
	"$build/real/wmm" litmus 50 >"$build/litmus.out" 2>&1
	count "$build/litmus.out"
	"$build/real/wmm" quick >"$build/all.out" 2>&1
	count "$build/all.out"
else
	"$build/real/wmm" litmus 1000 >"$build/litmus.out" 2>&1 &
	"$build/real/wmm" all >"$build/all.out" 2>&1
	wait
	count "$build/litmus.out"
	count "$build/all.out"
	"$build/real/wmm" orders >"$build/orders.out" 2>&1
	count "$build/orders.out"
	try_mutants
fi
echo "$passed passed, $failed failed"
test "$failed" = 0
