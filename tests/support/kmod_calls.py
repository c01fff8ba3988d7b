# SPDX-License-Identifier: GPL-2.0-or-later
"""Direct calls of the kernel module, and comparisons of its answers with pagemap."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from memory import libc

from physview import Process
from physview.model import NO_PADDR, PageKind, Walk
from physview.runtime.syscalls import NUMBERS
from physview.sources import kmod as abi
from physview.sources import page_tables
from physview.sources.kmod import Kmod
from physview.sources.procfs import ProcDir

NOBODY = 65534
SYS_FINIT_MODULE = NUMBERS[os.uname().machine]["finit_module"]


@contextlib.contextmanager
def open_kmod(pid: int | str = "self") -> Iterator[Kmod]:
    """The kernel module for a process, by default this one."""
    proc = ProcDir(pid)
    try:
        with contextlib.closing(Kmod(proc)) as kmod:
            yield kmod
    finally:
        proc.close()


def agree(kmod: Kmod, vaddr: int, pid: int | str = "self") -> Walk:
    """Check that the module and pagemap give one physical address; return the module's walk."""
    with Process(pid) as process:
        said = process.translate(vaddr)
        walk = kmod.walk(vaddr)
        with Process(pid, source="kmod") as walker:
            walked = walker.translate(vaddr)
    assert walk.paddr == walked.paddr == said.paddr, (said, walk)
    return walk


def agree_on_all(kmod: Kmod, vaddrs: Iterable[int], pid: int | str = "self") -> Any:
    """Check that the module and pagemap agree on many addresses; return the module's pages."""
    column = np.fromiter(vaddrs, dtype=np.uint64)
    with Process(pid) as process:
        said = process.translate_array(column)
    pages = kmod.pages(column)
    has_page = said.paddrs != NO_PADDR
    assert (np.isin(pages["kind"], (PageKind.PRESENT, PageKind.PROT_NONE)) == has_page).all()
    assert (pages["paddr"][has_page] == said.paddrs[has_page]).all()
    return pages


def call(request: int, buffer: bytearray) -> int:
    """The errno of an ioctl on the module's device, or 0."""
    with open(abi.DEVICE, "rb", buffering=0) as device:
        return call_on(device.fileno(), request, buffer)


def call_on(fd: int, request: int, buffer: bytearray) -> int:
    """The errno of an ioctl on a descriptor, or 0."""
    try:
        fcntl.ioctl(fd, request, buffer)
    except OSError as error:
        return error.errno or -1
    return 0


def walk_errno(fd: int, pid: int, vaddr: int) -> int:
    """The errno of WALK, or 0. EIO stands for an address without a page."""
    buffer = bytearray(page_tables.WALK.pack(pid, 0, vaddr, *[0] * 25, 0))
    code = call_on(fd, abi.IOCTL_WALK, buffer)
    return code if code or page_tables.WALK.unpack(buffer)[3] else errno.EIO


def in_child(function: Callable[[], Any], *, uid: int | None = None) -> Any:
    """Run a function in a forked child.

    Args:
        function: Returns what JSON can represent.
        uid: The user of the child; None: the same user.

    Returns:
        What the function returned, or the type and text of its exception.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if uid is not None:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            os.write(writer, json.dumps(function()).encode())
        except BaseException as error:
            os.write(writer, json.dumps(f"{type(error).__name__}: {error}").encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answers:
        answer = answers.read()
    os.waitpid(pid, 0)
    return json.loads(answer)


def insert_module(path: str, parameters: str = "") -> None:
    """Load a kernel module from a file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        result = libc.syscall(SYS_FINIT_MODULE, fd, parameters.encode(), 0)
    finally:
        os.close(fd)
    assert result == 0, path


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    """Wait until a condition is true; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not in {seconds} seconds"
        time.sleep(0.005)
