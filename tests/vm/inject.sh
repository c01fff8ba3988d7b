#!/bin/sh
# Runs a command with faults injected: allocations and copies to and from user space fail at
# random, in this process and all that it starts. What it says of that does not count; that the
# kernel is well afterwards does.
set -eu
for what in failslab fail_usercopy; do
	folder=/sys/kernel/debug/$what
	# The filter first: until it is set, everybody's calls fail.
	echo Y >$folder/task-filter
	echo 0 >$folder/verbose
	echo -1 >$folder/times
	echo 20 >$folder/probability
done
echo N >/sys/kernel/debug/failslab/ignore-gfp-wait
(
	echo 1 >/proc/self/make-it-fail
	exec "$@"
) >/dev/null 2>&1 || true
for what in failslab fail_usercopy; do
	echo 0 >/sys/kernel/debug/$what/probability
done
