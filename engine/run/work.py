"""What is done with one unit: decode, perceive, unroll and pack. Both runners call these functions and no others."""

import dataclasses
import resource
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine import mwsu
from engine.config import UnrollOptions
from engine.ingest.clip import read_clip
from engine.ingest.decoder import DecodeProcess
from engine.ingest.reasons import IngestError, Reason
from engine.perception import Models, Perceived
from engine.perception.registry import build
from engine.run.plan import parse
from engine.run.threads import pin
from engine.stages.pack import pack
from engine.stopwatch import Stopwatch
from engine.types import Clip
from shards.run import Spool, Unit
from shards.store import StorageError

Members = dict[str, bytes]
DEATHS = 2  # a clip that kills its worker this often while alone is the cause


class SetupError(RuntimeError):
    """The models of a worker do not load; nothing was done."""


def load_models(options: UnrollOptions) -> Models:
    """The models of this process, with its threads pinned. SetupError says why they do not load."""
    pin(options.threads)
    try:
        return build(options.perception)
    except Exception as error:
        raise SetupError(f"perception does not load: {type(error).__name__}: {error}") from error
    finally:
        pin(options.threads)  # loading may have imported libraries that bring their own threads


@dataclass(frozen=True)
class Failure:
    """Why a unit has no sample. `final` failures are not tried again: the same would happen."""

    stage: str
    reason: str
    message: str
    traceback: str
    final: bool


@dataclass(frozen=True)
class Use:
    """What one stage of one unit took: wall seconds of work, seconds it waited for a worker before, bytes it made,
    peak memory of its process in MiB."""

    seconds: float
    queue: float = 0.0
    bytes: int = 0
    peak_mb: float = 0.0


@dataclass(frozen=True)
class Step:
    """One step of a unit in one worker: its result or its failure, and the use of every stage."""

    value: Any
    failure: Failure | None
    stages: dict[str, Use]


@dataclass(frozen=True)
class Outcome:
    """What became of a unit: bytes spooled, or the failure that put it in quarantine."""

    unit: Unit
    bytes: int
    failure: Failure | None
    attempts: int
    stages: dict[str, Use]


class Meter(Stopwatch):
    """A stopwatch that also keeps every stage's peak memory and the bytes that the stage says it made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = {}
        self.peak_mb: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        _reset_peak()
        try:
            with super().__call__(stage):
                yield
        finally:
            self.peak_mb[stage] = max(self.peak_mb.get(stage, 0.0), _peak_mb())

    def uses(self) -> dict[str, Use]:
        """Per stage, in order of first appearance."""
        seconds = self.seconds.items()
        return {k: Use(s, 0.0, self.bytes.get(k, 0), self.peak_mb.get(k, 0.0)) for k, s in seconds}


def process_unit(
    unit: Unit, models: Models, options: UnrollOptions, config: str, process: DecodeProcess, watch: Meter
) -> Members:
    """A unit's sample, start to end. `config` is the run's fingerprint."""
    clip = decode(unit, options, process, watch)
    return finish(clip, perceive(clip, models, watch), options, config, watch)


def decode(unit: Unit, options: UnrollOptions, process: DecodeProcess, watch: Meter) -> Clip:
    """The frames of a unit."""
    plan = parse(unit)
    height, width = options.render.size
    with watch("decode"):
        clip = read_clip(unit.key, plan.source, plan.reader, plan.window, (height, width), options.clip, process)
    watch.bytes["decode"] = clip.frames.nbytes
    return clip


def perceive(clip: Clip, models: Models, watch: Meter) -> Perceived:
    """All that models say of a clip."""
    found = mwsu.perceive(clip, models, watch)
    watch.bytes |= {"track": _nbytes(found.tracks), "geometry": _nbytes(found.geometry), "depth": _nbytes(found.depth)}
    return found


def finish(clip: Clip, perceived: Perceived, options: UnrollOptions, config: str, watch: Meter) -> Members:
    """Geometry, rendering and packing; needs no model."""
    state = mwsu.unroll(clip, perceived, options, watch)
    with watch("pack"):
        members = pack(state, config, options.threads)
    watch.bytes["pack"] = sum(len(data) for data in members.values())
    return members


def step(name: str, action: Callable[[Meter], Any]) -> Step:
    """Run one step of a unit and turn whatever it raises into a Failure; only StorageError passes: no clip's fault."""
    watch, value, failure = Meter(), None, None
    try:
        value = action(watch)
    except IngestError as error:
        failure = Failure("decode", error.reason.code, str(error), "", error.reason not in TRANSIENT)
    except StorageError:
        raise
    except MemoryError as error:
        failure = Failure(_last(watch, name), Reason.OUT_OF_MEMORY.code, str(error), traceback.format_exc(), False)
    except Exception as error:
        where = _last(watch, name)
        reason = Reason.PERCEPTION_FAILED if where in ("track", "geometry", "depth") else Reason.UNROLL_FAILED
        message = f"{type(error).__name__}: {error}"
        failure = Failure(where, reason.code, message, traceback.format_exc(), False)
    return Step(value, failure, watch.uses())


def settle(spool: Spool, unit: Unit, members: Members | None, failure: Failure | None, attempts: int) -> int:
    """Leave the sample, or the reason why there is none, in the spool; returns the sample's bytes."""
    if failure is None:
        spool.put(unit, members)
        return sum(len(data) for data in members.values())
    spool.quarantine(
        unit,
        stage=failure.stage,
        reason=failure.reason,
        message=failure.message,
        traceback=failure.traceback,
        attempts=attempts,
    )
    return 0


TRANSIENT = (Reason.UNREADABLE, Reason.TIMEOUT, Reason.OUT_OF_MEMORY)


def _last(watch: Meter, default: str) -> str:
    """The stage that was running when an error came: the last one that was timed."""
    return next(reversed(watch.seconds), default)


def _nbytes(value: Any) -> int:
    """Bytes of the arrays in a dataclass."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if dataclasses.is_dataclass(value):
        return sum(_nbytes(getattr(value, field.name)) for field in dataclasses.fields(value))
    return 0


def _reset_peak() -> None:
    """Linux: let the peak memory count start anew."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass  # the peak is then the process's, not the clip's


def _peak_mb() -> float:
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
