"""A clip as the generator sees it: latents, text and what is needed to choose among them.

`encode_clip` makes it from the members of a sample (`shards.schema`); `pack` and `unpack` carry it through a latent
shard. About 21 MB in float16 for a clip of 81 x 480 x 832.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import safetensors.torch as safetensors
import torch
from torch import Tensor

from shards import codec, depth16
from shards.options import option
from trainer.model.encoders import Encoders, VideoEncoder

LATENTS, META = "latents.safetensors", "meta.json"  # float16 latents do not deflate; safetensors reads without a copy
CONDITIONS = ("anchor", "holistic")
REFERENCE_WHITE = 255  # Phantom letterboxes references on white


@dataclass
class ClipOptions:
    frames: int = option(81, "frames of a training clip, 1 + 4k; the paper trains on 81")
    stride: int = option(1, "sample frames per training frame; 1 keeps the sample's frame rate")
    height: int = option(480, "rows, pixels; a multiple of 16 (a token of Wan2.1); the paper trains at 480P")
    width: int = option(832, "columns, pixels; a multiple of 16; Wan2.1's 480P is 832 x 480")
    depth_near: float = option(
        0.25, "metres shown as +1 in the depth condition; fixed for all clips so that a value means a distance"
    )
    depth_far: float = option(100.0, "metres shown as -1, as are holes and sky; logarithmic in between")
    references: int = option(4, "references encoded per clip, the first ones of the sample; Phantom takes at most 4")


@dataclass(frozen=True)
class LatentClip:
    """One clip, float16 on the CPU.

    target      [C,T,h,w], or None for an inference request
    conditions  anchor_rgb, anchor_depth, holistic_rgb, holistic_depth: [C,T,h,w] each
    references  [R,C,h,w], each encoded alone as a one-frame video
    text, empty [tokens, dim] embeddings of the caption and of the empty text
    meta        the sample's meta.json, and under "latents": fps, encoders (fingerprint), caption, and
                reference_frames [R], the latent frame that shows each reference's own frame, or -1
    """

    target: Tensor | None
    conditions: dict[str, Tensor]
    references: Tensor
    text: Tensor
    empty: Tensor
    meta: dict[str, Any]

    @property
    def key(self) -> str:
        return self.meta["key"]


def encode_clip(members: Mapping[str, bytes], encoders: Encoders, options: ClipOptions) -> LatentClip:
    """Encode the members of a sample. ValueError names the member that does not fit."""
    meta = codec.decode("meta.json", members["meta.json"])
    if meta["frames"] < (options.frames - 1) * options.stride + 1:
        raise ValueError(
            f"{meta['key']}: {options.frames} frames at stride {options.stride} were asked of a clip of "
            f"{meta['frames']}; set data.clip.frames"
        )

    def video(name: str) -> Tensor:
        return _to_latents(_window(codec.decode(name, members[name]), options), encoders.video, options)

    conditions = {}
    for kind in CONDITIONS:
        conditions[f"{kind}_rgb"] = video(f"condition_{kind}_rgb.mp4")
        name = f"condition_{kind}_depth.mkv"
        metres = depth16.decode(_window(codec.decode(name, members[name]), options), *meta["depth_range"][name])
        conditions[f"{kind}_depth"] = _to_latents(depth_picture(metres, options), encoders.video, options)
    subjects = meta["subjects"][: options.references]
    references = [
        _to_latents(
            letterbox(codec.decode(s["identity"], members[s["identity"]]), options)[None], encoders.video, options
        )
        for s in subjects
    ]
    shape = conditions["anchor_rgb"].shape
    text = codec.decode("caption.txt", members["caption.txt"]) if "caption.txt" in members else ""
    return LatentClip(
        target=video("target.mp4") if "target.mp4" in members else None,
        conditions=conditions,
        references=torch.stack([r[:, 0] for r in references])
        if references
        else torch.zeros(0, shape[0], *shape[2:], dtype=torch.float16),
        text=encoders.text.encode(text).half().cpu(),
        empty=encoders.text.encode("").half().cpu(),
        meta=meta
        | {
            "latents": {
                "fps": meta["fps"] / options.stride,
                "encoders": encoders.fingerprint,
                "caption": text,
                "reference_frames": [latent_frame(s["frame"], options) for s in subjects],
            }
        },
    )


def latent_frame(frame: int, options: ClipOptions) -> int:
    """The latent frame that shows a sample frame; -1 when the window leaves it out."""
    index, off = divmod(frame, options.stride)
    return -1 if off or index >= options.frames else (index + 3) // 4


def depth_picture(metres: np.ndarray, options: ClipOptions) -> np.ndarray:
    """float32 [T,H,W] metres (0 = no value) -> float32 [T,H,W,3] in [-1,1]: near is bright, far and holes are -1."""
    near, far = options.depth_near, options.depth_far
    clipped = np.clip(np.where(metres > 0, metres, far), near, far)
    value = 1 - 2 * np.log(clipped / near) / np.log(far / near)
    return np.repeat(value[..., None], 3, axis=-1).astype(np.float32)


def letterbox(rgba: np.ndarray, options: ClipOptions) -> np.ndarray:
    """uint8 [h,w,4] -> uint8 [H,W,3]: on white, aspect kept, Lanczos, centred (Phantom's preparation of references)."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    rgb = rgba[..., :3] * alpha + REFERENCE_WHITE * (1 - alpha)
    scale = min(options.height / rgb.shape[0], options.width / rgb.shape[1])
    height, width = max(round(rgb.shape[0] * scale), 1), max(round(rgb.shape[1] * scale), 1)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LANCZOS4  # Lanczos of OpenCV does not filter when it shrinks
    resized = cv2.resize(rgb, (width, height), interpolation=method)
    out = np.full((options.height, options.width, 3), REFERENCE_WHITE, np.float32)
    top, left = (options.height - height) // 2, (options.width - width) // 2
    out[top : top + height, left : left + width] = resized
    return np.rint(out.clip(0, 255)).astype(np.uint8)


def _window(frames: np.ndarray, options: ClipOptions) -> np.ndarray:
    return frames[: (options.frames - 1) * options.stride + 1 : options.stride]


def _to_latents(frames: np.ndarray, encoder: VideoEncoder, options: ClipOptions) -> Tensor:
    """uint8 RGB or float32 in [-1,1], [T,H,W,3] -> float16 [C,T',h,w], cropped and resized to the training size."""
    if frames.shape[1:3] != (options.height, options.width):
        frames = np.stack([_fit(frame, options.height, options.width, frames.dtype == np.uint8) for frame in frames])
    video = torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)[None]
    video = video.float() / 127.5 - 1 if video.dtype == torch.uint8 else video
    return encoder.encode(video)[0].half().cpu()


def _fit(image: np.ndarray, height: int, width: int, smooth: bool) -> np.ndarray:
    """Centre crop to the aspect, then area resize; nearest for depth, which must not be averaged over an edge."""
    h, w = image.shape[:2]
    scale = max(height / h, width / w)
    rows, columns = min(h, round(height / scale)), min(w, round(width / scale))
    top, left = (h - rows) // 2, (w - columns) // 2
    method = cv2.INTER_AREA if smooth else cv2.INTER_NEAREST_EXACT
    return cv2.resize(image[top : top + rows, left : left + columns], (width, height), interpolation=method)


def pack(clip: LatentClip) -> dict[str, bytes]:
    """The members of a latent sample."""
    arrays = {**clip.conditions, "references": clip.references, "text": clip.text, "empty": clip.empty}
    if clip.target is not None:
        arrays["target"] = clip.target
    return {
        LATENTS: safetensors.save({name: value.contiguous() for name, value in arrays.items()}),
        META: codec.encode(META, clip.meta),
    }


def unpack(members: Mapping[str, bytes]) -> LatentClip:
    """The inverse of `pack`."""
    arrays = safetensors.load(members[LATENTS])
    return LatentClip(
        target=arrays.pop("target", None),
        references=arrays.pop("references"),
        text=arrays.pop("text"),
        empty=arrays.pop("empty"),
        conditions=arrays,
        meta=codec.decode(META, members[META]),
    )
