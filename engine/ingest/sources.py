"""Where videos come from: listing a file, a folder or any fsspec URL, local copies, content hashes, sidecars."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import fsspec
from fsspec.core import url_to_fs

from engine.ingest.reasons import IngestError, Reason

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

    Hidden files and folders (a leading dot) are left out. FileNotFoundError when nothing is there.
    """
    fs, root = url_to_fs(location)
    if not fs.exists(root):
        raise FileNotFoundError(f"input {location!r} does not exist")
    if fs.isfile(root):
        found = {root: fs.info(root)}
    else:
        found = fs.find(root, detail=True)
        top = len(root.rstrip("/"))
        found = {
            path: info
            for path, info in found.items()
            if path.lower().endswith(SUFFIXES) and "/." not in path[top:] and info.get("type") == "file"
        }
    local = _is_local(fs)
    uri = (lambda path: os.path.abspath(path)) if local else fs.unstrip_protocol
    sources = (Source(uri(path), int(info["size"] or 0), _etag(info)) for path, info in found.items())
    return sorted(sources, key=lambda source: source.uri)


def current(uri: str) -> Source:
    """The file as it is now; IngestError (vanished) when it is gone."""
    fs, path = url_to_fs(uri)
    try:
        info = fs.info(path)
    except FileNotFoundError as error:
        raise IngestError(Reason.VANISHED, f"{uri} is not there any more") from error
    return Source(uri, int(info["size"] or 0), _etag(info))


@contextmanager
def local_file(uri: str, cache: str = "") -> Iterator[Path]:
    """A path that a decoder can open: the file itself when it is local, else a copy that goes away afterwards."""
    fs, path = url_to_fs(uri)
    if _is_local(fs):
        yield Path(path)
        return
    folder = Path(tempfile.mkdtemp(prefix="metaworld-", dir=cache or None))
    try:
        copy = folder / Path(path).name
        try:
            fs.get_file(path, str(copy))
        except FileNotFoundError as error:
            raise IngestError(Reason.VANISHED, f"{uri} is not there any more") from error
        yield copy
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
    try:
        with fsspec.open(os.path.splitext(uri)[0] + ending, "rt", encoding="utf-8") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_local(fs: fsspec.AbstractFileSystem) -> bool:
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple | list) else (fs.protocol,))


def _etag(info: dict) -> str:
    """The store's own tag, else the modification time to the microsecond; one spelling for listing and look-up."""
    for name in ("ETag", "etag", "md5Hash", "crc32c"):
        if info.get(name):
            return str(info[name]).strip('"')
    stamp = next((info[name] for name in ("mtime", "LastModified", "created") if info.get(name)), "")
    stamp = stamp.timestamp() if isinstance(stamp, datetime) else stamp
    return f"{stamp:.6f}" if isinstance(stamp, int | float) else str(stamp)
