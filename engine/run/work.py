"""What is done with one unit: decode, perceive, unroll and pack. Both runners call these functions and no others."""

import resource
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.config import UnrollOptions
from engine.ingest.clip import read_clip
from engine.ingest.decoder import DecodeProcess
from engine.ingest.reasons import IngestError, Reason
from engine.mwsu import unroll_clip
from engine.perception import Models
from engine.perception.foundation import Perceived
from engine.perception.registry import build
from engine.run.plan import parse
from engine.run.threads import pin
from engine.stages.pack import pack
from engine.stopwatch import Stopwatch
from engine.types import Clip
from shards.run import Spool, Unit

Members = dict[str, bytes]


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
class Step:
    """One step of a unit in one worker: its result or its failure, wall seconds per stage, peak memory in MiB."""

    value: Any
    failure: Failure | None
    seconds: dict[str, float]
    peak_mb: float


@dataclass(frozen=True)
class Outcome:
    """What became of a unit: bytes spooled, or the failure that put it in quarantine."""

    unit: Unit
    bytes: int
    failure: Failure | None
    attempts: int
    seconds: dict[str, float]
    peak_mb: float


def process_unit(
    unit: Unit, models: Models, options: UnrollOptions, config: str, process: DecodeProcess, watch: Stopwatch
) -> Members:
    """A unit's sample, start to end. `config` is the run's fingerprint."""
    clip = decode(unit, options, process, watch)
    return finish(clip, perceive(clip, models, watch), options, config, watch)


def decode(unit: Unit, options: UnrollOptions, process: DecodeProcess, watch: Stopwatch) -> Clip:
    """The frames of a unit."""
    plan = parse(unit)
    height, width = options.render.size
    with watch("decode"):
        return read_clip(unit.key, plan.source, plan.reader, plan.window, (height, width), options.clip, process)


def perceive(clip: Clip, models: Models, watch: Stopwatch) -> Perceived:
    """All that models say of a clip."""
    with watch("track"):
        tracks = models.tracker.track(clip)
    with watch("geometry"):
        geometry = models.geometry.geometry(clip, tracks)
    with watch("depth"):
        depth = models.depth.depth(clip, tracks, geometry) if models.depth else None
    return Perceived(tracks, geometry, depth)


def finish(clip: Clip, perceived: Perceived, options: UnrollOptions, config: str, watch: Stopwatch) -> Members:
    """Geometry, rendering and packing; needs no model."""
    state = unroll_clip(clip, perceived.models(), options, watch)
    with watch("pack"):
        return pack(state, config)


def step(name: str, action: Callable[[Stopwatch], Any]) -> Step:
    """Run one step of a unit and turn whatever it raises into a Failure."""
    watch, value, failure = Stopwatch(), None, None
    _reset_peak()
    try:
        value = action(watch)
    except IngestError as error:
        failure = Failure("decode", error.reason.code, str(error), "", error.reason not in TRANSIENT)
    except MemoryError as error:
        failure = Failure(_last(watch, name), Reason.OUT_OF_MEMORY.code, str(error), traceback.format_exc(), False)
    except Exception as error:
        where = _last(watch, name)
        reason = Reason.PERCEPTION_FAILED if where in ("track", "geometry", "depth") else Reason.UNROLL_FAILED
        message = f"{type(error).__name__}: {error}"
        failure = Failure(where, reason.code, message, traceback.format_exc(), False)
    return Step(value, failure, dict(watch.seconds), _peak_mb())


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


def _last(watch: Stopwatch, default: str) -> str:
    """The stage that was running when an error came: the last one that was timed."""
    return next(reversed(watch.seconds), default)


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
