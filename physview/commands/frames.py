# SPDX-License-Identifier: GPL-2.0-or-later
"""Show what the machine's frames are used for, or list some of them.

Counts frames by their use (which their flags tell), by zone, by node and by flags, and free blocks
by size. Mapped frames are in the page tables of processes. Counts only some frames if frames,
--flags or --cgroup choose them; lists them with --list or --each. Needs root.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from physview.commands import _common, _numbers, _pictures
from physview.errors import PhysviewError, UsageError
from physview.runtime import invocation

if TYPE_CHECKING:
    from physview.frames.selection import Selection
    from physview.model import FrameRange
    from physview.sources.kpage import KpageFile
    from physview.sources.saved_flags import SavedFlags

NAME = "frames"
HELP = "the machine's frames by use, zone, node and flags, and free blocks by size; or some frames"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    from physview.sources.frame_flags import FLAG_SOURCES

    parser.add_argument(
        "frames",
        metavar="FRAME",
        nargs="*",
        help="only these frames: a frame number as pfn:0x…, or a physical address as 0x…; START-END"
        " for a range of either, END excluded",
    )
    parser.add_argument(
        "--flags",
        metavar="FLAGS",
        action="append",
        help="only frames with these flags, as for pages: a,!b; a|b; =a,b; a,b=a; may be repeated",
    )
    parser.add_argument(
        "--cgroup",
        metavar="PATH",
        help="only frames that are charged to this cgroup: its path as pages prints it, its folder,"
        " or @inode",
    )
    listing = parser.add_mutually_exclusive_group()
    listing.add_argument(
        "--list", action="store_true", help="print a line per run of contiguous, equal frames"
    )
    listing.add_argument("--each", action="store_true", help="print a line per frame")
    parser.add_argument(
        "--columns",
        metavar="NAMES",
        help="what to list for each frame, any of flags,mapcount,cgroup,node (default: flags)",
    )
    parser.add_argument("--format", choices=("csv",), help="how to list: as CSV")
    parser.add_argument(
        "--all-flags", action="store_true", help="show every combination of flags, not only ten"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="count frames separately that differ only in kernel-internal flags (bit 32 and up),"
        " or in being the head or the tail of a compound page; list all flags",
    )
    parser.add_argument(
        "--save", metavar="FILE", help="write a copy of /proc/kpageflags, and print nothing else"
    )
    parser.add_argument(
        "--from",
        dest="saved",
        metavar="FILE",
        help="take the flags from a copy of /proc/kpageflags, made by --save or by cat",
    )
    parser.add_argument(
        "--source",
        choices=FLAG_SOURCES,
        help="who tells the flags that are counted: kpageflags, for each frame; bpf (a BPF program"
        " tells which frames are alike, and kpageflags the flags of a few of them); or auto: bpf if"
        " it is available and faster, or else kpageflags",
    )
    parser.add_argument(
        "--picture", metavar="FILE", help="draw the frames instead: .svg, .png or .html"
    )
    _pictures.add_options(parser)
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the tables, list frames, save a copy, or draw the frames."""
    _check(args)
    if args.picture is not None:
        _draw(args)
    elif args.save is not None:
        _save(args)
    elif args.frames or args.flags or args.cgroup or args.list or args.each or args.saved:
        _show_some(args)
    else:
        _show_machine(args)
    if args.saved is None:
        _common.say_if_ksm_unknown()
    return 0


def _check(args: argparse.Namespace) -> None:
    alone = {"--save": args.save, "--picture": args.picture}
    others = {
        "FRAME": args.frames,
        "--flags": args.flags,
        "--cgroup": args.cgroup,
        "--list": args.list,
        "--each": args.each,
        "--from": args.saved,
    }
    for option in (option for option, value in alone.items() if value is not None):
        for other in (name for name, value in others.items() if value):
            raise UsageError(f"{option} and {other} exclude each other", "", "leave out one")
    if args.save is not None and args.picture is not None:
        raise UsageError("--save and --picture exclude each other", "", "leave out one")
    if (args.columns is not None or args.format) and not (args.list or args.each):
        option = "--columns" if args.columns is not None else "--format"
        raise UsageError(f"{option} needs a list", "", "add --list or --each")
    if args.source == "bpf":
        kept = {"--list": args.list, "--each": args.each, "--from": args.saved, **alone}
        for other in (name for name, value in kept.items() if value):
            why = "BPF only counts frames"
            raise UsageError(f"--source bpf and {other} exclude each other", why, "leave out one")
    if args.format and args.json:
        raise UsageError("--json and --format exclude each other", "", "leave out one")
    if args.saved is not None and args.cgroup is not None:
        why = "a copy has only flags"
        raise UsageError("--from and --cgroup exclude each other", why, "leave out one")
    if args.picture is None and args.save is None:
        _pictures.refuse_options(args)


def _show_machine(args: argparse.Namespace) -> None:
    from physview.commands import _progress
    from physview.frames.machine import read_machine
    from physview.reporters import frames as reporter

    with _progress.progress_bar("counting frames") as progress:
        machine = read_machine(source=args.source or "auto", progress=progress)
    if args.json:
        from physview.reporters import documents

        documents.write(reporter.machine_document(machine))
    else:
        reporter.print_machine(machine, all_flags=args.all_flags, raw=args.raw)


def _show_some(args: argparse.Namespace) -> None:
    from physview.sources.kpage import KpageFile
    from physview.sources.memory_blocks import read_online_ram
    from physview.sources.saved_flags import SavedFlags

    asked = [_numbers.parse_frames(word) for word in args.frames]
    columns = _columns(args)
    cgroup = None if args.cgroup is None else _find_cgroup(args.cgroup)
    if args.saved is not None:
        with SavedFlags(args.saved) as saved:
            ranges = [(0, saved.nr_frames)]
            selection = _select(args, asked, ranges, cgroup)
            _check_saved(saved, ranges)
            _print_some(args, saved, selection, columns)
    else:
        with KpageFile("kpageflags") as file:
            _print_some(args, file, _select(args, asked, read_online_ram(), cgroup), columns)


def _check_saved(saved: SavedFlags, ranges: list[tuple[int, int]]) -> None:
    """Look at all values of a copy, and say if its kernel tells the flag ksm wrongly."""
    from physview.commands import _progress
    from physview.frames.selection import Selection, count_selected
    from physview.sources.kpage import KPF_KSM
    from physview.sources.saved_flags import has_false_ksm

    with _progress.progress_bar("reading the copy") as progress:
        everything = count_selected(saved, Selection(ranges, None, None, True), progress=progress)
    if has_false_ksm(everything):
        saved.cleared = KPF_KSM
        _common.say(
            "the kernel of this copy calls every anonymous page ksm; physview leaves this flag out,"
            " so merged pages count as anon"
        )


def _select(
    args: argparse.Namespace,
    asked: list[FrameRange],
    there: list[tuple[int, int]],
    cgroup: int | None,
) -> Selection:
    from physview.frames.selection import Selection, cut_ranges
    from physview.sources.page_flags import FLAG_BITS, FlagFilter

    where = None if args.flags is None else FlagFilter.parse(*args.flags)
    if where is not None and where.required & 1 << FLAG_BITS["slab"]:
        from physview.reporters.owners import NO_CACHE

        _common.say(f"frames with slab: {NO_CACHE}")
    if where is not None and where.names_pagemap:
        why = "they are flags of pages of a process, not of frames"
        remedy = f"{invocation.physview('pages PID --flags …')} shows these pages"
        raise UsageError("cannot choose frames by flags of pagemap", why, remedy)
    ranges = cut_ranges([(each.first, each.end) for each in asked], there) if asked else there
    if not ranges:
        raise PhysviewError("there are no such frames", "these are no RAM that is online")
    return Selection(
        ranges, where, cgroup, raw=args.raw or (where is not None and where.names_hidden)
    )


def _print_some(
    args: argparse.Namespace, file: KpageFile, selection: Selection, columns: list[str]
) -> None:
    from physview.commands import _progress
    from physview.frames.selection import count_selected, iter_ranges
    from physview.reporters import frames as reporter

    if not (args.list or args.each):
        source = _choose_source(args, selection)
        with _progress.progress_bar("counting frames") as progress:
            counts = count_selected(file, selection, source=source, progress=progress)
        if args.json:
            from physview.reporters import documents

            told_by = source if args.saved is None else "copy"
            documents.write(reporter.selection_document(counts, told_by))
        else:
            all_flags = args.all_flags
            reporter.print_selection(counts, all_flags=all_flags, raw=selection.raw)
        return

    from physview.memory.listing import Listing
    from physview.reporters.pages import cgroup_names
    from physview.sources.cgroups import cgroup_paths

    style = args.format or ("json" if args.json else "table")
    paths = cgroup_paths() if "cgroup" in columns else {}
    listing = Listing(
        columns,
        style=style,
        each=args.each,
        raw=selection.raw,
        where=selection.where,
        cgroups=cgroup_names(paths, style),
        flags=file,
    )
    reporter.print_list(
        listing.iter_frames(iter_ranges(selection)), columns, style=style, each=args.each
    )


def _choose_source(args: argparse.Namespace, selection: Selection) -> str:
    from physview.sources.frame_flags import choose_flag_source

    if args.saved is not None or (args.source is None and selection.cgroup is not None):
        return "kpageflags"  # few frames of a cgroup are contiguous
    nr_frames = sum(end - first for first, end in selection.ranges)
    return choose_flag_source(args.source or "auto", nr_frames)


def _columns(args: argparse.Namespace) -> list[str]:
    columns = _common.parse_columns("flags" if args.columns is None else args.columns)
    for name in columns:
        if args.saved is not None and name in ("mapcount", "cgroup"):
            raise UsageError(f"a copy has no {name}", "it has only flags", f"leave out {name}")
    return columns


def _find_cgroup(word: str) -> int:
    from physview.sources.cgroups import find_cgroup

    inode = find_cgroup(word)
    if inode is None:
        pages = invocation.physview("pages PID --columns cgroup")
        remedy = f"write its path as {pages} prints it, its folder, or @inode"
        raise UsageError(f"no cgroup '{word}'", "", remedy)
    return inode


def _save(args: argparse.Namespace) -> None:
    from physview.commands import _progress
    from physview.files.atomic_file import whole_file
    from physview.model import printable
    from physview.sources.kpage import KpageFile
    from physview.sources.memory_blocks import read_online_ram
    from physview.sources.saved_flags import ITEM_BYTES, save_flags

    if args.theme:
        raise UsageError("--theme needs a picture", "", "name its file with --picture")
    with (
        KpageFile("kpageflags") as flags,
        whole_file(args.save, overwrite=args.force) as file,
        _progress.progress_bar("saving flags") as progress,
    ):
        nr = save_flags(flags, file, read_online_ram(), progress)
    _common.say_if_shared(args.save)
    if args.json:
        from physview.reporters import documents

        size = nr * ITEM_BYTES
        documents.write({"path": args.save, "nr_frames": nr, "size_bytes": size})
    else:
        print(f"{printable(args.save)}: flags of {nr} frames, {nr * ITEM_BYTES} bytes")


def _draw(args: argparse.Namespace) -> None:
    from physview.commands import _progress
    from physview.pictures import Picture, picture_machine

    def read() -> Picture:
        with _progress.progress_bar("reading frames") as progress:
            return picture_machine(progress=progress)

    _pictures.draw(args, args.picture, read)
