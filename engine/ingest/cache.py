"""Copies of remote videos on this machine: fetched once for all windows and all processes, within a bound of bytes.

A copy lies under the hash of its source's identity, so a changed source is another file. Whoever fetches or reads a
copy holds a lock on it (flock: it ends with the process, however that ends), and what is held is never removed: copies
in use may exceed the bound, those that are not give way, the longest unused first.
"""

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class VideoCache:
    """`hold` copies in `folder` ("" = one of this user's below the system's temporary folder)."""

    def __init__(self, folder: str, gigabytes: float) -> None:
        self.folder = Path(folder or Path(tempfile.gettempdir(), f"metaworld-videos-{os.getuid()}"))
        self.bound = int(gigabytes * 2**30)

    @contextmanager
    def hold(self, identity: str, suffix: str, fetch: Callable[[Path], None]) -> Iterator[Path]:
        """A path with the content of `identity`, made by `fetch(path)` when it is not there yet; stays while held."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{self.folder} belongs to another user; name another folder: decode.cache=FOLDER")
        path = self.folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}{suffix}"
        try:
            with self._open(path, fetch):
                self._evict()
                yield path
        finally:
            self._evict()

    def _open(self, path: Path, fetch: Callable[[Path], None]) -> contextlib.AbstractContextManager:
        """The complete copy, locked against removal until it is closed."""
        while True:
            with contextlib.suppress(FileNotFoundError):
                held = path.open("rb")
                if _lock(held, fcntl.LOCK_SH, path):
                    os.utime(path)  # used now
                    return held
            part = path.with_name(f"{path.name}.part")
            with part.open("ab") as making:  # not truncated: it may be another process's
                if _lock(making, fcntl.LOCK_EX, part) and not path.exists():  # else another process was faster
                    fetch(part)
                    part.rename(path)

    def _evict(self) -> None:
        """Remove the longest unused copies above the bound, and what killed processes left half-fetched."""
        found = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                found.append((path.suffix != ".part", stat.st_mtime, stat.st_size, path))
        total = sum(size for _, _, size, _ in found)
        for whole, _, size, path in sorted(found):
            if whole and total <= self.bound:
                return
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                if _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, path):
                    path.unlink()
                    total -= size


def _lock(file, how: int, path: Path) -> bool:
    """Lock an open file; False when somebody else holds it, or when it is no longer the one at `path`."""
    try:
        fcntl.flock(file, how)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
