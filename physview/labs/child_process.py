# SPDX-License-Identifier: GPL-2.0-or-later
"""A child process that a lab observes: it prints one line when it is ready, and ends with the lab.

The process must end when its stdin is closed. It therefore never outlives the lab, even if the lab
is killed.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from physview.errors import PhysviewError
from physview.runtime import child_python


@contextmanager
def start(
    module: str, preexec_fn: Callable[[], None] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], bytes]]:
    """Start a process that calls `main()` of a module. It ends with the `with` block.

    Args:
        module: Full name of the module.
        preexec_fn: A function that the process calls before exec().

    Yields:
        The process, and the first line that it printed.

    Raises:
        PhysviewError: The process failed before it printed a line.
    """
    # Block SIGINT: Ctrl-C during the start would leave a process that nobody ends.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        process = child_python.start(
            module,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=preexec_fn,
            start_new_session=True,  # Ctrl-C reaches only the lab, and the lab ends the process
        )
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise
    assert process.stdin
    assert process.stdout
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        line = process.stdout.readline()
        if not line:
            raise failed(process)
        yield process, line
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def failed(process: subprocess.Popen[bytes]) -> PhysviewError:
    """Return the error of a child process that ended before the lab did."""
    why = f"it ended with exit code {process.wait()}"
    return PhysviewError("the lab's child process failed", why, "run the lab again")
