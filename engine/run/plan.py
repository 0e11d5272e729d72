"""The plan of a run: from a listing of videos to units of work, each one clip."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from queue import SimpleQueue

from engine.config import UnrollOptions
from engine.ingest.cache import VideoCache
from engine.ingest.clip import Survey, survey
from engine.ingest.decoder import DecodeProcess
from engine.ingest.reasons import IngestError
from engine.ingest.sources import Source, local_file, video_id
from engine.ingest.windows import Window
from shards.run import Run, Unit

GENERATION = 1024  # videos planned at once: what a kill while planning costs


@dataclass(frozen=True)
class Planned:
    """What a unit's payload says. A video without clips is one unit with `refused` = {reason, message} that stands
    for its first clip: when a retry finds it readable, the unit becomes that clip."""

    source: Source
    reader: str = ""
    window: Window | None = None
    clips: int = 1
    refused: dict[str, str] | None = None


def parse(unit: Unit) -> Planned:
    """The payload of a unit."""
    payload = json.loads(unit.payload)
    return Planned(
        source=Source(unit.uri, *payload["source"]),
        reader=payload.get("reader", ""),
        window=Window(*payload["window"]) if "window" in payload else None,
        clips=payload["clips"],
        refused=payload.get("refused"),
    )


def extend_plan(
    run: Run,
    sources: list[Source],
    options: UnrollOptions,
    say: Callable[[str], None],
    stopping: Callable[[], bool] = lambda: False,
) -> int:
    """Survey the videos that are not planned yet and plan their clips, up to options.limit or until `stopping()`;
    returns new units."""
    clips, missing = 0, dict[str, int]()
    for unit in run.plan.units():
        if unit.attempt == 0:
            planned = parse(unit)
            clips += planned.refused is None
            identity = planned.source.identity
            missing[identity] = missing.get(identity, planned.clips) - 1
    new = [source for source in sources if missing.get(source.identity, 1) > 0]
    limit = float("inf") if options.limit is None else options.limit
    if clips >= limit or not new:
        return 0
    say(f"surveying {len(new)} videos")
    count, units = 0, list[Unit]()
    with Surveyor(options) as surveyor:
        for done, (source, result) in enumerate(surveyor.results(new), 1):
            for unit in units_of(source, result, options):
                refused = isinstance(result, IngestError)
                if clips >= limit and not refused:
                    break
                clips += not refused
                units.append(unit)
            if isinstance(result, IngestError):
                say(f"{source.uri}: {result.reason.code}: {result}")
            if done % GENERATION == 0:
                count, units = count + run.extend(units), []
            if clips >= limit or stopping():
                break
    return count + run.extend(units)


class Surveyor:
    """Surveys videos side by side, each thread with its own decoding child; results in the order of the videos."""

    def __init__(self, options: UnrollOptions) -> None:
        self.options = options
        self.count = options.runner.surveys or os.cpu_count() or 1
        self._stack = ExitStack()
        self._processes: SimpleQueue[DecodeProcess] = SimpleQueue()

    def __enter__(self) -> "Surveyor":
        self._pool = ThreadPoolExecutor(self.count)
        for _ in range(self.count):
            self._processes.put(self._stack.enter_context(DecodeProcess(self.options.decode)))
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._stack.close()

    def results(self, sources: list[Source]) -> Iterator[tuple[Source, Survey | IngestError]]:
        """(source, its survey or why it has none), at most 2 videos per thread ahead of the caller."""
        waiting: deque[tuple[Source, Future]] = deque()
        for source in sources:
            waiting.append((source, self._pool.submit(self.survey, source)))
            if len(waiting) >= 2 * self.count:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()

    def survey(self, source: Source) -> Survey | IngestError:
        process = self._processes.get()
        try:
            return survey(source, self.options.clip, self.options.shots, process)
        except IngestError as error:
            return error
        finally:
            self._processes.put(process)


def units_of(source: Source, result: Survey | IngestError, options: UnrollOptions) -> list[Unit]:
    """The units of a surveyed video: its clips, or the one that records why there are none."""
    stamp = [source.size, source.etag]
    if isinstance(result, IngestError):
        refused = {"reason": result.reason.code, "message": str(result)}
        payload = {"source": stamp, "clips": 1, "refused": refused}
        return [_unit(source, f"{_content(source, options)}-0000", 0.0, 0.0, payload)]
    units = []
    for i, window in enumerate(result.windows):
        payload = {
            "source": stamp,
            "reader": result.reader,
            "window": list(asdict(window).values()),
            "clips": len(result.windows),
        }
        end = window.start_s + (window.frames - 1) / options.clip.fps
        units.append(_unit(source, f"{result.video_id}-{i:04d}", window.start_s, end, payload))
    return units


def _unit(source: Source, key: str, start_s: float, end_s: float, payload: dict) -> Unit:
    identity = f"{source.identity}\n{start_s:.6f}\n{end_s:.6f}"
    return Unit(
        unit=hashlib.sha256(identity.encode()).hexdigest(),
        key=key,
        uri=source.uri,
        start_s=start_s,
        end_s=end_s,
        payload=json.dumps(payload, sort_keys=True),
    )


def _content(source: Source, options: UnrollOptions) -> str:
    """The content's id; of a file that cannot even be read, the id of its URI."""
    try:
        with local_file(source, VideoCache(options.decode.cache, options.decode.cache_gb)) as path:
            return video_id(path)
    except (IngestError, OSError):
        return hashlib.sha256(source.uri.encode()).hexdigest()[:12]
