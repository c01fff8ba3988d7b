# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts of JSON documents that several commands share (docs/json.md).

Addresses are hexadecimal strings. Counts are integers. Every document has the member `errors`: what
could not be done.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from physview.errors import PhysviewError
from physview.model import Gap, Translation, Vma
from physview.reporters.failures import of_this_run


def write(document: dict[str, Any]) -> None:
    """Print one JSON document, with what could not be done as its member `errors`."""
    import json

    json.dump({**document, "errors": _begin()}, sys.stdout, indent=1)
    sys.stdout.write("\n")


def write_line(document: dict[str, Any]) -> None:
    """Print one JSON document on one line, with the member `errors`."""
    import json

    sys.stdout.write(json.dumps({**document, "errors": _begin()}) + "\n")


def write_failure(error: PhysviewError) -> None:
    """Print a document with `errors` and nothing else, if this run has printed no document yet."""
    if not of_this_run.has_document:
        of_this_run.add(None, error)
        write_line({})


def errors_member() -> str:
    """Return the text of the member `errors`, for documents that are printed piece by piece.

    It must be the last member, because everything that is read before can add to it.
    """
    import json

    return f'"errors": {json.dumps(_begin())}'


def _begin() -> list[dict[str, Any]]:
    of_this_run.has_document = True
    return of_this_run.document()


@contextmanager
def stream(head: dict[str, Any], name: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Print a document whose last list is long: item by item, each on its own line.

    The document is valid also if an error ends the list: then the error is in `errors`. An error
    before the first item is raised before anything is printed.

    Args:
        head: The members before the list.
        name: The name of the list.

    Yields:
        A function that prints an item.
    """
    import json

    begin = f"{json.dumps({**head, name: []}).removesuffix(']}')}\n"
    is_begun = False

    def add(item: dict[str, Any]) -> None:
        nonlocal is_begun
        sys.stdout.write((",\n" if is_begun else begin) + json.dumps(item))
        is_begun = of_this_run.has_document = True

    try:
        yield add
    except PhysviewError as error:
        if is_begun:
            of_this_run.add(None, error)
            sys.stdout.write(f"\n], {errors_member()}}}\n")
        raise
    sys.stdout.write(f"{'' if is_begun else begin}\n], {errors_member()}}}\n")


def write_stream(source: str, pid: int, entries: Iterable[dict[str, Any]]) -> None:
    """Print the same document as `translations()`, entry by entry.

    Args:
        source: The source that answered.
        pid: Process id.
        entries: Entries of the document. Each is printed as soon as the iterator yields it.
    """
    with stream({"source": source, "pid": pid}, "entries") as add:
        for item in entries:
            add(item)


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
