"""Weights: official Wan2.1 and Phantom-Wan checkpoints, ours, and the frozen VAE. The text encoder is in `umt5`.

Key names are translated by diffusers' single-file converters; nothing is mapped here. A checkpoint is opened lazily
and read tensor by tensor, each rank keeping its own shard, so 14B is never materialised on a rank.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from trainer.model.sawg import WorldGenerator, is_new, is_wsa

CONVERTED_BY_TRANSPOSE_OR_SPLIT = ("motion_encoder", "face_adapter")  # Wan-Animate; not a text-to-video model


class CheckpointError(ValueError):
    """A checkpoint is absent, unreadable, or does not hold the keys and shapes of the model."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, read when asked for. `names` are the names inside the files."""

    path: Path
    names: tuple[str, ...]
    read: Callable[[str], Tensor]


def locate(weights: str, revision: str | None = None, only: list[str] | None = None) -> Path:
    """A local file or folder as it is; `hf://owner/repo[/file, folder or pattern]` from the hub (cached).

    `only` are patterns of the files to fetch where a whole repository is named; None = all.
    Raises CheckpointError with what to do when there is nothing.
    """
    if not weights.startswith("hf://"):
        path = Path(weights)
        if not path.exists():
            raise CheckpointError(
                f"no weights at {path}: give a .pth, a .safetensors, a folder of shards with its .index.json, or "
                "hf://owner/repo/file"
            )
        return path
    from huggingface_hub import snapshot_download

    owner, repo, *inside = weights.removeprefix("hf://").split("/")
    pattern = "/".join(inside)
    patterns = [pattern, f"{pattern}/*"] if inside else only
    try:
        root = snapshot_download(f"{owner}/{repo}", revision=revision, allow_patterns=patterns)
    except Exception as error:
        raise CheckpointError(
            f"cannot fetch {weights} (revision {revision}): {type(error).__name__}: {error}. Behind a mirror set "
            "HF_ENDPOINT; without a network give a local path"
        ) from error
    return Path(root, *inside[:-1]) if "*" in pattern else Path(root, *inside)


@contextmanager
def open_checkpoint(path: Path) -> Iterator[Checkpoint]:
    """A .safetensors, a .pth/.pt (memory-mapped, weights only), or a folder with an index or one such file."""
    files = [path] if path.is_file() else _files_of(path)
    readers: dict[str, Callable[[], Tensor]] = {}
    handles = []
    try:
        for file in files:
            if file.suffix == ".safetensors":
                from safetensors import safe_open

                handle = safe_open(file, framework="pt")
                handles.append(handle)
                readers |= {name: (lambda h=handle, n=name: h.get_tensor(n)) for name in handle.keys()}  # noqa: SIM118
            else:
                state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
                state = state.get("state_dict", state)
                readers |= {name: (lambda s=state, n=name: s[n]) for name in state}
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {error}); it may be truncated"
        ) from error
    yield Checkpoint(path, tuple(readers), lambda name: readers[name]())


def _files_of(folder: Path) -> list[Path]:
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if len(indices) > 1:
        raise CheckpointError(
            f"{folder} holds several indices ({[i.name for i in indices]}); name one model per folder"
        )
    if indices:
        names = sorted(set(json.loads(indices[0].read_text())["weight_map"].values()))
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            raise CheckpointError(f"{indices[0]} names shards that are absent: {absent}")
        return [folder / name for name in names]
    if (folder / "transformer").is_dir():  # an export of the trainer, or a diffusers pipeline
        world = folder / "world.safetensors"
        return _files_of(folder / "transformer") + ([world] if world.is_file() else [])
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.pth"))
    if len(files) != 1:
        raise CheckpointError(
            f"{folder} should hold one .safetensors, one .pth or an index; found {[f.name for f in files]}"
        )
    return files


def model_names(checkpoint: Checkpoint) -> dict[str, str]:
    """Name in a WorldGenerator -> name in the file, for original Wan names, diffusers' names and our own exports."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    if any(part in name for name in checkpoint.names for part in CONVERTED_BY_TRANSPOSE_OR_SPLIT):
        raise CheckpointError(f"{checkpoint.path} is a Wan-Animate checkpoint; a text-to-video one is needed")
    if any(name.endswith("attn1.to_q.weight") for name in checkpoint.names):  # diffusers', perhaps with our new modules
        return {name if is_new(name) else f"wan.{name}": name for name in checkpoint.names}
    # The converter only renames, so it is run on the names themselves and no tensor is touched.
    converted = convert_wan_transformer_to_diffusers({name: name for name in checkpoint.names})
    return {f"wan.{new}": old for new, old in converted.items()}


def load_weights(model: WorldGenerator, path: Path) -> list[str]:
    """Fill a (possibly sharded) model on its device. Returns the new parameters that the checkpoint did not have.

    Only the new modules may be absent: all of them (a Wan or Phantom checkpoint) or WSA (a stage-1 export).
    Raises CheckpointError on a missing base key, an unexpected key or a wrong shape.
    """
    with open_checkpoint(path) as checkpoint:
        names = model_names(checkpoint)
        parameters = dict(model.named_parameters())
        unexpected = sorted(set(names) - set(parameters))
        if not model.options[2].enabled:  # a stage-2 export serves stage 1 and `without_wsa`
            unexpected = [name for name in unexpected if not is_wsa(name)]
        missing = sorted(set(parameters) - set(names))
        absent_base = [name for name in missing if not is_new(name)]
        kinds = {is_wsa(name) for name in missing if is_new(name)} - {is_wsa(name) for name in names if is_new(name)}
        partial = any(is_new(name) and is_wsa(name) not in kinds for name in missing)
        if unexpected or absent_base or partial:
            raise CheckpointError(_difference(path, absent_base, unexpected, missing if partial else []))
        for name, parameter in parameters.items():
            if name in names:
                value = checkpoint.read(names[name])
                if tuple(value.shape) != tuple(parameter.shape):
                    raise CheckpointError(
                        f"{path}: {names[name]} has shape {tuple(value.shape)}, the model's {name} has "
                        f"{tuple(parameter.shape)}; is conf/model the architecture of these weights?"
                    )
                assign(parameter, value)
    return missing


def _difference(path: Path, missing: list[str], unexpected: list[str], new: list[str]) -> str:
    def some(names: list[str]) -> str:
        return f"{len(names)} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"

    return (
        f"{path} does not fit the model: missing {some(missing + new)}, unexpected {some(unexpected)}. Choose the "
        "conf/model of this checkpoint (layers, width, WSA)"
    )


@torch.no_grad()
def assign(parameter: Tensor, full: Tensor) -> None:
    """Copy a full tensor into a parameter. A rank reads its own shard of a memory-mapped tensor and nothing else."""
    if isinstance(parameter, DTensor):
        mesh, placements = parameter.device_mesh, parameter.placements
        sizes, offsets = compute_local_shape_and_global_offset(full.shape, mesh, placements)
        full = full[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))]
        parameter = parameter.to_local()
    parameter.copy_(full)


@torch.no_grad()
def init_new(model: WorldGenerator, names: list[str], seed: int = 0) -> None:
    """Start values of new parameters, in place, on whatever the parameters are sharded over.

    WSA: q, k, v and their norms are copies of the layer's self-attention; its output projection is zero.
    Compression: the last convolution is zero. With `init="random"` the zeros become Kaiming-uniform weights (the
    default of torch's layers, bias zero), drawn from (seed, name).
    """
    _, sawg, wsa = model.options
    parameters = dict(model.named_parameters())
    for name in names:
        parameter = parameters[name]
        is_output = ".wsa.attn.to_out." in name or name.startswith("geometry.out.")
        twin = parameters.get(name.replace(".wsa.attn.", ".attn1."))
        if is_wsa(name) and not is_output:
            if ".wsa.norm." in name:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                parameter.copy_(twin)
        elif (is_output and (wsa.init if is_wsa(name) else sawg.init) == "zero") or name.endswith("bias"):
            parameter.zero_()
        else:
            assign(parameter, _kaiming(tuple(parameter.shape), seed, name))


def _kaiming(shape: tuple[int, ...], seed: int, name: str) -> Tensor:
    import zlib

    full = torch.empty(shape)
    generator = torch.Generator().manual_seed(seed ^ zlib.crc32(name.encode()))
    return nn.init.kaiming_uniform_(full, a=5**0.5, generator=generator)


def load_vae(weights: str, revision: str | None = None) -> nn.Module:
    """AutoencoderKLWan of the official `Wan2.1_VAE.pth`, a .safetensors of it or a diffusers folder; float32."""
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    path = locate(weights, revision)
    if path.is_dir():
        vae = AutoencoderKLWan.from_pretrained(path, torch_dtype=torch.float32)
    else:
        with torch.device("meta"):
            vae = AutoencoderKLWan()  # the defaults are Wan2.1's, latent statistics included
        with open_checkpoint(path) as checkpoint:
            state = {name: checkpoint.read(name).float() for name in checkpoint.names}
        if not any(name.startswith("encoder.down_blocks") for name in state):
            state = convert_wan_vae_to_diffusers(state)
        load_strictly(vae, state, path)
    return vae.eval().requires_grad_(False)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Give a module (perhaps on the meta device) the tensors of a file. CheckpointError when keys or shapes differ."""
    try:
        missing, unexpected = module.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:  # a wrong shape
        raise CheckpointError(f"{path} does not fit the model: {error}") from error
    if missing or unexpected:
        raise CheckpointError(_difference(path, missing, unexpected, []))
