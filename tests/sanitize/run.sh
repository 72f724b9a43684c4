#!/bin/sh
# SPDX-License-Identifier: MIT
# run.sh - owns the test of KSLAB_PORT_POISON and UNPOISON: AddressSanitizer and Valgrind see what client code does
# wrong with memory of kslab, and do not complain of what is right.
# Runs: Linux host; Valgrind's part is left out where there is none.
#
#   tests/sanitize/run.sh
#
# The last line is "N passed, N failed"; exit status 1 if any failed.
set -u

top=$(cd "$(dirname "$0")/../.." && pwd)
cd "$top" || exit 2
out=${BUILD:-build}/sanitize
cc=${HOSTCC:-gcc}
passed=0 failed=0
mkdir -p "$out"

# judge NAME EXPECTED: the words are in $out/text, once at least; "fine": the client came to its end, and no report.
judge() {
	if [ "$2" = fine ]; then
		grep -q '^end$' "$out/text" && ! grep -Eq 'ERROR: AddressSanitizer|Invalid|uninit|check failed' "$out/text"
	else
		grep -Eq -- "$2" "$out/text"
	fi
	if [ $? = 0 ]; then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
		echo "FAILED $1: expected: $2"
		sed 's/^/      /' "$out/text" | head -n 12
	fi
}

wrong="overflow_read overflow_write overflow_full_slot underflow_write overflow_after_realloc overflow_large
	overflow_cache free_read free_write free_write_large free_write_cache never_issued moved"

# ---- AddressSanitizer: the client alone is instrumented

lib="-std=gnu11 -O1 -g -Wall -Wextra -Iinclude -Itests/sanitize"
mkdir -p "$out/asan"
for file in src/*.c; do
	"$cc" $lib -DKSLAB_CFG_HEADER='"asan_port.h"' -c "$file" -o "$out/asan/$(basename "$file" .c).o" || exit 2
done
"$cc" $lib -fsanitize=address -DKSLAB_CFG_HEADER='"asan_port.h"' tests/sanitize/client.c "$out"/asan/*.o \
	-o "$out/client-asan" || exit 2
for level in 1 2; do
	for name in $wrong; do
		ASAN_OPTIONS=detect_leaks=0 "$out/client-asan" $level $name >"$out/text" 2>&1
		judge "asan, level $level, $name" 'ERROR: AddressSanitizer: (use-after-poison|unknown-crash)'
	done
	ASAN_OPTIONS=detect_leaks=0 "$out/client-asan" $level fine >"$out/text" 2>&1
	judge "asan, level $level, fine" fine
done

# ---- Valgrind: the library is a shared object that may look at everything

if command -v valgrind >/dev/null && [ -e /usr/include/valgrind/memcheck.h ]; then
	"$cc" $lib -fPIC -shared -DKSLAB_CFG_HEADER='"valgrind_port.h"' src/*.c -o "$out/libkslab-looks.so" || exit 2
	"$cc" $lib -DKSLAB_CFG_HEADER='"valgrind_port.h"' tests/sanitize/client.c "$out/libkslab-looks.so" \
		-Wl,-rpath,"$(cd "$out" && pwd)" -o "$out/client-valgrind" || exit 2
	for kind in Cond Value1 Value2 Value4 Value8 Value16 Addr1 Addr2 Addr4 Addr8 Addr16; do
		printf '{\n   library\n   Memcheck:%s\n   obj:*/libkslab-looks.so\n}\n' $kind
		printf '{\n   library_mem\n   Memcheck:%s\n   fun:mem*\n   obj:*/libkslab-looks.so\n}\n' $kind
	done >"$out/kslab.supp"
	check() {
		valgrind -q --leak-check=no --suppressions="$out/kslab.supp" "$out/client-valgrind" $1 $2 \
			>"$out/text" 2>&1
	}
	for level in 1 2; do
		for name in $wrong; do
			check $level $name
			judge "valgrind, level $level, $name" 'Invalid (read|write) of size 1'
		done
		for name in not_set not_set_again not_set_grown not_set_large; do
			check $level $name
			judge "valgrind, level $level, $name" 'depends on uninitialised value'
		done
		check $level fine
		judge "valgrind, level $level, fine" fine
	done
else
	echo 'skipped: no valgrind'
fi

echo "$passed passed, $failed failed"
test "$failed" = 0
