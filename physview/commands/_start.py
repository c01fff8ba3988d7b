# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts the command line as a program, and ends the process without taking it apart."""

from __future__ import annotations

import atexit
import os
import sys

from physview.commands import main


def start() -> object:
    """Run the command line, and end the process with its exit code.

    Returns:
        The exit code, if Python itself has to end the process.
    """
    code = main()
    _end(code)
    return code


def _end(code: int) -> None:
    """End the process if nothing is left to do.

    When Python ends, it frees every object one by one. That takes a fifth of the CPU time of a
    short command, and the kernel frees the memory anyway. What Python does before is done here:
    the functions of atexit, and flushing.
    """
    if "threading" in sys.modules:
        import threading

        if threading.active_count() > 1:  # Python waits for them
            return
    try:
        atexit._run_exitfuncs()  # Python runs them once only
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except Exception:  # Python itself reports it
        return
    os._exit(code)
