# SPDX-License-Identifier: GPL-2.0-or-later
"""What this run was asked for and could not do, although it did the rest.

`commands._common` adds failures, `documents` puts them into every JSON document as the member
`errors`, and `commands.main()` makes an exit code of them.
"""

from __future__ import annotations

from typing import Any

from physview.errors import PhysviewError, UsageError


class Failures:
    """The failures of one run. There is one object of this class: `of_this_run`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all: a new run begins."""
        self._found: list[dict[str, Any]] = []
        self._only_usage = True
        self.nr_done = 0
        self.has_document = False

    def add(self, asked: str | None, error: PhysviewError) -> None:
        """Keep a failure.

        Args:
            asked: What the user asked for, as it was typed; None for the whole command.
            error: Why it could not be done.
        """
        self._found.append({"asked": asked, "message": str(error)})
        self._only_usage &= isinstance(error, UsageError)

    def document(self) -> list[dict[str, Any]]:
        """Return the member `errors` of the JSON document (docs/json.md)."""
        return list(self._found)

    def exit_code(self, code: int) -> int:
        """Return the exit code of a run whose command returned `code`.

        2 means that nothing was done, because nothing that was asked for is valid.
        """
        if not self._found:
            return code
        return 2 if self._only_usage and not self.nr_done else max(code, 1)


of_this_run = Failures()
