# SPDX-License-Identifier: GPL-2.0-or-later
"""A recording reaches an object store, also if that fails for a while."""

import os
import secrets
import time
import urllib.request
from pathlib import Path

import pyarrow
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet
import pytest
from recordings import ABOUT, DAY, NOON, files_of, sample_at

from physview.errors import UsageError
from physview.recording import folder as folders
from physview.recording import parts, remote, spool, stores
from physview.recording.stores import LocalStore, RemoteStore


class Server:
    """An S3 server in this process."""

    def __init__(self, port=0, prefix=None):
        from moto.server import ThreadedMotoServer

        # All servers of a process have the same objects.
        self.prefix = prefix or f"fleet-{secrets.token_hex(4)}"
        self._server = ThreadedMotoServer(port=port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]
        # Its first answer takes long in an emulator: it imports modules. pyarrow waits for 3 s.
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=120) as answer:
            answer.read()

    def stop(self):
        self._server.stop()

    @property
    def url(self):
        endpoint = f"endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"
        return f"s3://key:secret@bucket/{self.prefix}?{endpoint}&allow_bucket_creation=true"

    def filesystem(self):
        return pyarrow.fs.FileSystem.from_uri(self.url)[0]

    def parts(self):
        return remote.open_remote(self.url).parts(["groups", "zones", "machine"])


@pytest.fixture
def s3():
    server = Server()
    server.filesystem().create_dir("bucket")
    yield server
    server.stop()


@pytest.mark.needs("loopback")
def test_an_object_store_that_fails_for_a_while_gets_all_files_later(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "FIRST_RETRY", 0.2)
    keep = str(tmp_path / "keep")
    with spool.open_spool(s3.url, ABOUT.machine, spool=keep) as samples:
        samples.append(ABOUT, *sample_at(NOON))
        samples.flush()
        _wait_until(lambda: len(s3.parts()) == 3)
        s3.stop()
        samples.append(ABOUT, *sample_at(NOON + DAY, value=2))
        samples.flush()
        _wait_until(samples.trouble)
        assert "secret" not in samples.trouble()
        assert f"s3://bucket/{s3.prefix}" in samples.trouble()
        again = Server(s3.port, s3.prefix)
        again.filesystem().create_dir("bucket")
        _wait_until(lambda: len(again.parts()) >= 3)
    try:
        found = pyarrow.dataset.dataset(
            f"bucket/{s3.prefix}/groups", filesystem=again.filesystem(), partitioning="hive"
        )
        assert 2 in found.to_table().column("resident").to_pylist()
    finally:
        again.stop()
    assert not list(Path(keep).glob("*/outbox/*/*/*/*.parquet"))


def _wait_until(holds):
    end = time.monotonic() + (30 if os.uname().machine == "x86_64" else 300)  # in an emulator
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.needs("loopback")
def test_old_files_of_an_object_store_are_removed(s3, tmp_path):
    with spool.open_spool(s3.url, ABOUT.machine, spool=str(tmp_path / "keep")) as samples:
        for day in range(3):
            samples.append(ABOUT, *sample_at(NOON + day * DAY))
        samples.flush()
        today = parts.date_of(NOON + 2 * DAY)
        samples.remove_old(today, ABOUT.host, ABOUT.machine, keep_days=1, limit_bytes=None)
        _wait_until(lambda: len(s3.parts()) == 6)
    assert {part.date for part in s3.parts()} == {parts.date_of(NOON + day * DAY) for day in (1, 2)}


def test_an_outbox_is_bounded_and_its_oldest_file_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "OUTBOX_BYTES", 2500)

    class Down:
        def put(self, path, data):
            raise OSError("connection refused")

    outbox = LocalStore(folders.open_folder(str(tmp_path / "outbox")))
    with RemoteStore(Down(), outbox) as store:
        for day in range(4):
            path = parts.new_path("groups", ABOUT, NOON + day * DAY)
            store.put(path, lambda file: file.write(b"x" * 1000))
        assert store.nr_dropped == 2
        assert store.nr_waiting() == 2
    dates = sorted(path.split("/")[2] for path in files_of(tmp_path / "outbox"))
    assert dates == [f"date={parts.date_of(NOON + day * DAY)}" for day in (2, 3)]


def test_fsspec_opens_what_pyarrow_does_not_know(tmp_path):
    import fsspec

    with spool.open_spool(
        "memory://fleet/x", ABOUT.machine, spool=str(tmp_path / "keep")
    ) as samples:
        samples.append(ABOUT, *sample_at(NOON))
    found = fsspec.filesystem("memory").find("/fleet/x")
    assert len(found) == 3
    store = remote.open_remote("memory://fleet/x")
    (part,) = store.parts(["groups"])
    assert parts.check_path(part.path)
    store.remove(part.path)
    assert store.parts(["groups"]) == []
    with pytest.raises(UsageError, match="nosuch"):
        remote.open_remote("nosuch://x/y")
