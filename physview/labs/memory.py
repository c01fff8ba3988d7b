# SPDX-License-Identifier: GPL-2.0-or-later
"""Mapped pages and forked children for the labs. The end of a `with` block releases them."""

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

# include/uapi/asm-generic/mman-common.h; Python's mmap module lacks the newer constants.
MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_PAGEOUT = 14, 15, 21
MADV_COLLAPSE = 25  # Linux 6.1

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]


class MappedPages:
    """A new mapping of some pages. A context manager.

    Args:
        nr_pages: The number of pages.
        fd: The file to map; negative for anonymous memory.
        shared: Whether the mapping is shared (MAP_SHARED) or private (MAP_PRIVATE).
        align: The alignment of the first address in bytes.
    """

    def __init__(
        self, nr_pages: int, *, fd: int = -1, shared: bool = False, align: int = PAGE_SIZE
    ) -> None:
        size = nr_pages * PAGE_SIZE
        flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
        if fd < 0:
            flags |= mmap.MAP_ANONYMOUS
        # Map more than needed, so that an aligned start fits in.
        self._map = mmap.mmap(fd, size + (align if align > PAGE_SIZE else 0), flags)
        view = ctypes.c_char.from_buffer(self._map)
        base = ctypes.addressof(view)
        del view  # the mapping can't be closed while the view exists
        self._offset = -base % align
        self.start = base + self._offset
        self.nr_pages = nr_pages

    def __enter__(self) -> MappedPages:
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
        """The size in bytes."""
        return self.nr_pages * PAGE_SIZE

    @property
    def pages(self) -> range:
        """The virtual address of each page."""
        return range(self.start, self.start + self.size, PAGE_SIZE)

    def write(self, index: int, value: int = 1) -> None:
        """Write the first byte of a page."""
        self._map[self._offset + index * PAGE_SIZE] = value

    def read(self, index: int) -> int:
        """Read the first byte of a page."""
        return self._map[self._offset + index * PAGE_SIZE]

    def write_all(self) -> None:
        """Write the first byte of every page: a value made from the page's index."""
        for index in range(self.nr_pages):
            self.write(index, index % 251 + 1)

    def is_as_written(self) -> bool:
        """Whether every page still holds what `write_all()` wrote."""
        return all(self.read(index) == index % 251 + 1 for index in range(self.nr_pages))

    def advise(self, advice: int) -> int:
        """Call madvise() for all pages. Returns 0 or the errno."""
        return _errno_of(
            libc.madvise(ctypes.c_void_p(self.start), ctypes.c_size_t(self.size), advice)
        )

    def lock(self) -> int:
        """Call mlock() for all pages. Returns 0 or the errno. The lock ends with the mapping."""
        return _errno_of(libc.mlock(ctypes.c_void_p(self.start), ctypes.c_size_t(self.size)))


def _errno_of(result: int) -> int:
    return ctypes.get_errno() if result else 0


@contextmanager
def occupied_memory(nr_bytes: int) -> Iterator[None]:
    """Occupy recently freed frames for the duration of the `with` block.

    The kernel reuses recently freed frames first. Without this, a page could get its old frame
    again by chance.

    Args:
        nr_bytes: How much memory to occupy.
    """
    with MappedPages(max(1, nr_bytes // PAGE_SIZE)) as memory:
        memory.write_all()
        yield


class ForkedChild:
    """A forked child process that runs a function whenever the parent asks. A context manager.

    The child ends at the end of the `with` block. It also ends when the parent dies, because its
    pipe then reaches the end of file.

    Args:
        step: The function. It runs in the child with the number passed to `run_step()`, and its
            result is returned to the parent.
    """

    def __init__(self, step: Callable[[int], str]) -> None:
        parent_read, child_write = os.pipe()
        child_read, parent_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(parent_read)
                os.close(parent_write)
                _run_steps(step, child_read, child_write)
                code = 0
            finally:
                os._exit(code)  # skip the parent's clean-up code, which must run only once
        os.close(child_read)
        os.close(child_write)
        self._read, self._write = parent_read, parent_write

    def run_step(self, number: int = 0) -> str:
        """Run the function in the child, wait for its result, and return it.

        Raises:
            PhysviewError: The function failed, or the child ended.
        """
        os.write(self._write, bytes([number]))
        answer = b""
        while not answer.endswith(b"\0"):
            piece = os.read(self._read, 1 << 16)
            if not piece:
                what, remedy = "the lab's child process failed", "run the lab again"
                raise PhysviewError(what, "it ended", remedy)
            answer += piece
        text = answer[:-1].decode()
        if text.startswith("!"):
            raise PhysviewError("the lab's child process failed", text[1:], "run the lab again")
        return text

    def __enter__(self) -> ForkedChild:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)
        os.close(self._read)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _run_steps(step: Callable[[int], str], read: int, write: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this child
    while request := os.read(read, 1):
        try:
            answer = step(request[0])
        except Exception as error:  # the parent raises an error with this text
            answer = f"!{error}"
        os.write(write, answer.encode() + b"\0")
