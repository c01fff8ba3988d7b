# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory to experiment with, and processes that share it; all of it ends with its `with`."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from physview.errors import PhysviewError
from physview.model import PAGE_SIZE

# include/uapi/asm-generic/mman-common.h; Python's mmap lacks the later ones.
MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_PAGEOUT = 14, 15, 21
MADV_COLLAPSE = 25  # Linux 6.1

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]


class Memory:
    """Pages of a mapping. A context manager.

    Args:
        nr_pages: How many.
        fd: A file to map; anonymous memory without it.
        shared: Whether what is written is seen by others.
        align: The first address is a multiple of this.
    """

    def __init__(
        self, nr_pages: int, *, fd: int = -1, shared: bool = False, align: int = PAGE_SIZE
    ) -> None:
        size = nr_pages * PAGE_SIZE
        flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
        if fd < 0:
            flags |= mmap.MAP_ANONYMOUS
        # Room to move the start to where it is aligned.
        self._map = mmap.mmap(fd, size + (align if align > PAGE_SIZE else 0), flags)
        view = ctypes.c_char.from_buffer(self._map)
        base = ctypes.addressof(view)
        del view  # while it is there, the mapping can't be closed
        self._offset = -base % align
        self.start = base + self._offset
        self.nr_pages = nr_pages

    def __enter__(self) -> Memory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._map.close()

    @property
    def size(self) -> int:
        """Bytes."""
        return self.nr_pages * PAGE_SIZE

    @property
    def pages(self) -> range:
        """The address of each page."""
        return range(self.start, self.start + self.size, PAGE_SIZE)

    def write(self, index: int, value: int = 1) -> None:
        """Write the first byte of a page."""
        self._map[self._offset + index * PAGE_SIZE] = value

    def read(self, index: int) -> int:
        """Read the first byte of a page."""
        return self._map[self._offset + index * PAGE_SIZE]

    def write_all(self) -> None:
        """Write the first byte of every page: its number, as far as a byte holds it."""
        for index in range(self.nr_pages):
            self.write(index, index % 251 + 1)

    def is_as_written(self) -> bool:
        """Whether every page still holds what `write_all()` wrote."""
        return all(self.read(index) == index % 251 + 1 for index in range(self.nr_pages))

    def advise(self, advice: int) -> int:
        """madvise(); returns 0 or the errno."""
        return _errno_of(
            libc.madvise(ctypes.c_void_p(self.start), ctypes.c_size_t(self.size), advice)
        )

    def lock(self) -> int:
        """mlock(); returns 0 or the errno. The lock ends with the mapping."""
        return _errno_of(libc.mlock(ctypes.c_void_p(self.start), ctypes.c_size_t(self.size)))


def _errno_of(result: int) -> int:
    return ctypes.get_errno() if result else 0


@contextmanager
def taken(nr_bytes: int) -> Iterator[None]:
    """Hold memory for as long: frames that were just freed are now ours.

    The kernel hands out first what was freed last, so that without it a page may well get its old
    frame again, by chance.
    """
    with Memory(max(1, nr_bytes // PAGE_SIZE)) as memory:
        memory.write_all()
        yield


class Forked:
    """A forked process, which does what it is told step by step. A context manager.

    It ends with this, and with us: its end of the pipe then reads nothing.

    Args:
        step: Called in it with each number it is told; what it returns comes back.
    """

    def __init__(self, step: Callable[[int], str]) -> None:
        self._orders, orders = os.pipe(), os.pipe()
        ours_read, theirs_write = self._orders
        theirs_read, ours_write = orders
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(ours_read)
                os.close(ours_write)
                _obey(step, theirs_read, theirs_write)
                code = 0
            finally:
                os._exit(code)  # nothing of the parent's may be done twice
        os.close(theirs_read)
        os.close(theirs_write)
        self._read, self._write = ours_read, ours_write

    def tell(self, number: int = 0) -> str:
        """Have it do a step, and wait for what that returned.

        Raises:
            PhysviewError: It failed.
        """
        os.write(self._write, bytes([number]))
        answer = b""
        while not answer.endswith(b"\0"):
            piece = os.read(self._read, 1 << 16)
            if not piece:
                raise PhysviewError("the lab's child process failed", "it ended", "run it again")
            answer += piece
        text = answer[:-1].decode()
        if text.startswith("!"):
            raise PhysviewError("the lab's child process failed", text[1:], "run it again")
        return text

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)
        os.close(self._read)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _obey(step: Callable[[int], str], read: int, write: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, who ends us
    while order := os.read(read, 1):
        try:
            answer = step(order[0])
        except Exception as error:  # told to the parent, who raises it
            answer = f"!{error}"
        os.write(write, answer.encode() + b"\0")
