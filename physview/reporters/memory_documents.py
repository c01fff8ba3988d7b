# SPDX-License-Identifier: GPL-2.0-or-later
"""The JSON documents of maps and pages, written as they come. docs/json.md describes them."""

from __future__ import annotations

import json
import sys
from typing import Any

from physview.analysis.usage import Folios, Sizes, Usage
from physview.reporters.documents import mapping

SIZES = (
    "size_bytes",
    "resident_bytes",
    "swapped_bytes",
    "special_bytes",
    "exclusive_bytes",
    "shared_bytes",
    "zero_bytes",
    "hugetlb_bytes",
    "huge_bytes",
    "anon_huge_bytes",
    "nr_extents",
    "mean_bytes",
    "largest_bytes",
)


def usage(item: Usage) -> dict[str, Any]:
    """What a mapping, or several together, use."""
    document = {name: getattr(item, name) for name in SIZES}
    document["largest_vaddr"] = None if item.largest_vaddr is None else hex(item.largest_vaddr)
    document["alignment_bytes"] = item.alignment_bytes
    document["contiguous"] = _by_name(item.contiguous)
    document["folios"] = (
        {kind: _folios(found) for kind, found in item.folios.items()} if item.folios else None
    )
    document["nodes"] = _by_name(item.nodes)
    return document


def _by_name(sizes: Sizes | None) -> dict[str, int] | None:
    return None if sizes is None else {str(key): size for key, size in sorted(sizes.items())}


def _folios(found: Folios) -> dict[str, Any]:
    return {
        "pmd_bytes": found.pmd_bytes,
        "aligned": _by_name(found.aligned),
        "unaligned": _by_name(found.unaligned),
        "partial_bytes": found.partial_bytes,
        "contiguous": _by_name(found.contiguous),
    }


class MapsDocument:
    """The document of `maps`: {"processes": [{"pid", "name", "mappings", "total"}], "total"}.

    Args:
        rollup: Without the mappings.
    """

    def __init__(self, *, rollup: bool) -> None:
        self._rollup = rollup
        self._separator = '{"processes": ['
        self._inner = ""

    def begin_process(self, pid: int, name: str) -> None:
        head = json.dumps({"pid": pid, "name": name})[:-1]
        sys.stdout.write(f'{self._separator}\n{head}, "mappings": ')
        sys.stdout.write("null" if self._rollup else "[")
        self._separator, self._inner = ",", ""

    def add_mapping(self, item: Usage) -> None:
        if not self._rollup:
            document = {"mapping": mapping(item.vma), **usage(item)}
            sys.stdout.write(f"{self._inner}\n{json.dumps(document)}")
            self._inner = ","

    def end_process(self, total: Usage | None) -> None:
        """`total` is None of a process that ended meanwhile."""
        end = "" if self._rollup else "\n]"
        sys.stdout.write(f'{end}, "total": {json.dumps(total and usage(total))}}}')

    def end(self, total: Usage) -> None:
        sys.stdout.write(f'\n], "total": {json.dumps(usage(total))}}}\n')
