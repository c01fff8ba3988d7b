# SPDX-License-Identifier: GPL-2.0-or-later
"""Few failures may be the machine's fault: which ones scripts/test accepts, and how it says so.

Other programs move pages, fill memory and take the processors while the tests run. So a test that
fails is run once more, at most two tests in a run (pytest-rerunfailures). If it passes then, it is
reported as RERUN, with its first failure. The tests that run alone, and those that are run by
pytest without scripts/test, are not run again.

Some tests find a fault only by chance, and would most likely pass the second time. They are never
run again: those of hypothesis, and those marked `once`.
"""

from __future__ import annotations

import re
import socket
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

OPTIONS = ("--reruns=1", "--max-suite-reruns=2", "--rerun-show-tracebacks")


def refuse_some(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let the first failure of a test be final if it finds a fault only by chance."""
    import pytest

    if not config.pluginmanager.hasplugin("rerunfailures"):
        return
    for item in items:
        is_hypothesis = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        if is_hypothesis or item.get_closest_marker("once"):
            item.add_marker(pytest.mark.flaky(reruns=0))


def reported(printed: str) -> str:
    """What pytest has printed of the tests that it ran once more; "" if there were none."""
    found = re.search(r"^=+ rerun test summary info =+\n(.*?)(?:^=+ |\Z)", printed, re.M | re.S)
    return found[1] if found else ""


def options_for(arguments: list[str]) -> tuple[str, ...]:
    """The options for a run with these arguments: none where the plugin does not work."""
    return () if "--pdb" in arguments or not _can_listen() else OPTIONS


def _can_listen() -> bool:
    """Whether the workers can reach pytest, which counts what they run again, by loopback."""
    try:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
    except OSError:
        return False
    return True


if __name__ == "__main__":
    print(*options_for(sys.argv[1:]))
