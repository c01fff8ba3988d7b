# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is asked about memory: files of /proc and /sys, system calls, and the kernel module."""
