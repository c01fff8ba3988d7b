# SPDX-License-Identifier: GPL-2.0-or-later
"""The ABI in sources/kmod.py is that of the C header. Needs no module."""

import subprocess

import numpy as np
import pytest

from physview.sources import kmod as abi
from physview.sources import page_tables


def test_the_courses_number_is_the_courses():
    assert abi.IOCTL_TRANSLATE == 0xC0106B01


@pytest.mark.needs("cc")
def test_structures_and_numbers_are_those_of_the_header(compiled):
    expected = subprocess.run([compiled("uapi_sizes")], capture_output=True, text=True, check=True)
    ours = {
        "TRANSLATE": (abi.IOCTL_TRANSLATE, abi.TRANSLATE.size),
        "INFO": (abi.IOCTL_INFO, abi.INFO.size),
        "WALK": (abi.IOCTL_WALK, page_tables.WALK.size),
        "BATCH": (abi.IOCTL_BATCH, abi.BATCH.size),
        "RANGE": (abi.IOCTL_RANGE, abi.RANGE.size),
        "page": (0, np.dtype(page_tables.PAGE_DTYPE).itemsize),
        "extent": (0, np.dtype(page_tables.WALK_EXTENT_DTYPE).itemsize),
    }
    assert [
        f"{name} {number:#x} {size}" for name, (number, size) in ours.items()
    ] == expected.stdout.splitlines()
