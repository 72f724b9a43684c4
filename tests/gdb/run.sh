#!/bin/sh
# SPDX-License-Identifier: MIT
# run.sh - owns the test of kslab.py: a process, a core dump of it, and the test kernel in QEMU through its gdb port.
# Runs: Linux host with gdb; QEMU for the kernel, which is left out where there is none.
#
#   tests/gdb/run.sh
#
# Each command must print what is expected of it. The last line is "N passed, N failed"; status 1 if any failed.
set -u

top=$(cd "$(dirname "$0")/../.." && pwd)
cd "$top" || exit 2
build=${BUILD:-build}
out=$build/gdb
cc=${HOSTCC:-gcc}
mkdir -p "$out"
passed=0 failed=0
qemu_pid=
trap 'test -z "$qemu_pid" || kill "$qemu_pid" 2>/dev/null' EXIT

# expect NAME FILE PATTERN: a line of the file matches the extended regular expression.
expect() {
	if grep -Eq -- "$3" "$2"; then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
		echo "FAILED $1: no line of $2 matches: $3"
	fi
}

# Not one line of the file matches.
reject() {
	if grep -Eq -- "$3" "$2"; then
		failed=$((failed + 1))
		echo "FAILED $1: a line of $2 matches: $3"
	else
		passed=$((passed + 1))
	fi
}

# tell STATUS NAME
tell() {
	if [ "$1" = 0 ]; then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
		echo "FAILED $2"
	fi
}

debug() {
	timeout 120 gdb -nx -batch -ex 'set pagination off' -ex 'set confirm off' \
		-ex 'set debuginfod enabled off' -ex 'source tests/gdb/kslab.py' "$@" 2>&1
}

# Commands whose answer is known, each under a title.
cat >"$out/commands.gdb" <<'GDB'
kslab heap
kslab heap &kslab_default_heap
kslab info
kslab classes
kslab map
echo == small[3]\n
kslab ptr small[3]
echo == inside\n
kslab ptr (char *)small[3] + 9
echo == freed\n
kslab ptr freed
echo == large\n
kslab ptr (char *)large + 5000
echo == freed_large\n
kslab ptr freed_large
echo == cached\n
kslab ptr cached
echo == leaked\n
kslab ptr leaked[1]
echo == foreign\n
kslab ptr &on_stack_of_nobody
echo == metadata\n
kslab ptr kslab_default_heap.meta.chunks
echo == leaks\n
kslab leaks mark
kslab leaks &mark
echo == check\n
kslab check
echo == all\n
set $i = 0
while $i < 40
kslab ptr small[$i]
set $i = $i + 1
end
GDB

# look NAME LEVEL FILE: what those commands must have said.
look() {
	expect "$1" "$3" '^heap 0x[0-9a-f]+: page 4096 bytes, object pages up to 65536 bytes, debug level '$2'$'
	expect "$1" "$3" '^pages: [0-9]+ in use, [0-9]+ at most, [0-9]+ metadata, [0-9]+ in [0-9]+ large blocks'
	expect "$1" "$3" '^cpu 0 level 0: [0-9]+ slow allocations, .* pages made'
	expect "$1" "$3" '^tasks +[0-9]+ +1 +[0-9]+ '
	expect "$1" "$3" '^tasks +[0-9]+  @$'
	expect "$1" "$3" '^ +[0-9]+  [@#1-4.]+$'
	expect "$1" "$3" '^0x[0-9a-f]+: object 0x[0-9a-f]+ of class [0-9]+, [0-9]+ bytes, live$'
	expect "$1" "$3" 'bytes, live, 9 bytes inside$'
	expect "$1" "$3" '^  slot [0-9]+ of [0-9]+ in page 0x[0-9a-f]+ .*cpu 0 level 0'
	expect "$1" "$3" '^  behind it: 0x[0-9a-f]+ live$'
	expect "$1" "$3" '^0x[0-9a-f]+: large block 0x[0-9a-f]+, 53248 bytes, live, 5000 bytes inside$'
	expect "$1" "$3" '^0x[0-9a-f]+: (large block 0x[0-9a-f]+, [0-9]+ bytes, free|in a page that has gone back)'
	expect "$1" "$3" ' of cache tasks, [0-9]+ bytes, live$'
	expect "$1" "$3" 'not memory of this heap$'
	expect "$1" "$3" 'metadata of this heap$'
	expect "$1" "$3" '^0x[0-9a-f]+ 90112 bytes$'
	expect "$1" "$3" '^4 objects, [0-9]+ bytes since the mark$'
	expect "$1" "$3" '^[0-9]+ object pages, [0-9]+ live and [0-9]+ free slots, 0 contradictions$'
	reject "$1" "$3" 'Error|Traceback|wrong:'
	# 40 small ones but one, three leaks, one of the cache: what waits in quarantine is none of them.
	expect "$1" "$3" '^objects: 43 live, [0-9]+ bytes'
	expect "$1" "$3" '^[0-9]+ object pages, 43 live and '
	if [ "$2" = 1 ]; then
		sed '1,/^== all/d' "$3" >"$out/all.txt"
		expect "$1" "$out/all.txt" '^  asked for: 100 bytes$'
		test "$(grep -c '^  asked for: 100 bytes$' "$out/all.txt")" = 39
		tell $? "$1: all 39 objects of 100 bytes say so"
	fi
	if [ "$2" = 0 ]; then
		expect "$1" "$3" '^0x[0-9a-f]+: object 0x[0-9a-f]+ of class 104, 104 bytes, free$'
		reject "$1" "$3" 'allocated by'
	fi
	if [ "$2" = 2 ]; then
		expect "$1" "$3" ' of class [0-9]+, [0-9]+ bytes, in quarantine$'
		expect "$1" "$3" '^objects: 43 live, [0-9]+ bytes, 1 in quarantine$'
		expect "$1" "$3" '^  asked for: 100 bytes$'
		expect "$1" "$3" '^  allocated by: 0x[0-9a-f]+ <main'
		expect "$1" "$3" '^  allocated by: 0x[0-9a-f]+ <leaks_here'
		expect "$1" "$3" '^  freed by: 0x[0-9a-f]+ <main'
		expect "$1" "$3" '^0x[0-9a-f]+ 70 bytes, allocated by 0x[0-9a-f]+ <leaks_here'
		expect "$1" "$3" '^3 by 0x[0-9a-f]+ <leaks_here'
	fi
}

for level in 0 1 2; do
	program=$out/target$level
	"$cc" -std=gnu11 -O1 -g -fno-pie -no-pie -fno-optimize-sibling-calls -Wall -Wextra -Iinclude \
		-DTARGET_LEVEL=$level tests/gdb/target.c src/*.c -o "$program" || exit 2
	rm -f "$out/core$level"
	debug -ex 'break stop_here' -ex run -ex "generate-core-file $out/core$level" \
		-x "$out/commands.gdb" -ex continue -ex 'echo == damaged\n' -ex 'kslab check' \
		-ex kill "$program" >"$out/process$level.txt" 2>&1
	sed '/^== damaged/,$d' "$out/process$level.txt" >"$out/process$level.well.txt"
	look "process, level $level" $level "$out/process$level.well.txt"
	expect "process, level $level" "$out/process$level.txt" \
		'^wrong: count of empty pages of cpu 0 level 0 is wrong$'
	expect "process, level $level" "$out/process$level.txt" ', 1 contradictions$'
	debug -x "$out/commands.gdb" "$program" -c "$out/core$level" >"$out/core$level.txt" 2>&1
	look "core dump, level $level" $level "$out/core$level.txt"
done

debug -ex 'break purging_here' -ex run -ex 'kslab ptr purged' -ex 'kslab check' -ex kill "$out/target0" \
	>"$out/purging.txt" 2>&1
expect purging "$out/purging.txt" '^0x[0-9a-f]+: object 0x[0-9a-f]+ of class [0-9]+, [0-9]+ bytes, free$'
expect purging "$out/purging.txt" '^  slot 8 of [0-9]+ in page .*, being purged, 1 live\), cpu 0 level 0'
expect purging "$out/purging.txt" '^[0-9]+ object pages, [0-9]+ live and [0-9]+ free slots, 0 contradictions$'
reject purging "$out/purging.txt" 'Error|Traceback|wrong:'

if command -v qemu-system-x86_64 >/dev/null; then
	make --no-print-directory -s BUILD="$build" TARGET=x86_64 kernel >&2 || echo "FAILED: the kernel does not build"
	port=$((20000 + $$ % 20000))
	qemu-system-x86_64 -M q35 -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=4 -accel tcg -m 512 \
		-smp 4 -display none -monitor none -serial "file:$out/serial.txt" -nic none \
		-S -gdb "tcp:127.0.0.1:$port" -kernel "$build/kernel-x86_64/kernel.elf" &
	qemu_pid=$!
	sleep 1
	# The job that checks a trace prints the heap at the trace's peak.
	debug -ex "target remote 127.0.0.1:$port" -ex 'hbreak kslab_print' -ex continue \
		-ex 'kslab info' -ex 'kslab classes' -ex 'kslab map' -ex 'kslab check' \
		-ex 'echo == current\n' -ex 'kslab ptr kslab_default_heap.boot_zone.sc[7].page->data' \
		-ex 'echo == foreign\n' -ex 'kslab ptr $rsp' -ex 'echo == kernel says\n' \
		-ex finish -ex kill "$build/kernel-x86_64/kernel.elf" >"$out/kernel.txt" 2>&1
	kill "$qemu_pid" 2>/dev/null
	wait "$qemu_pid" 2>/dev/null
	qemu_pid=
	name="kernel in QEMU"
	expect "$name" "$out/kernel.txt" '^heap 0x[0-9a-f]+: page 4096 bytes'
	expect "$name" "$out/kernel.txt" '^objects: [1-9][0-9]* live, [0-9]+ bytes$'
	expect "$name" "$out/kernel.txt" '^ +64 +[0-9]+ +[0-9]+ '
	expect "$name" "$out/kernel.txt" '^ +[0-9]+  [@#1-4.]+$'
	expect "$name" "$out/kernel.txt" ' of class 64, 64 bytes, (live|free)$'
	expect "$name" "$out/kernel.txt" 'not memory of this heap$'
	expect "$name" "$out/kernel.txt" '^[1-9][0-9]* object pages, [0-9]+ live and [0-9]+ free slots, 0 contradictions$'
	reject "$name" "$out/kernel.txt" 'Error|Traceback|wrong:'
	# What gdb counted is what the kernel printed.
	live=$(sed -n 's/^objects: \([0-9]*\) live.*/\1/p' "$out/kernel.txt" | head -n 1)
	expect "$name" "$out/serial.txt" "^objects: ${live:-none} live"
else
	echo 'skipped: no qemu-system-x86_64'
fi

echo "$passed passed, $failed failed"
test "$failed" = 0
