# SPDX-License-Identifier: GPL-2.0-or-later
"""A repository of packages in a folder, real to apt: signed, and with packages that unpack."""

import contextlib
import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("apt-get", "apt-cache", "dpkg-deb", "gpg", "gpgconf")

# What a machine's own apt is told in a test, beside where its sources are.
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
    """A key of one's own.

    Args:
        home: gpg's folder.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._gpg("--passphrase", "", "--quick-generate-key", "physview's tests", "ed25519", "sign")

    def export(self, keyring: Path) -> None:
        """Write the public key where apt is to look for it."""
        self._gpg("--output", str(keyring), "--export")

    def sign(self, file: Path, signed: Path) -> None:
        """Write what a file says with a signature around it."""
        self._gpg("--yes", "--output", str(signed), "--clearsign", str(file))

    def _gpg(self, *args: str) -> None:
        command = ["gpg", "--homedir", str(self._home), "--batch", "--quiet", *args]
        subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def signing() -> Iterator[Signer]:
    """A signer, whose agent ends with the context."""
    # gpg's socket lies there: a path of a test's own would be too long for it.
    with tempfile.TemporaryDirectory(prefix="gpg-") as home:
        try:
            yield Signer(Path(home))
        finally:
            subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False)


class Repository:
    """Packages of one suite.

    Args:
        folder: Where they lie.
        origin: Whose they are, as the Release file says.
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
        """The URL to reach it by."""
        return f"file:{self.folder}"

    def add(
        self, name: str, files: dict[str, str] | None = None, depends: str = "", arch: str = "amd64"
    ) -> Path:
        """Add a package; its files are texts by their paths below /.

        Returns:
            The .deb file.
        """
        control = (
            f"Package: {name}\nVersion: 1\nArchitecture: {arch}\nMaintainer: T <t@t.invalid>\n"
        )
        control += f"Depends: {depends}\n" if depends else ""
        control += "Description: of a test\n"
        deb = self.folder / "pool" / f"{name}_1_{arch}.deb"
        with tempfile.TemporaryDirectory() as work:
            root = Path(work, "root")
            for path, text in ({"DEBIAN/control": control} | (files or {})).items():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(text)
                (root / path).chmod(0o755 if text.startswith(("#!", "\x7fELF")) else 0o644)
            root.chmod(0o755)
            build = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(root), str(deb)]
            subprocess.run(build, check=True, capture_output=True)
        self._stanzas.append(control)
        return deb

    def publish(self, signer: Signer | None) -> None:
        """Write the indexes of all packages, and sign them or, without a signer, do not."""
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
    """Set up an apt of a test's own.

    Args:
        folder: Where what it keeps is.
        lines: Of its sources.list.
        more: What else its configuration says.

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
    """Have the machine's own apt, as APT_CONFIG sets it up, fetch its lists."""
    environment = os.environ | {"LC_ALL": "C"}
    subprocess.run(["apt-get", "-q", "update"], env=environment, check=False, capture_output=True)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
