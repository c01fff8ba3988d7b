# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's packages, fetched and unpacked by the machine's apt without installing anything.

apt gets a root of its own for all that it writes, and the suites that are asked for; the mirror,
the proxy and the keys are the machine's. It needs no root and leaves no trace outside.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from physview.errors import PhysviewError, Unsupported

# Other distributions have suites of other names.
_DEBIAN_SUITE = re.compile(
    r"(bullseye|bookworm|trixie|forky|sid|(old)*stable|testing|unstable)(-security|-updates)?/?$"
)
_KEYRINGS = ("debian-archive-keyring.gpg", "debian-archive-keyring.pgp")
_KEYRINGS_DIR = Path("/usr/share/keyrings")

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
// a snapshot of Debian is past its date
Acquire::Check-Valid-Until "false";
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
    """apt with a root of its own that knows the packages of some of Debian's suites.

    Args:
        root: The folder, made anew.
        suites: As "bookworm" and "bookworm-security".
        foreign: Architectures beside amd64. Their packages are known, too; of a name that several
            have it is amd64's, so that tools can run here.

    Raises:
        Unsupported: There is no apt here, or it has no Debian mirror or no keys of Debian's.
    """

    def __init__(self, root: Path, suites: Iterable[str], foreign: Iterable[str] = ()) -> None:
        for program in ("apt-get", "apt-cache", "dpkg-deb"):
            if shutil.which(program) is None:
                raise Unsupported(
                    "cannot fetch Debian's kernels",
                    f"this machine has no {program}",
                    "use Debian, also in a container, or this machine's own kernel",
                )
        self._root = root
        architectures = ["amd64", *foreign]
        sources = list(_source_lines(suites, architectures))
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (root / folder).mkdir(parents=True)
        (root / "status").touch()
        quoted = " ".join(f'"{architecture}";' for architecture in architectures)
        (root / "apt.conf").write_text(_CONFIG.format(root=root, architectures=quoted))
        (root / "sources.list").write_text("\n".join(sources) + "\n")
        # A suite that a mirror lacks is no error: what counts is what is found in the others.
        self._update = self._run("apt-get", "update")

    @property
    def complaints(self) -> str:
        """What apt could not fetch of the suites' indexes, in one line."""
        return complaints_of(self._update)

    def names(self, prefix: str) -> list[str]:
        """All packages whose names begin with `prefix`."""
        return self._run("apt-cache", "pkgnames", prefix).stdout.split()

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
            raise cannot_fetch(complaints_of(fetched))
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

    def _run(
        self, program: str, *args: str, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        options = ["-q", "-c", f"{self._root}/apt.conf"] if program.startswith("apt") else []
        command = [program, *options, *args]
        return subprocess.run(
            command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False
        )


def cannot_fetch(why: str) -> Unsupported:
    """The error when apt gets nothing."""
    remedy = "connect this machine to its Debian mirror: sudo apt-get update tells more"
    return Unsupported("cannot fetch Debian's kernels", why, remedy)


def parse_depends(shown: str) -> Iterator[str]:
    r"""Names that packages depend on, of alternatives the first. Source: Debian Policy, 7.1.

    >>> list(parse_depends("Package: vi\nDepends: libc6 (>= 2), ed | ex, perl:any\n"))
    ['libc6', 'ed', 'perl']
    """
    for line in shown.splitlines():
        field, _, value = line.partition(":")
        if field in ("Depends", "Pre-Depends"):
            yield from re.findall(r"(?:^|,)\s*([a-z0-9][a-z0-9.+-]+)", value)


def parse_sites(targets: str) -> tuple[list[str], list[str]]:
    r"""The machine's Debian mirrors, and those for security updates.

    Args:
        targets: Lines of "SITE RELEASE".

    >>> parse_sites("ftp://m/debian sid\nftp://m/sec sid-security\nftp://x/docker jammy\n")
    (['ftp://m/debian'], ['ftp://m/sec'])
    """
    plain: dict[str, None] = {}
    security: dict[str, None] = {}
    for line in targets.splitlines():
        site, _, suite = line.strip().rpartition(" ")
        if _DEBIAN_SUITE.match(suite) and not site.startswith("cdrom:"):
            (security if "-security" in suite else plain)[site] = None
    # Mirrors of both have them side by side.
    return list(plain), list(security) or [f"{site}-security" for site in plain]


def _source_lines(suites: Iterable[str], architectures: Iterable[str]) -> Iterator[str]:
    # Without the release files' contents it answers also where no index was fetched yet, as in a
    # fresh container.
    listed = subprocess.run(
        ["apt-get", "indextargets", "--no-release-info", "--format", "$(SITE) $(RELEASE)"],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    plain, security = parse_sites(listed.stdout)
    if not plain:
        raise Unsupported(
            "cannot fetch Debian's kernels",
            complaints_of(listed) or "apt has no Debian mirror",
            "add one to /etc/apt/sources.list.d, or use this machine's own kernel",
        )
    keyring = next(filter(Path.exists, (_KEYRINGS_DIR / name for name in _KEYRINGS)), None)
    if keyring is None:
        raise Unsupported(
            "cannot fetch Debian's kernels",
            f"their signatures cannot be checked without {_KEYRINGS_DIR / _KEYRINGS[0]}",
            "sudo apt-get install debian-archive-keyring",
        )
    options = f"arch={','.join(architectures)} target=Packages signed-by={keyring}"
    for suite in suites:
        for site in security if suite.endswith("-security") else plain:
            yield f"deb [{options}] {site} {suite} main"


def environment() -> dict[str, str]:
    """What apt is run with: what it says is read."""
    return os.environ | {"LC_ALL": "C"}


def complaints_of(result: subprocess.CompletedProcess[str]) -> str:
    """apt's errors, or its first warning where there are none, without the lines' marks."""
    lines = result.stderr.splitlines()
    errors = [line[3:] for line in lines if line.startswith("E: ")]
    warnings = [line[3:] for line in lines if line.startswith("W: ")]
    return " ".join((errors or warnings or lines[-1:])[:1]).strip()
