# SPDX-License-Identifier: GPL-2.0-or-later
"""Show what happened to a process's pages between two snapshots.

Counts the pages that stayed in their frames, moved, appeared, went away, were swapped out or in,
were copied, and whose large folios were split or collapsed. --picture draws where the pages were
and where they are. Exits with 1 if anything changed, as diff does.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from physview.commands import _common, _pictures
from physview.errors import UsageError
from physview.text.nearest import offer

if TYPE_CHECKING:
    from physview.analysis.changes import Change
    from physview.parquet.snapshot_file import SnapshotFile

NAME = "diff"
HELP = "what happened to a process's pages between two snapshots"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("before", metavar="BEFORE", help="a file that snapshot wrote")
    parser.add_argument("after", metavar="AFTER", help="a later one")
    parser.add_argument(
        "--extents",
        action="store_true",
        help="list contiguous pages with the same change, and their frames before and after",
    )
    parser.add_argument(
        "--only", metavar="NAMES", help="with --extents: only these changes, such as moved,went"
    )
    parser.add_argument(
        "--picture", metavar="FILE", help="draw the changes instead: .svg, .png or .html"
    )
    _pictures.add_options(parser)
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print what changed, or draw it."""
    _common.save_memory()
    if args.picture is not None:
        return _draw(args)
    _pictures.refuse_options(args)
    from physview.analysis import changes
    from physview.commands._progress import progress_bar
    from physview.parquet.snapshot_file import SnapshotFile
    from physview.reporters import diff as reporter

    only = _parse_names(args)
    with SnapshotFile(args.before) as before, SnapshotFile(args.after) as after:
        _warn_about_mismatch(before, after)
        with progress_bar("comparing") as show:
            found = changes.diff(before, after, progress=show)
        runs = changes.iter_changes(before, after) if args.extents else None
        print_diff = reporter.print_document if args.json else reporter.print_table
        print_diff(before, after, found, runs, only)
    return 1 if found.nr_changed else 0


def _draw(args: argparse.Namespace) -> int:
    if args.extents or args.only is not None:
        what = "--extents and --only do not apply to a picture"
        raise UsageError(what, "", "leave them out: a picture shows all changes")
    from physview.commands._progress import progress_bar
    from physview.parquet.snapshot_file import SnapshotFile
    from physview.pictures import PageChanges, Picture, picture_changes, read_changes

    found: list[PageChanges] = []
    with SnapshotFile(args.before) as before, SnapshotFile(args.after) as after:
        _warn_about_mismatch(before, after)

        def read() -> Picture:
            with progress_bar("comparing") as show:
                found.append(read_changes(before, after, progress=show))
            return picture_changes(found[0], before, after)

        _pictures.draw(args, args.picture, read, remedy="take both snapshots as root")
    return 1 if found[0].is_changed.any() else 0


def _parse_names(args: argparse.Namespace) -> frozenset[Change]:
    from physview.analysis.changes import Change

    if args.only is None:
        return frozenset(Change)
    if not args.extents:
        raise UsageError("--only needs --extents", "", "add --extents")
    known = {change.value: change for change in Change}
    names = [name.strip() for name in args.only.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UsageError(f"no change '{name}'", "", offer(name, known))
    return frozenset(known[name] for name in names)


def _warn_about_mismatch(before: SnapshotFile, after: SnapshotFile) -> None:
    if before.time > after.time:
        _common.say(f"{before.path} is later than {after.path}: the changes go back in time")
    if before.process != after.process:
        names = (f"{file.about['comm']} ({file.about['pid']})" for file in (before, after))
        _common.say(
            f"the snapshots are of two processes, {' and '.join(names)}: pages at the same"
            " addresses are compared"
        )
    if not (before.knows_frames and after.knows_frames):
        _common.say("frame numbers were hidden when a snapshot was taken: moves are not known")
    elif not all("flags" in file.columns for file in (before, after)):
        _common.say("a snapshot has no flags: which pages were copied, split or collapsed is lost")
