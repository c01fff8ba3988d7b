# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks the metadata and the rows of a snapshot file, which anybody can make.

After these checks, the rest of the package trusts the contents like data from the kernel.
"""

from __future__ import annotations

import datetime
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from physview.memory.rows import COLUMNS, ends, places, steps
from physview.model import NO_ENTRY, PAGE_SHIFT, PAGE_SIZE, PM_PFRAME_MASK, PM_PRESENT, Vma
from physview.parquet.thrift import Damage
from physview.sources.ram import RAM, Resource

if TYPE_CHECKING:
    from physview.memory.rows import Rows

MAX_ABOUT_BYTES = 6 << 20
MAX_MAPPINGS = 1 << 16
"""Slightly above the kernel's default limit for a process: vm.max_map_count is 65530."""
MAX_RESOURCES = 1 << 11
MAX_PATH = 1 << 14  # a path of PATH_MAX with every byte escaped
MAX_NODE = 1 << 10
# The largest physical address space of any CPU that Linux supports. Source: MAX_PHYSMEM_BITS
PHYSICAL_BITS = 52
MAX_PFN = 1 << PHYSICAL_BITS - PAGE_SHIFT
USER_END = 1 << 63
_U64 = 1 << 64
# The maximum number of JSON values. A mapping has eight: a list and its seven members. The rest
# allows for commas and brackets in paths, which are counted, too.
_MAX_VALUES = 10 * MAX_MAPPINGS + 8 * MAX_RESOURCES
_YEARS = range(1970, 9999)


class About(NamedTuple):
    """The checked metadata of a snapshot.

    Args:
        members: All members except mappings and resources, by name.
        vmas: The mappings.
        resources: What was at which physical address; None if it was hidden or not stored.
        time: When the snapshot was begun.
    """

    members: dict[str, Any]
    vmas: list[Vma]
    resources: list[Resource] | None
    time: datetime.datetime


def load_json(data: bytes) -> dict[str, Any]:
    """Read the metadata's JSON document in bounded memory.

    Raises:
        Damage: It is not a JSON object, or has more members than a snapshot can have.
    """
    if len(data) > MAX_ABOUT_BYTES:
        raise Damage(f"they have {len(data)} bytes, more than {MAX_ABOUT_BYTES}")
    # A comma or a bracket comes before each value of a list or an object.
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > _MAX_VALUES:
        raise Damage("they have more members than a snapshot has")
    try:
        text = data.decode()
        del data  # do not hold two copies of a large document
        document = json.loads(text, parse_int=_int, parse_float=_refuse, parse_constant=_refuse)
    except RecursionError:
        raise Damage("their lists are nested too deeply") from None
    except ValueError as error:
        raise Damage(str(error)) from None
    if not isinstance(document, dict):
        raise Damage("they are not a JSON object")
    return document


def _int(text: str) -> int:
    if len(text) > 20:
        raise Damage("a number is too long")
    return int(text)


def _refuse(text: str) -> None:
    raise Damage(f"{text[:20]} is not a valid number in a snapshot")


def check_about(document: dict[str, Any]) -> About:
    """Check the types and ranges of the metadata's members.

    Args:
        document: The JSON document. The mappings and resources are removed from it.

    Raises:
        Damage: A member is wrong; the text names the member.
    """
    for name, is_right in _MEMBERS.items():
        if name not in document:
            raise Damage(f"'{name}' is missing")
        if not is_right(document[name]):
            raise Damage(f"'{name}' has a wrong type or value")
    for name, is_right in _OPTIONAL.items():
        if name in document and not is_right(document[name]):
            raise Damage(f"'{name}' has a wrong type or value")
    vmas = _mappings(document.pop("mappings"))
    resources = check_resources(document.pop("resources", None))
    try:
        time = datetime.datetime.fromisoformat(document["time"])
    except ValueError:
        time = datetime.datetime.max
    if time.year not in _YEARS or time.tzinfo is None:
        raise Damage("'time' is not a time with a time zone")
    return About(document, vmas, resources, time)


def _is_int(end: int, first: int = 0) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and first <= value < end


def _is_text(most: int, pattern: str = r"[ -~]*") -> Callable[[Any], bool]:
    """A check for a text that matches a pattern; the default pattern is printable ASCII."""
    matches = re.compile(pattern, re.DOTALL).fullmatch
    return lambda value: type(value) is str and len(value) <= most and matches(value) is not None


# Every text that os.fsdecode() can make from bytes without a NUL.
_ANY_TEXT = "[^\x00\ud800-\udc7f\udd00-\udfff]*"
_is_name = _is_text(256, _ANY_TEXT)

_MEMBERS: dict[str, Callable[[Any], bool]] = {
    "format": _is_int(2, 1),
    "physview": _is_text(64),
    "host": _is_name,
    "kernel": _is_text(256),
    "machine": _is_text(64),
    "boot_id": _is_text(64),
    "time": _is_text(64),
    "pid": _is_int(1 << 22 | 1, 1),  # PID_MAX_LIMIT
    "start_time_ticks": lambda value: value is None or _is_int(USER_END)(value),
    "comm": _is_name,
    "page_size_bytes": lambda value: type(value) is int and value in (1 << 12, 1 << 14, 1 << 16),
    "zero_pfn": _is_int(MAX_PFN),
    "shows_frames": lambda value: type(value) is bool,
    "complete": lambda value: type(value) is bool,
    "columns": lambda value: (
        type(value) is list and all(type(name) is str and name in COLUMNS for name in value)
    ),
    "flag_bits": lambda value: (
        type(value) is dict
        and len(value) <= 64
        and all(_is_text(2, "[0-9]+")(bit) and _is_text(64)(name) for bit, name in value.items())
    ),
    "mapping_members": list(Vma._fields).__eq__,
    "mappings": lambda value: type(value) is list and len(value) <= MAX_MAPPINGS,
}

# Members that older snapshots lack.
_OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "clears_soft_dirty": lambda value: type(value) is bool,
}

_MAPPING: tuple[Callable[[Any], bool], ...] = (
    _is_int(_U64),
    _is_int(_U64 + 1),
    _is_text(4, "[r-][w-][x-][ps]"),
    _is_int(_U64),
    _is_text(32, "[0-9a-f]+:[0-9a-f]+"),
    _is_int(_U64),
    _is_text(MAX_PATH, _ANY_TEXT),
)
_RESOURCE: tuple[Callable[[Any], bool], ...] = (
    _is_int(_U64),
    _is_int(_U64 + 1),
    _is_name,
    _is_int(100),
)


def _is_list_of(checks: Sequence[Callable[[Any], bool]], value: Any) -> bool:
    return (
        type(value) is list
        and len(value) == len(checks)
        and all(check(each) for check, each in zip(checks, value, strict=True))
    )


def _mappings(found: list[Any]) -> list[Vma]:
    """Check the mappings. Equal strings are stored once; `found` is emptied to save memory."""
    vmas: list[Vma] = []
    last = 0
    found.reverse()
    while found:
        members = found.pop()
        if not _is_list_of(_MAPPING, members):
            raise Damage(f"mapping {len(vmas)} has a wrong type or value")
        start, end, perms, offset, device, inode, path = members
        if not last <= start < end or (start | end) % PAGE_SIZE:
            raise Damage(f"mapping {len(vmas)} is not in address order, or not whole pages")
        perms, device, path = map(sys.intern, (perms, device, path))
        vmas.append(Vma(start, end, perms, offset, device, inode, path))
        last = end
    if not vmas or vmas[0].start >= USER_END:
        raise Damage("there is no mapping below the end of user space")
    return vmas


def check_resources(found: Any) -> list[Resource] | None:
    """Check the member 'resources'.

    Args:
        found: The value in the JSON document; None is valid.

    Raises:
        Damage: The value is not a valid list of resources.
    """
    if found is None:
        return None
    if not isinstance(found, list) or not 0 < len(found) <= MAX_RESOURCES:
        raise Damage("'resources' has a wrong type or size")
    resources = []
    has_ram, last = False, 0
    for members in found:
        if not _is_list_of(_RESOURCE, members):
            raise Damage("one of 'resources' has a wrong type or value")
        resource = Resource(*members)
        is_ram = resource.name.startswith(RAM)
        end = 1 << PHYSICAL_BITS if is_ram else _U64
        # A resource comes before the resources that it contains.
        if not last <= resource.start < resource.end <= end:
            raise Damage("'resources' are not in address order, or lie beyond the address space")
        last = resource.start
        has_ram |= is_ram and -(-resource.start // PAGE_SIZE) < resource.end >> PAGE_SHIFT
        resources.append(resource)
    if not has_ram:
        raise Damage(f"'resources' have no {RAM}")
    return resources


class RowCheck:
    """Checks rows batch by batch.

    Args:
        vmas: The mappings.
        knows_frames: Whether frame numbers were visible when the snapshot was taken.
        zero_pfn: Frame number of the zero page at that time.
    """

    def __init__(self, vmas: Sequence[Vma], *, knows_frames: bool, zero_pfn: int) -> None:
        import numpy as np

        self._starts = np.array([vma.start for vma in vmas], dtype=np.uint64)
        # Rows end at USER_END. The mapping above it, [vsyscall], has no rows.
        self._stops = np.array([min(vma.end, USER_END) for vma in vmas], dtype=np.uint64)
        self._knows_frames = knows_frames
        self._zero_pfn = zero_pfn
        self._end = 0

    def check(self, rows: Rows) -> None:
        """Check the next batch of rows. These rows must follow the rows of the previous call.

        Args:
            rows: At least one row.

        Raises:
            Damage: A row is impossible in a snapshot.
        """
        import numpy as np

        vaddr, nr_pages, vma = rows["vaddr"], rows["nr_pages"], rows["vma"]
        if vma.max() >= len(self._starts):
            raise Damage("a row names a mapping that does not exist")
        starts, stops = self._starts[vma], self._stops[vma]
        inside = (vaddr >= starts) & (vaddr < stops) & (vaddr % np.uint64(PAGE_SIZE) == 0)
        room = np.where(inside, stops - vaddr, 0) // np.uint64(PAGE_SIZE)
        if not ((nr_pages > 0) & (nr_pages <= room)).all():
            raise Damage("a row lies outside its mapping")
        after = ends(rows)
        if int(vaddr[0]) < self._end or (vaddr[1:] < after[:-1]).any():
            raise Damage("rows are not in address order, or overlap")
        self._end = int(after[-1])
        self._check_places(rows)
        if "node" in (rows.dtype.names or ()):
            nodes = rows["node"]
            if nodes.min() < -1 or nodes.max() >= MAX_NODE:
                raise Damage("a row has an impossible node")

    def _check_places(self, rows: Rows) -> None:
        """Check frames and swap slots from the first to the last page of each row.

        They must also agree with the pagemap entry of the row.
        """
        import numpy as np

        for name, expected in zip(("pfn", "swap"), places(rows["entry"]), strict=True):
            if (rows[name] != expected).any():
                raise Damage(f"a row's {name} differs from the {name} in its entry")
        has_frame = rows["pfn"] != np.uint64(NO_ENTRY)
        if has_frame.any() and not self._knows_frames:
            raise Damage("a row has a frame, although frames were hidden")
        present = rows["entry"] & np.uint64(PM_PRESENT) != 0
        limits = np.where(present, MAX_PFN - 1, PM_PFRAME_MASK).astype(np.uint64)
        value = rows["entry"] & np.uint64(PM_PFRAME_MASK)
        step = steps(rows, self._zero_pfn)
        room = np.where(value <= limits, limits - value, 0)
        most = np.where(step > 0, room // np.maximum(step, 1), USER_END)
        if (value > limits).any() or (rows["nr_pages"] - np.uint64(1) > most).any():
            raise Damage("a row has impossible frames or swap slots")
