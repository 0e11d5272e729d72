"""Folders in the transformers layout (config.json, model.safetensors, ...), loaded with every name checked."""

import json
from pathlib import Path
from typing import Any

from engine.perception.checkpoint import CheckpointError, report_keys


def read_config(path: Path, model: str) -> dict[str, Any]:
    """A JSON configuration file of a model folder. Raises CheckpointError when it is absent or not JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{model}: {path} cannot be read ({error}); run: make weights") from error


def load_pretrained(kind: Any, folder: Path, model: str) -> Any:
    """A transformers model of class `kind` from a local folder, float32, in evaluation mode.

    Never reaches for the network. Raises CheckpointError when a file is absent or truncated, when the configuration
    is of another model type, or when names or shapes disagree (transformers would fill the gaps with random weights).
    """
    import torch
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = read_config(folder / "config.json", model)
    expected = getattr(getattr(kind, "config_class", None), "model_type", None)
    if expected and config.get("model_type") != expected:
        raise CheckpointError(
            f"{model}: {folder} is of type {config.get('model_type')!r}, {expected!r} was expected: the wrong folder"
        )
    file = folder / "model.safetensors"
    if not file.is_file():
        raise CheckpointError(f"{model}: no checkpoint at {file}; run: make weights")
    try:
        network, info = kind.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32, ignore_mismatched_sizes=True
        )
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise CheckpointError(
            f"{model}: {file} is not a whole safetensors file ({file.stat().st_size} bytes: {reason}); "
            "it may be truncated. Run: make weights CHECK=1"
        ) from error
    shapes = [str(entry[0] if isinstance(entry, tuple) else entry) for entry in info["mismatched_keys"]]
    report_keys(sorted(info["missing_keys"]), sorted(info["unexpected_keys"]), shapes, file, model)
    return network.eval().requires_grad_(False)
