# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a BPF program may not walk page tables: each cause is named, with its remedy."""

import json
import os
import sys

import pytest
from failures import one_line
from users import AS_NOBODY

from physview import Unsupported
from physview.sources import bpf
from physview.sources import kmod as abi
from physview.sources.bpf import Bpf
from physview.sources.procfs import ProcDir

SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
EPERM, ENOSYS = 1, 38

# Forbids bpf() and then runs a command. Source: seccomp(2), include/uapi/linux/filter.h
WITH_FILTER = f"""
import ctypes, os, struct, sys
libc = ctypes.CDLL(None)
number = int(sys.argv[1])
filter = struct.pack("=" + "HBBI" * 4,
    0x20, 0, 0, 0,                    # load the system call's number
    0x15, 0, 1, {SYS_BPF},            # is it bpf()?
    0x06, 0, 0, 0x00050000 | number,  # then it fails with this error
    0x06, 0, 0, 0x7fff0000)           # all others are allowed
buffer = ctypes.create_string_buffer(filter)
program = struct.pack("=H6xQ", 4, ctypes.addressof(buffer))
assert libc.prctl(22, 2, program, 0, 0) == 0
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.needs("bpf", "nobody")
def test_nobody_is_told_what_it_takes(physview):
    result = physview("walk", "self", "0", "--source", "bpf", prefix=AS_NOBODY)
    line = one_line(result, 1)
    assert "this needs CAP_SYS_ADMIN, to load a BPF program" in line
    assert line.endswith("; run as root\n")


@pytest.mark.needs("bpf")
def test_root_without_the_capability(physview):
    prefix = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    result = physview("compare", "self", "--source", "bpf", prefix=prefix)
    assert "this needs CAP_SYS_ADMIN" in one_line(result, 1)


@pytest.mark.needs("bpf", "userns", "no-capabilities")
def test_a_user_namespace(physview):
    prefix = ["unshare", "--user", "--map-root-user"]
    source = ["--source", "bpf"] if os.path.exists(abi.DEVICE) else []  # else it is the module
    for command in (("walk", "self", "0"), ("compare", "self")):
        line = one_line(physview(*command, *source, prefix=prefix), 1)
        assert "this is a user namespace" in line
        assert "run as root outside of it" in line


@pytest.mark.needs("bpf")
@pytest.mark.parametrize("number", [EPERM, ENOSYS])
def test_a_seccomp_filter(physview, number):
    prefix = [sys.executable, "-c", WITH_FILTER, str(number)]
    result = physview("walk", "self", "0", "--source", "bpf", prefix=prefix)
    line = one_line(result, 1)
    assert "a seccomp filter forbids bpf()" in line
    assert "--security-opt seccomp=unconfined" in line
    doctor = json.loads(physview("doctor", "--json", prefix=prefix).stdout)
    (finding,) = (f for f in doctor["findings"] if f["name"] == "BPF walk")
    assert "seccomp" in finding["value"]
    assert "unconfined" in finding["remedy"]


def test_another_machine(monkeypatch):
    monkeypatch.setattr(bpf, "_MACHINES", ("pdp11",))
    with pytest.raises(Unsupported, match="x86-64 and arm64 only"), ProcDir("self") as proc:
        Bpf(proc)
