"""The configuration of `engine.unroll`: typed, described, composed by Hydra, unknown keys refused.

    python -m engine.config > docs/configuration.md            the generated page
    python -m engine.config --check docs/configuration.md      exit 1 when it is out of date

Groups (`perception=embedded`, `runner=ray`) are files of conf/; every key is a field of the dataclasses below.
"""

import hashlib
import json
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from engine.ingest.options import ClipOptions, DecodeOptions, ShotOptions
from engine.options import option, options_tables
from engine.perception.registry import PerceptionOptions, identify, used
from engine.run.options import RunnerOptions
from engine.stages.options import StageOptions
from engine.stages.render import RenderOptions
from shards.config import choices_of, compose, leaves, must, nearest
from shards.options import page_command
from shards.run import ShardLimits

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
GROUPS = ("perception", "runner")


@dataclass
class RenderSizeOptions(RenderOptions):
    size: list[int] = option(
        [480, 832], "height and width of clips and conditions, pixels, multiples of 16 (Wan's 480P)"
    )


@dataclass
class ShardOptions:
    name: str = option("metaworld", "name of the tars: <name>-000123.tar")
    samples: int = option(ShardLimits().samples, "a shard ends at this many samples")
    bytes: int = option(ShardLimits().bytes, "a shard ends before it would exceed this many bytes")


@dataclass
class UnrollOptions(StageOptions):
    input: str = option("", "required: a video, a folder or any fsspec URL (s3://, gs://, ...); folders recursively")
    output: str = option("out/", "folder or URL of the shards")
    limit: int | None = option(None, "stop planning at this many clips; null = all")
    retry: str = option(
        "", "failed = try every quarantined clip again; or names of reasons, separated by commas; empty = do not"
    )
    dry_run: bool = option(False, "only say what there is to do")
    report: bool = option(True, "write report.html and contact sheets at the end")
    threads: int = option(
        2, "threads of numeric libraries in one worker; part of the fingerprint, because sums depend on it"
    )
    clip: ClipOptions = option(ClipOptions(), "windows of a video")
    shots: ShotOptions = option(ShotOptions(), "shot boundaries")
    decode: DecodeOptions = option(DecodeOptions(), "the decoding child process")
    perception: PerceptionOptions = option(PerceptionOptions(), "the models that look at frames")
    render: RenderSizeOptions = option(RenderSizeOptions(), "size of clips, and the condition videos")
    shards: ShardOptions = option(ShardOptions(), "tar files")
    runner: RunnerOptions = option(RunnerOptions(), "where the work runs")


# what may differ between two runs on one output: it changes where and how fast, not what
NOT_IN_FINGERPRINT = (
    "input",
    "output",
    "limit",
    "retry",
    "dry_run",
    "report",
    "runner",
    "shards",  # compared by shards.Run itself
    "decode.stall_s",
    "decode.threads",
    "decode.memory_gb",
    "decode.cache",
    "decode.cache_gb",
    "render.threads",
    "perception.foundation.split",  # where networks run and lie; which they are stands under "models"
    "perception.foundation.share",
    "perception.foundation.clips",
    "perception.foundation.weights",
)
# the rooms that make a sample's bytes
CODE = ("engine/ingest", "engine/perception", "engine/geometry", "engine/stages", "engine/mwsu.py", "engine/types.py")
CODE += ("shards/codec.py", "shards/depth16.py", "shards/palette.py", "shards/schema.py")


def load(arguments: list[str]) -> UnrollOptions:
    """Options from `key=value` words. ConfigError names the key, what was expected and the nearest valid name."""
    options = compose("unroll", UnrollOptions, arguments, CONF, groups=GROUPS, paths=("input", "output"))
    check(options)
    return options


def check(options: UnrollOptions) -> None:
    """ConfigError for options that cannot be or contradict each other."""
    clip, size = options.clip, options.render.size
    must(bool(options.input), "input=... is missing: a video, a folder or a URL")
    must(
        clip.frames >= 5 and clip.frames % 4 == 1, f"clip.frames={clip.frames}: T = 1 + 4k was expected, like 49 or 81"
    )
    must(clip.min_frames >= 5, f"clip.min_frames={clip.min_frames}: at least 5 was expected")
    must(clip.stride >= 0, f"clip.stride={clip.stride}: 0 or a number of frames was expected")
    must(clip.fps > 0, f"clip.fps={clip.fps}: a positive rate was expected")
    must(clip.focal_px is None or clip.fov_deg is None, "clip.focal_px and clip.fov_deg say the same: give one")
    good = len(size) == 2 and all(s > 0 and s % 8 == 0 for s in size)
    must(good, f"render.size={size}: [height,width] in multiples of 8 was expected, like [480,832]")
    must(options.limit is None or options.limit >= 0, f"limit={options.limit}: a number of clips was expected")
    must(options.threads >= 1, f"threads={options.threads}: at least 1 was expected")
    if options.retry not in ("", "failed"):
        from engine.ingest.reasons import Reason

        known = [r.code for r in Reason]
        for name in options.retry.split(","):
            must(name in known, f"retry={name}: failed or reasons among {', '.join(known)}{nearest(name, known)}")


def fingerprint(options: UnrollOptions) -> dict[str, Any]:
    """What decides the bytes of the samples, as plain JSON: options, code, models. For `_run.json`."""
    kept: dict[str, Any] = {}
    bundles = used(options.perception)
    for name, _, value in leaves(options):
        if any(name == skip or name.startswith(f"{skip}.") for skip in NOT_IN_FINGERPRINT):
            continue
        bundle = name.split(".")[1] if name.count(".") > 1 and name.startswith("perception.") else None
        if bundle is None or bundle in bundles:
            kept[name] = value
    return {
        "options": kept,
        "models": identify(options.perception),
        "code": {"version": metadata.version("metaworld"), "sha256": _code()},
    }


def fingerprint_id(config: dict[str, Any]) -> str:
    """The fingerprint as 16 hex digits, for every sample's meta.json."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def groups() -> dict[str, list[str]]:
    """Hydra groups of the unroll verb and their choices."""
    return choices_of(CONF, GROUPS)


def _code() -> str:
    digest = hashlib.sha256()
    for name in CODE:
        path = ROOT / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def page() -> str:
    """docs/configuration.md."""
    from engine.ingest.reasons import Reason

    lines = [
        "# Configuration",
        "",
        "<!-- Made by `python -m engine.config`; edit the options in the code instead. -->",
        "",
        '`python -m engine.unroll key=value ...`, or `make shards OPTIONS="key=value ..."`. Unknown keys are',
        "refused with the nearest valid name. Groups set several keys at once:",
        "",
        *(f"- `{name}=` {' or '.join(f'`{c}`' for c in choices)}" for name, choices in groups().items()),
        "",
        "Exit codes: 0 every clip is in the shards, 2 some are quarantined, 3 configuration, 5 storage or another",
        "driver, 6 the Ray cluster was lost, 130 or 143 stopped by a signal; from 5 on the same command goes on.",
        "",
        "A resumed run must have the options, code and models it was begun with. Only these may change: "
        + ", ".join(f"`{name}`" for name in NOT_IN_FINGERPRINT if name != "shards")
        + ".",
    ]
    lines += ["", "## Reasons for quarantine", "", "| reason | meaning |", "|---|---|"]
    lines += [f"| `{r.code}` | {r.doc} |" for r in Reason]
    lines += options_tables("General", UnrollOptions(), "", "`python -m engine.unroll`")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(page_command(sys.argv[1:], page(), "python -m engine.config"))
