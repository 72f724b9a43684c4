# SPDX-License-Identifier: MIT
# table.awk - owns the benchmark's table: medians, ratios to the best peer and to each, means.
# Reads lines "allocator test value"; -v statistic=median|minimum, -v ratios=FILE for the picture.
# Plain awk: no sort function, no multi-dimensional arrays.

function value_of(column, test,    n, i, j, v, list)
{
	n = count[column, test]
	if (n == 0)
		return 0
	for (i = 1; i <= n; i++) {
		v = sample[column, test, i]
		for (j = i - 1; j >= 1 && list[j] > v; j--)
			list[j + 1] = list[j]
		list[j + 1] = v
	}
	if (statistic == "minimum")
		return list[1]
	return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
}

function group_of(test)
{
	if (test ~ /^memory/)
		return "memory"
	if (test ~ /^(pair|lifo|fifo)-/)
		return "hot loops"
	if (test ~ /^(producer|exchange)-/)
		return "threads"
	if (test ~ /^grow-/)
		return "realloc"
	sub(/-.*/, "", test)
	return test
}

function mean_line(name, columns,    c, line)
{
	line = sprintf("%-26s", name)
	for (c = 1; c <= own_count; c++) {
		if (n_of[name, own[c]])
			line = line sprintf("  %s %.3f", own[c], \
				exp(log_of[name, own[c]] / n_of[name, own[c]]))
	}
	print line
}

function add(name, column, ratio)
{
	log_of[name, column] += log(ratio)
	n_of[name, column]++
}

{
	if (!($1 in columns)) {
		columns[$1] = 1
		if ($1 ~ /^kslab/)
			own[++own_count] = $1
		else if ($1 != "none")
			peer[++peer_count] = $1
	}
	if (!($2 in tests)) {
		tests[$2] = 1
		test_name[++test_count] = $2
	}
	sample[$1, $2, ++count[$1, $2]] = $3
}

# Time: kslab's ns, those of calls that do nothing, the best peer's, ratio of each own column to it,
# kslab's ratio to each peer.
function time_row(test,    p, c, v, best, best_name, line)
{
	for (p = 1; p <= peer_count; p++) {
		v = value_of(peer[p], test)
		if (v > 0 && (!best || v < best)) {
			best = v
			best_name = peer[p]
		}
	}
	line = sprintf("%-16s", test)
	for (c = 1; c <= own_count; c++)
		line = line sprintf(" %10.1f", value_of(own[c], test))
	v = value_of("none", test)
	line = line (v > 0 ? sprintf(" %8.1f", v) : sprintf(" %8s", "-"))
	if (!best) {
		print line
		return
	}
	line = line sprintf("  %-9s %9.1f ", best_name, best)
	for (c = 1; c <= own_count; c++) {
		v = value_of(own[c], test) / best
		line = line sprintf(" %9.2f", v)
		if (v > 0) {
			add("all tests", own[c], v)
			add(group_of(test), own[c], v)
		}
	}
	line = line " |"
	for (p = 1; p <= peer_count; p++) {
		v = value_of(peer[p], test)
		line = line (v > 0 ? sprintf(" %8.2f", value_of(own[1], test) / v) : \
			sprintf(" %8s", "-"))
		if (v > 0)
			add("against " peer[p], own[1], value_of(own[1], test) / v)
	}
	print line
	if (ratios)
		printf "%s %.4f %.4f\n", test, value_of(own[1], test) / best, \
			value_of(own[own_count], test) / best > ratios
}

END {
	line = sprintf("%-16s", "ns/operation")
	for (c = 1; c <= own_count; c++)
		line = line sprintf(" %10s", own[c])
	line = line sprintf(" %8s  %-9s %9s ", "no heap", "best peer", "")
	for (c = 1; c <= own_count; c++)
		line = line sprintf(" %9s", own[c])
	line = line " |"
	for (p = 1; p <= peer_count; p++)
		line = line sprintf(" %8s", peer[p])
	printf "%-16s %*s  %-29s %*s | %s against each\n", "", 11 * own_count - 1, "", "", \
		10 * own_count - 1, "ratio to best", own[1]
	print line
	for (i = 1; i <= test_count; i++)
		if (test_name[i] !~ /^memory/)
			time_row(test_name[i])
	print ""
	print "geometric means of the ratios to the best peer, test by test"
	mean_line("all tests")
	done["all tests"] = 1
	for (i = 1; i <= test_count; i++) {
		name = group_of(test_name[i])
		if (name != "memory" && !(name in done))
			mean_line(name)
		done[name] = 1
	}
	print "geometric means against one peer"
	for (p = 1; p <= peer_count; p++)
		mean_line("against " peer[p])
	if (!done["memory"])
		exit
	print ""
	line = sprintf("%-26s", "bytes taken / bytes asked")
	for (c = 1; c <= own_count; c++)
		line = line sprintf(" %9s", own[c])
	for (p = 1; p <= peer_count; p++)
		line = line sprintf(" %9s", peer[p])
	print line
	for (i = 1; i <= test_count; i++) {
		if (test_name[i] !~ /^memory/)
			continue
		line = sprintf("%-26s", test_name[i])
		for (c = 1; c <= own_count; c++)
			line = line sprintf(" %9.3f", value_of(own[c], test_name[i]))
		for (p = 1; p <= peer_count; p++) {
			v = value_of(peer[p], test_name[i])
			line = line (v > 0 ? sprintf(" %9.3f", v) : sprintf(" %9s", "-"))
		}
		print line
	}
}
