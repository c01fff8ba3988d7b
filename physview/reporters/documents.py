# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts of JSON documents that several commands share (docs/json.md).

Addresses are hexadecimal strings. Counts are integers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from physview.model import Gap, Translation, Vma


def write(document: Any) -> None:
    """Print one JSON document."""
    import json

    json.dump(document, sys.stdout, indent=1)
    sys.stdout.write("\n")


def write_stream(source: str, pid: int, entries: Iterable[dict[str, Any]]) -> None:
    """Print the same document as `translations()`, entry by entry, each on its own line.

    An error before the first entry is raised before anything is printed.

    Args:
        source: The source that answered.
        pid: Process id.
        entries: Entries of the document. Each is printed as soon as the iterator yields it.
    """
    import json
    from itertools import chain, islice

    items = iter(entries)
    first = list(islice(items, 1))
    head = json.dumps({"source": source, "pid": pid, "entries": []})
    sys.stdout.write(head[: -len("]}")])
    separator = "\n"
    for item in chain(first, items):
        sys.stdout.write(separator + json.dumps(item))
        separator = ",\n"
    sys.stdout.write("\n]}\n")


def translations(
    source: str, pid: int, labelled: Iterable[tuple[str, Translation]]
) -> dict[str, Any]:
    """Make the JSON document of memview.

    Args:
        source: The source that answered.
        pid: Process id.
        labelled: A label and a translation for each entry.
    """
    return {
        "source": source,
        "pid": pid,
        "entries": [{"label": label, **entry(translation)} for label, translation in labelled],
    }


def entry(translation: Translation) -> dict[str, Any]:
    """Make the entry of one address. A member that does not apply is null."""
    raw = translation.entry
    swap = raw.swap if raw else None
    return {
        "vaddr": hex(translation.vaddr),
        "paddr": None if translation.paddr is None else hex(translation.paddr),
        "pfn": translation.pfn,
        "cause": translation.cause.value if translation.cause else None,
        "flags": list(raw.flags) if raw else None,
        "swap": {"type": swap[0], "offset": swap[1]} if swap else None,
        "mapping": mapping(translation.vma),
    }


def gap(item: Gap) -> dict[str, Any]:
    """Make the entry of contiguous pages without a physical address.

    It has the members of `entry()`, and `end` and `nr_pages`.
    """
    return {
        "vaddr": hex(item.start),
        "end": hex(item.end),
        "nr_pages": item.nr_pages,
        "paddr": None,
        "pfn": None,
        "cause": item.cause.value,
        "flags": None,
        "swap": None,
        "mapping": mapping(item.vma),
    }


def mapping(vma: Vma | None) -> dict[str, Any] | None:
    """Make the member that describes a mapping; None (null) if there is none."""
    if vma is None:
        return None
    return {"start": hex(vma.start), "end": hex(vma.end), "perms": vma.perms, "path": vma.path}


def iter_entries(items: Iterable[Translation | Gap]) -> Iterator[dict[str, Any]]:
    """Yield the entry of each translation and of each gap."""
    return (gap(item) if isinstance(item, Gap) else entry(item) for item in items)
