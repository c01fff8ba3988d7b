# SPDX-License-Identifier: GPL-2.0-or-later
"""A private apt: fetches a distribution's packages and unpacks them, without installing anything.

The private apt has its own folder for all files that it writes, and its own list of suites. It uses
the machine's mirror, proxy and keys. It needs no root privileges, and changes nothing outside of
its folder. It accepts only packages that the distribution's keys have signed, even if the machine's
own apt is configured to accept others.
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

# apt reads this after the machine's own configuration. It removes the machine's hooks, which would
# change the machine, and the machine's pins, which are not meant for a private apt.
_CONFIG = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
APT::Architecture "{own}";
APT::Architectures {{ {architectures} }};
// the user _apt can't enter a cache in root's home
APT::Sandbox::User "root";
// a snapshot of an archive is older than its valid-until date
Acquire::Check-Valid-Until "false";
// programs from these packages are run, often as root
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
    """A private apt, which knows the packages of some suites.

    Args:
        root: The private apt's folder. The constructor makes it.
        sources: Lines of a sources.list, from `mirrors.Archive`.
        name: The distribution's name for messages.
        foreign: Further architectures. If several architectures have a package, the package of
            `own` is used.
        own: The first architecture; by default that of this machine, whose tools run here.
    """

    def __init__(
        self,
        root: Path,
        sources: Iterable[str],
        name: str,
        foreign: Iterable[str] = (),
        *,
        own: str = "",
    ) -> None:
        self._root = root
        self._name = name
        own = own or own_architecture()
        architectures = [own, *foreign]
        lines = list(sources)
        root.mkdir(mode=0o700)
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (root / folder).mkdir(parents=True)
        (root / "status").touch()
        quoted = " ".join(f'"{architecture}";' for architecture in architectures)
        (root / "apt.conf").write_text(_CONFIG.format(root=root, own=own, architectures=quoted))
        (root / "sources.list").write_text("\n".join(lines) + "\n")
        # A suite that the mirror lacks is not an error: the other suites may have the packages.
        self._update = self._run("apt-get", "update")

    @property
    def update_errors(self) -> str:
        """apt's errors while it fetched the suites' indexes, in one line."""
        return error_text(self._update)

    def names(self, prefix: str) -> list[str]:
        """Return the names of all packages that begin with `prefix`."""
        return self._run("apt-cache", "pkgnames", prefix).stdout.split()

    def suite_of(self, name: str) -> str:
        """Return the suite with the newest version of a package; "" if no suite has it."""
        shown = self._run("apt-cache", "madison", name).stdout
        return next(parse_madison(shown), "")

    def with_dependencies(self, names: Iterable[str], which: re.Pattern[str]) -> list[str]:
        """Return packages with their direct and indirect dependencies.

        Args:
            names: The packages to start with.
            which: A pattern for the names of the dependencies to follow. Virtual packages are left
                out.
        """
        found: dict[str, None] = {}
        seen: set[str] = set()
        new = list(dict.fromkeys(names))
        while new:
            seen |= set(new)
            found |= dict.fromkeys(new)
            shown = self._run("apt-cache", "show", "--no-all-versions", *new).stdout
            for missing in found.keys() & set(new) - set(parse_packages(shown)):
                del found[missing]  # a virtual package
            needed = [name for name in parse_depends(shown) if which.match(name)]
            new = [name for name in dict.fromkeys(needed) if name not in seen]
        return list(found)

    def unpack(self, names: Iterable[str], target: Path) -> None:
        """Fetch packages and unpack them into a folder.

        Raises:
            Unsupported: apt can't fetch the packages.
            PhysviewError: dpkg-deb can't unpack the packages.
        """
        debs = self._root / "debs"
        debs.mkdir()
        fetched = self._run("apt-get", "download", *names, cwd=debs)
        if fetched.returncode:
            raise self.cannot_fetch(error_text(fetched))
        for deb in sorted(debs.iterdir()):
            unpacked = self._run("dpkg-deb", "-x", str(deb), str(target))
            if unpacked.returncode:
                raise PhysviewError(
                    f"cannot unpack {deb.name}",
                    error_text(unpacked) or "dpkg-deb failed",
                    "check that the disk is not full",
                    path=str(target),
                )
        shutil.rmtree(debs)

    def cannot_fetch(self, why: str) -> Unsupported:
        """Return the error for packages that apt can't fetch."""
        update = invocation.as_root("apt-get update")
        remedy = f"connect this machine to its {self._name} mirror: {update} shows the cause"
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
    r"""Yield the names of a package's dependencies; the first one of alternatives.

    Source: Debian Policy, 7.1

    >>> list(parse_depends("Package: vi\nDepends: libc6 (>= 2), ed | ex, perl:any\n"))
    ['libc6', 'ed', 'perl']
    """
    for line in shown.split("\n"):
        field, _, value = line.partition(":")
        if field in ("Depends", "Pre-Depends"):
            yield from re.findall(r"(?:^|,)\s*([a-z0-9][a-z0-9.+-]+)", value)


def parse_packages(shown: str) -> Iterator[str]:
    r"""Yield the names of the packages that apt-cache shows.

    >>> list(parse_packages("Package: vi\nDepends: libc6\n\nPackage: ed\n"))
    ['vi', 'ed']
    """
    for line in shown.split("\n"):
        if line.startswith("Package: "):
            yield line.removeprefix("Package: ")


def own_architecture() -> str:
    """The architecture of this machine in Debian's terms; amd64 where it is not known."""
    return {"aarch64": "arm64"}.get(os.uname().machine, "amd64")


def parse_madison(shown: str) -> Iterator[str]:
    r"""Yield the suites in lines "PACKAGE | VERSION | SITE SUITE/COMPONENT ARCHITECTURE Packages".

    >>> list(parse_madison(" vi | 2-1 | http://m/debian sid/main amd64 Packages\n"))
    ['sid']
    """
    for line in shown.split("\n"):
        *_, source = line.split(" | ")
        if match := re.search(r" ([^/ ]+)/\S+ \S+ Packages$", source):
            yield match[1]


def has_programs() -> bool:
    """Whether this machine has the programs that a `PrivateApt` needs."""
    return missing_program() is None


def missing_program() -> str | None:
    """Return the first program that a `PrivateApt` needs and this machine lacks; None if none."""
    return next((program for program in _PROGRAMS if shutil.which(program) is None), None)


def environment() -> dict[str, str]:
    """Return the environment for apt. LC_ALL=C: physview parses apt's messages in English."""
    return os.environ | {"LC_ALL": "C"}


def error_text(result: subprocess.CompletedProcess[str]) -> str:
    """Return apt's first error without its "E: ", else its first warning, else its last line."""
    lines = result.stderr.strip("\n").split("\n")
    errors = [line[3:] for line in lines if line.startswith("E: ")]
    warnings = [line[3:] for line in lines if line.startswith("W: ")]
    return " ".join((errors or warnings or lines[-1:])[:1]).strip()
