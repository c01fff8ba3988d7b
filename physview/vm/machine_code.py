# SPDX-License-Identifier: GPL-2.0-or-later
"""The few machine instructions of the VM's init program, for x86-64 and for arm64.

The program makes system calls with constant arguments. After a call that must not fail, it goes on
if the result is not negative. Otherwise it sets up a message and jumps to the fail routine, which
writes the message and exits with the errno.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Protocol

from physview.runtime.syscalls import NUMBERS


class Processor(Protocol):
    """What the init program needs to know of a processor."""

    elf_machine: int
    """The number of the architecture in an ELF file, EM_*."""

    def call(self, name: str, args: Sequence[int]) -> bytes:
        """Return the code of a system call."""

    def fail_routine(self) -> bytes:
        """Return the code that writes the message and exits with the errno of the last call."""

    def check(self, message: int, size: int, offset: int) -> bytes:
        """Return the code that jumps to the fail routine if the last call failed.

        Args:
            message: The address of the message.
            size: Its size in bytes.
            offset: Where this code will be, in bytes from the beginning of the fail routine.
        """


# The instructions of x86-64 that the program uses, by their assembly. A constant operand follows
# the instruction: 64 bits after "mov rdi", 32 bits after "mov eax" and "jmp", 8 bits after "jns".
_MOV_RDI, _MOV_RSI, _MOV_RDX = b"\x48\xbf", b"\x48\xbe", b"\x48\xba"
_MOV_R10, _MOV_R8, _MOV_R9 = b"\x49\xba", b"\x49\xb8", b"\x49\xb9"
_MOV_EAX = b"\xb8"
_SYSCALL = b"\x0f\x05"
_TEST_RAX_RAX, _JNS, _JMP = b"\x48\x85\xc0", b"\x79", b"\xe9"
_NEG_EAX, _MOV_R12D_EAX, _MOV_EDI_R12D = b"\xf7\xd8", b"\x41\x89\xc4", b"\x44\x89\xe7"
# The registers of a system call's arguments, in order; its number is in eax. See syscall(2).
_MOV_ARGUMENTS = (_MOV_RDI, _MOV_RSI, _MOV_RDX, _MOV_R10, _MOV_R8, _MOV_R9)


class X8664:
    """x86-64. rsi and rdx hold the message, rax the errno, negated."""

    elf_machine = 62

    def call(self, name: str, args: Sequence[int]) -> bytes:
        """See `Processor.call()`."""
        moves = (move + _quad(arg) for move, arg in zip(_MOV_ARGUMENTS, args, strict=False))
        number = NUMBERS["x86_64"][name]
        return b"".join([*moves, _MOV_EAX, struct.pack("<I", number), _SYSCALL])

    def fail_routine(self) -> bytes:
        """See `Processor.fail_routine()`."""
        return b"".join(
            [
                *(_NEG_EAX, _MOV_R12D_EAX),  # write() overwrites rax, so keep the errno in r12
                self.call("write", [1]),
                _MOV_EDI_R12D,
                self.call("exit_group", []),
            ]
        )

    def check(self, message: int, size: int, offset: int) -> bytes:
        """See `Processor.check()`."""
        set_message = _MOV_RSI + _quad(message) + _MOV_RDX + _quad(size)
        jump_size = len(_JMP) + 4
        skip = _TEST_RAX_RAX + _JNS + bytes([len(set_message) + jump_size])
        before = skip + set_message
        return before + _JMP + struct.pack("<i", -(offset + len(before) + jump_size))


def _quad(value: int) -> bytes:
    return struct.pack("<Q", value & (1 << 64) - 1)


# The instructions of arm64, without their operands. Source: Arm ARM, C6.2
_MOVZ, _MOVK, _SVC_0, _TBZ, _B = 0xD2800000, 0xF2800000, 0xD4000001, 0x36000000, 0x14000000
_NEG_X19_X0, _MOV_X0_X19 = 0xCB0003F3, 0xAA1303E0
# The register of a system call's number; its arguments are in x0 to x5. See syscall(2).
_X8 = 8
_SIGN_BIT = 63


class Aarch64:
    """arm64. x1 and x2 hold the message, x0 the errno, negated."""

    elf_machine = 183

    def call(self, name: str, args: Sequence[int]) -> bytes:
        """See `Processor.call()`."""
        moves = (self._move(register, arg) for register, arg in enumerate(args))
        return b"".join([*moves, self._move(_X8, NUMBERS["aarch64"][name]), _word(_SVC_0)])

    def fail_routine(self) -> bytes:
        """See `Processor.fail_routine()`."""
        return b"".join(
            [
                _word(_NEG_X19_X0),  # write() overwrites x0, so keep the errno in x19
                self.call("write", [1]),
                _word(_MOV_X0_X19),
                self.call("exit_group", []),
            ]
        )

    def check(self, message: int, size: int, offset: int) -> bytes:
        """See `Processor.check()`."""
        set_message = self._move(1, message) + self._move(2, size)
        # "Test bit and branch if zero": over the message and the jump, counted in instructions.
        over = (4 + len(set_message) + 4) // 4
        skip = _TBZ | _SIGN_BIT >> 5 << 31 | (_SIGN_BIT & 31) << 19 | over << 5
        back = -(offset + 4 + len(set_message)) // 4
        return _word(skip) + set_message + _word(_B | back & (1 << 26) - 1)

    @staticmethod
    def _move(register: int, value: int) -> bytes:
        """Return the code that sets a register, 16 bits at a time."""
        parts = [value >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
        return b"".join(
            _word((_MOVK if i else _MOVZ) | i << 21 | part << 5 | register)
            for i, part in enumerate(parts)
        )


def _word(instruction: int) -> bytes:
    return struct.pack("<I", instruction)


PROCESSORS: dict[str, Processor] = {"x86_64": X8664(), "aarch64": Aarch64()}
"""By architecture, as `os.uname().machine` names it."""
