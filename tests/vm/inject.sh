#!/bin/sh
# Runs a command while faults are injected: allocations and copies to and from user space fail at
# random, in those threads that ask for it (faults.h). A program that asks from its start could not
# even be executed.
# Usage: inject.sh COMMAND…
set -eu
for what in failslab fail_usercopy; do
	folder=/sys/kernel/debug/$what
	# The filter first: until it is set, everybody's calls fail.
	echo Y >$folder/task-filter
	echo 0 >$folder/verbose
	echo -1 >$folder/times
	echo "${PROBABILITY:-20}" >$folder/probability
done
echo N >/sys/kernel/debug/failslab/ignore-gfp-wait
code=0
"$@" || code=$?
for what in failslab fail_usercopy; do
	echo 0 >/sys/kernel/debug/$what/probability
done
exit $code
