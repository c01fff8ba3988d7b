# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine's frames, who maps them, and files in the page cache, as tables."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

from physview.errors import PhysviewError, UsageError
from physview.memory.columns import Field, Table, columns_of_rows, numbers, words_of
from physview.model import NO_ENTRY

if TYPE_CHECKING:
    from physview.frames.machine import MachineFrames
    from physview.frames.owners import FrameGroup, Ownership
    from physview.sources.page_cache import CachedFile

Progress = Callable[[int, int], None]

_FRAME_FIELDS = (
    Field("node", "i4", "", "NUMA node; null outside of all zones"),
    Field("zone", "text", "", "zone; null outside of all zones"),
    Field("use", "text", "", "what the frames are used for"),
    Field(
        "flags", "u8", "bits", "the flags in /proc/kpageflags; null for frames that do not exist"
    ),
    Field("flag_names", "text", "", "names of these flags, separated by a bar"),
    Field("nr_frames", "u8", "frames", "number of frames"),
)


def frames(
    *, nr_threads: int | None = None, progress: Progress | None = None
) -> Table[MachineFrames]:
    """Count all frames of RAM by zone and flags. It needs root.

    Args:
        nr_threads: The number of threads that read at once; None chooses it.
        progress: Called with the number of frames that were counted, and the number of all frames.

    Returns:
        A row for each combination of zone and flags. `answer` has the ranges of RAM and the free
        blocks, too.

    Raises:
        AccessDenied: Only root may read flags and physical addresses.
        Unsupported: The kernel was built without kpageflags.

    Source: /proc/kpageflags, /proc/iomem, /proc/zoneinfo, /proc/buddyinfo

    >>> import physview
    >>> try:
    ...     table = physview.frames()
    ... except physview.AccessDenied:  # without root
    ...     pass
    ... else:
    ...     assert table["nr_frames"].sum() == table.answer.nr_frames
    """
    from physview.frames.machine import read_machine, use_of
    from physview.sources.page_flags import flag_names

    machine = read_machine(nr_threads=nr_threads, progress=progress)
    rows = [
        (
            found.zone.node if found.zone else None,
            found.zone.name if found.zone else None,
            use_of(flags).value,
            None if flags == NO_ENTRY else flags,
            None if flags == NO_ENTRY else "|".join(flag_names(flags)),
            nr,
        )
        for found in machine.zones
        for flags, nr in sorted(found.counts.items())
    ]
    columns = columns_of_rows(_FRAME_FIELDS, rows)
    source = "/proc/kpageflags" + (", BPF" if machine.source == "bpf" else "")
    return Table("frames of RAM", columns, machine, source=source)


def select_frames(
    pfns: int | range | Iterable[int | range] | None = None,
    *,
    flags: str | None = None,
    cgroup: str | None = None,
    progress: Progress | None = None,
) -> Table[None]:
    """List frames of RAM: those of ranges, with some flags, or charged to a cgroup. It needs root.

    Args:
        pfns: A frame number, a range of frame numbers, or several of these; None is all of RAM.
        flags: Only frames with these flags, as the option --flags takes them: "anon,!thp".
        cgroup: Only frames that are charged to this cgroup: its path, its folder, or @inode.
        progress: Called with the number of frames that were examined, and of all.

    Returns:
        A row for each run of contiguous frames with the same flags. `frames()` counts all frames in
        a small table; a list of all of RAM has millions of rows.

    Raises:
        AccessDenied: Only root may read flags.
        UsageError: There is no such flag or cgroup, or `pfns` has no frame number.
        Unsupported: The kernel was built without kpageflags.

    Source: /proc/kpageflags, /proc/kpagecgroup, /proc/iomem

    >>> import physview
    >>> try:
    ...     table = physview.select_frames(range(4096), flags="reserved")
    ... except physview.AccessDenied:  # without root
    ...     pass
    ... else:
    ...     assert all("reserved" in names.split("|") for names in table["flag_names"])
    """
    from physview.api.memory import flag_columns
    from physview.frames.machine import use_of
    from physview.frames.selection import Selection, cut_ranges, read_pieces
    from physview.sources.cgroups import find_cgroup
    from physview.sources.kpage import KpageFile
    from physview.sources.memory_blocks import read_online_ram
    from physview.sources.page_flags import FlagFilter

    where = None if flags is None else FlagFilter.parse(flags)
    inode = None if cgroup is None else find_cgroup(cgroup)
    if cgroup is not None and inode is None:
        remedy = "give its path below the cgroup file system, its folder, or @inode"
        raise UsageError(f"no cgroup '{cgroup}'", "", remedy)
    asked = None if pfns is None else _ranges(pfns)
    if asked == []:
        raise UsageError(
            "no frame is named", "the ranges are empty", "leave out pfns for all of RAM"
        )
    with KpageFile("kpageflags") as file:
        there = read_online_ram()
        ranges = there if asked is None else cut_ranges(asked, there)
        selection = Selection(ranges, where, inode, raw=where is not None and where.names_hidden)
        rows = read_pieces(file, selection, progress=progress)
    columns = [
        numbers("pfn", rows["pfn"], "frame", "the first frame"),
        numbers("nr_frames", rows["nr"], "frames", "number of contiguous frames"),
        words_of("use", rows["value"], lambda flags: use_of(flags).value, "what they are used for"),
        *flag_columns(rows["value"]),
    ]
    return Table("some frames of RAM", columns, None, source="/proc/kpageflags")


_OWNER_FIELDS = (
    Field("pfn", "u8", "frame", "the first frame"),
    Field("nr_frames", "u8", "frames", "number of contiguous frames"),
    Field("use", "text", "", "what the frames are used for"),
    Field("pid", "i4", "", "a process that maps them; null if none does"),
    Field("name", "text", "", "name of the process in the kernel"),
    Field("vaddr", "u8", "address", "virtual address of the first frame there"),
    Field("nr_pages", "u8", "pages", "number of pages that map the frames"),
    Field("perms", "text", "", "permissions of the mapping"),
    Field("path", "text", "", "path of the mapping"),
    Field("nr_sharers", "u4", "", "number of other processes with the same address space"),
)


def owners(
    pfns: int | range | Iterable[int | range],
    pids: Sequence[int] | None = None,
    *,
    source: str = "auto",
    progress: Progress | None = None,
) -> Table[Ownership]:
    """Find who maps frames, and what these frames are used for. It needs root.

    Args:
        pfns: A frame number, a range of frame numbers, or several of these. A frame number is a
            physical address divided by the page size.
        pids: The processes to look at; None means all.
        source: Who tells the frames of the processes: "pagemap", "bpf" or "auto".
        progress: Called with the number of processes that were read, and the number of all.

    Returns:
        A row for each process and mapping that has some of the frames. Frames that no process maps
        have a row without a process. `answer` says how many processes were read.

    Raises:
        UsageError: `pfns` has no frame number, or one is negative.
        The errors of `find_owners()`.

    Source: /proc/PID/pagemap or the page tables, /proc/kpageflags

    >>> import physview
    >>> try:
    ...     table = physview.owners(range(16, 32))
    ... except physview.AccessDenied:  # without root
    ...     pass
    ... else:
    ...     assert table["pfn"].min() >= 16
    """
    from physview.frames.owners import find_owners

    ranges = _ranges(pfns)
    found = find_owners(ranges, pids, progress=progress, source=source)
    rows = [
        row
        for first, end in ranges
        for group in found.groups(first, end)
        for row in _group_rows(group)
    ]
    columns = columns_of_rows(_OWNER_FIELDS, rows)
    return Table("owners of frames", columns, found, source=found.source)


def _ranges(pfns: int | range | Iterable[int | range]) -> list[tuple[int, int]]:
    """Frame numbers as ranges that do not overlap, in order."""
    several = [pfns] if isinstance(pfns, (range, SupportsIndex)) else pfns
    found: list[tuple[int, int]] = []
    for one in several:
        if isinstance(one, range):
            if one.step != 1:
                raise UsageError(f"{one} is no range of frames", "", "use a step of 1")
            pair = one.start, one.stop
        else:
            try:
                number = operator.index(one)
            except TypeError:
                why, remedy = (
                    "it is neither a number nor a range",
                    "give one, such as range(16, 32)",
                )
                raise UsageError(f"{one!r} is no frame number", why, remedy) from None
            pair = number, number + 1
        if pair[0] < 0 or pair[1] >= NO_ENTRY:
            raise UsageError(f"{one} is no frame number", "it is negative or too large")
        if pair[0] < pair[1]:
            found.append(pair)
    joined: list[tuple[int, int]] = []
    for first, end in sorted(found):
        if joined and first <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((first, end))
    return joined


def _group_rows(group: FrameGroup) -> list[tuple[Any, ...]]:
    """The rows of owners, and of frames in between that no process maps."""
    use = group.use.value
    rows: list[tuple[Any, ...]] = []
    at = group.pfn
    for owner in group.owners:  # sorted by frame number
        if owner.pfn > at:
            rows.append((at, owner.pfn - at, use, *[None] * 6, 0))
        at = max(at, owner.pfn + owner.nr_frames)
        rows.append(
            (
                owner.pfn,
                owner.nr_frames,
                use,
                owner.pid,
                owner.comm,
                owner.vaddr,
                owner.nr_pages,
                owner.vma.perms,
                owner.vma.path,
                len(owner.sharers),
            )
        )
    end = group.pfn + group.nr_frames
    return [*rows, (at, end - at, use, *[None] * 6, 0)] if at < end else rows


_FILE_MEANINGS = {
    "path": "the file",
    "size_bytes": "size of the file",
    "nr_pages": "pages that the whole file would fill",
    "nr_holes": "pages in holes, which have no blocks on the disk",
    "nr_cached": "pages in the page cache",
    "nr_dirty": "cached pages that are changed and not yet written to the disk",
    "nr_writeback": "cached pages that are being written to the disk",
    "nr_mapped": "cached pages that are in the page tables of some process",
    "nr_active": "cached pages on the kernel's active list",
    "nr_large": "cached pages in folios of more than one page",
    "nr_runs": "runs of contiguous frames that the cached pages form",
    "nr_read": "pages that the look-up itself read back in",
    "nr_evicted": "pages that were evicted, and of which the kernel still knows that",
    "nr_recently_evicted": "evicted pages that would become active if they were read again now",
}


def file(
    *paths: str | os.PathLike[str],
    with_frames: bool | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
) -> Table[list[CachedFile]]:
    """Find how much of files is in the page cache.

    Args:
        paths: Files, or folders: then all files below them. A file with several names counts once.
        with_frames: Whether to find frames and the counts that depend on them, which only root may
            do. None finds them if possible.
        include: Only files that match one of these shell patterns. A pattern without "/" is for
            the name, one with "/" for the whole path.
        exclude: No files and no folders that match one of these patterns.

    Returns:
        A row for each file. A count that is not known is null. `errors` has what could not be
        examined below a folder.

    Raises:
        UsageError: No path is given.
        PhysviewError: One of `paths` itself cannot be examined.
        AccessDenied: `with_frames` is True, and frames are hidden from this user.

    Source: mincore(2), cachestat(2), /proc/kpageflags

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as sample:
    ...     _ = sample.write(bytes(8192))
    ...     sample.flush()
    ...     table = file(sample.name)
    >>> table["nr_cached"].tolist(), table["size_bytes"].tolist()
    ([2], [8192])
    """
    from physview.analysis.cached_files import FileExaminer, Patterns
    from physview.sources.page_cache import CachedFile, PageCache

    if not paths:
        raise UsageError("no file is named", "", "give a path")
    found: list[CachedFile] = []
    errors: list[PhysviewError] = []
    given = [os.fspath(each) for each in paths]

    def fail(error: PhysviewError) -> None:
        if error.path in given:  # it was named, so nothing else can answer for it
            raise error
        errors.append(error)

    with PageCache(with_frames=with_frames) as cache:
        examiner = FileExaminer(
            cache, fail, Patterns(_several(include), _several(exclude)), keeps_all=True
        )
        for path in given:
            for opened in examiner.iter_open(path):
                try:
                    found.append(opened.summary())
                except PhysviewError as error:
                    fail(error)
        source = "page cache" if cache.why_no_frames else "page cache and /proc/kpageflags"
    fields = [_file_field(name) for name in CachedFile._fields]
    columns = columns_of_rows(fields, found)
    return Table("files", columns, found, source=source, errors=errors)


def _several(texts: str | Sequence[str]) -> Sequence[str]:
    return [texts] if isinstance(texts, str) else texts


def _file_field(name: str) -> Field:
    if name == "path":
        return Field(name, "text", "", _FILE_MEANINGS[name])
    unit = "bytes" if name.endswith("_bytes") else "" if name == "nr_runs" else "pages"
    return Field(name, "u8", unit, _FILE_MEANINGS.get(name, ""))
