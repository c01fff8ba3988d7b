# SPDX-License-Identifier: GPL-2.0-or-later
"""A small fleet for the tests of `fleet`. conftest.py loads this file as a plugin of pytest.

pyarrow and DuckDB are imported only where these fixtures are used.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

Made = tuple[Path, list[dict[str, Any]]]


@pytest.fixture(scope="session")
def fleet_made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A fleet of nine hosts that tests only read, and what was planted in it."""
    import fleets

    folder = tmp_path_factory.mktemp("fleet") / "it's a fleet"
    return folder, fleets.make(folder)


@pytest.fixture(scope="session")
def fleet_engine(fleet_made: Made) -> Iterator[Any]:
    """DuckDB with the tables of the fleet."""
    from physview.fleet.dataset import Dataset, Selection
    from physview.fleet.duckdb_engine import DuckDbEngine

    with DuckDbEngine(Dataset(str(fleet_made[0]), Selection())) as engine:
        engine.open_tables()
        yield engine


@pytest.fixture
def planted(fleet_made: Made) -> Callable[[str], tuple[dict[str, Any], datetime, datetime]]:
    """A function that returns the only event of a kind, and its beginning and end."""
    import fleets

    def find(kind: str) -> tuple[dict[str, Any], datetime, datetime]:
        (event,) = fleets.iter_events(fleet_made[1], kind)
        first, last = (datetime.fromisoformat(event[name]) for name in ("from", "until"))
        return event, first, last

    return find


@pytest.fixture
def fleet_copy(fleet_made: Made, tmp_path: Path) -> Path:
    """A copy of two hosts of the fleet, to damage."""
    from physview.recording import schema

    for table in schema.TABLES:
        for host in ("node-001", "node-005"):
            part = f"{table}/host={host}"
            shutil.copytree(fleet_made[0] / part, tmp_path / part)
    return tmp_path
