# SPDX-License-Identifier: MIT
# mutate.awk - owns one edit of a mutant: FUNCTION=F OLD=TEXT NEW=TEXT awk -f mutate.awk FILE
# In the definition of F (from its head to the closing brace in column 1) replaces OLD by NEW; OLD
# must be there exactly once, or the exit status is 1.
BEGIN {
	old = ENVIRON["OLD"]
	new = ENVIRON["NEW"]
	function_ = ENVIRON["FUNCTION"] "("
}

/^[a-zA-Z]/ && index($0, function_) && !/;$/ {
	inside = 1
}

inside && (at = index($0, old)) {
	$0 = substr($0, 1, at - 1) new substr($0, at + length(old))
	hits++
}

{
	print
}

/^}/ {
	inside = 0
}

END {
	exit hits != 1
}
