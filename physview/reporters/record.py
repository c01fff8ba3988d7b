# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports a recording: a JSON document per sample, or one line at the end."""

from __future__ import annotations

import sys
import time

from physview.model import printable
from physview.recording.recorder import Sample
from physview.reporters import documents


class Report:
    """Reports a recording.

    Args:
        dataset: Where it goes, as it was typed.
        as_json: Whether to print a document per sample.
    """

    def __init__(self, dataset: str, *, as_json: bool) -> None:
        self._dataset = dataset
        self._as_json = as_json
        self._nr_samples = 0
        self._began, self._cost_at = time.monotonic(), time.process_time()

    def add(self, sample: Sample) -> None:
        """Report a sample."""
        self._nr_samples += 1
        if self._as_json:
            documents.write_line({**sample._asdict(), "time": sample.time / 1e6})
            sys.stdout.flush()

    def end(self, nr_rows: int, nr_skipped: int) -> None:
        """Report the end.

        Args:
            nr_rows: Rows of all tables.
            nr_skipped: Samples left out for the budget.
        """
        if self._as_json:
            return
        seconds = time.monotonic() - self._began
        cost = time.process_time() - self._cost_at
        samples = "1 sample" if self._nr_samples == 1 else f"{self._nr_samples} samples"
        skipped = f", {nr_skipped} left out for the budget" if nr_skipped else ""
        print(
            f"{printable(self._dataset)}: {samples}{skipped}, {nr_rows} rows in {seconds:.0f} s;"
            f" cost {cost:.2f} s of processor time"
        )
