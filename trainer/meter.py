"""What a step costs: FLOPs by formula (attention included), their utilisation, waiting for data, memory."""

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.model.sawg import SawgOptions, WanOptions
from trainer.model.wsa import WsaOptions

# Dense bf16 peak, FLOP/s, from the makers' data sheets (SXM where there are several).
PEAK = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "H20": 148e12, "B200": 2250e12, "L40S": 362e12, "4090": 165e12}


@dataclass(frozen=True)
class Flops:
    """Multiply-adds times two of one forward pass of a batch, by part. Norms, activations and softmax are left out, as
    torch's FlopCounterMode does."""

    linear: float
    attention: float
    wsa: float
    rest: float
    layers: int

    @property
    def forward(self) -> float:
        return self.linear + self.attention + self.wsa + self.rest

    def step(self, trainable: str = "all") -> float:
        """Forward and backward. The backward pass multiplies twice for every product of the forward, but once for the
        linear layers of a frozen base, whose weights need no gradient, and not at all before the first thing that
        learns. Recomputation is not counted: it is no model FLOP."""
        if trainable == "all":
            return 3 * self.forward
        reached = 1 - 1 / self.layers if trainable == "wsa" else 1.0  # the first WSA follows the first layer's base
        front = 0.0 if trainable == "wsa" else self.rest
        return self.forward + reached * (self.linear + 2 * self.attention) + 2 * self.wsa + front


def flops(
    wan: WanOptions,
    sawg: SawgOptions,
    wsa: WsaOptions,
    rows: int,
    latent: tuple[int, int, int],
    references: int,
    text: int,
    branches: int,
) -> Flops:
    """FLOPs of `rows` = B N latents of (T, h, w) with `references` appended and `text` tokens."""
    dim = wan.num_attention_heads * wan.attention_head_dim
    per_patch = wan.in_channels * wan.patch_size[0] * wan.patch_size[1] * wan.patch_size[2]
    spatial = (latent[1] // wan.patch_size[1]) * (latent[2] // wan.patch_size[2])
    tokens, video = (latent[0] + references) * spatial, latent[0] * spatial
    layers = wan.num_layers
    linear = layers * (
        4 * tokens * dim * dim  # self-attention q, k, v, out
        + 2 * (tokens + text) * dim * dim  # cross-attention q, out over tokens; k, v over text
        + 2 * tokens * dim * wan.ffn_dim
    )
    attention = layers * 2 * dim * (tokens * tokens + tokens * text)
    aligned = len(range(0, layers, wsa.every)) if wsa.enabled and branches > 1 else 0
    alignment = aligned * (4 * video * dim * dim + 2 * video * spatial * dim)
    kernel = sawg.kernel**2 * latent[0] * latent[1] * latent[2] * wan.in_channels
    compression = kernel * (3 * sawg.hidden if sawg.hidden else 2 * wan.in_channels)
    embed = 2 * tokens * per_patch * dim + text * (wan.text_dim * dim + dim * dim) + wan.freq_dim * dim + 7 * dim * dim
    return Flops(*(2.0 * rows * x for x in (linear, attention, alignment, compression + embed)), layers)


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bf16 peak, or None when it is unknown (a CPU): utilisation is then not reported."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK.items() if part in name), None)


class Meter:
    """Seconds of a logging interval, split into waiting for data and the rest."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.started, self.waited, self.steps, self.flops = time.perf_counter(), 0.0, 0, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def report(self, device: torch.device) -> dict[str, float]:
        """seconds per step, data-wait share, FLOP/s of this rank, utilisation and memory where known."""
        seconds = time.perf_counter() - self.started
        out = {
            "step_s": seconds / max(self.steps, 1),
            "data_wait_share": self.waited / seconds,
            "tflops": self.flops / seconds / 1e12,
            "memory_gib": memory(device) / 2**30,
        }
        peak = peak_flops(device)
        if peak:
            out["mfu"] = self.flops / seconds / peak
        return out


def memory(device: torch.device) -> float:
    """Peak bytes: allocated on the device, or resident of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Log:
    """One JSON object a line in metrics.jsonl, the same to TensorBoard, and to wandb when asked. Rank 0 only."""

    def __init__(self, folder: Path, wandb_project: str | None = None, config: dict | None = None):
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / "metrics.jsonl").open("a", buffering=1)
        self.board = SummaryWriter(folder / "tensorboard")
        self.wandb = None
        if wandb_project:
            import wandb

            identity = folder / "wandb_id"  # a resumed run goes on with the same curve
            if not identity.exists():
                identity.write_text(secrets.token_hex(4))
            run = {"id": identity.read_text(), "resume": "allow"}
            self.wandb = wandb.init(project=wandb_project, dir=str(folder), config=config, **run)

    def write(self, step: int, values: dict[str, float]) -> None:
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(values, step=step)

    def close(self) -> None:
        self.file.close()
        self.board.close()
        if self.wandb:
            self.wandb.finish()
