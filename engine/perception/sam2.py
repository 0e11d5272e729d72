"""SAM 2.1 (Ravi et al. 2024, arXiv 2408.00714): follows boxes over a clip, both ways, as mask logits.

Loading goes round two habits of the `sam2` package. Importing it initialises Hydra's global state, and its builders
compose their configuration through that state, so inside a Hydra application they find the application's
configuration instead of their own. Here the import leaves the global state as it was, and the package's own YAML is
read as a plain file.

Memory stays bounded on long clips: image features are computed in batches and only the newest are kept, and of the
tracker's memory only the frames that its attention can still reach.
"""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.options import option
from engine.perception.checkpoint import fill, read_torch
from engine.perception.compute import PRECISIONS, Batches, DeviceFrames, autocast, compiled
from engine.types import Clip

if TYPE_CHECKING:
    import torch

    from engine.perception.tracklets import Box

YAML = {"tiny": "t", "small": "s", "base-plus": "b+", "large": "l"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, as sam2.utils.misc.load_video_frames


@dataclass
class Sam2Options:
    variant: str = option("large", "backbone (hiera); all Apache-2.0", choices=tuple(YAML))
    side: int = option(1024, "side of the network's square input, pixels, a multiple of 32; 1024 as trained")
    batch: int = option(8, "frames per image-encoder pass to start with; halved, and remembered, when memory runs out")
    features: int = option(96, "frames whose image features are kept on the device; about 8.4 MB each in 16 bits")
    precision: str = option(
        "auto",
        "auto is bf16 on a GPU (as published) and fp32 on a CPU; no fp16: the package keeps its memory in bf16",
        choices=tuple(p for p in PRECISIONS if p != "fp16"),
    )
    compile: bool = option(False, "torch.compile of the image encoder: slower start, faster frames on a GPU")


class Sam2:
    """The loaded network. `frames` is shared with the other models of the actor."""

    def __init__(
        self,
        options: Sam2Options,
        checkpoint: Path,
        frames: DeviceFrames,
        about: dict | None = None,
    ) -> None:
        """Raises CheckpointError when the file is absent, truncated, not SAM 2.1's, or of another variant."""
        self.options, self.frames = options, frames
        self.about = {**(about or {}), "variant": options.variant}
        network = build_sam2(options.variant, options.side)
        fill(network, read_torch(checkpoint, ("model",), "SAM 2")["model"], checkpoint, "SAM 2")
        self.network: Any = network.to(frames.device).eval().requires_grad_(False)
        compiled(self.network.image_encoder, options.compile)
        self.batches = Batches(options.batch, "sam2")
        self._features: OrderedDict[int, _Features] = OrderedDict()  # by the id of the clip's frames

    def follow(self, clip: Clip, frame: int, boxes: "list[Box]") -> np.ndarray:
        """Mask logits float16 [n,T,h,w] of the objects in `boxes` (pixels of frame `frame`), over the whole clip.

        h = w = a quarter of the network's input side (256): the frame stretched to a square. > 0 is the object.
        """
        import torch

        T, (height, width), device = len(clip.frames), clip.size, self.frames.device
        side = self.network.image_size // 4
        with self.frames.turn, torch.inference_mode(), autocast(device, self.options.precision, "bf16"):
            logits = torch.full((len(boxes), T, side, side), -10, dtype=torch.float16, device=device)
            state = self._state(T, side, self._clip_features(clip))
            for i, box in enumerate(boxes):
                scaled = np.asarray(box, np.float32).reshape(2, 2) * np.array([side / width, side / height], np.float32)
                self.network.add_new_points_or_box(state, frame_idx=frame, obj_id=i, box=scaled.ravel())
            for reverse in (False, True):
                for t, _, masks in self.network.propagate_in_video(state, start_frame_idx=frame, reverse=reverse):
                    logits[:, t] = masks[:, 0].float().clamp(-10, 10)  # stays there: the host need not wait for it
                    self._forget(state, t, frame)
            return logits.cpu().numpy()

    def release(self, clip: Clip) -> None:
        """Forget the clip's image features."""
        self._features.pop(id(clip.frames), None)

    def _clip_features(self, clip: Clip) -> "_Features":
        key = id(clip.frames)
        if key not in self._features:
            self._features[key] = _Features(self, clip)  # holds the frames, so that their id is not used again
            while len(self._features) > self.frames.clips:
                self._features.popitem(last=False)
        return self._features[key]

    def _encode(self, clip: Clip, part: slice) -> Any:
        """The image encoder's output for a slice of frames, resized to the network's square input."""
        import torch

        side = self.network.image_size
        images = self.frames(clip)[part].permute(0, 3, 1, 2).float() / 255
        images = torch.nn.functional.interpolate(
            images, (side, side), mode="bilinear", align_corners=False, antialias=True
        )
        mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (MEAN, STD))
        return self.network.forward_image((images - mean) / std)

    def _state(self, frames: int, side: int, features: "_Features") -> dict[str, Any]:
        """What SAM2VideoPredictor.init_state (sam2 1.1) makes, without its reading of files: `cached_features` answers
        for every frame, so no image is ever asked for; the video's size is that of the mask logits."""
        device = self.frames.device
        empty = ("point_inputs_per_obj", "mask_inputs_per_obj", "output_dict_per_obj", "temp_output_dict_per_obj")
        return {
            "images": None,
            "num_frames": frames,
            "offload_video_to_cpu": False,
            "offload_state_to_cpu": False,
            "video_height": side,
            "video_width": side,
            "device": device,
            "storage_device": device,
            "cached_features": features,
            "constants": {},
            "obj_id_to_idx": OrderedDict(),
            "obj_idx_to_id": OrderedDict(),
            "obj_ids": [],
            "frames_tracked_per_obj": {},
            **{name: {} for name in empty},
        }

    def _forget(self, state: dict[str, Any], now: int, start: int) -> None:
        """Drop what no later frame attends to: further than the memory reaches from here and from the prompt, where
        the second direction sets out."""
        reach = max(self.network.num_maskmem, self.network.max_obj_ptrs_in_encoder)
        for outputs in state["output_dict_per_obj"].values():
            held = outputs["non_cond_frame_outputs"]
            for t in [t for t in held if abs(t - now) > reach and abs(t - start) > reach]:
                del held[t]


class _Features:
    """Stands in for the predictor's `cached_features`: encodes aligned blocks of frames when first asked for."""

    def __init__(self, owner: Sam2, clip: Clip) -> None:
        self.owner, self.clip = owner, clip
        self.frames: OrderedDict[int, Any] = OrderedDict()
        self.positions: Any = None  # the same for every frame

    def get(self, frame: int, default: Any = None) -> Any:
        if frame not in self.frames:
            self._encode_block(frame)
        self.frames.move_to_end(frame)
        features = {"backbone_fpn": list(self.frames[frame]), "vision_pos_enc": list(self.positions)}
        return features["backbone_fpn"][0].new_zeros(1, 1, 1, 1), features

    def _encode_block(self, frame: int) -> None:
        import torch

        batches = self.owner.batches
        first = frame // batches.size * batches.size
        count = min(batches.size, len(self.clip.frames) - first)
        with torch.inference_mode(), autocast(self.owner.frames.device, self.owner.options.precision, "bf16"):
            for part, out in batches(
                count, lambda p: self.owner._encode(self.clip, slice(first + p.start, first + p.stop))
            ):
                self.positions = [p[:1] for p in out["vision_pos_enc"]]
                for i in range(part.stop - part.start):
                    self.frames[first + part.start + i] = [level[i : i + 1].clone() for level in out["backbone_fpn"]]
        while len(self.frames) > max(self.owner.options.features, batches.size):
            self.frames.popitem(last=False)


def build_sam2(variant: str, side: int = 1024) -> "torch.nn.Module":
    """SAM2VideoPredictor of a published variant, without weights, for square images of `side` pixels."""
    _import_sam2()
    from importlib.resources import files

    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    yaml = files("sam2").joinpath(f"configs/sam2.1/sam2.1_hiera_{YAML[variant]}.yaml").read_text()
    model = OmegaConf.create(yaml).model
    # as sam2.build_sam.build_sam2_video_predictor with apply_postprocessing; hole filling needs its CUDA extension,
    # which the wheel does not have
    settings = {
        "_target_": "sam2.sam2_video_predictor.SAM2VideoPredictor",
        "sam_mask_decoder_extra_args.dynamic_multimask_via_stability": True,
        "sam_mask_decoder_extra_args.dynamic_multimask_stability_delta": 0.05,
        "sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh": 0.98,
        "binarize_mask_from_pts_for_mem_enc": True,
        "image_size": side,
    }
    for key, value in settings.items():
        OmegaConf.update(model, key, value, force_add=True)
    return instantiate(model, _recursive_=True)


def _import_sam2() -> None:
    """Import sam2's predictor and leave Hydra's global state as it was, whatever the import does to it."""
    from hydra.core.global_hydra import GlobalHydra

    state = GlobalHydra.instance()
    before = state.hydra
    import sam2.sam2_video_predictor as predictor

    state.hydra = before
    predictor.tqdm = lambda frames, **_: frames  # its progress bar would print two lines a clip
