"""Where videos come from: listing a file, a folder or any fsspec URL, local copies, content hashes, sidecars."""

import errno
import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from engine.ingest.cache import VideoCache
from engine.ingest.reasons import IngestError, Reason
from shards.store import FULL, LocalStore, StorageError, Store, is_transient, open_store, tag

SUFFIXES = (
    ".3gp",
    ".avi",
    ".flv",
    ".gif",
    ".m2ts",
    ".m4v",
    ".mkv",
    ".mov",
    ".mp4",
    ".mpeg",
    ".mpg",
    ".mts",
    ".ogv",
    ".ps",
    ".ts",
    ".webm",
    ".wmv",
)
CHUNK = 4 << 20


@dataclass(frozen=True)
class Source:
    """A listed video. `etag` changes when the content may have changed: the store's own, else modification time."""

    uri: str
    size: int
    etag: str

    @property
    def identity(self) -> str:
        """What this version of this file is called in the plan."""
        return f"{self.uri}\n{self.etag}\n{self.size}"


def list_sources(location: str) -> list[Source]:
    """Every video at `location` (a file of any suffix, a folder or a URL; folders recursively by suffix), by uri.

    Hidden files and folders (a leading dot) are left out, symbolic links are followed. FileNotFoundError when nothing
    is there, or nothing that has the suffix of a video.
    """
    store = open_store(location)
    walk = _local_files if isinstance(store, LocalStore) else _remote_files
    videos, others = [], Counter[str]()
    for name, source in walk(store):
        if name == "" or (name.lower().endswith(SUFFIXES) and "/." not in f"/{name}"):
            videos.append(source)
        else:
            others[_kind(name)] += 1
    if not videos:
        raise FileNotFoundError(_no_video(location, others))
    return sorted(videos, key=lambda source: source.uri)


def current(uri: str) -> Source:
    """The file as it is now; IngestError (vanished) when it is gone."""
    store = open_store(uri)
    with _explained(uri):
        found = _local_source(Path(store.root)) if isinstance(store, LocalStore) else _remote_source(store)
    if found is None:
        raise IngestError(Reason.VANISHED, f"{uri} is not there any more")
    return found


@contextmanager
def local_file(source: Source, cache: VideoCache) -> Iterator[Path]:
    """A path that a decoder can open: the file itself when it is local, else a copy that the cache holds meanwhile."""
    store = open_store(source.uri)
    if isinstance(store, LocalStore):
        yield Path(store.root)
        return

    def fetch(path: Path) -> None:
        with _explained(source.uri):
            store.download("", path)
        if path.stat().st_size != source.size:
            raise IngestError(
                Reason.SOURCE_CHANGED, f"{source.uri} has {path.stat().st_size} bytes, {source.size} were listed"
            )

    with cache.hold(source.identity, PurePosixPath(store.root).suffix, fetch) as path:
        yield path


def _local_files(store: LocalStore) -> Iterator[tuple[str, Source]]:
    """(path below the store's folder, the file); "" for the store's own path when that is a file."""
    if not os.path.isdir(store.root):
        found = _local_source(Path(store.root))
        if found is not None:
            yield "", found
        return
    seen: set[str] = set()  # folders that were walked: a link may lead back

    def give_up(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(store.root, onerror=give_up, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if real not in seen else []
        for name in files if real not in seen else ():
            path = Path(folder, name)
            found = _local_source(path) or Source(str(path), 0, "")  # a link to nowhere: its clip is `vanished`
            if found.size >= 0:
                yield os.path.relpath(path, store.root), found
        seen.add(real)


def _local_source(path: Path) -> Source | None:
    """A file, with a link's target's size and time; None when absent, size -1 when it is no regular file."""
    try:
        status = path.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
    size = status.st_size if stat.S_ISREG(status.st_mode) else -1
    return Source(str(path), size, f"{status.st_mtime:.6f}")


def _remote_files(store: Store) -> Iterator[tuple[str, Source]]:
    found = _remote_source(store)
    if found is not None:
        yield "", found
        return
    for entry in store.walk():
        yield entry.path, Source(f"{store.url}/{entry.path}", entry.size, entry.etag)


def _remote_source(store: Store) -> Source | None:
    info = store.info("")
    if info is None or info["type"] != "file":
        return None
    return Source(store.url, int(info["size"] or 0), tag(info))


def _no_video(location: str, others: Counter[str]) -> str:
    if not others:
        return f"input {location!r} does not exist, or is empty"
    seen = ", ".join(f"{count} {kind}" for kind, count in others.most_common(8))
    return (
        f"input {location!r}: no video among its {sum(others.values())} files ({seen}); videos end in "
        f"{' '.join(SUFFIXES)} (a single file may be named with any suffix; names with a leading dot are left out)"
    )


def _kind(name: str) -> str:
    return "hidden" if "/." in f"/{name}" else os.path.splitext(name)[1].lower() or "without a suffix"


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Say of a remote file that cannot be had whose fault it is: the file's (IngestError) or its store's
    (StorageError, which ends the run: nothing else there could be read)."""
    try:
        yield
    except FileNotFoundError as error:
        raise IngestError(Reason.VANISHED, f"{uri} is not there any more") from error
    except StorageError as error:
        if error.errno in FULL:
            raise
        if is_transient(error.__cause__ or error):
            next(iter(open_store(uri.rpartition("/")[0]).list()), None)  # raises when the whole store is silent
        raise IngestError(Reason.UNREADABLE, str(error)) from error
    except OSError as error:
        raise IngestError(Reason.UNREADABLE, f"{uri}: {error}") from error


def video_id(path: Path) -> str:
    """First 12 hex digits of the sha256 of the content."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except FileNotFoundError as error:
        raise IngestError(Reason.VANISHED, f"{path} is not there any more") from error
    except OSError as error:
        raise IngestError(Reason.UNREADABLE, f"{path}: {error}") from error
    return digest.hexdigest()[:12]


def caption_of(uri: str, default: str) -> str:
    """The text of `<video>.txt` beside the video, else the default."""
    text = _read_beside(uri, ".txt")
    return default if text is None else text.strip()


def pair_of(uri: str) -> tuple[str, str] | None:
    """(pair id, view) from `<video>/pair.json` beside the video: another clip shows the same world at the same time."""
    text = _read_beside(uri, "/pair.json")
    if text is None:
        return None
    try:
        pair = json.loads(text)
        return str(pair["id"]), str(pair["view"])
    except (ValueError, KeyError, TypeError) as error:
        raise IngestError(
            Reason.UNREADABLE, f"{os.path.splitext(uri)[0]}/pair.json must hold {{id, view}}: {error}"
        ) from error


def _read_beside(uri: str, ending: str) -> str | None:
    """The text of a file beside the video; None when there is none."""
    beside = os.path.splitext(uri)[0] + ending
    store = open_store(beside)
    try:
        data = Path(store.root).read_bytes() if isinstance(store, LocalStore) else store.read("")
        return data.decode()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError as error:
        raise IngestError(Reason.UNREADABLE, f"{beside}: UTF-8 text was expected: {error}") from error
