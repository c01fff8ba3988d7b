# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel tracing without a compiler: events with their fields and kernel stacks.

>>> from physview.tracing import Tracer
>>> with Tracer("kmem:kmalloc") as tracer:  # doctest: +SKIP
...     for event in tracer:
...         print(event.comm, event.fields["bytes_req"], *event.stack)
"""

from physview.tracing.events import Event, Losses, StackFrame
from physview.tracing.tracer import Tracer

__all__ = ["Event", "Losses", "StackFrame", "Tracer"]
