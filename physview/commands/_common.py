# SPDX-License-Identifier: GPL-2.0-or-later
"""What several commands share: options, parsing of addresses, and messages on stderr."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from physview import _ffi
from physview.errors import PhysviewError, UsageError
from physview.model import Cause, Translation, printable
from physview.reporters.failures import of_this_run
from physview.runtime import invocation, pager, privileges
from physview.text.colour import wants_colour
from physview.text.digits import bounded_int
from physview.text.durations import EXAMPLES, duration_text, parse_duration
from physview.text.nearest import offer
from physview.text.output import quote_controls, write_styled

if TYPE_CHECKING:
    from physview.parquet.snapshot_file import WrittenSnapshot

_RED, _PLAIN = "\x1b[31m", "\x1b[0m"
_NR_PIDS = 5
NEEDS_ROOT = (Cause.HIDDEN, Cause.SWAP_HIDDEN)


def add_source_option(parser: argparse.ArgumentParser) -> None:
    """Add --source."""
    from physview.process import SOURCES

    parser.add_argument(
        "--source",
        choices=tuple(SOURCES),
        default="auto",
        help="who answers: pagemap (read by the compiled core), kmod (the kernel module walks the"
        " page tables), bpf (a BPF program walks them), reference (pagemap read through ctypes,"
        " without the core), or auto: pagemap; reference if the core is not built; kmod if only the"
        " module shows frames",
    )


def add_walker_option(parser: argparse.ArgumentParser, auto: str) -> None:
    """Add --source, for the sources that walk page tables; `auto` says what auto means."""
    from physview.sources.choice import WALKERS

    parser.add_argument(
        "--source",
        choices=tuple(WALKERS),
        default="auto",
        help="who walks the page tables: kmod (the kernel module), bpf (a BPF program), or auto:"
        f" {auto}",
    )


def add_frame_source_option(parser: argparse.ArgumentParser) -> None:
    """Add --source, for answers that need frames only."""
    from physview.sources.frame_source import FRAME_SOURCES

    parser.add_argument(
        "--source",
        choices=FRAME_SOURCES,
        default="auto",
        help="who tells the frames of a process: pagemap, bpf (a BPF program walks the page"
        " tables), or auto: bpf if it is available and faster, or else pagemap",
    )


def add_all_option(parser: argparse.ArgumentParser) -> None:
    """Add --all."""
    parser.add_argument("--all", action="store_true", help="all processes that you may examine")


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def add_columns_option(parser: argparse.ArgumentParser) -> None:
    """Add --columns."""
    from physview.memory.rows import COLUMNS

    parser.add_argument(
        "--columns",
        metavar="NAMES",
        default="flags,node",
        help=f"what to look up for each frame, any of {','.join(COLUMNS)} (default: flags,node)",
    )


def parse_columns(text: str) -> list[str]:
    """Read --columns.

    Raises:
        UsageError: There is no such column.
    """
    from physview.memory.rows import COLUMNS

    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in COLUMNS:
            raise UsageError(f"no column '{name}'", "", offer(name, COLUMNS))
    return names


def add_track_writes_option(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add --track-writes.

    Args:
        parser: The parser of the command.
        purpose: What the command does with it.
    """
    parser.add_argument(
        "--track-writes",
        action="store_true",
        help=f"{purpose}; clears the soft-dirty bits of PID, and slows its next writes down",
    )


def add_force_option(parser: argparse.ArgumentParser) -> None:
    """Add --force."""
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")


def say_if_shared(path: str) -> None:
    """Warn if other users can replace the file that was written."""
    from physview.files.atomic_file import note_on_folder

    if note := note_on_folder(path):
        say(note)


def save_memory() -> None:
    """Make Arrow use malloc(). Arrow's own allocator keeps more of the memory that is freed."""
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def print_written(written: WrittenSnapshot) -> None:
    """Print the size of the file that was written."""
    print(
        f"{printable(written.path)}: {written.nr_pages} pages in {written.nr_extents} extents,"
        f" {written.size_bytes} bytes"
    )


def say_if_ksm_unknown() -> None:
    """Say, once flags of frames were read, that this kernel tells the flag ksm wrongly."""
    from physview.sources.kpage import false_flags

    if false_flags():
        say(
            "this kernel calls every anonymous page ksm in /proc/kpageflags (a bug of Linux"
            " 6.12.117 and 6.12.118); physview leaves this flag out, so merged pages count as anon"
        )


def count(most: int = 1_000_000, least: int = 1) -> Callable[[str], int]:
    """Return a function with which argparse reads a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        number = bounded_int(text, most) if text.isascii() and text.isdigit() else 0
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"'{text}' is not a number from {least} to {most}")
        return number

    return parse


def duration(least: float = 0, most: float = 1_000_000) -> Callable[[str], float]:
    """Return a function with which argparse reads a time in seconds: "90", "5m", "2h", "1d".

    Args:
        least: The least number of seconds.
        most: The most.
    """

    def parse(text: str) -> float:
        value = parse_duration(text)
        if value is None:
            raise argparse.ArgumentTypeError(f"'{text}' is not a time such as {EXAMPLES}")
        if not least <= value <= most:
            limits = f"from {duration_text(least)} to {duration_text(most)}"
            raise argparse.ArgumentTypeError(f"'{text}' is not a time {limits}")
        return value

    return parse


def whole_units(
    name: str, unit: int, least: int = 1, most: int = 1_000_000
) -> Callable[[str], int]:
    """Return a function with which argparse reads a time as a whole number of units.

    Args:
        name: The unit, such as "days". A number without a letter counts it.
        unit: Its seconds.
        least: The least number.
        most: The most.
    """

    def parse(text: str) -> int:
        value = parse_duration(text, unit)
        number, rest = divmod(-1.0 if value is None else value, unit)
        if rest or not least <= number <= most:
            why = f"'{text}' is not a number of {name} from {least} to {most}, or a time such as"
            raise argparse.ArgumentTypeError(f"{why} {duration_text(7 * unit)}")
        return int(number)

    return parse


def say(message: str | PhysviewError) -> None:
    """Print a message on stderr that is not part of the report.

    Args:
        message: A text is printed as one line, with control characters quoted. An error may have
            several lines, and has quoted them itself.
    """
    if sys.stderr is not None:  # None if it was closed; print() would then write to stdout
        text = printable(message) if isinstance(message, str) else str(message)
        if paged := pager.current():
            paged.say_later(f"physview: {text}")
        elif isinstance(message, PhysviewError) and wants_colour(sys.stderr):
            write_styled(sys.stderr, f"{_RED}physview:{_PLAIN} {quote_controls(text)}\n")
            sys.stderr.flush()
        else:
            print(f"physview: {text}", file=sys.stderr, flush=True)


def fail(asked: object, error: PhysviewError) -> None:
    """Say that one of several things failed, and go on. The run ends with 1.

    The JSON document has the failure in `errors`.

    Args:
        asked: What the user asked for, as it was typed.
        error: Why it failed.
    """
    if sys.stdout is not None:
        sys.stdout.flush()  # the line stands between the answers, where the missing one would be
    say(error)
    of_this_run.add(str(asked), error)


@contextmanager
def attempt(asked: object) -> Iterator[None]:
    """Do one of several things that the user asked for. If it fails, say so, and go on.

    A command that takes several PIDs, files or frames does all it does about one of them inside
    `with attempt(word):`. Stderr, the exit code and `errors` of the JSON document then follow by
    themselves. What is printed piece by piece has to be completed by the command, if it may be
    left in the middle.
    """
    try:
        yield
    except PhysviewError as error:
        fail(asked, error)
    else:
        of_this_run.nr_done += 1


def find_pids(words: Iterable[str]) -> dict[int | str, str]:
    """Find the processes that words name. Say which words name none, and go on.

    Returns:
        The first word that names a process, by its pid or "self" as `find_pid()` returns it, in
        the order of the words.
    """
    from physview.runtime.resolve_pid import find_pid

    found: dict[int | str, str] = {}
    for word in words:
        try:
            found.setdefault(find_pid(word), word)
        except PhysviewError as error:
            fail(word, error)
    return found


def check_processes(args: argparse.Namespace) -> None:
    """Check that exactly one of PID…, --cgroup and --all names processes."""
    if sum([bool(args.processes), args.cgroup is not None, args.all]) != 1:
        raise UsageError(
            "no process is named, or several ways", "", "give one of PID…, --cgroup PATH and --all"
        )


def check_output(args: argparse.Namespace, option: str) -> None:
    """Check that a file is named for --format parquet, and for no other format.

    Args:
        args: The arguments.
        option: How the command names the file.
    """
    if args.format == "parquet" and args.output is None:
        raise UsageError("Parquet is written to a file", "", f"name it with {option} FILE")
    if args.format != "parquet" and (args.output is not None or args.force):
        wrong = "--force" if args.output is None else "--output"
        raise UsageError(f"{wrong} needs --format parquet", "", f"add that, or leave out {wrong}")


def add_cgroup_option(parser: argparse.ArgumentParser) -> None:
    """Add --cgroup."""
    parser.add_argument(
        "--cgroup", metavar="PATH", help="the processes of a cgroup and of all cgroups below it"
    )


def cgroup_pids(path: str) -> list[int]:
    """Return the pids of the processes of a cgroup and of all cgroups below it.

    Raises:
        UsageError: It is no cgroup.
    """
    from physview.sources import cgroups

    try:
        return list(cgroups.cgroup_pids(path))
    except OSError as error:
        why, remedy = error.strerror or "", "give a folder under /sys/fs/cgroup"
        raise UsageError(f"'{path}' is no cgroup", why, remedy) from None


def say_if_threaded(path: str) -> None:
    """Say on stderr if a cgroup has threads, not processes."""
    from physview.sources import cgroups

    if cgroups.is_threaded(path):
        say(
            f"{path} is a threaded cgroup: processes with a thread in it are shown, with all of"
            " their memory"
        )


def say_lines(message: str) -> None:
    """Print each line of a message on stderr, as `say()` does."""
    for line in message.split("\n"):
        say(line)


def discard_stdout() -> None:
    """Point stdout at /dev/null, so that Python's last flush at exit does not fail again."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
    except OSError:  # no descriptor is free: give up stdin, which is not needed any more
        os.close(0)
        null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)


def die_of(name: str) -> NoReturn:
    """Be killed by a signal, silently, as a C program is. `name`: as "SIGINT"."""
    import signal

    signum = signal.Signals[name]
    discard_stdout()
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
    raise SystemExit(128 + signum)  # where the signal is blocked


def say_if_core_is_missing(source: str) -> None:
    """Say on stderr that "auto" uses the reference, where the core is not built."""
    if source == "auto" and _ffi.why_unavailable():
        say(
            f"the compiled core is missing: {_ffi.why_unavailable()}; reading through ctypes,"
            f" which is slower; {_ffi.remedy()}"
        )


def say_if_guest_physical() -> None:
    """Say, once a report has physical addresses, that this machine is a VM: they are the guest's.

    A run of several processes says it once. The message is for the reader of a report, so it is
    there also if stderr is no terminal, as other messages are.
    """
    if invocation.is_child():
        return
    from physview.system import hypervisor

    if found := hypervisor.detect():
        sys.stdout.flush()  # the line stands after the report, also if both go to one place
        say(f"this machine is {found}: {hypervisor.MEANING}")


def say_causes(translations: Iterable[Translation]) -> bool:
    """Say for each cause how many addresses are UNKNOWN because of it, and its remedy.

    Returns:
        Whether any address is UNKNOWN.
    """
    counts: dict[Cause, int] = {}
    for translation in translations:
        if translation.cause:
            counts[translation.cause] = counts.get(translation.cause, 0) + 1
    return say_cause_counts(counts)


def say_cause_counts(counts: dict[Cause, int]) -> bool:
    """Do as `say_causes()`, with the number of addresses by cause."""
    for cause, count in counts.items():
        addresses = "address is" if count == 1 else "addresses are"
        say(f"{count} {addresses} UNKNOWN: {cause.text}; {remedy(cause)}")
    return bool(counts)


def remedy(cause: Cause) -> str:
    """Return what to do about a cause. If root is needed, this is the command line to type."""
    if cause is Cause.UNTOLD:
        return invocation.load_own_module()
    return root_remedy() if cause in NEEDS_ROOT else cause.remedy


def say_if_tagged(nr_tagged: int) -> None:
    """Say how many addresses have a tag in the top byte, if any: they are looked up without it."""
    if nr_tagged:
        addresses = "address has" if nr_tagged == 1 else "addresses have"
        say(
            f"{nr_tagged} {addresses} a tag in the top byte, which this processor ignores;"
            " looked up without the tag"
        )


def say_how_many_are_left_out(nr_denied: int, pids: Sequence[int] = ()) -> None:
    """Say on stderr how many processes this user may not examine, if there are any.

    Args:
        nr_denied: The number.
        pids: Their pids, if they are known. The first ones are named.
    """
    if not nr_denied:
        return
    one = nr_denied == 1
    processes, them = ("1 process is", "it") if one else (f"{nr_denied} processes are", "them")
    named = f" ({first_pids(pids)})" if pids else ""
    remedy = privileges.root_remedy("SYS_PTRACE") if os.geteuid() == 0 else root_remedy()
    say(f"{processes} left out{named}: you may not examine {them}; {remedy}")


def first_pids(pids: Sequence[int]) -> str:
    """Name some pids, and say how many more there are.

    >>> first_pids([7]), first_pids([1, 2, 3, 4, 5, 6, 7, 8])
    ('pid 7', 'pids 1, 2, 3, 4, 5 and 3 more')
    """
    words = ", ".join(map(str, pids[:_NR_PIDS]))
    more = len(pids) - _NR_PIDS
    return f"pid{'s' * (len(pids) > 1)} {words}" + (f" and {more} more" if more > 0 else "")


def root_remedy() -> str:
    """Return how to get CAP_SYS_ADMIN in the first user namespace, which shows frame numbers."""
    if os.geteuid() == 0:
        return privileges.root_remedy("SYS_ADMIN")
    return invocation.again_as_root()
