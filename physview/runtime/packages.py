# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of distribution packages that physview can use, and how to install them."""

from __future__ import annotations

import os
import shutil
import subprocess

from physview.runtime import invocation, proc_mount

# Packages with the same name on all distributions.
_ALIKE = {"kmod": "kmod", "make": "make {compiler}"}
# By ID or ID_LIKE of /etc/os-release: the install command, and the names of the packages. That of
# QEMU is in QEMU_PACKAGES.
_DISTRIBUTIONS = {
    "debian": ("apt-get install", {"headers": "linux-headers-{release}", **_ALIKE}),
    "fedora": ("dnf install", {"headers": "kernel-{flavour}devel-{base}", **_ALIKE}),
    "arch": ("pacman -S", {"headers": "linux-headers", **_ALIKE}),
    "suse": ("zypper install", {"headers": "kernel-default-devel", **_ALIKE}),
}

QEMU_PACKAGES = {
    "x86_64": {
        "debian": "qemu-system-x86",
        "fedora": "qemu-system-x86",
        "arch": "qemu-system-x86",
        "suse": "qemu-x86",
    },
    "aarch64": {
        "debian": "qemu-system-arm",
        "fedora": "qemu-system-aarch64",
        "arch": "qemu-system-aarch64",
        "suse": "qemu-arm",
    },
}
"""The package of QEMU, by the architecture of the VM as in `uname -m`, and by distribution."""


def qemu_program(machine: str = "") -> str:
    """The name of the program QEMU for VMs of an architecture; by default this machine's."""
    return f"qemu-system-{machine or os.uname().machine}"


def install_line(
    what: str, os_release: str | None = None, *, machine: str = "", **names: str
) -> str:
    """The command that installs a package; a sentence if the distribution is unknown.

    Args:
        what: "headers", "qemu", "kmod", or "make", with a compiler.
        os_release: The text of os-release; by default that of this machine.
        machine: For "qemu": the architecture of the VM; by default this machine's.
        names: Values for the placeholders in the package's name: `release` for "headers", and
            `compiler` for "make".

    >>> line = install_line("headers", "ID=ubuntu\\nID_LIKE=debian\\n", release="6.8.0-31-generic")
    >>> line.removeprefix("as root: ").removeprefix("sudo ")
    'apt-get install linux-headers-6.8.0-31-generic'
    """
    # Fedora's and RHEL's kernels with larger pages: 6.14.2-400.asahi.fc42.aarch64+16k.
    base, _, flavour = names.get("release", "").partition("+")
    names |= {"base": base, "flavour": f"{flavour}-" if flavour else ""}
    by_distribution = QEMU_PACKAGES.get(machine or os.uname().machine, {})
    for name in _distribution_ids(os_release):
        if name in _DISTRIBUTIONS:
            command, packages = _DISTRIBUTIONS[name]
            package = by_distribution.get(name) if what == "qemu" else packages[what]
            if package:
                return invocation.as_root(f"{command} {package.format(**names)}")
    return f"install the {what} package of your distribution"


def why_no_headers(release: str, otherwise: str) -> tuple[str, str]:
    """Why the headers of the running kernel are missing, and what to do.

    A module cannot be built without these headers. This function runs apt, which is slow: call it
    only when the headers are missing.

    Args:
        release: The release of the kernel, as `uname -r` prints it.
        otherwise: What to do if no package has the headers.

    Returns:
        The reason and the remedy. The remedy names a package only if that package may exist.
    """
    no_proc = None if _has_modules() else proc_mount.why_no_file("/proc/modules")
    if no_proc:
        return no_proc
    if not _has_modules():
        return "this kernel was built without loadable modules", otherwise
    why = f"there are no headers of kernel {release}"
    install = install_line("headers", release=release)
    if "debian" not in _distribution_ids():
        return why, f"{install}, if there is such a package; or {otherwise}"
    package = f"linux-headers-{release}"
    available = _apt_has(package)
    if available is None:
        update = invocation.as_root("apt-get update")
        return why, f"{otherwise}; or {update}, which tells whether apt has {package}"
    return (why, install) if available else (f"{why}, nor has apt {package}", otherwise)


def _has_modules() -> bool:
    return os.path.exists("/proc/modules")


def _apt_has(package: str) -> bool | None:
    """Whether apt could install a package; None if apt is missing, or has no package lists."""
    if shutil.which("apt-cache") is None or not _apt("apt-get", "indextargets"):
        return None
    candidate = [
        line.strip()
        for line in _apt("apt-cache", "policy", package).split("\n")
        if line.startswith("  Candidate:")
    ]
    return bool(candidate) and candidate[0] != "Candidate: (none)"


def _apt(*command: str) -> str:
    environment = os.environ | {"LC_ALL": "C"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    return result.stdout


def os_release_fields(os_release: str | None = None) -> dict[str, str]:
    r"""Parse /etc/os-release. Source: os-release(5).

    Args:
        os_release: The text of the file; by default that of this machine.

    >>> os_release_fields('ID=debian\nVERSION_ID="12"\n')
    {'ID': 'debian', 'VERSION_ID': '12'}
    """
    text = _read_os_release() if os_release is None else os_release
    pairs = (line.partition("=") for line in text.split("\n"))
    return {name: value.strip("\"'") for name, equals, value in pairs if equals}


def _read_os_release() -> str:
    try:
        with open("/etc/os-release", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _distribution_ids(os_release: str | None = None) -> list[str]:
    fields = os_release_fields(os_release)
    return [fields.get("ID", ""), *fields.get("ID_LIKE", "").split(" ")]
