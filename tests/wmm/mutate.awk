# SPDX-License-Identifier: MIT
# mutate.awk - owns one edit of a mutant: awk -v function_=F -v old=TEXT -v new=TEXT -f mutate.awk FILE
# In the definition of F (from a line that starts with its head to the closing brace in column 1) replaces TEXT,
# which must be there exactly once; exit status 1 otherwise.
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
