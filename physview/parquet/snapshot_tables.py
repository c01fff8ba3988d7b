# SPDX-License-Identifier: GPL-2.0-or-later
"""Converts rows of a snapshot to Arrow tables, which are then written to a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from physview.entry_rules import swap_offset, swap_type
from physview.memory.causes import alike, cause_word
from physview.model import NO_ENTRY, Vma
from physview.sources.page_flags import flag_names
from physview.text.quoting import escaped

if TYPE_CHECKING:
    from physview.memory.rows import Rows


class SnapshotTables:
    """Converts rows to Arrow tables.

    Args:
        arrow: The module pyarrow.
        schema: The schema of the tables.
        vmas: The mappings that the rows refer to.
    """

    def __init__(self, arrow: Any, schema: Any, vmas: Sequence[Vma]) -> None:
        self._arrow = arrow
        self._schema = schema
        self._perms = _DictionaryColumn(arrow, [vma.perms for vma in vmas])
        self._paths = _DictionaryColumn(arrow, [escaped(vma.path) for vma in vmas])
        self._cgroups: dict[int, str] | None = None

    def table(self, rows: Rows) -> Any:
        """Make a table with all columns of the schema."""
        import numpy as np

        arrow, none = self._arrow, np.uint64(NO_ENTRY)
        no_swap = rows["swap"] == none
        slots = np.where(no_swap, 0, rows["swap"])
        columns = {
            "vaddr": rows["vaddr"],
            "nr_pages": rows["nr_pages"],
            "pfn": _or_null(arrow, rows["pfn"]),
            "cause": self._words_of(alike(rows["entry"]), cause_word),
            "swap_type": arrow.array(swap_type(slots).astype(np.uint8), mask=no_swap),
            "swap_offset": arrow.array(swap_offset(slots), mask=no_swap),
            "entry": rows["entry"],
            "mapping": rows["vma"],
            "perms": self._perms.of(rows["vma"]),
            "path": self._paths.of(rows["vma"]),
        }
        names = rows.dtype.names or ()
        if "flags" in names:
            columns["flags"] = _or_null(arrow, rows["flags"])
            columns["flag_names"] = self._words_of(rows["flags"], _flag_words)
        if "mapcount" in names:
            columns["mapcount"] = _or_null(arrow, rows["mapcount"])
        if "cgroup" in names:
            columns["cgroup"] = self._words_of(rows["cgroup"], self._cgroup)
        if "node" in names:
            columns["node"] = arrow.array(rows["node"], mask=rows["node"] < 0)
        return arrow.table(columns, schema=self._schema)

    def _words_of(self, values: Any, word: Any) -> Any:
        """A dictionary column of texts: `word` is called once for each distinct value."""
        import numpy as np

        different, codes = np.unique(values, return_inverse=True)
        words = [word(int(value)) for value in different]
        return _DictionaryColumn(self._arrow, words).of(codes)

    def _cgroup(self, inode: int) -> str | None:
        from physview.sources.cgroups import cgroup_paths

        if inode in (NO_ENTRY, 0):  # 0: charged to no cgroup
            return None
        if self._cgroups is None:
            self._cgroups = cgroup_paths()
        return escaped(self._cgroups.get(inode, f"@{inode}"))


class _DictionaryColumn:
    """Texts for an Arrow dictionary column: rows refer to a text by its index. None is null."""

    def __init__(self, arrow: Any, words: Sequence[str | None]) -> None:
        import numpy as np

        different = {word: at for at, word in enumerate(dict.fromkeys(words))}
        self._arrow = arrow
        self._codes = np.array([different[word] for word in words], dtype=np.int32)
        self._null = different.get(None, -1)
        self._values = arrow.array([word or "" for word in different], arrow.string())

    def of(self, rows: Any) -> Any:
        """Make the column of rows that refer to these texts by index."""
        codes = self._codes[rows]
        return self._arrow.DictionaryArray.from_arrays(
            self._arrow.array(codes, mask=codes == self._null), self._values
        )


def _or_null(arrow: Any, values: Any) -> Any:
    return arrow.array(values, mask=values == NO_ENTRY)


def _flag_words(value: int) -> str | None:
    return None if value == NO_ENTRY else "|".join(flag_names(value))
