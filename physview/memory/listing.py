# SPDX-License-Identifier: GPL-2.0-or-later
"""Lists the pages of a process, or frames, as text that the core makes. Needs no NumPy.

The core looks up what the kernel says about the frames, chooses pages by their flags, joins pages
that are alike, and writes their rows: csrc/listing.c. `Snapshot.iter_extents()` gives the same rows
as columns of NumPy.

Source: /proc/kpageflags, /proc/kpagecount, /proc/kpagecgroup
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from physview import _ffi
from physview.files.descriptor import Closable
from physview.memory.extents import Batch
from physview.model import PAGE_SHIFT, PM_PRESENT, Vma
from physview.sources.kpage import FILES, KpageFile
from physview.sources.numa import node_map

if TYPE_CHECKING:
    from physview.sources.page_flags import FlagFilter

FORMATS = ("table", "csv", "json")


class Listing(Closable):
    """Makes the text of a listing.

    Args:
        columns: What to look up and show for each frame: names of `rows.COLUMNS`.
        style: One of FORMATS; "json" is for frames only.
        each: Whether a row is a page, not an extent.
        raw: Whether to show all flags, as `page_flags.expanded()` makes them.
        where: Only pages with these flags.
        zero_pfn: The zero page's frame; 0 if frame numbers are hidden.
        cgroups: Names of cgroups by inode number, quoted for the format.
        knows_frames: Whether this user may see frame numbers. Otherwise nothing is looked up.
        flags: Where the flags are; by default /proc/kpageflags. The caller closes it.

    Raises:
        AccessDenied: Only root may read what the kernel knows about frames.
        Unsupported: The kernel lacks the file that a column needs.
    """

    def __init__(
        self,
        columns: Sequence[str],
        *,
        style: str = "table",
        each: bool = False,
        raw: bool = False,
        where: FlagFilter | None = None,
        zero_pfn: int = 0,
        cgroups: Mapping[int, str] | None = None,
        knows_frames: bool = True,
        flags: KpageFile | None = None,
    ) -> None:
        self._ffi, self._lib = _ffi.load()
        lib = self._lib
        self._kept: list[Any] = []  # memory that the core uses
        self._files: dict[str, KpageFile] = {}
        listing = self._listing = self._ffi.new("struct pv_listing *")
        listing.page_shift = PAGE_SHIFT
        listing.zero_pfn = zero_pfn
        shown = {"flags": lib.PV_LIST_FLAGS, "mapcount": lib.PV_LIST_MAPCOUNT}
        shown |= {"cgroup": lib.PV_LIST_CGROUP, "node": lib.PV_LIST_NODE}
        styles = {"csv": lib.PV_LIST_CSV, "json": lib.PV_LIST_JSON}
        listing.how = sum(shown[name] for name in columns) | styles.get(style, 0)
        listing.how |= lib.PV_LIST_EACH if each else 0
        listing.how |= lib.PV_LIST_RAW if raw else 0
        wanted = set(columns)
        if where is not None:
            listing.tests = self._keep("struct pv_test[]", where.tests())
            listing.nr_tests = len(where.tests())
            listing.how |= lib.PV_LIST_ALL_PAGES if where.names_pagemap else 0
            wanted |= {"flags"} if where.needs_frames else set()
        if "node" in wanted:
            nodes = node_map()
            listing.node_of_block = self._keep("uint8_t[]", nodes.node_of_block)
            listing.nr_blocks, listing.block_shift = len(nodes.node_of_block), nodes.block_shift
        names = cgroups or {}
        inodes = sorted(names)
        listing.inodes, listing.nr_inodes = self._keep("uint64_t[]", inodes), len(inodes)
        self._set_strings(listing.cgroup_names, [names[inode] for inode in inodes])
        listing.flags_fd = listing.mapcount_fd = listing.cgroup_fd = -1
        try:
            for name in FILES.keys() & wanted if knows_frames else ():
                if name == "flags" and flags is not None:
                    file = flags
                else:
                    file = self._files[name] = KpageFile(FILES[name])
                setattr(listing, f"{name}_fd", file.fd)
                if name == "flags":
                    listing.cleared = file.cleared
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the files. Closing twice is harmless."""
        for file in self._files.values():
            file.close()

    def iter_pages(
        self, batches: Iterable[Batch], vmas: Sequence[Vma], texts: Sequence[str]
    ) -> Iterator[str]:
        """List the pages of a process.

        If the iterator raises an exception, the rows before it are still yielded.

        Args:
            batches: Extents of `ExtentReader.iter_batches()`, in address order.
            vmas: The mappings, in address order.
            texts: The text for each mapping: the line above its rows in a table, and the end of
                each row with a line feed in CSV.

        Yields:
            Parts of the text. Each is whole lines.
        """
        bounds = array("Q", (bound for vma in vmas for bound in vma[:2]))
        self._listing.vmas, self._listing.nr_vmas = self._keep("uint64_t[]", bounds), len(vmas)
        self._set_strings(self._listing.vma_texts, texts)
        return self._iter_text(batches)

    def iter_frames(self, parts: Iterable[Iterable[tuple[int, int]]]) -> Iterator[str]:
        """List frames.

        Args:
            parts: Ranges as (first frame, first frame after the range), in order, in parts.

        Yields:
            Parts of the text.
        """
        self._listing.how |= self._lib.PV_LIST_FRAMES
        return self._iter_text(map(self._batch, parts))

    def _batch(self, ranges: Iterable[tuple[int, int]]) -> Batch:
        extents = [(first << PAGE_SHIFT, PM_PRESENT | first, end - first) for first, end in ranges]
        return Batch(self._ffi.new("struct pv_extent[]", extents), len(extents))

    def _iter_text(self, batches: Iterable[Batch]) -> Iterator[str]:
        listing, lib = self._listing, self._lib
        at, offset = self._ffi.new("uint64_t *"), self._ffi.new("uint64_t *")
        try:
            for extents, nr in batches:
                at[0] = 0
                while at[0] < nr:
                    _ffi.check(lib.pv_list(listing, extents, nr, at, offset), "/proc/kpage*")
                    yield self._text()
        except GeneratorExit:
            lib.pv_list_end(listing)
            raise
        except BaseException:
            yield self._end()
            raise
        else:
            yield self._end()
        finally:
            lib.pv_list_end(listing)  # frees the text
            self.close()

    def _end(self) -> str:
        _ffi.check(self._lib.pv_list_end(self._listing), "/proc/kpage*")
        return self._text()

    def _text(self) -> str:
        nr = self._listing.nr_text
        if not nr:
            return ""
        return bytes(self._ffi.buffer(self._listing.text, nr)).decode("utf-8", "surrogateescape")

    def _keep(self, kind: str, items: Any) -> Any:
        memory = self._ffi.new(kind, list(items) if not isinstance(items, bytes) else items)
        self._kept.append(memory)
        return memory

    def _set_strings(self, strings: Any, texts: Sequence[str]) -> None:
        parts = [text.encode("utf-8", "surrogateescape") for text in texts]
        strings.text = self._keep("char[]", b"".join(parts))
        strings.ends = self._keep("uint64_t[]", accumulate(map(len, parts)))
