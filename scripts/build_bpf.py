# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes csrc/bpf/walk_program.h of csrc/bpf/walk.bpf.c: the BPF program's instructions as an array.

    .venv/bin/python scripts/build_bpf.py [FILE]

Needs clang and the kernel's headers for programs (linux-libc-dev). The result is committed, so an
installation needs neither. With FILE it writes there; a test compares the two.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "csrc/bpf/walk.bpf.c"
TARGET = ROOT / "csrc/bpf/walk_program.h"

PROGRAM, FUNCTIONS = "raw_tp", ".text"
# Of a wide load's register: linux/bpf.h
PSEUDO_MAP_VALUE, PSEUDO_FUNC = 2, 4
WIDE_LOAD = 0x18
R_BPF_64_64 = 1


class Object:
    """What this needs of an ELF file: sections by name, symbols, and relocations."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        at, self._size, nr, names = struct.unpack_from("<Q10xHHH", data, 40)
        self._headers = [struct.unpack_from("<IIQQQQIIQQ", data, at + i * 64) for i in range(nr)]
        name_at = self._headers[names][4]
        self._names = [self._string(name_at + header[0]) for header in self._headers]

    def _string(self, at: int) -> str:
        return self._data[at : self._data.index(b"\0", at)].decode()

    def section(self, name: str) -> bytes:
        """The bytes of a section; empty if there is none."""
        if name not in self._names:
            return b""
        header = self._headers[self._names.index(name)]
        return self._data[header[4] : header[4] + header[5]]

    def relocations(self, name: str) -> dict[int, str]:
        """The section that each relocated place of a section refers to, by offset."""
        symbols = self.section(".symtab")
        found = {}
        for place, info in struct.iter_unpack("<QQ", self.section(f".rel{name}")):
            assert info & 0xFFFFFFFF == R_BPF_64_64, f"a relocation of type {info & 0xFFFFFFFF}"
            _, _, _, section, value, _ = struct.unpack_from("<IBBHQQ", symbols, (info >> 32) * 24)
            target = self._names[section]
            assert not value or target == ".bss", f"a symbol at {value} in {target}"
            found[place] = target
        return found


def compile_source(folder: Path) -> Object:
    """Compile the program."""
    made = folder / "walk.o"
    command = ["clang", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-target", "bpf"]
    # <linux/types.h> includes <asm/types.h>, which lies in the machine's own folder.
    machine = subprocess.run(
        ["clang", "-print-multiarch"], capture_output=True, text=True, check=False
    )
    include = f"/usr/include/{machine.stdout.strip() or 'x86_64-linux-gnu'}"
    subprocess.run([*command, f"-I{include}", "-c", SOURCE, "-o", made], check=True)
    return Object(made.read_bytes())


def link(elf: Object) -> tuple[list[int], int]:
    """The program with its callback behind it, and where the callback begins, in instructions."""
    first = len(elf.section(PROGRAM)) // 8
    linked: list[int] = []
    for name in (PROGRAM, FUNCTIONS):
        references = elf.relocations(name)
        instructions = list(struct.iter_unpack("<BBhi", elf.section(name)))
        for i, (code, registers, offset, number) in enumerate(instructions):
            target = references.get(i * 8)
            pseudo, value = 0, number
            if target == FUNCTIONS:
                assert number == 0, "this knows one callback only"
                pseudo, value = PSEUDO_FUNC, first - len(linked) - 1
            elif target:
                # The core puts the map's descriptor here; the offset is in the second half.
                pseudo, value = PSEUDO_MAP_VALUE, 0
                instructions[i + 1] = (0, 0, 0, number)
            assert not target or code == WIDE_LOAD
            word = struct.pack("<BBhi", code, registers | pseudo << 4, offset, value)
            linked.append(int.from_bytes(word, "little"))
    return linked, first


def header(linked: list[int], first: int) -> str:
    """The C header."""
    rows = [
        ", ".join(f"{word:#018x}" for word in linked[i : i + 3]) for i in range(0, len(linked), 3)
    ]
    body = ",\n\t".join(rows)
    return (
        "/* SPDX-License-Identifier: GPL-2.0-or-later */\n"
        "/* Made of walk.bpf.c by scripts/build_bpf.py. */\n"
        "/* clang-format off */\n"
        f"enum {{ BPF_WALK_CALLBACK = {first} }};\n\n"
        f"static const __u64 bpf_walk_program[] = {{\n\t{body},\n}};\n"
        "/* clang-format on */\n"
    )


def main() -> None:
    """Write the header."""
    with tempfile.TemporaryDirectory() as folder:
        made = header(*link(compile_source(Path(folder))))
    Path(sys.argv[1] if len(sys.argv) > 1 else TARGET).write_text(made)


if __name__ == "__main__":
    main()
