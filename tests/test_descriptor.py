# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds a descriptor closes it once, also where opening fails halfway."""

import os

import pytest
from descriptors import open_files
from paths import ROOT

from physview import PageCache, Process, Snapshot
from physview.files.descriptor import Closable, Descriptor
from physview.files.output_target import Target
from physview.memory.extents import ExtentReader
from physview.sources.pagemap import Pagemap
from physview.sources.procfs import ProcDir
from physview.sources.reference import ReferencePagemap


class Null(Descriptor):
    def __init__(self, fail=False):
        if fail:
            self.close()
            raise OSError("there is none")
        self._fd = os.open(os.devnull, os.O_RDONLY)


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_descriptor_is_closed_once():
    with Null() as null:
        fd = null.fd
        assert is_open(fd)
        assert isinstance(null, Null)
    assert null.fd == -1
    again = os.open(os.devnull, os.O_RDONLY)  # the kernel gives the lowest number: the same
    assert again == fd
    null.close()
    assert is_open(again)
    os.close(again)


def test_a_descriptor_that_was_never_opened_can_be_closed():
    with pytest.raises(OSError, match="there is none"):
        Null(fail=True)


def test_an_error_within_is_not_hidden():
    with pytest.raises(KeyError), Null() as null:
        raise KeyError
    assert null.fd == -1


@pytest.mark.parametrize(
    "make",
    [
        ProcDir,
        Process,
        Snapshot,
        lambda: PageCache(with_frames=False).open(str(ROOT / "README.md")),
        lambda: Target("/tmp/any"),
    ],
    ids=["ProcDir", "Process", "Snapshot", "OpenFile", "Target"],
)
def test_what_holds_files_closes_them_once(make):
    make().close()  # what is imported or cached meanwhile stays open
    before = open_files()
    with make() as thing:
        assert not open_files() <= before
    assert open_files() <= before
    thing.close()
    assert isinstance(thing, Closable)


@pytest.mark.parametrize("source", [Pagemap, ReferencePagemap, ExtentReader])
def test_sources_close_their_own_descriptor_only(source):
    with ProcDir() as proc:
        with source(proc) as one, source(proc) as other:
            fds = one.fd, other.fd
        assert not any(map(is_open, fds))
        assert is_open(proc.fd)
