"""Checkpoint files, read so that what is wrong with one is said in a sentence."""

import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class CheckpointError(RuntimeError):
    """A weight file that cannot be used: absent, truncated, another format, or made for another architecture."""


def read_torch(path: Path, entries: tuple[str, ...], model: str) -> dict[str, Any]:
    """The dict of a .pt file, loaded on the CPU without running code from it (`weights_only`).

    `entries` are the keys the official file has at its top level. Raises CheckpointError.
    """
    import torch

    if not path.is_file():
        raise CheckpointError(f"{model}: no checkpoint at {path}; run: make weights")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise CheckpointError(
            f"{model}: {path} is not a whole torch checkpoint ({path.stat().st_size} bytes: {reason}); "
            "it may be truncated. Run: make weights CHECK=1"
        ) from error
    if not isinstance(checkpoint, dict) or not set(entries) <= set(checkpoint):
        found = sorted(map(str, checkpoint))[:6] if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise CheckpointError(
            f"{model}: {path} is the wrong file: top-level entries {list(entries)} were expected, found {found}"
        )
    return checkpoint


def fill(module: "torch.nn.Module", state: dict[str, Any], path: Path, model: str) -> None:
    """Load a state dict in which every name and shape must agree. Raises CheckpointError naming those that do not."""
    own = module.state_dict()
    missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(set(own) & set(state))
        if state[name].shape != own[name].shape
    ]
    report_keys(missing, unexpected, shapes, path, model)
    module.load_state_dict(state, strict=True)


def report_keys(missing: list[str], unexpected: list[str], shapes: list[str], path: Path, model: str) -> None:
    """Raise CheckpointError when a checkpoint's names or shapes are not the architecture's."""
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(problems.values()):
        said = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            for kind, names in problems.items()
            if names
        )
        raise CheckpointError(
            f"{model}: {path} does not fit the architecture ({said}). Is it another variant or revision? "
            "Run: make weights CHECK=1"
        )
