# SPDX-License-Identifier: GPL-2.0-or-later
"""The sources: files of /proc and /sys, system calls, and the kernel module, one module each."""
