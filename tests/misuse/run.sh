#!/bin/sh
# SPDX-License-Identifier: MIT
# run.sh - owns the build of the misuse table: libkslab.so at debug levels 0 and 1, and the program that tries
# everything against both.
# Runs: Linux host; from anywhere.
#
#   tests/misuse/run.sh [part of a name]
#
# Its last line is "N passed, N failed"; exit status 1 if any failed.
set -eu

top=$(cd "$(dirname "$0")/../.." && pwd)
cd "$top"
build=${BUILD:-build}
cc=${HOSTCC:-gcc}

make --no-print-directory -s V= BUILD="$build" "$build/host/libkslab.so" >&2
make --no-print-directory -s V= BUILD="$build" HOST="$build/host-debug1" CFLAGS=-DKSLAB_CFG_DEBUG=1 \
	"$build/host-debug1/libkslab.so" >&2
lib0=$(cd "$build/host" && pwd)/libkslab.so
lib1=$(cd "$build/host-debug1" && pwd)/libkslab.so

# The compiler is to know nothing of malloc and free: it would warn, or leave the misuse out.
mkdir -p "$build/misuse"
"$cc" -std=gnu11 -O1 -g -fPIC -Wall -Wextra -Wno-use-after-free -fno-builtin -Iinclude -Itests \
	-DKSLAB_CFG_HEADER='"host/port.h"' \
	tests/misuse/misuse.c "$lib0" -pthread -o "$build/misuse/misuse"
exec "$build/misuse/misuse" "$lib0" "$lib1" "$@"
