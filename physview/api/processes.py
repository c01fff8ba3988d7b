# SPDX-License-Identifier: GPL-2.0-or-later
"""The processes of the machine as a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from physview.errors import AccessDenied, PhysviewError, ProcessGone
from physview.memory.columns import Field, Table, columns_of_rows
from physview.sources.procfs import ProcDir, list_pids
from physview.text import proctext


class ProcessSizes(NamedTuple):
    """A process, with the sizes that the kernel keeps of it.

    Args:
        pid: Process id.
        name: Name of the process in the kernel.
        uid: The user that it runs as: its effective user id.
        size_bytes: Size of all mappings: VmSize. None, as the other sizes, for a kernel thread or
            a zombie.
        resident_bytes: Resident memory: VmRSS. The kernel's count may be off by some pages.
        swapped_bytes: Swapped memory, without shared memory: VmSwap.
        tables_bytes: Page tables: VmPTE.
    """

    pid: int
    name: str
    uid: int
    size_bytes: int | None
    resident_bytes: int | None
    swapped_bytes: int | None
    tables_bytes: int | None


_FIELDS = (
    Field("pid", "i4", "", "process id"),
    Field("name", "text", "", "name of the process in the kernel"),
    Field("uid", "u4", "", "effective user id"),
    Field("size_bytes", "u8", "bytes", "size of all mappings (VmSize)"),
    Field("resident_bytes", "u8", "bytes", "resident memory (VmRSS)"),
    Field("swapped_bytes", "u8", "bytes", "swapped memory, without shared memory (VmSwap)"),
    Field("tables_bytes", "u8", "bytes", "page tables (VmPTE)"),
)


def processes(pids: Iterable[int | str] | None = None) -> Table[list[ProcessSizes]]:
    """List processes with their sizes. It needs no privilege.

    Args:
        pids: The processes, each a pid or "self"; None means all that are visible in /proc. Of
            these, processes that end meanwhile are left out.

    Returns:
        A row for each process, in the order of `pids`. Kernel threads have no sizes.

    Raises:
        ProcessGone: One of `pids` is gone.

    Source: status in Documentation/filesystems/proc.rst, table 1-2

    >>> table = processes(["self"])
    >>> table.column_names[:2], int(table["resident_bytes"][0]) > 1 << 20
    (['pid', 'name'], True)
    """
    found: list[ProcessSizes] = []
    errors: list[PhysviewError] = []
    for pid in list_pids() if pids is None else pids:
        try:
            found.append(_read(pid))
        except (ProcessGone, AccessDenied) as error:
            if pids is not None:
                raise
            if isinstance(error, AccessDenied):
                errors.append(error)
    columns = columns_of_rows(_FIELDS, found)
    return Table("processes", columns, found, source="/proc/PID/status", errors=errors)


def _read(pid: int | str) -> ProcessSizes:
    with ProcDir(pid) as proc:
        fields = proctext.fields_by_name(proc.read("status"))
        name = proc.comm()
        names = (b"VmSize", b"VmRSS", b"VmSwap", b"VmPTE")
        sizes = (proctext.size_of(fields, field) for field in names)
        uid = int(proctext.words(fields[b"Uid"], b"\t ")[1])
        return ProcessSizes(proc.pid, name, uid, *sizes)
