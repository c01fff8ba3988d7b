#!/bin/sh
# Runs in the VM: swap in memory, folios smaller than huge pages, no khugepaged, no NUMA balancing; then
# what is to be run, then a look at the kernel's log, which has to be free of complaints, and for leaks where the
# kernel looks for them.
# Exits as the command does, or with 99 if the log is not clean.
set -u
# Several commands may run in one VM, one after the other. The first sets it up.
ready=/run/physview-guest
if [ ! -e $ready ]; then
	if [ -e /sys/block/zram0 ]; then
		echo 256M >/sys/block/zram0/disksize
		mkswap /dev/zram0 >/dev/null
		swapon /dev/zram0
	fi
	# The guest's root is in memory (tmpfs), where pages of files stay for ever. Tests of the page cache
	# ask for temporary files on a disk; it is a compressed one, in memory, too.
	if [ -n "${PHYSVIEW_TEST_DISK-}" ]; then
		number=$(cat /sys/class/zram-control/hot_add) &&
			echo "$PHYSVIEW_TEST_DISK" >"/sys/block/zram$number/disksize" &&
			mkfs.ext4 -q "/dev/zram$number" &&
			mkdir -p /mnt/physview-test && mount -t ext4 "/dev/zram$number" /mnt/physview-test &&
			chmod 1777 /mnt/physview-test || exit 98
	fi
	small_folios=/sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled
	[ ! -e $small_folios ] || echo madvise >$small_folios
	# It takes the pages of a stopped process away for the time in which it makes a huge page of them.
	khugepaged=/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs
	[ ! -e $khugepaged ] || echo 4000000000 >$khugepaged
	# It moves pages to the node of who uses them, also of a process that looks at itself.
	balancing=/proc/sys/kernel/numa_balancing
	[ ! -e $balancing ] || echo 0 >$balancing
	: >$ready
fi
[ -z "${PHYSVIEW_TEST_DISK-}" ] || export TMPDIR=/mnt/physview-test

"$@"
code=$?

complaints='cut here|WARNING:|BUG:|KASAN|UBSAN|INFO: task|possible (circular|recursive)|Call Trace'
leaks=/sys/kernel/debug/kmemleak
if [ -e $leaks ]; then
	# The first scan finds what is still on its way; what stays for two is lost.
	for _ in 1 2; do
		echo scan >$leaks
		sleep 6
	done
	if grep -B2 -A20 physicalview $leaks; then
		code=99
	fi
fi
# A log that can't be read is no clean log.
if ! log=$(dmesg); then
	echo "dmesg does not run: nobody knows whether the log is clean"
	code=99
elif echo "$log" | grep -E "$complaints"; then
	echo "$log" | tail -n 60
	code=99
fi
exit $code
