"""What the network adapters share: device, precision, frames on the device, and batches that fit its memory."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from engine.types import Clip

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def pick_device(name: str) -> "torch.device":
    """ "auto" is the first CUDA device where there is one, else the CPU; any other name is torch's own.

    Raises ValueError when a CUDA device is asked for by name and there is none.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name}: torch {torch.__version__} sees no CUDA device; use device=auto or device=cpu")
    return device


def autocast(device: "torch.device", precision: str, half: str) -> AbstractContextManager[Any]:
    """Mixed precision for a forward pass. `half` is the 16-bit type this model was published to run in.

    "auto" takes `half` on a GPU and float32 on a CPU, where 16-bit arithmetic is emulated and slower.
    """
    import torch

    kind = precision if precision != "auto" else (half if device.type == "cuda" else "fp32")
    if kind == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[kind])


class DeviceFrames:
    """The frames of the clips in flight as uint8 [T,H,W,3] on the device: copied once, shared by all models."""

    def __init__(self, device: "torch.device", clips: int = 2) -> None:
        self.device, self.clips = device, clips
        self.copies = 0
        self._held: OrderedDict[int, tuple[np.ndarray, torch.Tensor]] = OrderedDict()
        self._lock = threading.Lock()  # a runner may prepare the next clip while this one is in the models

    def __call__(self, clip: "Clip") -> "torch.Tensor":
        import torch

        with self._lock:
            held = self._held.get(id(clip.frames))  # the array is kept, so its id cannot be reused
            if held is None:
                self.copies += 1
                frames = torch.from_numpy(np.ascontiguousarray(clip.frames)).to(self.device)
                held = self._held[id(clip.frames)] = (clip.frames, frames)
                while len(self._held) > self.clips:
                    self._held.popitem(last=False)
            return held[1]

    def clear(self) -> None:
        """Forget every clip."""
        with self._lock:
            self._held.clear()


class Batches:
    """Runs a function over slices of n items; halves the slice when the device is out of memory, and remembers."""

    def __init__(self, size: int, name: str) -> None:
        if size < 1:
            raise ValueError(f"{name}.batch: at least 1 was expected, found {size}")
        self.size, self.name = size, name

    def __call__(self, n: int, run: Callable[[slice], Any]) -> Iterator[tuple[slice, Any]]:
        """(slice, run(slice)) over 0..n. Raises torch.OutOfMemoryError when one item alone does not fit."""
        import torch

        start = 0
        while start < n:
            part = slice(start, min(start + self.size, n))
            try:
                result = run(part)
            except torch.OutOfMemoryError as error:
                if self.size == 1:
                    raise torch.OutOfMemoryError(
                        f"{self.name}: one frame alone does not fit the device's memory; "
                        "take a smaller variant, fewer tokens, or the split of models over several actors"
                    ) from error
                self.size = max(1, min(self.size, part.stop - part.start) // 2)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            yield part, result
            start = part.stop


def compiled(module: "torch.nn.Module", wanted: bool) -> "torch.nn.Module":
    """The module, with its forward compiled in place when wanted (state-dict names stay as they are)."""
    if wanted:
        module.compile(dynamic=False)
    return module


def spread(n: int, count: int) -> list[int]:
    """`count` frame indices spread evenly over 0..n-1, ends included, without repeats."""
    return sorted({int(i) for i in np.linspace(0, n - 1, min(count, n)).round()})
