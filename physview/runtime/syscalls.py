# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of the system calls that load and unload modules: Python has no functions for them.

Source: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h
"""

NUMBERS = {
    "x86_64": {"finit_module": 313, "delete_module": 176},
    "aarch64": {"finit_module": 273, "delete_module": 106},
}
"""By architecture, as `os.uname().machine` names it, and by the call's name."""
