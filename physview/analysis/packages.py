# SPDX-License-Identifier: GPL-2.0-or-later
"""What a distribution calls the packages that physview can use."""

from __future__ import annotations

# By the ID or ID_LIKE of /etc/os-release: how to install, and the packages' names.
_DISTRIBUTIONS = {
    "debian": (
        "apt-get install",
        {"headers": "linux-headers-{release}", "qemu": "qemu-system-x86"},
    ),
    "fedora": ("dnf install", {"headers": "kernel-devel-{release}", "qemu": "qemu-system-x86"}),
    "arch": ("pacman -S", {"headers": "linux-headers", "qemu": "qemu-system-x86"}),
    "suse": ("zypper install", {"headers": "kernel-default-devel", "qemu": "qemu-x86"}),
}


def install_line(what: str, os_release: str | None = None, **names: str) -> str:
    """The command that installs a package here, or words where the distribution is unknown.

    Args:
        what: "headers" or "qemu".
        os_release: The text of os-release; this machine's by default.
        names: What to fill in: `release` for headers.

    >>> install_line("headers", "ID=ubuntu\\nID_LIKE=debian\\n", release="6.8.0-31-generic")
    'sudo apt-get install linux-headers-6.8.0-31-generic'
    """
    for name in _distribution_ids(_read_os_release() if os_release is None else os_release):
        if name in _DISTRIBUTIONS:
            command, packages = _DISTRIBUTIONS[name]
            return f"sudo {command} {packages[what].format(**names)}"
    return f"install the {what} package of your distribution"


def _read_os_release() -> str:
    try:
        with open("/etc/os-release", encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def _distribution_ids(os_release: str) -> list[str]:
    fields = dict(line.partition("=")[::2] for line in os_release.splitlines())
    return f"{fields.get('ID', '')} {fields.get('ID_LIKE', '')}".replace('"', "").split()
