#!/bin/sh
# SPDX-License-Identifier: MIT
# run.sh - owns the model checks of the frees from other CPUs: builds tests/wmm with the real
# source, runs all scenarios, weakens every memory order and seeds every fault of mutants.txt.
# Runs: run.sh [quick] from anywhere. quick: the short scenarios, no mutants, under 30 seconds.
# BUILD (default build/ at the top level), CC (gcc or clang), JOBS.
# The last line is "N passed, N failed".
set -u

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
build=${BUILD:-$top/build}/wmm
jobs=${JOBS:-$(nproc 2>/dev/null || echo 2)}
cc=${CC:-gcc}
mode=${1:-all}
# The library sees the checker in place of its atomics, and calls plain.c for each plain access.
flags="-std=gnu11 -O2 -g -I$here -I$top/include"
warn="-Wall -Wextra -Werror"
atomics='-DKSLAB_ATOMICS_HEADER="wmm_atomics.h"'
hooks="-fsanitize=thread -Dmemset=__tsan_memset -Dmemcpy=__tsan_memcpy -Dmemmove=__tsan_memmove"
heap_port='-DKSLAB_CFG_HEADER="heap_port.h"'
passed=0 failed=0

# shellcheck disable=SC2086
compile_c() { # FILE OBJECT FLAGS
	$cc $flags $3 -c "$1" -o "$2"
}

# rooms SRC OUT FLAGS: the rooms object_page and sc_allocator from SRC, and what uses their headers.
rooms() {
	for f in object_page sc_allocator bitfield; do
		compile_c "$1/$f.c" "$2/$f.o" "$3 $atomics $hooks" || return 1
	done
	for f in world scenarios; do
		compile_c "$here/$f.c" "$2/$f.o" "$3 $atomics -I$1" || return 1
	done
	$cc "$2"/*.o "$build"/checker/*.o -o "$2/wmm"
}

# heap OUT FLAGS: the whole library.
heap() {
	for f in "$top"/src/*.c; do
		compile_c "$f" "$1/$(basename "$f" .c).o" "$2 $atomics $hooks $heap_port" &
	done
	wait
	compile_c "$here/heap_scenarios.c" "$1/heap_scenarios.o" \
		"$2 $atomics -fsanitize=thread $heap_port -I$top/src" || return 1
	$cc "$1"/*.o "$build"/checker/*.o -o "$1/wmm"
}

build_all() {
	rm -rf "$build" && mkdir -p "$build" || return 1
	cd "$build" && mkdir checker rooms heap mutants || return 1
	for f in wmm plain litmus main; do
		compile_c "$here/$f.c" "$build/checker/$f.o" "$warn" || return 1
	done
	rooms "$top/src" "$build/rooms" "$warn" && heap "$build/heap" "$warn"
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
	if ! rooms "$dir/src" "$dir" -w >"$dir/log" 2>&1; then
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
	"$build/rooms/wmm" litmus 50 >"$build/litmus.out" 2>&1
	"$build/rooms/wmm" quick >"$build/rooms.out" 2>&1
	"$build/heap/wmm" quick >"$build/heap.out" 2>&1
	set -- litmus rooms heap
else
	{
		"$build/rooms/wmm" litmus 1000 >"$build/litmus.out" 2>&1
		"$build/heap/wmm" all >"$build/heap.out" 2>&1
	} &
	"$build/rooms/wmm" all >"$build/rooms.out" 2>&1
	wait
	"$build/rooms/wmm" orders >"$build/rooms_orders.out" 2>&1
	"$build/heap/wmm" orders >"$build/heap_orders.out" 2>&1
	set -- litmus rooms heap rooms_orders heap_orders
fi
for part; do
	count "$build/$part.out"
done
test "$mode" = quick || try_mutants
echo "$passed passed, $failed failed"
test "$failed" = 0
