"""What the network adapters share: device, precision, frames on the device, and batches that fit its memory."""

import threading
import warnings
import weakref
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
    """The frames of the clips in flight as uint8 [T,H,W,3] on the device: copied once, shared by all models.

    `turn` is the device's: whoever runs a network holds it, so that of two clips in one actor one computes on the
    device while the other is in the steps that need only the CPU.
    """

    def __init__(self, device: "torch.device", clips: int = 2) -> None:
        self.device, self.clips = device, clips
        self.turn = threading.Lock()
        self.copies = 0
        self._held: OrderedDict[int, tuple[Callable[[], np.ndarray | None], torch.Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, clip: "Clip") -> "torch.Tensor":
        with self._lock:
            owner, frames = self._held.get(id(clip.frames), (_gone, None))
            if frames is None or owner() is not clip.frames:  # an id is used again when its array is gone
                self.copies += 1
                frames = _to_device(clip.frames, self.device)
                self._held[id(clip.frames)] = (weakref.ref(clip.frames), frames)
                for key in [k for k, (alive, _) in self._held.items() if alive() is None]:
                    del self._held[key]
                while len(self._held) > self.clips:
                    self._held.popitem(last=False)
            return frames

    def clear(self) -> None:
        """Forget every clip."""
        with self._lock:
            self._held.clear()


def _gone() -> None:
    return None


def _to_device(frames: np.ndarray, device: "torch.device") -> "torch.Tensor":
    import torch

    # an array from a runner's shared memory may be read-only, which torch warns of; nobody writes to it
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(frames)).to(device)


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
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if part.stop - part.start == 1:
                    raise torch.OutOfMemoryError(
                        f"{self.name}: one frame alone does not fit the device's memory; "
                        "take a smaller variant, fewer tokens, or the split of models over several actors"
                    ) from error
                self.size = (part.stop - part.start) // 2
            else:
                yield part, result
                start = part.stop
                continue
            # only here, where the error is gone, is what the failed try held free: its traceback kept it alive
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def out_of_memory(error: RuntimeError) -> bool:
    """The device's memory was not enough: torch's own error, or cuBLAS and cuDNN that could not get their workspace."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)


def compiled(module: "torch.nn.Module", wanted: bool) -> "torch.nn.Module":
    """The module, with its forward compiled in place when wanted (state-dict names stay as they are)."""
    if wanted:
        module.compile(dynamic=False)
    return module


def spread(n: int, count: int) -> list[int]:
    """`count` frame indices spread evenly over 0..n-1, ends included, without repeats."""
    return sorted({int(i) for i in np.linspace(0, n - 1, min(count, n)).round()})
