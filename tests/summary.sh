#!/bin/sh
# SPDX-License-Identifier: MIT
# summary.sh - owns the verdict over what `make test` left: build/test/VARIANT/PROGRAM.tap.
# Runs: summary.sh DIRECTORY "VARIANTS" "PROGRAMS". The last line is "N passed, N failed"; status 1
# if any failed.
#
# A program that did not compile, ended early, timed out or ended with a status of its own counts as
# one failed test more. Skipped tests are shown and count as neither.
set -eu

dir=$1 variants=$2 programs=$3

for variant in $variants; do
	for program in $programs; do
		file=$dir/$variant/$program
		if test -e "$file.tap"; then
			awk -v variant="$variant" -v program="$program" -v file="$file" '
			/^1\.\.[0-9]+/ { planned += substr($0, 4) }
			/^(not )?ok [0-9]+/ {
				seen++
				if (/# SKIP/) { skipped++; next }
				if (/^ok/) { passed++; next }
				failed++
				sub(/^not ok [0-9]+ - /, "")
				print "FAILED " variant "/" program ": " $0
				detail = 1
				next
			}
			/^# exit / { status = $3; next }
			/^#/ && detail { print "      " substr($0, 2) }
			{ detail = 0 }
			END {
				early = seen < planned || planned == 0
				if (early || (status != 0 && failed == 0)) {
					failed++
					print "FAILED " variant "/" program ": status " status " after " \
						seen + 0 " of " planned + 0 " tests, see " file ".err"
				}
				print "=", variant, passed + 0, failed + 0, skipped + 0
			}' "$file.tap"
		else
			echo "FAILED $variant/$program: not built"
			echo "= $variant 0 1 0"
		fi
	done
done | awk '
$1 == "=" {
	if (!($2 in programs)) order[++count] = $2
	programs[$2]++; passed[$2] += $3; failed[$2] += $4; skipped[$2] += $5
	next
}
{ print }
END {
	printf "%-8s %9s %8s %8s %8s\n", "variant", "programs", "passed", "failed", "skipped"
	for (i = 1; i <= count; i++) {
		v = order[i]
		printf "%-8s %9d %8d %8d %8d\n", v, programs[v], passed[v], failed[v], skipped[v]
		p += passed[v]; f += failed[v]
	}
	printf "%d passed, %d failed\n", p, f
	exit f != 0 || p == 0
}'
