# SPDX-License-Identifier: GPL-2.0-or-later
"""A real package repository in a folder: signed, with packages that apt can unpack."""

import contextlib
import functools
import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("apt-get", "apt-cache", "dpkg-deb", "gpg", "gpgconf")

# The configuration of apt in a test.
_APT_CONFIG = """\
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::trusted "/dev/null";
Dir::Etc::trustedparts "/dev/null";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/apt-cache";
APT::Sandbox::User "root";
"""


class Signer:
    """A new key that signs files.

    Args:
        home: gpg's folder.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._gpg("--passphrase", "", "--quick-generate-key", "physview's tests", "ed25519", "sign")

    def export(self, keyring: Path) -> None:
        """Write the public key to the file of apt's keyring."""
        self._gpg("--output", str(keyring), "--export")

    def sign(self, file: Path, signed: Path) -> None:
        """Write a copy of a file with a signature around it."""
        self._gpg("--yes", "--output", str(signed), "--clearsign", str(file))

    def _gpg(self, *args: str) -> None:
        command = ["gpg", "--homedir", str(self._home), "--batch", "--quiet", *args]
        subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def signing() -> Iterator[Signer]:
    """A signer. gpg's agent ends with the `with` block."""
    # gpg puts its socket there: the path of a test's folder would be too long for a socket.
    with tempfile.TemporaryDirectory(prefix="gpg-") as home:
        try:
            yield Signer(Path(home))
        finally:
            subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False)


@functools.cache
def _build_package(files: tuple[tuple[str, str], ...]) -> bytes:
    """A package with these files. Many tests have the same packages."""
    with tempfile.TemporaryDirectory() as work:
        root = Path(work, "root")
        for path, text in files:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
            (root / path).chmod(0o755 if text.startswith(("#!", "\x7fELF")) else 0o644)
        root.chmod(0o755)
        deb = Path(work, "package.deb")
        build = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(root), str(deb)]
        subprocess.run(build, check=True, capture_output=True)
        return deb.read_bytes()


class Repository:
    """A repository with the packages of one suite.

    Args:
        folder: Where the repository is made.
        origin: The distribution's name in the Release file.
        suite: The suite's name.
    """

    def __init__(self, folder: Path, origin: str = "Debian", suite: str = "bookworm") -> None:
        self.folder = folder
        self.origin = origin
        self.suite = suite
        self._stanzas: list[str] = []
        (folder / "pool").mkdir(parents=True, exist_ok=True)

    @property
    def site(self) -> str:
        """The URL of the repository."""
        return f"file:{self.folder}"

    def add(
        self, name: str, files: dict[str, str] | None = None, depends: str = "", arch: str = "amd64"
    ) -> Path:
        """Add a package. `files` maps paths below / to the texts of the files.

        Returns:
            The .deb file.
        """
        control = (
            f"Package: {name}\nVersion: 1\nArchitecture: {arch}\nMaintainer: T <t@t.invalid>\n"
        )
        control += f"Depends: {depends}\n" if depends else ""
        control += "Description: of a test\n"
        deb = self.folder / "pool" / f"{name}_1_{arch}.deb"
        content = {"DEBIAN/control": control} | (files or {})
        deb.write_bytes(_build_package(tuple(content.items())))
        self._stanzas.append(control)
        return deb

    def publish(self, signer: Signer | None) -> None:
        """Write the indexes of all packages. With a signer, sign them."""
        dists = self.folder / "dists" / self.suite
        shutil.rmtree(dists, ignore_errors=True)
        index = dists / "main/binary-amd64/Packages"
        index.parent.mkdir(parents=True)
        index.write_text("\n".join(map(self._with_file, self._stanzas)))
        (index.parent / "Packages.gz").write_bytes(gzip.compress(index.read_bytes()))
        names = ["main/binary-amd64/Packages", "main/binary-amd64/Packages.gz"]
        sums = [f" {_sha256(dists / n)} {(dists / n).stat().st_size} {n}" for n in names]
        head = f"Origin: {self.origin}\nSuite: {self.suite}\nCodename: {self.suite}\n"
        head += "Date: Thu, 01 Jan 2026 00:00:00 UTC\n"
        head += "Architectures: amd64\nComponents: main\nSHA256:\n"
        (dists / "Release").write_text(head + "\n".join(sums) + "\n")
        if signer:
            signer.sign(dists / "Release", dists / "InRelease")

    def _with_file(self, control: str) -> str:
        fields = dict(line.split(": ", 1) for line in control.splitlines())
        deb = self.folder / "pool" / f"{fields['Package']}_1_{fields['Architecture']}.deb"
        where = f"Filename: pool/{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {_sha256(deb)}\n"
        return control + where


def configure_apt(folder: Path, lines: list[str], more: str = "") -> Path:
    """Write a configuration with which apt uses a test's sources only.

    Args:
        folder: Where apt keeps its state.
        lines: The lines of sources.list.
        more: More lines of the configuration.

    Returns:
        The file for APT_CONFIG to name.
    """
    for name in ("state/lists/partial", "apt-cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text("".join(f"{line}\n" for line in lines))
    (folder / "apt.conf").write_text(_APT_CONFIG.format(folder=folder) + more)
    return folder / "apt.conf"


def update_apt() -> None:
    """Run `apt-get update` with the configuration that APT_CONFIG names."""
    environment = os.environ | {"LC_ALL": "C"}
    subprocess.run(["apt-get", "-q", "update"], env=environment, check=False, capture_output=True)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
