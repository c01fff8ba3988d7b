# SPDX-License-Identifier: GPL-2.0-or-later
"""Packages of a distribution's archive, fetched and unpacked by apt without installing anything.

apt gets a root of its own for all that it writes, and the suites that are asked for; the mirror,
the proxy and the keys are the machine's. It needs no root and leaves no trace outside. Nothing
that is not signed by the distribution's keys is taken, whatever the machine's own apt is told.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from physview.errors import PhysviewError, Unsupported
from physview.runtime import invocation

_PROGRAMS = ("apt-get", "apt-cache", "dpkg-deb")

# Read after the machine's own configuration: its hooks would touch the machine, and what it pins
# or clears is not meant for this.
_CONFIG = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
APT::Architecture "amd64";
APT::Architectures {{ {architectures} }};
// the user _apt has no way into a cache in root's home
APT::Sandbox::User "root";
// a snapshot of an archive is past its date
Acquire::Check-Valid-Until "false";
// what is fetched is run, as root often enough
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
APT::Get::AllowUnauthenticated "false";
APT::Get::Force-Yes "false";
#clear APT::Key;
Acquire::Languages "none";
Acquire::Retries "1";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
Dir::State "{root}/state";
Dir::State::status "{root}/status";
Dir::Cache "{root}/cache";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
"""


class PrivateApt:
    """apt with a root of its own that knows the packages of some suites.

    Args:
        root: The folder, made anew.
        sources: Lines of a sources.list, from `mirrors.Archive`.
        name: The distribution's, for messages.
        foreign: Architectures beside amd64. Their packages are known, too; of a name that several
            have it is amd64's, so that tools can run here.
    """

    def __init__(
        self, root: Path, sources: Iterable[str], name: str, foreign: Iterable[str] = ()
    ) -> None:
        self._root = root
        self._name = name
        architectures = ["amd64", *foreign]
        lines = list(sources)
        root.mkdir(mode=0o700)
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (root / folder).mkdir(parents=True)
        (root / "status").touch()
        quoted = " ".join(f'"{architecture}";' for architecture in architectures)
        (root / "apt.conf").write_text(_CONFIG.format(root=root, architectures=quoted))
        (root / "sources.list").write_text("\n".join(lines) + "\n")
        # A suite that a mirror lacks is no error: what counts is what is found in the others.
        self._update = self._run("apt-get", "update")

    @property
    def complaints(self) -> str:
        """What apt could not fetch of the suites' indexes, in one line."""
        return complaints_of(self._update)

    def names(self, prefix: str) -> list[str]:
        """All packages whose names begin with `prefix`."""
        return self._run("apt-cache", "pkgnames", prefix).stdout.split()

    def suite_of(self, name: str) -> str:
        """The suite that has a package in its newest version; empty where none has it."""
        shown = self._run("apt-cache", "madison", name).stdout
        return next(parse_madison(shown), "")

    def with_dependencies(self, names: Iterable[str], which: re.Pattern[str]) -> list[str]:
        """The packages, those that they depend on, and so on.

        Args:
            names: The first of them.
            which: Matches the names of the dependencies to follow.
        """
        found: dict[str, None] = {}
        new = list(dict.fromkeys(names))
        while new:
            found |= dict.fromkeys(new)
            shown = self._run("apt-cache", "show", "--no-all-versions", *new).stdout
            needed = [name for name in parse_depends(shown) if which.match(name)]
            new = [name for name in dict.fromkeys(needed) if name not in found]
        return list(found)

    def unpack(self, names: Iterable[str], target: Path) -> None:
        """Fetch packages and unpack them into a folder.

        Raises:
            Unsupported: They cannot be fetched.
            PhysviewError: They cannot be unpacked.
        """
        debs = self._root / "debs"
        debs.mkdir()
        fetched = self._run("apt-get", "download", *names, cwd=debs)
        if fetched.returncode:
            raise self.cannot_fetch(complaints_of(fetched))
        for deb in sorted(debs.iterdir()):
            unpacked = self._run("dpkg-deb", "-x", str(deb), str(target))
            if unpacked.returncode:
                raise PhysviewError(
                    f"cannot unpack {deb.name}",
                    complaints_of(unpacked) or "dpkg-deb failed",
                    "is the disk full?",
                    path=str(target),
                )
        shutil.rmtree(debs)

    def cannot_fetch(self, why: str) -> Unsupported:
        """The error when apt gets nothing."""
        update = invocation.as_root("apt-get update")
        remedy = f"connect this machine to its {self._name} mirror: {update} tells more"
        return Unsupported(f"cannot fetch {self._name}'s kernels", why, remedy)

    def _run(
        self, program: str, *args: str, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        options = ["-q", "-c", f"{self._root}/apt.conf"] if program.startswith("apt") else []
        command = [program, *options, *args]
        return subprocess.run(
            command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False
        )


def parse_depends(shown: str) -> Iterator[str]:
    r"""Names that packages depend on, of alternatives the first. Source: Debian Policy, 7.1.

    >>> list(parse_depends("Package: vi\nDepends: libc6 (>= 2), ed | ex, perl:any\n"))
    ['libc6', 'ed', 'perl']
    """
    for line in shown.split("\n"):
        field, _, value = line.partition(":")
        if field in ("Depends", "Pre-Depends"):
            yield from re.findall(r"(?:^|,)\s*([a-z0-9][a-z0-9.+-]+)", value)


def parse_madison(shown: str) -> Iterator[str]:
    r"""The suites of "PACKAGE | VERSION | SITE SUITE/COMPONENT ARCHITECTURE Packages".

    >>> list(parse_madison(" vi | 2-1 | http://m/debian sid/main amd64 Packages\n"))
    ['sid']
    """
    for line in shown.split("\n"):
        *_, source = line.split(" | ")
        if match := re.search(r" ([^/ ]+)/\S+ \S+ Packages$", source):
            yield match[1]


def has_programs() -> bool:
    """Whether this machine has what a `PrivateApt` takes."""
    return missing_program() is None


def missing_program() -> str | None:
    """The first of the programs that a `PrivateApt` takes and this machine lacks."""
    return next((program for program in _PROGRAMS if shutil.which(program) is None), None)


def environment() -> dict[str, str]:
    """What apt is run with: what it says is read."""
    return os.environ | {"LC_ALL": "C"}


def complaints_of(result: subprocess.CompletedProcess[str]) -> str:
    """apt's errors, or its first warning where there are none, without the lines' marks."""
    lines = result.stderr.strip("\n").split("\n")
    errors = [line[3:] for line in lines if line.startswith("E: ")]
    warnings = [line[3:] for line in lines if line.startswith("W: ")]
    return " ".join((errors or warnings or lines[-1:])[:1]).strip()
