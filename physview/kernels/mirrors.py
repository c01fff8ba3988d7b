# SPDX-License-Identifier: GPL-2.0-or-later
"""The mirrors of this machine's apt: of Debian's archive, of Ubuntu's, or of both."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from physview.errors import Unsupported
from physview.kernels.apt import environment, error_text, has_programs, own_architecture
from physview.runtime import invocation, packages

_KEYRINGS_DIR = Path("/usr/share/keyrings")
_DEBIAN_SUITE = re.compile(
    r"(bullseye|bookworm|trixie|forky|sid|(old)*stable|testing|unstable)(-security|-updates)?/?$"
)
# Suites for testing, or with packages of a later release. physview offers no kernels from them.
_SIDE_SUITE = re.compile(r"-(proposed(-\w+)?|backports(-\w+)?|experimental)/?$")
# apt prints an unknown variable unchanged.
_UNKNOWN = "$("


class Distribution(NamedTuple):
    """A distribution with kernels of its own.

    Args:
        name: The distribution's name in its archive's Release files, field Origin.
        keyrings: Possible names of the distribution's file of keys in /usr/share/keyrings.
        keyring_package: The package with this file, on Debian and on Ubuntu.
    """

    name: str
    keyrings: tuple[str, ...]
    keyring_package: str


DEBIAN = Distribution(
    "Debian",
    ("debian-archive-keyring.gpg", "debian-archive-keyring.pgp"),
    "debian-archive-keyring",
)
UBUNTU = Distribution(
    "Ubuntu",
    ("ubuntu-archive-keyring.gpg", "ubuntu-archive-keyring.pgp"),
    "ubuntu-keyring",
)


class Suite(NamedTuple):
    """A suite in apt's configuration.

    Args:
        site: The URL of the mirror.
        name: The suite's name, such as "bookworm-security".
        origin: The distribution's name in the suite's Release file; "" if apt has not fetched this
            file yet.
    """

    site: str
    name: str
    origin: str = ""


class Archive(NamedTuple):
    """A distribution's archive, as this machine's apt reaches it."""

    distribution: Distribution
    suites: tuple[Suite, ...]

    def source_lines(
        self, names: Iterable[str] = (), architectures: Iterable[str] = ()
    ) -> Iterator[str]:
        """Yield lines for a sources.list that accept only signatures of the distribution's keys.

        Args:
            names: The names of the suites; by default the suites in the machine's configuration.
            architectures: The architectures, in Debian's terms; by default this machine's.

        Raises:
            Unsupported: This machine lacks the keys that check signatures.
        """
        wanted_for = ",".join(architectures) or own_architecture()
        options = f"arch={wanted_for} target=Packages signed-by={self._keyring()}"
        plain, security = sites(self.suites)
        wanted = [(site, name) for name in names
                  for site in (security if name.endswith("-security") else plain)]  # fmt: skip
        for site, name in wanted or [suite[:2] for suite in self.suites]:
            yield f"deb [{options}] {site} {name} main"

    def _keyring(self) -> Path:
        paths = [_KEYRINGS_DIR / name for name in self.distribution.keyrings]
        if keyring := next(filter(Path.exists, paths), None):
            return keyring
        raise Unsupported(
            f"cannot fetch {self.distribution.name}'s kernels",
            f"the keys that check signatures are missing ({paths[0]})",
            invocation.as_root(f"apt-get install {self.distribution.keyring_package}"),
        )


def archives() -> dict[Distribution, Archive]:
    """Return the archives in the configuration of this machine's apt; empty without apt."""
    if not has_programs():
        return {}
    found = _suites()
    by_distribution = {
        distribution: tuple(suite for suite in found if has_suite(distribution, suite))
        for distribution in (DEBIAN, UBUNTU)
    }
    return {
        distribution: Archive(distribution, suites)
        for distribution, suites in by_distribution.items()
        if suites
    }


def has_suite(distribution: Distribution, suite: Suite, os_release: str | None = None) -> bool:
    """Whether a suite belongs to a distribution and is not for testing.

    Args:
        distribution: The distribution.
        suite: The suite.
        os_release: The text of os-release; this machine's by default.

    >>> has_suite(UBUNTU, Suite("http://mirror", "noble-updates"), "UBUNTU_CODENAME=noble")
    True
    """
    if suite.site.startswith("cdrom:") or _SIDE_SUITE.search(suite.name):
        return False
    if suite.origin:
        return suite.origin == distribution.name
    if distribution is DEBIAN:
        return _DEBIAN_SUITE.match(suite.name) is not None
    # Ubuntu has a new suite twice a year. os-release(5) of Ubuntu and of its derivatives names it.
    codename = packages.os_release_fields(os_release).get("UBUNTU_CODENAME")
    name = suite.name.rstrip("/")
    return bool(codename) and name in (codename, f"{codename}-updates", f"{codename}-security")


def sites(suites: Iterable[Suite]) -> tuple[list[str], list[str]]:
    """Return the sites of suites, and the sites of suites with security updates.

    >>> sites([Suite("ftp://m/debian", "sid"), Suite("ftp://m/sec", "sid-security")])
    (['ftp://m/debian'], ['ftp://m/sec'])
    """
    plain: dict[str, None] = {}
    security: dict[str, None] = {}
    for suite in suites:
        (security if "-security" in suite.name else plain)[suite.site] = None
    # A mirror of both has the security updates in a folder beside the archive.
    return list(plain), list(security) or [f"{site}-security" for site in plain]


def known_packages(prefix: str) -> list[str]:
    """Return the packages with a prefix, from the lists that this machine's apt has fetched."""
    listed = subprocess.run(
        ["apt-cache", "pkgnames", prefix],
        env=environment(), capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    return listed.stdout.split("\n")


def _suites() -> list[Suite]:
    # With the contents of Release files, apt prints the distribution of each suite. Without them,
    # apt also prints the suites that it has not fetched yet, as in a new container.
    known = {suite[:2]: suite for suite in _index_targets()}
    return [known.get(suite[:2], suite) for suite in _index_targets("--no-release-info")]


def _index_targets(*options: str) -> list[Suite]:
    form = "$(SITE)\t$(RELEASE)\t$(ORIGIN)"
    listed = subprocess.run(
        ["apt-get", "indextargets", *options, "--format", form],
        env=environment(), capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    if listed.returncode:
        raise Unsupported("cannot ask apt for its mirrors", error_text(listed))
    return list(parse_targets(listed.stdout))


def parse_targets(targets: str) -> Iterator[Suite]:
    r"""Yield the suites in lines "SITE<tab>RELEASE<tab>ORIGIN", each suite once.

    >>> list(parse_targets("ftp://m/debian\tsid\tDebian\nftp://m/debian\tsid\tDebian\n"))
    [Suite(site='ftp://m/debian', name='sid', origin='Debian')]
    """
    for line in dict.fromkeys(targets.split("\n")):
        site, _, rest = line.partition("\t")
        name, _, origin = rest.partition("\t")
        if name:
            yield Suite(site, name, "" if origin.startswith(_UNKNOWN) else origin)
