"""Boxes of people and of what they may ride, on keyframes: Grounding DINO (default), RT-DETR or RF-DETR.

Prompts are configuration. Grounding DINO reads them as text (Liu et al. 2023, arXiv 2303.05499); RT-DETR and RF-DETR
know a fixed list of names, and a prompt outside that list is an error, not a guess. No cap on a box's area: a person
who fills the frame is a person.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.options import option
from engine.perception.checkpoint import CheckpointError
from engine.perception.compute import PRECISIONS, Batches, DeviceFrames, autocast
from engine.perception.pretrained import load_pretrained
from engine.types import Clip

if TYPE_CHECKING:
    import torch

# COCO names as RT-DETR's configuration spells them
SYNONYMS = {"motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa", "tv": "tvmonitor"}


@dataclass
class DetectorOptions:
    variant: str = option(
        "grounding-dino-tiny",
        "open vocabulary (grounding-dino-*) or the 80 COCO names (rtdetr, rf-detr)",
        choices=("grounding-dino-tiny", "grounding-dino-base", "rtdetr-r50vd", "rf-detr-medium"),
    )
    subjects: list[str] = option(
        ["person"], "what a subject is; each one gets a track, a Gaussian and a reference image"
    )
    ridden: list[str] = option(
        ["bicycle", "motorcycle", "skateboard", "horse", "surfboard"],
        "what joins the subject who rides it, and is else left",
    )
    keyframes: int = option(5, "frames spread over the clip that the detector looks at; 81 frames give one per 1.25 s")
    threshold: float = option(0.35, "least score of a box; 0.35 is Grounding DINO's published box threshold")
    overlap: float = option(
        0.7, "boxes of one kind that overlap more (IoU) are the same; 0.7 keeps people who hug apart"
    )
    batch: int = option(4, "frames per forward pass to start with; halved, and remembered, when memory runs out")
    precision: str = option(
        "fp32", "few frames are looked at, so float32 costs little and keeps the published scores", choices=PRECISIONS
    )


@dataclass(frozen=True)
class Detection:
    """One box (x0, y0, x1, y1) in pixels of clip frame `frame`; `prompt` is the name it answered to."""

    frame: int
    box: tuple[float, float, float, float]
    prompt: str
    score: float


class Detector:
    """The loaded network. `frames` is shared with the other models of the actor."""

    def __init__(self, options: DetectorOptions, folder: Path, frames: DeviceFrames, about: dict | None = None) -> None:
        """`folder` holds the official files. Raises CheckpointError, or ValueError for a prompt outside the names."""
        import transformers

        self.options, self.frames, self.about = options, frames, about or {}
        self.prompts = [*options.subjects, *options.ridden]
        self.open_vocabulary = options.variant.startswith("grounding-dino")
        if self.open_vocabulary:
            kind = transformers.GroundingDinoForObjectDetection
            self.processor = _from_folder(transformers.GroundingDinoProcessor, folder)
            tokenizer = self.processor.tokenizer
            self.stop = tokenizer.convert_tokens_to_ids(".")
            if self.stop in (None, tokenizer.unk_token_id):
                raise CheckpointError(
                    f"detector: the tokenizer in {folder} does not know '.'; run: make weights CHECK=1"
                )
        elif options.variant.startswith("rtdetr"):
            kind = transformers.RTDetrForObjectDetection
            self.processor = _from_folder(transformers.AutoImageProcessor, folder)
        else:
            kind = transformers.RfDetrForObjectDetection
            self.processor = _from_folder(transformers.AutoImageProcessor, folder)
        self.network = load_pretrained(kind, folder, f"detector {options.variant}").to(frames.device)
        self.columns = None if self.open_vocabulary else name_columns(self.prompts, self.network.config.id2label)
        self.batches = Batches(options.batch, "detector")

    def detect(self, clip: Clip, keyframes: list[int]) -> list[Detection]:
        """Boxes on the given frames, best score first within a frame, duplicates of one prompt removed."""
        found: list[Detection] = []
        with self.frames.turn:
            parts = list(self.batches(len(keyframes), lambda part: self._forward(clip, keyframes[part])))
        for part, (scores, boxes) in parts:
            for frame, frame_scores, frame_boxes in zip(keyframes[part], scores, boxes, strict=True):
                found += self._keep(frame, frame_scores, frame_boxes, clip.size)
        return found

    def _forward(self, clip: Clip, frames: list[int]) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Scores [B,Q,prompts] in [0,1] and boxes [B,Q,4] (centre x, y, width, height, all in [0,1])."""
        import torch

        images = self.frames(clip)[torch.as_tensor(frames, device=self.frames.device)].permute(0, 3, 1, 2)
        inputs: dict[str, Any] = {"images": images, "return_tensors": "pt", "device": self.frames.device}
        if self.open_vocabulary:
            inputs |= {"text": [". ".join(self.prompts).lower() + "."] * len(frames)}
        batch = self.processor(**inputs).to(self.frames.device)
        with torch.inference_mode(), autocast(self.frames.device, self.options.precision, "bf16"):
            out = self.network(**batch)
        probabilities = out.logits.float().sigmoid()
        if self.open_vocabulary:
            spans = prompt_spans(batch["input_ids"][0].tolist(), self.stop, len(self.prompts))
            scores = torch.stack([probabilities[..., s].amax(-1) for s in spans], -1)
        else:
            scores = probabilities[..., self.columns]
        return scores.cpu(), out.pred_boxes.float().cpu()

    def _keep(self, frame: int, scores: Any, boxes: Any, size: tuple[int, int]) -> list[Detection]:
        """The boxes of one frame above the threshold, each under its best prompt, without duplicates."""
        from torchvision.ops import batched_nms, box_convert

        height, width = size
        best, prompt = scores.max(-1)
        chosen = best >= self.options.threshold
        best, prompt = best[chosen], prompt[chosen]
        corners = box_convert(boxes[chosen], "cxcywh", "xyxy").clamp(0, 1) * boxes.new_tensor([width, height] * 2)
        kept = batched_nms(corners, best, prompt, self.options.overlap).tolist()
        return [
            Detection(frame, tuple(corners[i].tolist()), self.prompts[int(prompt[i])], float(best[i])) for i in kept
        ]


def prompt_spans(tokens: list[int], stop: int, prompts: int) -> list[list[int]]:
    """Token positions of each prompt in "[CLS] a b . c . [SEP]": the runs between full stops, in the prompts' order.

    A prompt's score is the best probability over its own tokens. Raises ValueError when the runs are not as many as
    the prompts (a prompt with a full stop inside).
    """
    spans: list[list[int]] = [[]]
    for position, token in enumerate(tokens[1:], start=1):
        if token == stop:
            spans.append([])
        else:
            spans[-1].append(position)
    runs = spans[:-1]  # what follows the last full stop is [SEP] and padding
    if len(runs) != prompts or not all(runs):
        raise ValueError(f"detector: {prompts} prompts became {len(runs)} phrases; no prompt may be empty or hold '.'")
    return runs


def name_columns(prompts: list[str], id2label: dict[int, str]) -> list[int]:
    """Column of each prompt in a fixed-name detector's output. Raises ValueError for a name it does not know."""
    columns = {name.lower(): int(column) for column, name in id2label.items()}
    unknown = [p for p in prompts if p not in columns and SYNONYMS.get(p) not in columns]
    if unknown:
        raise ValueError(
            f"detector: this network does not know {', '.join(unknown)}; it knows {', '.join(sorted(columns))}. "
            "Take detector.variant=grounding-dino-tiny for other words"
        )
    return [columns[p] if p in columns else columns[SYNONYMS[p]] for p in prompts]


def _from_folder(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise CheckpointError(f"detector: {folder} has no usable processor ({reason}); run: make weights") from error
