# SPDX-License-Identifier: GPL-2.0-or-later
"""Plain reads of the kernel's files, to compare physview with."""

import difflib
import itertools
import os

import numpy as np
from memory import PAGE

from physview.model import NO_ENTRY, PM_PRESENT, PM_SWAP


def plain_entries(pid):
    """Read pagemap for all mappings of a process.

    Returns:
        The entries of present and swapped pages, by address, and the starts of the mappings.
    """
    entries, starts = {}, set()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/pagemap", "rb") as pagemap:
        for line in maps:
            start, end = (int(word, 16) for word in line.split()[0].split("-"))
            if end >= 1 << 63:
                continue
            starts.add(start)
            pagemap.seek(start // PAGE * 8)
            column = np.frombuffer(pagemap.read((end - start) // PAGE * 8), dtype=np.uint64)
            for at in np.flatnonzero(column & np.uint64(PM_PRESENT | PM_SWAP)):
                entries[start + int(at) * PAGE] = int(column[at])
    return entries, starts


def while_frames_stay(frames, check):
    """Check what is told of frames; check again if a page has moved meanwhile.

    The kernel moves pages when other tests compact memory. Then the frame that was asked about is
    somebody else's. A failure counts only if no page has moved.

    Args:
        frames: A function that reads the frames.
        check: A function of these frames, with assertions.
    """
    for _ in range(50):
        before = frames()
        try:
            return check(before)
        except AssertionError:
            if frames() == before:
                raise
    raise AssertionError("the frames never stayed")


def agreed(plain, ours):
    """Repeat both reads until their results agree; return the result.

    Pages of libraries change even in a stopped process when other processes start or end. Such a
    race does not last: a wrong result differs every time.

    Args:
        plain: A function that makes the expected result.
        ours: A function that makes physview's result.
    """
    for _ in range(50):
        expected, found = plain(), ours()
        if found == expected:
            return expected
    raise AssertionError(f"they never agreed. Last:\n{_unlike(expected, found)}")


def _unlike(expected, found):
    """The first 40 lines or items that two results do not share, for the message of a test."""
    both = [list(_lines(result)) for result in (expected, found)]
    unlike = (line for line in difflib.unified_diff(*both, n=0, lineterm="") if line[:2] != "@@")
    return "\n".join(itertools.islice(unlike, 42))


def _lines(result):
    """The lines of a text, and the items of what is in a result."""
    if isinstance(result, str):
        yield from result.split("\n")
    elif isinstance(result, dict):
        yield from (f"{key!r}: {value!r}" for key, value in result.items())
    elif isinstance(result, tuple | list) and result and isinstance(result[0], str | list):
        for part in result:
            yield from _lines(part)
    else:
        yield from map(repr, result) if isinstance(result, list | set) else [repr(result)]


def plain_values(name, pfn, nr):
    """The values of `nr` frames in a kpage file; NO_ENTRY beyond the file's end."""
    with open(f"/proc/{name}", "rb", buffering=0) as file:
        found = os.pread(file.fileno(), nr * 8, pfn * 8)
    values = np.frombuffer(found, dtype=np.uint64).tolist()
    return values + [NO_ENTRY] * (nr - len(values))


def smaps(pid):
    """The sizes in bytes that smaps lists for each mapping, by the mapping's start."""
    found, fields = {}, {}
    with open(f"/proc/{pid}/smaps") as file:
        for line in file:
            words = line.split()
            if not words[0].endswith(":"):
                fields = found[int(words[0].split("-")[0], 16)] = {}
            elif words[-1] == "kB":
                fields[words[0].rstrip(":")] = int(words[1]) * 1024
    return found
