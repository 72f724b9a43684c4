#!/bin/sh
# SPDX-License-Identifier: MIT
# readme.sh - owns the proof that the README's port example compiles as it stands there, and works.
# Runs: readme.sh from anywhere; BUILD (default build/ at the top level), HOSTCC. Last line: "N passed, N failed".
set -u

cd "$(dirname "$0")/.." || exit 1
out=${BUILD:-build}/readme
cc=${HOSTCC:-gcc}
mkdir -p "$out"

# The lines between the fences that follow the marker.
sed -n '/^<!-- example:/,/^```$/p' README.md | sed '/^<!--/d; /^```/d' > "$out/example.h"
cat > "$out/main.c" <<'MAIN'
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static size_t frames_out;
static void *frames_alloc(size_t n)
{
	frames_out += n;
	return n == 1 ? aligned_alloc(4096, 4096) : (frames_out -= n, NULL);
}
static void frames_free(void *mem, size_t n)
{
	frames_out -= n;
	free(mem);
}
#include <stdbool.h>
#include "example.h"
int main(void)
{
	char *p[1000];

	if (!heap_start())
		return 1;
	for (int i = 0; i < 1000; i++) {
		p[i] = kmalloc((size_t)i);
		if (p[i] == NULL)
			return 2;
		memset(p[i], i, (size_t)i);
	}
	for (int i = 0; i < 1000; i++)
		p[i] = krealloc(p[i], (size_t)i * 2 + 1);
	for (int i = 0; i < 1000; i++) {
		for (int k = 0; k < i; k++)
			if (p[i][k] != (char)i)
				return 3;
		kfree(p[i]);
	}
	if (!kslab_check(NULL) || kslab_fini() != KSLAB_OK || frames_out != 0)
		return 4;
	return 0;
}
MAIN
status=0
test "$(grep -c . "$out/example.h")" -ge 10 && $cc -std=gnu11 -O1 -g -Wall -Wextra -Werror -Iinclude -I"$out" \
	"$out/main.c" src/*.c -o "$out/example" && "$out/example" || status=$?
if [ "$status" = 0 ]; then
	echo "ok README example"
	echo "1 passed, 0 failed"
else
	echo "not ok README example (status $status)"
	echo "0 passed, 1 failed"
	exit 1
fi
