"""Listings: links, folders without videos, buckets; and the cache of remote copies."""

import multiprocessing
import os
import time
from pathlib import Path

import fsspec
import pytest

from engine.ingest.cache import VideoCache
from engine.ingest.reasons import IngestError, Reason
from engine.ingest.sources import current, list_sources, local_file


def names(folder: Path, location: Path | None = None) -> list[str]:
    return [os.path.relpath(s.uri, folder) for s in list_sources(str(location or folder))]


def test_links_to_files_and_folders_are_followed(tmp_path):
    away, here = tmp_path / "away", tmp_path / "in"
    (away / "deep").mkdir(parents=True)
    here.mkdir()
    (away / "a.mp4").write_bytes(b"four")
    (away / "deep" / "b.mov").write_bytes(b"seven..")
    (here / "link.mp4").symlink_to(away / "a.mp4")
    (here / "folder").symlink_to(away / "deep")
    (here / "folder2").mkdir()
    (here / "folder2" / "back").symlink_to(here)  # a loop
    (here / "gone.mp4").symlink_to(away / "nowhere.mp4")
    (here / "self.mp4").symlink_to(here / "self.mp4")
    os.mkfifo(here / "pipe.mp4")
    assert names(here) == ["folder/b.mov", "gone.mp4", "link.mp4", "self.mp4"]
    linked = list_sources(str(here))[2]
    assert (linked.size, linked) == (4, current(linked.uri))
    (away / "a.mp4").write_bytes(b"another")
    assert current(linked.uri) != linked  # the target's change is seen through the link
    (tmp_path / "door").symlink_to(here)
    assert len(list_sources(str(tmp_path / "door"))) == 4
    with pytest.raises(IngestError) as gone:
        current(str(here / "gone.mp4"))
    assert gone.value.reason is Reason.VANISHED


def test_a_folder_without_videos_is_an_error_that_says_what_is_there(tmp_path):
    for name in ("a.txt", "b.txt", "c.jpg", ".hidden.mp4", "README"):
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError) as error:
        list_sources(str(tmp_path))
    text = str(error.value)
    for part in (str(tmp_path), "5 files", "2 .txt", "1 .jpg", "1 hidden", "1 without a suffix", ".mp4", ".webm"):
        assert part in text
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="does not exist, or is empty"):
        list_sources(str(tmp_path / "empty"))
    fsspec.filesystem("memory").pipe("/nothing/here.txt", b"x")
    with pytest.raises(FileNotFoundError, match=r"no video among its 1 files \(1 \.txt\)"):
        list_sources("memory://nothing")


def remote(name: str, content: bytes):
    fsspec.filesystem("memory").pipe(f"/cached/{name}", content)
    return current(f"memory://cached/{name}")


def test_one_fetch_serves_all_windows_and_the_bound_holds(tmp_path, monkeypatch):
    fetched = []
    memory = type(fsspec.filesystem("memory"))
    get_file = memory.get_file
    monkeypatch.setattr(memory, "get_file", lambda self, r, l, **k: (fetched.append(r), get_file(self, r, l, **k)))
    cache = VideoCache(str(tmp_path), 25 / 2**30)
    first, second, third = (remote(f"{i}.mp4", bytes([i]) * 10) for i in range(3))
    for _ in range(3):
        with local_file(first, cache) as path:
            assert path.read_bytes() == bytes(10)
            assert path.suffix == ".mp4"
    assert len(fetched) == 1
    with local_file(first, cache) as held, local_file(second, cache), local_file(third, cache):
        assert len(list(tmp_path.iterdir())) == 3  # in use: beyond the bound
        assert held.exists()
    assert len(list(tmp_path.iterdir())) == 2
    time.sleep(0.01)
    changed = remote("0.mp4", b"other bytes")
    with local_file(changed, cache) as path:
        assert path.read_bytes() == b"other bytes"
    with local_file(changed, VideoCache(str(tmp_path), 0)) as path:
        assert path.exists()
    assert not list(tmp_path.iterdir())


def test_what_is_fetched_must_be_what_was_listed(tmp_path):
    source = remote("x.mp4", b"listed")
    fsspec.filesystem("memory").pipe("/cached/x.mp4", b"grown since")
    with pytest.raises(IngestError) as error, local_file(source, VideoCache(str(tmp_path), 1)):
        pass
    assert error.value.reason is Reason.SOURCE_CHANGED
    fsspec.filesystem("memory").rm("/cached/x.mp4")
    with pytest.raises(IngestError) as error, local_file(source, VideoCache(str(tmp_path), 1)):
        pass
    assert error.value.reason is Reason.VANISHED


def _hold(folder: str, start, log: str, bound: float) -> None:
    """Many holds of three files in one of several processes; every fetch is a line of the log."""

    def fetch(path: Path) -> None:
        with open(log, "a") as file:
            file.write(f"{path.name}\n")
        with path.open("wb") as file:
            for _ in range(10):
                file.write(b"x" * 1000)
                file.flush()
                time.sleep(0.002)

    start.wait()
    for i in range(30):
        with VideoCache(folder, bound).hold(f"video {i % 3}", ".mp4", fetch) as path:
            assert path.stat().st_size == 10_000  # never half of it, never gone
            time.sleep(0.001)
            assert path.exists()


@pytest.mark.parametrize("bound", [1.0, 0.0])
def test_processes_share_copies(tmp_path, bound):
    processes = multiprocessing.get_context("forkserver")
    start, log = processes.Barrier(3), tmp_path / "log"
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "killed.mp4.part").write_bytes(b"half")
    children = [
        processes.Process(target=_hold, args=(str(tmp_path / "cache"), start, str(log), bound)) for _ in range(3)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    fetches = len(log.read_text().splitlines())
    assert fetches == 3 if bound else fetches >= 3
    assert len(list((tmp_path / "cache").iterdir())) == (3 if bound else 0)
