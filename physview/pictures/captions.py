# SPDX-License-Identifier: GPL-2.0-or-later
"""The words of a picture: its title, its summary, and how to read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from physview.model import PAGE_SIZE, printable
from physview.pictures.bands import Links
from physview.pictures.kinds import MACHINE_KINDS, index_of
from physview.pictures.model import (
    DiffSubject,
    DrawnFrames,
    MachineSubject,
    Picture,
    ProcessSubject,
    SnapshotSubject,
    Space,
)
from physview.pictures.page_changes import PageChanges
from physview.pictures.process_pages import ProcessPages
from physview.units import pages_size, share, size_words

# The summary of a difference names this many changes.
MAX_NAMED_CHANGES = 5


class Captions(NamedTuple):
    """The words of a picture.

    Args:
        title: What it is a picture of.
        subtitle: More about it, such as the command line.
        origin: Where and when it was taken.
        summary: The most important figures.
        scale: What a cell and a connector are.
        notes: What a reader must know besides.
        missing: Why physical memory is not drawn; empty if it is.
    """

    title: str
    subtitle: str = ""
    origin: str = ""
    summary: str = ""
    scale: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    missing: str = ""


def describe(picture: Picture) -> Captions:
    """Make the words of a picture.

    Args:
        picture: Of the machine, of a process, or of two snapshots. The words of any other picture
            are the caller's; here it only has a title.
    """
    if isinstance(picture.subject, MachineSubject):
        return _describe_machine(picture, picture.subject)
    if isinstance(picture.subject, ProcessSubject):
        return _describe_process(picture, picture.subject)
    if isinstance(picture.subject, DiffSubject):
        return _describe_diff(picture, picture.subject)
    return Captions("Memory", missing=picture.refusal)


def _origin(machine: MachineSubject) -> str:
    return f"{printable(machine.host)}  ·  Linux {machine.kernel}"


def _origin_and_time(machine: MachineSubject) -> str:
    return f"{_origin(machine)}  ·  {machine.time:%Y-%m-%d %H:%M:%S %z}"


def _describe_machine(picture: Picture, subject: MachineSubject) -> Captions:
    assert picture.frames
    totals = picture.frames.totals
    nr_all, nr_free = sum(totals), totals[index_of(MACHINE_KINDS, "free")]
    return Captions(
        title=f"Physical memory of {printable(subject.host)}",
        origin=_origin_and_time(subject),
        summary=f"{pages_size(nr_all)} of RAM, {nr_all:,} frames of {size_words(PAGE_SIZE)};"
        f" {pages_size(nr_free)} free, {share(nr_free, nr_all)}",
        scale=(f"{_cell_size(picture.frames)} The stripes of a cell show the share of each kind,"
               " rounded to eighths.",),
    )  # fmt: skip


def _describe_process(picture: Picture, subject: ProcessSubject) -> Captions:
    space, frames = picture.space, picture.frames
    assert space
    assert isinstance(space.pages, ProcessPages)
    scale: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    missing = ""
    if frames and space.links:
        scale = (
            f"{_cell_size(frames)} The stripes of a cell show the share of each kind. A kind"
            " of this process takes at least a quarter of the cell.",
            f"Each connector bundles the pages of {_part(space.links)} in {_rows(space.links)};"
            " its width shows how many.",
        )
        notes = tuple(_outside(space))
    else:
        missing = picture.refusal or "only root may see frame numbers"
        if not space.pages.knows_frames:
            notes = (
                "Without frame numbers, shared memory is shown as files, and large folios are not"
                " shown as such.",
            )
    return Captions(
        title=f"{printable(subject.name)}, process {subject.pid}",
        subtitle=" ".join(map(printable, subject.arguments)),
        origin=_origin_and_time(subject.machine),
        summary=_summarise_process(space.pages, frames),
        scale=scale,
        notes=notes,
        missing=missing,
    )


def _summarise_process(pages: ProcessPages, frames: DrawnFrames | None) -> str:
    nr_maps = len(pages.vmas)
    mappings = "1 mapping" if nr_maps == 1 else f"{nr_maps:,} mappings"
    resident = f"{pages_size(pages.nr_resident)} resident in {mappings}"
    alone = f"{pages_size(pages.nr_exclusive)} mapped by it alone"
    if frames is None:
        return f"{resident}, {alone}"
    nr_extents = int(pages.has_frames.sum())
    nr_ram = sum(end - first for first, end in frames.ram)
    return (
        f"{resident}, {alone}; {share(pages.nr_resident, nr_ram)} of {pages_size(nr_ram)} of RAM,"
        f" in {nr_extents:,} extents"
    )


def _describe_diff(picture: Picture, subject: DiffSubject) -> Captions:
    space, frames = picture.space, picture.frames
    assert space
    assert isinstance(space.pages, PageChanges)
    scale: tuple[str, ...] = ()
    missing = ""
    if frames and space.links:
        scale = (
            f"{_cell_size(frames)} The stripes of a cell show the share of each kind. A kind"
            " that the process has or had takes at least a quarter of the cell, or an"
            " eighth if there are more than four such kinds.",
            f"Each connector bundles pages of {_part(space.links)} that are, or were, in"
            f" {_rows(space.links)}; its width shows how many. Pages that moved have two"
            " connectors: to where they were, and to where they are.",
        )
        notes = (*_left_notes(space, space.pages, frames), *_outside(space), *_ram_notes(frames))
    else:
        hidden = [each.path for each in subject if not each.knows_frames]
        missing = (
            picture.refusal or f"frame numbers were hidden when {' and '.join(hidden)} were taken"
        )
        notes = ("Without frame numbers it is not known what moved.",)
    return Captions(
        title=_diff_title(*subject),
        subtitle=_diff_times(*subject),
        origin=_origin(subject.after.machine),
        summary=_summarise_changes(space.pages),
        scale=scale,
        notes=notes,
        missing=missing,
    )


def _diff_title(before: SnapshotSubject, after: SnapshotSubject) -> str:
    one, other = (f"{printable(each.name)} {each.pid}" for each in (before, after))
    if before.process == after.process:
        return f"{printable(after.name)}, process {after.pid}: what moved"
    return f"{one} and {other}: what differs"


def _diff_times(before: SnapshotSubject, after: SnapshotSubject) -> str:
    one, other = (each.machine.time for each in (before, after))
    seconds = (other - one).total_seconds()
    form = "%Y-%m-%d %H:%M:%S"
    same_day = one.date() == other.date() and one.utcoffset() == other.utcoffset()
    clock = f"{other:%H:%M:%S}" if same_day else f"{other:{form}}"
    # There is room for fractions of a second in short times only.
    later = f"{abs(seconds):,.0f} s" if abs(seconds) >= 100 else f"{abs(seconds):.1f} s"
    direction = "later" if seconds >= 0 else "earlier"
    return f"Before: {one:{form}}  ·  after: {clock} {other:%z}, {later} {direction}"


def _summarise_changes(changes: PageChanges) -> str:
    counts = sorted(changes.counts.items(), key=lambda item: (item[0].same, -item[1]))
    nr_all = sum(nr for _, nr in counts)
    words = [f"{pages_size(nr)} {change.value.replace('_', ' ')}" for change, nr in counts]
    if len(words) > MAX_NAMED_CHANGES:
        rest = sum(nr for _, nr in counts[MAX_NAMED_CHANGES - 1 :])
        words[MAX_NAMED_CHANGES - 1 :] = [f"{pages_size(rest)} else"]
    text = f"Of {pages_size(nr_all)}: {', '.join(words) or 'nothing'}"
    if changes.knows_frames:
        one, other = changes.nr_extents("before"), changes.nr_extents("after")
        text += f"; in {one:,} extents before, {other:,} after"
    return text


def _left_notes(space: Space, changes: PageChanges, frames: DrawnFrames) -> Iterator[str]:
    _, past = changes.page_frames
    nr_past = int(past.frames["nr"].sum())
    kinds = changes.all_kinds
    nr_drawn = sum(nr for kind, nr in zip(kinds, frames.totals, strict=True) if kind.is_past)
    if nr_drawn < nr_past - space.nr_outside:
        yield (
            "Some frames that a page has left have another page of the process now, or the same"
            " page at another address. They are drawn as they are now."
        )


def _outside(space: Space) -> Iterator[str]:
    if space.nr_outside:
        yield f"{space.nr_outside:,} pages are in frames outside of RAM, which are not drawn."


def _ram_notes(frames: DrawnFrames) -> Iterator[str]:
    if not frames.has_resources:
        yield (
            "These snapshots do not say where RAM is, and it is not known here. So only the memory"
            " around the frames that they name is drawn."
        )


def _cell_size(frames: DrawnFrames) -> str:
    cell, row = 1 << frames.grid.shift, 1 << frames.grid.row_shift
    page = size_words(PAGE_SIZE)
    what = f"{cell:,} frames of {page} ({size_words(cell * PAGE_SIZE)})"
    return (
        f"Each cell is {what if cell > 1 else f'one frame of {page}'}; each row is"
        f" {size_words(row * PAGE_SIZE)}."
    )


def _part(links: Links) -> str:
    return "a mapping" if links.nr_parts == 1 else f"1/{links.nr_parts} of a mapping"


def _rows(links: Links) -> str:
    return "a row of cells" if links.nr_rows == 1 else f"{links.nr_rows} rows of cells"
