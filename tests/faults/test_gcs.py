"""The store and the protocol on gs:// through gcsfs, against a small server of our own (no emulator, no account)."""

import random

import fsspec
import pytest
from fake_gcs import FakeGcs
from faulty_s3 import FaultyS3, serve
from test_s3 import drive, hashes, once

from engine.ingest.cache import VideoCache
from engine.ingest.sources import current, list_sources, local_file
from shards import store as store_module
from shards.run import status
from shards.store import StorageError, open_store
from shards.verify import verify

pytestmark = pytest.mark.fault


@pytest.fixture
def gcs(monkeypatch):
    app = FaultyS3(server=FakeGcs())
    with serve(app) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        monkeypatch.setattr(store_module, "BACKOFF_S", 0.01)
        clear = type(open_store("gs://bucket").fs).clear_instance_cache
        clear()
        yield app
        clear()


def test_put_new_is_put_if_absent(gcs):
    store = open_store("gs://bucket/run")
    assert store.put_new("a/b.json", b"one")
    assert any("ifGenerationMatch=0" in path for _, path, _ in gcs.log)
    assert store.put_new("a/b.json", b"one")  # read back and compared
    assert not store.put_new("a/b.json", b"two")
    assert store.read("a/b.json") == b"one"
    assert store.read_range("a/b.json", 1, 3) == b"ne"
    assert (store.size("a/b.json"), store.size("a/c.json")) == (3, None)
    for i in range(20):  # pages of 7
        store.put(f"a/{i:02d}", b"x")
    store.put("a/deeper/c", b"x")
    assert len(list(store.list("a"))) == 21
    assert len(list(store.walk())) == 22
    store.delete("a/b.json")
    store.delete("a/b.json")
    assert store.size("a/b.json") is None


def test_a_large_file_goes_up_resumably_and_if_absent(gcs, tmp_path):
    store, path = open_store("gs://bucket/run"), tmp_path / "large"
    path.write_bytes(random.Random(1).randbytes(6 << 20))
    assert store.put_new("large.tar", path)
    assert any("uploadType=resumable" in p and "ifGenerationMatch=0" in p for _, p, _ in gcs.log)
    assert store.holds("large.tar", path)
    path.write_bytes(b"other")
    assert not store.put_new("large.tar", path)


@pytest.mark.parametrize("fault", ["500", "503", "reset", "commit_then_500", "commit_then_reset"])
def test_every_fault_of_a_put_is_survived(gcs, fault):
    store = open_store("gs://bucket/run")
    gcs.plan = once(fault, "POST", "upload")
    assert store.put_new("object", b"payload")
    assert store.read("object") == b"payload"
    assert any(entry[2] == fault for entry in gcs.log)


def test_a_run_over_a_failing_store_ends_with_the_same_bytes(gcs, tmp_path):
    drive(str(tmp_path))
    rng = random.Random(0)
    gcs.plan = lambda method, path, query: (
        rng.choice(["500", "503", "reset", "commit_then_500"]) if rng.random() < 0.1 else None
    )
    for _ in range(3):
        try:
            drive("gs://bucket/run")
            break
        except StorageError:
            continue
    assert sum(entry[2] is not None for entry in gcs.log) > 5
    gcs.plan = lambda *request: None
    assert hashes("gs://bucket/run") == hashes(str(tmp_path))
    assert status("gs://bucket/run").committed == 6
    assert verify(open_store("gs://bucket/run"), schema=False).ok


def test_videos_are_listed_and_fetched(gcs, tmp_path):
    store = open_store("gs://bucket/in")
    for i in range(10):
        store.put(f"deep/{i}.mp4", bytes([i]) * 100)
    store.put("notes.txt", b"x")
    sources = list_sources("gs://bucket/in")
    assert [s.uri for s in sources] == [f"gs://bucket/in/deep/{i}.mp4" for i in range(10)]
    assert current(sources[3].uri) == sources[3]
    with local_file(sources[3], VideoCache(str(tmp_path), 1)) as path:
        assert path.read_bytes() == bytes([3]) * 100
    store.put("deep/3.mp4", b"changed")
    assert current(sources[3].uri) != sources[3]
