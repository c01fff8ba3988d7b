# SPDX-License-Identifier: GPL-2.0-or-later
"""csrc/x86_entry.h and arm64_entry.h decode entries as the macros of the kernels' headers do.

The compiler works out each comparison, with entries that are constants: nothing runs, so the
kernels' headers for another machine serve as well.
"""

import random
import shutil

import pytest
from kernel_series import SERIES, by_kernel
from paths import ROOT

from physview import kernels

KBUILD = """
obj-m := entry_macros.o
ccflags-y := -I$(src) -Wno-unused-function
"""
# csrc/*_entry.h include these two of the C library; the kernel has the types elsewhere.
STDINT = "#include <linux/types.h>\n#define UINT64_C(x) x##ULL\n"

RANDOM = random.Random(3)
WORDS = [0, *(1 << bit for bit in range(64)), (1 << 64) - 1]
WORDS += [RANDOM.getrandbits(64) for _ in range(60)]
# Bits 0 to 11 decide most: each kind of entry, with the rest at random.
WORDS += [RANDOM.getrandbits(64) & ~0xFFF | low for low in (0, 1, 2, 3, 0x100, 0x800, 0x803)]

# Page sizes of arm64 that Debian's headers are not configured for: pages of 16 KiB with LPA2 and
# without, and of 64 KiB with addresses of 52 bits. The headers need the numbers of a configuration.
LARGER_PAGES = {
    "16k-lpa2": {"SHIFT": 14, "LEVELS": 4, "PA_BITS": 52, "VARIANT_LPA2": 1},
    "16k": {"SHIFT": 14, "LEVELS": 3, "PA_BITS": 48, "VARIANT_LPA2": 0},
    "64k": {"SHIFT": 16, "LEVELS": 3, "PA_BITS": 52, "VARIANT_LPA2": 0},
}


def build(series, architecture, folder, options="#define VARIANT_LPA2 0\n", change=lambda t: t):
    """Build entry_macros.c for a kernel's headers. A comparison that fails is a BuildFailed."""
    for path in ("tests/support/entry_macros.c", "csrc/x86_entry.h", "csrc/arm64_entry.h"):
        shutil.copy(ROOT / path, folder)
    for name in ("x86_entry.h", "arm64_entry.h"):
        (folder / name).write_text(change((folder / name).read_text()))
    checks = " ".join(f"check({word:#x}ULL);" for word in WORDS)
    (folder / "entries.h").write_text(f"{options}#define CHECK_ALL(check) {checks}\n")
    (folder / "stdint.h").write_text(STDINT)
    (folder / "stdbool.h").write_text("")
    (folder / "Kbuild").write_text(KBUILD)
    kernel = kernels.find_kernel(series, architecture=architecture)
    return kernels.build_module(kernel, folder)


def configuration(values):
    """C that changes the kernel's configuration of arm64 to another page size."""
    size = {14: "16K", 16: "64K"}[values["SHIFT"]]
    undefined = (
        "ARM64_4K_PAGES", "PAGE_SIZE_4KB", "PAGE_SHIFT", "ARM64_PAGE_SHIFT", "PGTABLE_LEVELS",
        "ARM64_CONT_PTE_SHIFT", "ARM64_CONT_PMD_SHIFT", "ARM64_PA_BITS", "ARM64_PA_BITS_48",
        "ARM64_PA_BITS_52", "ARM64_LPA2", "ARM64_VA_BITS", "ARM64_VA_BITS_48", "ARM64_VA_BITS_52",
    )  # fmt: skip
    va_bits = 47 if values["LEVELS"] == 3 and values["SHIFT"] == 14 else 52
    defined = {
        f"ARM64_{size}_PAGES": 1,
        f"PAGE_SIZE_{size}B": 1,
        "PAGE_SHIFT": values["SHIFT"],
        "ARM64_PAGE_SHIFT": values["SHIFT"],
        "PGTABLE_LEVELS": values["LEVELS"],
        "ARM64_CONT_PTE_SHIFT": {14: 7, 16: 5}[values["SHIFT"]],
        "ARM64_CONT_PMD_SHIFT": 5,
        "ARM64_PA_BITS": values["PA_BITS"],
        f"ARM64_PA_BITS_{values['PA_BITS']}": 1,
        "ARM64_VA_BITS": va_bits,
        f"ARM64_VA_BITS_{va_bits}": 1,
    }
    if values["VARIANT_LPA2"]:
        defined["ARM64_LPA2"] = 1
    lines = [f"#undef CONFIG_{name}" for name in undefined]
    lines += [f"#define CONFIG_{name} {value}" for name, value in defined.items()]
    return "\n".join([*lines, f"#define VARIANT_LPA2 {values['VARIANT_LPA2']}", ""])


@pytest.mark.parametrize("series", by_kernel(SERIES))
def test_x86(series, tmp_path):
    assert build(series, "amd64", tmp_path)


@pytest.mark.parametrize("series", by_kernel(SERIES, "arm64"))
def test_arm64(series, tmp_path):
    assert build(series, "arm64", tmp_path)


@pytest.mark.needs("arm64-7.3")
def test_arm64_with_lpa2(tmp_path):
    assert build("7.3", "arm64", tmp_path, "#define VARIANT_LPA2 1\n")


@pytest.mark.needs("arm64-7.3")
@pytest.mark.parametrize("name", LARGER_PAGES)
def test_arm64_with_larger_pages(name, tmp_path):
    assert build("7.3", "arm64", tmp_path, configuration(LARGER_PAGES[name]))


@pytest.mark.needs("kernel-6.1")
@pytest.mark.parametrize("change", [("0x000ffffffffff000", "0x0007fffffffff000"), ("<< 8", "<< 9")])
def test_a_wrong_bit_of_x86_is_found(change, tmp_path):
    with pytest.raises(kernels.BuildFailed, match="differs from the kernel's macros"):
        build("6.1", "amd64", tmp_path, change=lambda text: text.replace(*change))


@pytest.mark.needs("arm64-6.1")
@pytest.mark.parametrize("change", [("? 3 : 6", "? 2 : 6"), ("1) << 59", "1) << 60")])
def test_a_wrong_bit_of_arm64_is_found(change, tmp_path):
    with pytest.raises(kernels.BuildFailed, match="differs from the kernel's macros"):
        build("6.1", "arm64", tmp_path, change=lambda text: text.replace(*change))
