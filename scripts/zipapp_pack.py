# SPDX-License-Identifier: GPL-2.0-or-later
"""Packs physview.pyz from wheels; scripts/zipapp calls it.

    zipapp_pack.py OUTPUT WHEEL FOLDER…

WHEEL is physview's own. Each FOLDER has all wheels for one Python and processor, which its name
says, as "cp313-x86_64". The archive has a compressed archive of each, and the modules that unpack
it.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
# A fixed path: what runs as root is not searched for. -I: no PYTHONPATH, no folder of a user's.
SHEBANG = b"#!/usr/bin/python3 -I\n"
# The same archive is made from the same wheels.
DATE = (1980, 1, 1, 0, 0, 0)


def _entries(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """Yield what an installation of a wheel has, without tests and what only compilers use."""
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            name = info.filename
            folders = name.split("/")
            if info.is_dir() or ".data" in folders[0] or "tests" in folders[:-1]:
                continue
            if not name.endswith((".pyi", ".h", ".a", ".pxd", ".lib")) or folders[0] == "physview":
                yield name, archive.read(info)


def _write(archive: zipfile.ZipFile, name: str, content: bytes, method: int) -> None:
    info = zipfile.ZipInfo(name, DATE)
    info.external_attr = 0o644 << 16
    info.compress_type = method
    archive.writestr(info, content)


def _parts(wheels: list[Path]) -> bytes:
    """Return the archive of the parts for one Python."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entries = dict(entry for wheel in sorted(wheels) for entry in _entries(wheel))
        entries["self-contained"] = b"Made by scripts/zipapp.\n"
        for name in sorted(entries):
            _write(archive, name, entries[name], zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def main() -> None:
    """Write the archive."""
    output, wheel, *folders = map(Path, sys.argv[1:])
    sums: dict[str, str] = {}
    staging = output.with_name(f".{output.name}.new")
    with open(staging, "wb") as file:
        file.write(SHEBANG)
        with zipfile.ZipFile(file, "w") as archive:
            for folder in folders:
                parts = _parts(list(folder.glob("*.whl")))
                sums[folder.name] = hashlib.sha256(parts).hexdigest()
                _write(archive, f"{folder.name}.zip", parts, zipfile.ZIP_STORED)
            # The modules that check the cache, and what they import.
            for name, content in _entries(wheel):
                if name.startswith("physview/") and name.endswith(".py"):
                    _write(archive, name, content, zipfile.ZIP_DEFLATED)
            _write(archive, "contents.py", f"SUMS = {sums!r}\n".encode(), zipfile.ZIP_STORED)
            main_file = (HERE / "zipapp_main.py").read_bytes()
            _write(archive, "__main__.py", main_file, zipfile.ZIP_STORED)
    staging.chmod(0o755)
    os.replace(staging, output)


if __name__ == "__main__":
    main()
