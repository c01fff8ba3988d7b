# SPDX-License-Identifier: GPL-2.0-or-later
"""What an engine is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from physview.errors import PhysviewError
from physview.fleet.answer import Answer, AnswerColumn


class FilesChanged(PhysviewError):
    """A file of the dataset was removed while it was to be read. Asking again helps."""


class Engine(Protocol):
    """Answers questions over one dataset. A context manager."""

    @property
    def name(self) -> str:
        """Its name on the command line."""

    @property
    def twins(self) -> set[str]:
        """Names that several machines have."""

    def run(self, columns: Sequence[AnswerColumn], expression: Any) -> Answer:
        """Answer a question, an Ibis expression over expressions.open_tables().

        Args:
            columns: The columns of the answer.
            expression: The question.
        """

    def sql(self, text: str) -> Answer:
        """Answer a SELECT of the user.

        Raises:
            UsageError: It is no SELECT, or more than one.
        """

    def __enter__(self) -> Engine: ...

    def __exit__(self, *about: object) -> None: ...
