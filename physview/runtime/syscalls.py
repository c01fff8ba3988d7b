# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of system calls for which Python has no functions, and of those of the VM's init program.

Source: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h
"""

NUMBERS = {
    "x86_64": {
        "write": 1,
        "close": 3,
        "execve": 59,
        "chdir": 80,
        "chroot": 161,
        "mount": 165,
        "delete_module": 176,
        "exit_group": 231,
        "openat": 257,
        "mkdirat": 258,
        "move_pages": 279,
        "finit_module": 313,
    },
    "aarch64": {
        "mkdirat": 34,
        "mount": 40,
        "chdir": 49,
        "chroot": 51,
        "openat": 56,
        "close": 57,
        "write": 64,
        "exit_group": 94,
        "delete_module": 106,
        "execve": 221,
        "move_pages": 239,
        "finit_module": 273,
    },
}
"""By architecture, as `os.uname().machine` names it, and by the call's name."""
