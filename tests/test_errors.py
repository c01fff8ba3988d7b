# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors carry their parts, pickle, and are the builtin exceptions of their meaning."""

import errno
import pickle

import pytest

from physview import errors

ALL = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.PhysviewError)
]


@pytest.mark.parametrize("kind", ALL)
def test_every_error_pickles_with_what_it_carries(kind):
    error = pickle.loads(
        pickle.dumps(kind("it failed", "no reason", "do nothing", pid=7, path="/x"))
    )
    assert type(error) is kind
    assert str(error) == "it failed: no reason; do nothing"
    assert (error.pid, error.path) == (7, "/x")


def test_missing_parts_leave_no_punctuation():
    assert str(errors.PhysviewError("it failed")) == "it failed"
    assert str(errors.PhysviewError("it failed", "", "do this")) == "it failed; do this"


@pytest.mark.parametrize(
    ("kind", "builtin", "code"),
    [
        (errors.AccessDenied, PermissionError, errno.EACCES),
        (errors.ProcessGone, ProcessLookupError, errno.ESRCH),
        (errors.NoUserMemory, ProcessLookupError, errno.ESRCH),
        (errors.Unsupported, OSError, errno.EOPNOTSUPP),
    ],
)
def test_errors_are_instances_of_the_builtin_exceptions(kind, builtin, code):
    with pytest.raises(builtin) as caught:
        raise kind("it failed")
    assert caught.value.errno == code


def test_wrong_use_has_an_exit_code_of_its_own():
    assert {kind.exit_code for kind in ALL if kind is not errors.UsageError} == {1}
    assert errors.UsageError.exit_code == 2
