#!/bin/sh
# SPDX-License-Identifier: MIT
# programs.sh - owns the test of real programs, unchanged, on kslab: they must do what they do
# without it.
# Runs: Linux host; from anywhere, after `make host`.
#
#   tests/programs.sh [directory of libkslab.so] [name ...]
#
# Each task runs twice, without and with LD_PRELOAD, in a fresh directory, and prints what it did
# on standard output; both outputs must be the same. It counts only if the library was at work (it
# says so at exit when KSLAB_STATS=1). Prints "ok NAME" or "FAIL NAME", or "skip NAME" if a program
# is not installed. Exit status 1 if anything failed.
set -u

top=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-$top/build/host}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- names faults threads growth sqlite3 python3 git gcc redis
library=$(cd "$build" && pwd)/libkslab.so
limit=120 # seconds for one run of one task
cc=${CC:-gcc}

[ -f "$library" ] || { echo "no $library: make host"; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

# What each task needs. The tasks themselves run in a shell of their own: see the end.
needs_names=$cc
needs_faults=$cc
needs_threads=$cc
needs_growth=$cc
needs_sqlite3=sqlite3
needs_python3=python3
needs_git=git
needs_gcc=gcc
needs_redis="redis-server redis-cli redis-benchmark"

# The names of the C library: names.c knows what they promise.
cat >"$work/names.sh" <<'SH'
kslab "$work/names"
SH

cat >"$work/threads.sh" <<'SH'
for seed in 1 2 3; do kslab "$work/threads" $seed; done
SH

cat >"$work/growth.sh" <<'SH'
kslab "$work/growth"
SH

cat >"$work/sqlite3.sh" <<'SH'
{
	echo 'PRAGMA cache_size = -20000;'
	echo 'CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, n INTEGER, b BLOB);'
	echo 'BEGIN; WITH RECURSIVE c(x) AS'
	echo '(SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 60000)'
	echo "INSERT INTO t SELECT x, 'name ' || hex(x * 7919), x * 7919 % 1000, zeroblob(x % 300)"
	echo 'FROM c; COMMIT;'
	echo 'CREATE INDEX t_n ON t (n, name);'
	echo 'SELECT n, count(*), group_concat(name) FROM t GROUP BY n ORDER BY 2 DESC, 1 LIMIT 50;'
	echo "UPDATE t SET name = name || printf('-%05d', n) WHERE id % 3 = 0;"
	echo 'DELETE FROM t WHERE id % 7 = 0;'
	echo 'SELECT count(*) FROM t a JOIN t b ON a.n = b.n AND a.id < b.id WHERE a.id < 1500;'
	echo "SELECT json_group_array(json_object('id', id, 'name', name)) FROM t WHERE id < 2000;"
	i=0
	while [ $i -lt 500 ]; do
		echo "SELECT $i, name FROM t WHERE id = $((i * 53));"
		i=$((i + 1))
	done
	echo 'PRAGMA integrity_check; VACUUM; SELECT count(*), sum(length(b)) FROM t;'
} >task.sql
kslab sqlite3 task.db <task.sql
kslab sqlite3 task.db .dump | cksum
SH

cat >"$work/python3.sh" <<'SH'
cat >task.py <<'PY'
import ast, collections, concurrent.futures, decimal, difflib, gc, hashlib, json, pickle, re
import subprocess, sys, zlib
text = open(difflib.__file__).read()
print(collections.Counter(re.findall(r"[a-z]+", text.lower())).most_common(10))
print(sum(1 for node in ast.walk(ast.parse(text))))
print(len(compile(text, "difflib", "exec").co_consts))
data = {str(i): [i, i * 1.5, "x" * (i % 700), {"k": [None, True] * (i % 9)}] for i in range(20000)}
s = json.dumps(data)
assert json.loads(s) == data and pickle.loads(pickle.dumps(data)) == data
print(hashlib.sha256(s.encode()).hexdigest(), zlib.crc32(zlib.compress(s.encode(), 9)))
a = text.splitlines()
print(len(list(difflib.unified_diff(a, [line for line in a if "self" not in line]))))
decimal.getcontext().prec = 2000
print(str(decimal.Decimal(2).sqrt())[-40:])
def job(n):
    return sum(len(str(pow(3, n + k))) + len(bytearray(k * 37 % 5000)) for k in range(400))
with concurrent.futures.ThreadPoolExecutor(12) as pool:
    print(sum(pool.map(job, range(200))))
print(subprocess.run([sys.executable, "-c", "print(sum(map(len, map(str, range(30000)))))"],
                     capture_output=True, text=True).stdout)
class Node:
    pass
for i in range(20000):
    a, b = Node(), Node()
    a.other, b.other = b, a
a = b = None
print(gc.collect() > 0, len(bytearray(200 << 20)))
PY
PYTHONHASHSEED=0 PYTHONMALLOC=malloc PYTHONDONTWRITEBYTECODE=1 kslab python3 task.py
SH

cat >"$work/git.sh" <<'SH'
export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org
export GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
export GIT_AUTHOR_DATE='2024-01-01T00:00:00Z' GIT_COMMITTER_DATE='2024-01-01T00:00:00Z'
kslab git init -q -b main one && cd one || exit 1
kslab git config pack.threads 4
for version in 1 2 3 4 5 6; do
	for file in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
		seq $((version * file)) $((version * file + 600)) >f$file
	done
	kslab git add . && kslab git commit -q -m "version $version"
	kslab git tag v$version
done
kslab git checkout -q -b side v3
echo side >f21
kslab git add f21 && kslab git commit -q -m side
kslab git checkout -q main && kslab git merge -q -m merge side
kslab git gc -q --aggressive --prune=now
kslab git fsck --full --strict
kslab git clone -q . ../two
cd ../two && kslab git log --stat --format='%H %T %s' && kslab git diff v1 v6 | cksum
kslab git blame -s f7 | cksum
kslab git archive v6 | cksum
SH

cat >"$work/gcc.sh" <<'SH'
cp "$top"/tests/host/replay.c "$top"/tests/host/names.c .
for file in replay names; do
	for flags in -O0 '-O2 -g' '-O3 -fno-inline -funroll-loops'; do
		kslab gcc -std=gnu11 $flags -I"$top/tests" -c $file.c -o $file.o && cksum <$file.o
	done
	kslab gcc -std=gnu11 -O2 -flto -frandom-seed=1 -I"$top/tests" $file.c -o $file && echo linked
	kslab gcc -std=gnu11 -S -O2 -fverbose-asm -I"$top/tests" $file.c -o - | cksum
done
SH

cat >"$work/redis.sh" <<'SH'
kslab redis-server --port $port --bind 127.0.0.1 --dir . --save '' --appendonly yes --io-threads 2 \
	--daemonize no >server.log &
server=$!
tries=0
until redis-cli -p $port ping >ping 2>/dev/null && grep -q PONG ping; do
	tries=$((tries + 1))
	[ $tries -lt 100 ] && kill -0 $server || { cat server.log >&2; exit 1; }
	sleep 0.1
done
kslab redis-benchmark -p $port -q -n 10000 -c 20 -r 5000 -P 8 -d 100 \
	-t set,get,incr,lpush,rpush,lpop,rpop,lrange_100,sadd,hset,spop,zadd,zpopmin,mset \
	>bench.txt || echo "bench: $?"
tr '\r' '\n' <bench.txt | grep -c 'requests per second'
redis-cli -p $port flushall
i=0
while [ $i -lt 300 ]; do
	echo "set key:$i value:$((i * i))"
	echo "append key:$i $(printf %0$((i + 1))d $i)"
	echo "rpush list $i"
	echo "hset hash f$i $((i * 7))"
	echo "zadd zset $((i * 31 % 100)) m$i"
	echo "sadd set $((i * 13 % 40))"
	i=$((i + 1))
done >commands
{
	cat commands
	cat <<-'COMMANDS'
	lrange list 0 20
	zrange zset 0 -1 withscores
	sort set
	strlen key:299
	hlen hash
	eval "local s = 0 for i = 0, 299 do s = s + redis.call('strlen', 'key:'..i) end return s" 0
	dbsize
	debug digest
	COMMANDS
} | kslab redis-cli -p $port
# Fork with a heap in use: the child writes the whole state, and a second server must read the same.
redis-cli -p $port bgrewriteaof
tries=0
while [ $tries -lt 100 ] &&
	redis-cli -p $port info persistence | grep -q 'aof_rewrite_in_progress:1'; do
	tries=$((tries + 1))
	sleep 0.1
done
redis-cli -p $port debug loadaof
redis-cli -p $port debug digest
redis-cli -p $port shutdown nosave
wait $server
echo "server: $?"
SH

# What a faulty program gets: one line, then SIGABRT; with KSLAB_REPORT=log the line alone.
cat >"$work/faults.c" <<'C'
#include <stdint.h>
#include <stdlib.h>
int main(int argc, char **argv)
{
	char *volatile p = malloc(100), *volatile q = malloc(100);
	static char global[64];
	(void)argc;
	switch (argv[1][0]) {
	case 'd': free(p); free(p); break;
	case 'i': free(p + 16); break;
	case 'f': free(global + 16); break;
	case 'w': free((void *)(uintptr_t)0x1230); break;
	case 'r': free(p); p = realloc(p, 200); break;
	}
	free(q);
	return 0;
}
C

# judge_faults: like judge, but there is nothing to compare with.
judge_faults() {
	$cc -w -O0 -o "$work/faults" "$work/faults.c" || { echo 'does not compile'; return; }
	for fault in 'd double free' 'i interior pointer' 'f foreign pointer' 'w foreign pointer' \
		'r double free'; do
		what="^kslab: ${fault#* }: 0x[0-9a-f]*,.*CPU [0-9]*, caller 0x[0-9a-f]* (.*)$"
		for policy in abort log; do
			(LD_PRELOAD=$library KSLAB_REPORT=$policy "$work/faults" "${fault%% *}" \
				2>"$work/faults.err")
			status=$?
			[ $policy = log ] && wanted=0 || wanted=134
			[ $status = $wanted ] || echo "${fault#* }, $policy: status $status"
			lines=$(wc -l <"$work/faults.err")
			grep -q "$what" "$work/faults.err" && [ "$lines" = 1 ] ||
				echo "${fault#* }, $policy: $(cat "$work/faults.err")"
		done
	done 2>/dev/null # the shell's own words about SIGABRT
}

# run NAME WHICH: one run of a task, WHICH of "plain" and "kslab"; leaves WHICH.out and WHICH.err.
run() {
	rm -rf "$work/run" # the same place for both: its name gets into debug information
	mkdir "$work/run"
	{
		echo 'set -u'
		if [ "$2" = kslab ]; then
			echo "kslab() { env LD_PRELOAD='$library' KSLAB_STATS=1 \"\$@\"; }"
		else
			echo 'kslab() { env "$@"; }'
		fi
		cat "$work/$1.sh"
	} >"$work/run/task.sh"
	(cd "$work/run" && work=$work top=$top port=$port timeout -k 5 $limit sh task.sh \
		>"$work/$1.$2.out" 2>"$work/$1.$2.err" </dev/null)
}

# Return: why a task failed, as text; nothing if it did not.
judge() {
	run "$1" plain || { echo "fails without kslab, status $?"; return; }
	run "$1" kslab || { echo "status $?"; return; }
	cmp -s "$work/$1.plain.out" "$work/$1.kslab.out" || { echo 'output differs'; return; }
	grep -q '^kslab: process' "$work/$1.kslab.err" || { echo 'kslab was not at work'; return; }
	! grep -q '^kslab: [a-z ]*: 0x' "$work/$1.kslab.err" || echo 'a fault was reported'
}

port=$((20000 + $$ % 20000))
for name in names threads growth; do
	$cc -std=c11 -O2 -pthread -I"$top/include" -o "$work/$name" "$top/tests/host/$name.c" || exit 2
done
status=0
for name; do
	eval "needs=\${needs_$name:-}"
	[ -n "$needs" ] || { echo "FAIL $name (no such task)"; status=1; continue; }
	missing=
	for program in $needs; do
		command -v "$program" >"$work/found" || missing="$missing $program"
	done
	if [ -n "$missing" ]; then
		echo "skip $name (not installed:$missing)"
		continue
	fi
	case $name in
	faults) why=$(judge_faults) ;;
	*) why=$(judge "$name") ;;
	esac
	if [ -z "$why" ]; then
		echo "ok $name"
		continue
	fi
	echo "FAIL $name: $why"
	status=1
	[ "$name" != faults ] || continue
	diff "$work/$name.plain.out" "$work/$name.kslab.out" 2>&1 | cut -c 1-200 | head -n 20
	grep -v '^kslab: process' "$work/$name.kslab.err" 2>&1 | grep -m 20 '^kslab: \|rror'
done
exit $status
