#!/bin/sh
# SPDX-License-Identifier: MIT
# run.sh - owns the benchmark: builds one program per allocator, runs them by turns, prints the
# table, draws the picture.
#
# tests/bench/run.sh [quick|full|memory] [-o DIR] [-r ROUNDS] [-t RE] [-a NAMES] [-m] [-b|-n]
#   quick   about 40 seconds (the default); full: about 8 minutes; memory: only memory
#   -o DIR  where programs and results go (build/bench)
#   -r N    rounds: every test is run once in each, allocator after allocator
#   -t RE   tests whose name or group matches this extended regular expression
#   -a ...  allocators, instead of "kslab kslab-irq none glibc mimalloc jemalloc tcmalloc"
#   -m      minimum instead of median, for a machine with much other load
#   -b      build only; -n: run what is built already
# Honoured: CC, CFLAGS (appended). Files in DIR: results.txt (raw), table.txt, ratios.svg.
#
# What is compared: kslab is compiled from src/*.c with -O2 and linked as separate objects, without
# link-time optimisation; kslab has KSLAB_CFG_LEVELS=1, as a malloc replacement needs it, kslab-irq
# has 4 and may be called from interrupts and NMIs. Peers are Debian's packages with their default
# settings: static archives where the package has one (jemalloc, tcmalloc), so that all calls are
# direct; glibc and mimalloc are shared, called through the GOT without a PLT. "none" is no allocator:
# what the loop of a test and two calls that do nothing cost. One thread: CPU time of the process,
# system time included. Two threads: wall clock. A number is the median over all rounds and
# repetitions.
set -eu
cd "$(dirname "$0")/../.."

mode=quick out=build/bench rounds='' pattern=. statistic=median do_build=1 do_run=1
allocators='kslab kslab-irq none glibc mimalloc jemalloc tcmalloc'
case ${1:-} in quick | full | memory) mode=$1 && shift ;; esac
while getopts o:r:t:a:mbn option; do
	case $option in
	o) out=$OPTARG ;;
	r) rounds=$OPTARG ;;
	t) pattern=$OPTARG ;;
	a) allocators=$OPTARG ;;
	m) statistic=minimum ;;
	b) do_run=0 ;;
	n) do_build=0 ;;
	*) sed -n 's/^# tests.bench.run.sh/usage: run.sh/p' "$0" && exit 2 ;;
	esac
done
case $mode in
quick) chunks=2 scale=30 rounds=${rounds:-3} ;;
full) chunks=5 scale=100 rounds=${rounds:-9} ;;
memory) chunks=1 scale=100 rounds=${rounds:-1} pattern=memory ;;
esac
CC=${CC:-gcc}
mkdir -p "$out"

# ---- build ----

warn='-Wall -Wextra -Wshadow -Wundef -Wstrict-prototypes -Wmissing-prototypes -Wno-unused-function'
flags="-std=gnu11 -O2 -g -fno-builtin -fno-plt -ftls-model=initial-exec $warn -Iinclude -Itests"
# The jobs of one allocator run at once; what fails is missing when it is linked.
compile() { # object source flags...
	object=$1 source=$2
	shift 2
	# shellcheck disable=SC2086
	$CC $flags "$@" -c "$source" -o "$object" ${CFLAGS:-} &
}

build() { # allocator
	dir=$out/$1
	mkdir -p "$dir"
	rm -f "$dir"/*.o
	set -- "$1" -DBENCH_SHIM="\"shim_${1%-irq}.h\""
	case $1 in
	kslab) set -- "$@" -DKSLAB_CFG_HEADER='"host/port.h"' -DKSLAB_CFG_LEVELS=1 ;;
	kslab-irq) set -- "$@" -DKSLAB_CFG_HEADER='"host/port.h"' -DKSLAB_CFG_LEVELS=4 ;;
	esac
	case $1 in
	kslab*) sources='src/*.c tests/host/port.c tests/bench/bench*.c' ;;
	*) sources='tests/bench/bench*.c' ;;
	esac
	shift
	for s in $sources; do compile "$dir/$(basename "$s" .c).o" "$s" "$@"; done
	wait
}

link() { # allocator libraries
	rm -f "$out/bench-$1"
	# shellcheck disable=SC2086
	$CC -O2 -g -o "$out/bench-$1" "$out/$1"/*.o ${2:-} -pthread -lm
}

# A peer whose package is not there is left out.
is_there() { # header
	printf '#include <%s>\n' "$1" | $CC -E -x c - >/dev/null 2>&1
}

present=''
for a in $allocators; do
	case $a in
	mimalloc) header=mimalloc.h package=libmimalloc-dev ;;
	jemalloc) header=jemalloc/jemalloc.h package=libjemalloc-dev ;;
	tcmalloc) header=gperftools/tcmalloc.h package=libgoogle-perftools-dev ;;
	*) header=stdlib.h package='' ;;
	esac
	if is_there "$header"; then
		present="$present $a"
	else
		echo "bench: without $a (Debian package $package)" >&2
	fi
done
allocators=${present# }
for a in $allocators; do
	test $do_build = 1 || break
	build "$a"
	case $a in
	mimalloc) link "$a" -lmimalloc ;;
	jemalloc) link "$a" '-l:libjemalloc.a -ldl' ;;
	tcmalloc) link "$a" '-l:libtcmalloc_minimal.a -lstdc++' ;;
	*) link "$a" ;;
	esac
done
test $do_run = 1 || exit 0

# ---- run: for each round and test one allocator after the other ----

first=${allocators%% *}
tests=$("$out/bench-$first" list | awk -v re="$pattern" '$1 ~ re || $2 ~ re { print $1 }')
results=$out/results.txt
: >"$results"

run() { # test path
	for a in $allocators; do
		case $a,$1 in
		none,pair-* | none,lifo-* | none,fifo-* | none,random-* | none,producer-* | none,exchange-*) ;;
		none,*) continue ;;
		esac
		"$out/bench-$a" "$chunks" "$scale" "$1" ${2:+"$2"} | sed "s/^/$a /" >>"$results"
	done
}

round=0
while [ $round -lt "$rounds" ]; do
	for t in $tests; do
		case $t in
		trace) for path in tests/traces/*.trace; do run trace "$path"; done ;;
		memory) test $round != 0 || run memory ;; # no noise in it
		*) run "$t" ;;
		esac
	done
	# The next round begins with another one.
	allocators="${allocators#* } ${allocators%% *}"
	round=$((round + 1))
	printf '\rround %d of %d' $round "$rounds" >&2
done
printf '\r                    \r' >&2

# ---- table and picture ----

version() {
	dpkg-query -W -f '${Version}\n' "$1" 2>/dev/null | head -n 1
}

{
	echo "machine: $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | uniq -c | tr -s ' '),\
 $(uname -s) $(uname -r), load $(cut -d ' ' -f 1 /proc/loadavg)"
	echo "compiler: $($CC --version | head -n 1), -O2"
	echo "peers: glibc $(version libc6), mimalloc $(version libmimalloc-dev),\
 jemalloc $(version libjemalloc-dev), tcmalloc $(version libgoogle-perftools-dev)"
	echo "$mode: $rounds rounds of $chunks repetitions, scale $scale %, $statistic"
	echo
	awk -v statistic=$statistic -v ratios="$out/ratios.txt" -f tests/bench/table.awk "$results"
} | tee "$out/table.txt"

if command -v gnuplot >/dev/null && test -s "$out/ratios.txt"; then
	gnuplot -e "data='$out/ratios.txt'; picture='$out/ratios.svg'" tests/bench/ratios.gp
fi
