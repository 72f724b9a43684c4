#!/bin/sh
# SPDX-License-Identifier: MIT
# record.sh - owns how the traces in tests/traces were recorded: four real programs, one real task
# each.
# Runs: Linux host with sqlite3, python3, gcc and redis-server; from anywhere.
#
#   tests/host/record.sh [directory of librecord.so and replay] [sqlite3|python3|gcc|redis ...]
#
# A trace is cut at a number of calls that keeps the file near 700 KB. The programs' own versions
# and addresses decide the details: a new recording is equivalent to the one in the repository, not
# identical.
set -eu

top=$(cd "$(dirname "$0")/../.." && pwd)
build=${1:-$top/build/host}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- sqlite3 python3 gcc redis
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || :; rm -rf "$work"' EXIT
traces=$top/tests/traces
mkdir -p "$traces"

# record NAME CALLS COMMAND...: at most CALLS calls of COMMAND into NAME.trace
record() {
	trace=$traces/$1.trace
	calls=$2
	shift 2
	rm -f "$trace"
	exec env KSLAB_TRACE="$trace" KSLAB_TRACE_OPS="$calls" LD_PRELOAD="$build/librecord.so" "$@"
}

# Tables, inserts, an index, updates, joins, deletes, a text search.
record_sqlite3() {
	cat >"$work/task.sql" <<-'SQL'
	PRAGMA journal_mode = WAL;
	CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, city TEXT, score INTEGER);
	CREATE TABLE purchase (id INTEGER PRIMARY KEY, customer INTEGER, item TEXT, price REAL,
		note BLOB);
	BEGIN;
	WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 2500)
	INSERT INTO customer SELECT x, 'name ' || hex(x * 7919), 'city ' || (x * 31 % 97),
		x * 7919 % 1000 FROM n;
	WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 6000)
	INSERT INTO purchase SELECT x, x * 13 % 2500 + 1, 'item ' || (x * 17 % 211), x * 3.5,
		zeroblob(x % 400) FROM n;
	COMMIT;
	CREATE INDEX purchase_customer ON purchase (customer);
	CREATE INDEX customer_city ON customer (city, name);
	SELECT c.city, count(*), sum(p.price), group_concat(DISTINCT p.item) FROM customer c
		JOIN purchase p ON p.customer = c.id GROUP BY c.city ORDER BY 3 DESC LIMIT 10;
	UPDATE customer SET name = name || printf('-%05d', score), score = score + 1
		WHERE id % 3 = 0;
	SELECT item, max(length(note)), replace(upper(item), 'ITEM', 'THING') FROM purchase
		GROUP BY item LIMIT 5;
	DELETE FROM purchase WHERE customer IN (SELECT id FROM customer WHERE score < 200);
	SELECT count(*) FROM purchase a JOIN purchase b ON a.item = b.item AND a.id < b.id
		WHERE a.customer < 60;
	SELECT name FROM customer WHERE name LIKE '%9-0%' OR city GLOB '*7' ORDER BY name LIMIT 20;
	SELECT json_group_array(json_object('id', id, 'name', name)) FROM customer WHERE id < 1500;
	PRAGMA integrity_check;
	SQL
	# Statements of an interactive user: parsed, prepared, run and finalised one by one.
	i=0
	while [ $i -lt 1500 ]; do
		echo "INSERT INTO purchase (customer, item, price, note) VALUES" \
			"($((i * 37 % 2500 + 1)), 'late $((i % 50))', $i.25, x'$i$i');"
		echo "SELECT c.name, sum(p.price) FROM customer c JOIN purchase p" \
			"ON p.customer = c.id WHERE c.id = $((i * 53 % 2500 + 1));"
		i=$((i + 1))
	done >>"$work/task.sql"
	(record sqlite3 245000 sqlite3 "$work/task.db" <"$work/task.sql" >/dev/null)
}

# Words, objects, regular expressions, JSON, a syntax tree, a diff.
record_python3() {
	cat >"$work/task.py" <<-'PY'
	import ast, collections, difflib, json, re, sys
	text = open(difflib.__file__).read()
	words = collections.Counter(re.findall(r"[a-z]+", text.lower()))
	print(words.most_common(5))
	tree = ast.parse(text[:len(text) // 30].rsplit("\ndef ", 1)[0])
	print(sum(1 for node in ast.walk(tree)))
	class Account:
	    def __init__(self, name):
	        self.name, self.log = name, []
	    def add(self, amount):
	        self.log.append({"amount": amount, "text": "%s: %.2f" % (self.name, amount)})
	accounts = [Account("account %d" % i) for i in range(100)]
	for step in range(3000):
	    accounts[step * 31 % 100].add(step * 1.25)
	    if step % 500 == 0:
	        data = json.dumps([vars(a) for a in accounts])
	        assert json.loads(data)[0]["name"] == "account 0"
	        for a in accounts:
	            del a.log[:]
	lines = text.splitlines()[:400]
	print(len(list(difflib.unified_diff(lines, [s for s in lines if "self" not in s]))))
	PY
	(PYTHONMALLOC=malloc PYTHONHASHSEED=0 record python3 201000 \
		/usr/bin/python3 -s "$work/task.py" >/dev/null)
}

# The compiler proper (not the driver) on a source file of this repository.
record_gcc() {
	gcc -E -P -I"$top/tests" "$top/tests/host/replay.c" -o "$work/task.i"
	(record gcc 203000 "$(gcc -print-prog-name=cc1)" -fpreprocessed -quiet -O3 -g \
		"$work/task.i" -o "$work/task.s")
}

# A server with several clients: strings, lists, sets, hashes, sorted sets.
record_redis() {
	port=16411
	(cd "$work" && record redis 201000 redis-server --port $port --bind 127.0.0.1 --save '' \
		--appendonly no >/dev/null) &
	server=$!
	tries=0
	until redis-cli -p $port ping >/dev/null 2>&1; do
		tries=$((tries + 1))
		[ $tries -lt 50 ] || return 1
		sleep 0.1
	done
	redis-benchmark -p $port -q -n 1800 -c 8 -r 100 -d 40 \
		-t set,get,incr,lpush,lpop,lrange_100,sadd,spop,hset,zadd,mset >/dev/null
	redis-cli -p $port shutdown nosave
	wait $server || :
	server=
}

for name; do
	"record_$name"
	"$build/replay" -i "$traces/$name.trace"
done
ls -l "$traces"
