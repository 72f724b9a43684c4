#!/bin/sh
# SPDX-License-Identifier: MIT
# run.sh - owns the run of worst.c: the longest single call of each function, in instructions.
#
# tests/worst/run.sh [-o DIR] [PART OF A ROW'S TEXT]
# x86_64, gcc -O2 and the flags of the kernel library, four CPUs. All code of the library and the
# test kernel's memset are moved to one section, by which worst.c knows what to count; its memcpy,
# by which realloc moves contents, is not. Exits with 1
# if a call exceeds its bound, or grows with the heap where it must not. The last line is "N passed,
# N failed".
set -eu
cd "$(dirname "$0")/../.."

out=build/worst
while getopts o: option; do
	case $option in
	o) out=$OPTARG ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
if [ "$(uname -sm)" != 'Linux x86_64' ]; then
	echo 'worst: x86_64 Linux only'
	echo '0 passed, 0 failed'
	exit 0
fi
CC=${CC:-gcc}
flags='-std=gnu11 -O2 -g -fno-pic -fno-stack-protector -mno-red-zone -Wall -Wextra -Werror'
flags="$flags -Iinclude -Itests/worst -DKSLAB_CFG_HEADER=<worst_port.h>"
library='-ffreestanding -fno-asynchronous-unwind-tables -mgeneral-regs-only'

mkdir -p "$out"
rm -f "$out"/*.o
for s in src/*.c tests/kernel/libk.c; do
	o=$out/$(basename "$s" .c).o
	# shellcheck disable=SC2086
	$CC $flags $library $([ "${s##*/}" = libk.c ] && echo -ffunction-sections) -c "$s" -o "$o"
	objcopy --rename-section .text=kslab_text --rename-section .text.memset=kslab_text \
		--rename-section .text.unlikely=kslab_text \
		--rename-section .text.unlikely.=kslab_text "$o"
done
# shellcheck disable=SC2086
$CC $flags -c tests/worst/worst.c -o "$out/worst.o"
$CC -no-pie -o "$out/worst" "$out"/*.o
"$out/worst" "$@"
