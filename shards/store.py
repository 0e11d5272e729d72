"""Objects under one URL, local or in a bucket, with the one primitive the protocol needs: put-if-absent.

    store = open_store("s3://bucket/run")        # also gs://, file://, memory://, or a plain path
    store.put_new("_commits/000000.json", data)  # True: the object now holds exactly these bytes
                                                 # False: somebody else's bytes were there first, nothing changed

Local disks: temporary file, fsync, hard link (EEXIST = lost the race). S3: `If-None-Match: *`; GCS:
`ifGenerationMatch=0` (both by fsspec's mode="create"), multipart above 100 MB. Transient errors (5xx, throttling,
timeouts, broken connections) are retried with exponential back-off; a PUT that landed but answered an error meets its
own object on the retry, so an existing object is read back and compared before anything is concluded.

Credentials and endpoints come from the environment alone (AWS_*, GOOGLE_APPLICATION_CREDENTIALS).
"""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import fsspec

T = TypeVar("T")
CHUNK = 8 << 20
# Back-off 0.2, 0.4, ... 25.6 s, 51 s in all: longer than S3's usual throttling episodes, shorter than two leases.
ATTEMPTS = 9
BACKOFF_S = 0.2
# s3fs and gcsfs translate HTTP 5xx and throttling into these errno values or into the words below.
TRANSIENT_ERRNO = {errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.EPIPE, errno.EBUSY}
TRANSIENT_WORDS = (
    "internal error", "internalerror", "service unavailable", "serviceunavailable", "slowdown", "reduce your request",
    "timeout", "timed out", "connection", "conflictingoperation", "conditionalrequestconflict", "incompleteread",
    "payload", "(500)", "(502)", "(503)", "(504)", "bad gateway",
)  # fmt: skip
FULL = {errno.ENOSPC, errno.EDQUOT}


class StorageError(OSError):
    """The store did not do what it should; the message names the object and what to do."""


@dataclass(frozen=True)
class Entry:
    """One object of a listing: path relative to the store's URL, size in bytes, and a tag that changes with content."""

    path: str
    size: int
    etag: str


class Store:
    """Objects under `url` on any fsspec file system. Picklable: workers reconnect from the URL."""

    attempts = ATTEMPTS

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._connect()

    def __reduce__(self):
        return open_store, (self.url,)

    def _connect(self) -> None:
        self.fs, self.root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        self.root = self.root.rstrip("/")

    def full(self, path: str) -> str:
        """The path that fsspec understands."""
        return f"{self.root}/{path}" if path else self.root

    # ------------------------------------------------------------------------------------------------------ writes

    def put_new(self, path: str, data: bytes | Path) -> bool:
        """Write unless present. True: the object holds exactly `data` (bytes, or a local file's content)."""
        try:
            self._retry("write", path, lambda: self._create(self.full(path), data))
            return True
        except FileExistsError:
            return self.holds(path, data)

    def put(self, path: str, data: bytes) -> None:
        """Write or overwrite. For objects that are no truth: heartbeats and indexes."""
        self._retry("write", path, lambda: self._overwrite(self.full(path), data))

    def delete(self, path: str) -> None:
        """Remove; an absent object is no error."""

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(self.full(path))

        self._retry("delete", path, remove)

    def _create(self, path: str, data: bytes | Path) -> None:
        if isinstance(data, Path):
            self.fs.put_file(str(data), path, mode="create")
        else:
            self.fs.pipe_file(path, data, mode="create")

    def _overwrite(self, path: str, data: bytes) -> None:
        self.fs.pipe_file(path, data)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A local folder for a file on its way to `put_new`, removed at the end."""
        with tempfile.TemporaryDirectory(prefix="metaworld-") as folder:
            yield Path(folder)

    def clear_scratch(self) -> None:
        """Remove what killed processes left of `scratch`; folders younger than an hour may be in use and stay."""

    # ------------------------------------------------------------------------------------------------------- reads

    def read(self, path: str) -> bytes:
        """The whole object; FileNotFoundError when absent."""
        return self._retry("read", path, lambda: self.fs.cat_file(self.full(path)))

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop); a short answer is an error."""

        def read() -> bytes:
            data = self.fs.cat_file(self.full(path), start=start, end=stop)
            if len(data) != stop - start:
                raise StorageError(
                    f"{self.url}/{path}: expected bytes {start} to {stop}, found {len(data)} of them (truncated?); "
                    f"run `python -m shards verify {self.url}`"
                )
            return data

        return self._retry("read", path, read)

    def info(self, path: str) -> dict[str, Any] | None:
        """What the file system says of an object or a folder (type, size, tags under its own names); None: absent."""

        def look() -> dict[str, Any] | None:
            try:
                return self.fs.info(self.full(path))
            except FileNotFoundError:
                return None

        return self._retry("look up", path, look)

    def size(self, path: str) -> int | None:
        """Bytes, or None when absent."""
        info = self.info(path)
        return None if info is None else int(info["size"])

    def download(self, path: str, target: Path) -> None:
        """The object as a local file; FileNotFoundError when absent."""
        self._retry("download", path, lambda: self.fs.get_file(self.full(path), str(target)))

    def exists(self, path: str) -> bool:
        return self.size(path) is not None

    def holds(self, path: str, data: bytes | Path) -> bool:
        """Whether the object's content equals `data`."""
        expected = data.stat().st_size if isinstance(data, Path) else len(data)
        if self.size(path) != expected:
            return False
        if isinstance(data, bytes):
            return self.read(path) == data
        with data.open("rb") as file:
            return all(chunk == file.read(len(chunk)) for chunk in self.chunks(path))

    def chunks(self, path: str, chunk: int = CHUNK) -> Iterator[bytes]:
        """The object's content piece by piece."""
        size = self.size(path)
        if size is None:
            raise FileNotFoundError(f"{self.url}/{path}")
        for start in range(0, size, chunk):
            yield self.read_range(path, start, min(start + chunk, size))

    def sha256(self, path: str) -> str:
        digest = hashlib.sha256()
        for chunk in self.chunks(path):
            digest.update(chunk)
        return digest.hexdigest()

    def list(self, folder: str = "") -> Iterator[Entry]:
        """Objects directly in a folder, unordered; an absent folder is empty."""
        try:
            entries = self._retry("list", folder, lambda: self.fs.ls(self.full(folder), detail=True, refresh=True))
        except FileNotFoundError:
            return
        for info in entries:
            if info["type"] == "file":
                name = info["name"].rsplit("/", 1)[1]
                yield Entry(f"{folder}/{name}" if folder else name, int(info["size"]), tag(info))

    def walk(self) -> Iterator[Entry]:
        """Every object below the URL, unordered; nothing when there is none."""
        top = len(self.root) + 1
        for name, info in self._retry("list", "", lambda: self.fs.find(self.root, detail=True)).items():
            if info["type"] == "file" and len(name) > top:
                yield Entry(name[top:], int(info["size"] or 0), tag(info))

    # ------------------------------------------------------------------------------------------------------ errors

    def _retry(self, verb: str, path: str, action: Callable[[], T]) -> T:
        for attempt in range(self.attempts):
            try:
                return action()
            except (FileExistsError, FileNotFoundError, StorageError):
                raise
            except Exception as error:
                if not is_transient(error) or attempt == self.attempts - 1:
                    raise self._explain(verb, path, error, attempt + 1) from error
                time.sleep(BACKOFF_S * 2**attempt)
        raise AssertionError("unreachable")

    def _explain(self, verb: str, path: str, error: Exception, attempts: int) -> StorageError:
        if getattr(error, "errno", None) in FULL:
            advice = "the disk is full: free space and start the same command again; nothing committed is lost"
        elif isinstance(error, PermissionError):
            advice = "check the credentials in the environment and the rights on this path"
        elif is_transient(error):
            advice = f"gave up after {attempts} tries; start the same command again when the store answers"
        else:
            advice = "start the same command again once this is repaired; nothing committed is lost"
        where = f"{self.url}/{path}".rstrip("/")
        explained = StorageError(f"could not {verb} {where}: {type(error).__name__}: {error}; {advice}")
        explained.errno = getattr(error, "errno", None)
        return explained


class LocalStore(Store):
    """A folder. Durable (fsync) and atomic (hard link); temporaries live in `_tmp/`."""

    attempts = 1

    def _connect(self) -> None:
        super()._connect()
        self.root = os.path.abspath(self.root)

    def _create(self, path: str, data: bytes | Path) -> None:
        with self.scratch() as folder:
            source = folder / "object"
            if isinstance(data, Path):
                try:
                    os.link(data, source)  # no second copy of a shard when the caller's file came from scratch()
                except OSError:
                    shutil.copyfile(data, source)
            else:
                source.write_bytes(data)
            _fsync(source)
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
            _fsync(target.parent)

    def _overwrite(self, path: str, data: bytes) -> None:
        with self.scratch() as folder:
            source = folder / "object"
            source.write_bytes(data)
            _fsync(source)
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
            _fsync(target.parent)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        folder = Path(self.root) / "_tmp" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def clear_scratch(self) -> None:
        for folder in Path(self.root, "_tmp").glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - folder.stat().st_mtime > 3600:
                    shutil.rmtree(folder, ignore_errors=True)

    def read(self, path: str) -> bytes:
        return self._retry("read", path, lambda: Path(self.full(path)).read_bytes())

    def list(self, folder: str = "") -> Iterator[Entry]:
        try:
            entries = os.scandir(self.full(folder))
        except FileNotFoundError:
            return
        with entries:
            for entry in entries:
                if entry.is_file():
                    try:
                        stat = entry.stat()
                    except FileNotFoundError:  # removed since it was listed
                        continue
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    yield Entry(path, stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_size:x}")


class S3Store(Store):
    """A bucket that speaks S3. Listings are paged, so memory does not grow with their length."""

    def _connect(self) -> None:
        # One home for retries: ours. botocore's and s3fs's own loops are turned off.
        self.fs, self.root = fsspec.core.url_to_fs(
            self.url,
            use_listings_cache=False,
            config_kwargs={"retries": {"total_max_attempts": 1}, "connect_timeout": 10, "read_timeout": 60},
        )
        self.fs.retries = 1
        self.root = self.root.rstrip("/")

    def _create(self, path: str, data: bytes | Path) -> None:
        try:
            super()._create(path, data)
        except FileNotFoundError as error:
            if "upload" in str(error).lower():
                # A completion that landed but answered an error: s3fs then aborts an upload that is no more. The next
                # try meets the object.
                raise ConnectionError(f"the multipart upload is gone: {error}") from error
            raise self._explain("write", path.partition("/")[2], error, 1) from error  # no such bucket

    def list(self, folder: str = "") -> Iterator[Entry]:
        yield from self._pages(folder, Delimiter="/")

    def walk(self) -> Iterator[Entry]:
        yield from self._pages("")

    def _pages(self, folder: str, **query: str) -> Iterator[Entry]:
        bucket, _, prefix = self.full(folder).partition("/")
        prefix = f"{prefix}/" if prefix else ""
        query |= {"Bucket": bucket, "Prefix": prefix}
        while True:
            page = self._retry("list", folder, lambda: self.fs.call_s3("list_objects_v2", **query))
            for item in page.get("Contents", ()):
                name = item["Key"][len(prefix) :]
                if name and not name.endswith("/"):  # consoles make empty objects that stand for folders
                    yield Entry(f"{folder}/{name}" if folder else name, item["Size"], tag(item))
            if not page.get("IsTruncated"):
                return
            query["ContinuationToken"] = page["NextContinuationToken"]


def tag(info: dict[str, Any]) -> str:
    """What changes with an object's content: the store's own tag, else the time of its last change."""
    names = ("ETag", "etag", "md5Hash", "crc32c", "generation", "mtime", "LastModified", "created")
    value = next((info[name] for name in names if info.get(name)), "")
    value = value.timestamp() if isinstance(value, datetime) else value
    return f"{value:.6f}" if isinstance(value, float) else str(value).strip('"')


def open_store(url: str | Path) -> Store:
    """The store of a URL or a local path."""
    url = str(url)
    protocol, _ = fsspec.core.split_protocol(url)
    if protocol in ("gs", "gcs"):  # gcsfs looks for zonal buckets over gRPC: a minute lost where only HTTPS passes
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    kind = {None: LocalStore, "file": LocalStore, "local": LocalStore, "s3": S3Store, "s3a": S3Store}
    try:
        return kind.get(protocol, Store)(url)
    except ImportError as error:
        raise StorageError(
            f"{url}: {error}; install the extra that talks to it: pip install 'metaworld[engine]'"
        ) from error


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: server errors, throttling, timeouts, broken connections; never a full disk."""
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
        return False
    number = getattr(error, "errno", None)
    if number in FULL:
        return False
    if isinstance(error, TimeoutError | ConnectionError) or number in TRANSIENT_ERRNO:
        return True
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int) and (status >= 500 or status in (408, 429)):
        return True
    text = f"{type(error).__name__} {error} {error.__cause__ or ''}".lower()
    return any(word in text for word in TRANSIENT_WORDS)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
