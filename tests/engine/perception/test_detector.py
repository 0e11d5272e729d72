"""Detectors: prompts to scores, boxes in pixels, no cap on size, fixed names refused when unknown."""

import numpy as np
import pytest
import torch

from engine.perception.checkpoint import CheckpointError
from engine.perception.compute import DeviceFrames
from engine.perception.detector import Detector, DetectorOptions, name_columns, prompt_spans
from tests.engine.perception.small import make_clip


def detector(folder, **options):
    return Detector(DetectorOptions(**options), folder, DeviceFrames(torch.device("cpu")))


@pytest.fixture
def loaded(weights_root):
    return detector(weights_root / "grounding-dino-tiny", threshold=0.0, overlap=0.5)


def test_boxes_are_in_pixels_of_their_keyframe(loaded, noise_clip):
    found = loaded.detect(noise_clip, [0, 4])
    assert {d.frame for d in found} == {0, 4}
    H, W = noise_clip.size
    for d in found:
        assert 0 <= d.box[0] <= d.box[2] <= W
        assert 0 <= d.box[1] <= d.box[3] <= H
        assert d.prompt in loaded.prompts
        assert 0 <= d.score <= 1


def test_a_batch_equals_single_frames(weights_root, noise_clip):
    folder = weights_root / "grounding-dino-tiny"
    one = detector(folder, threshold=0.0, batch=1).detect(noise_clip, [0, 2, 4])
    many = detector(folder, threshold=0.0, batch=3).detect(noise_clip, [0, 2, 4])
    assert [(d.frame, d.prompt) for d in one] == [(d.frame, d.prompt) for d in many]
    np.testing.assert_allclose([d.box for d in one], [d.box for d in many], atol=1e-2)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("variant", ["grounding-dino-tiny", "rf-detr-medium"])
def test_half_precision_stays_near_the_float32_reference(weights_root, noise_clip, variant, precision):
    reference, half = (
        detector(weights_root / variant, variant=variant, precision=p)._forward(noise_clip, [0, 4])
        for p in ("fp32", precision)
    )
    # these networks pick their queries by score, where near ties swap: the scores are compared in order, and the boxes
    # of the queries that stayed (those of the random RF-DETR all tie)
    ordered = [scores.amax(-1).sort().values for scores, _ in (reference, half)]
    assert (ordered[0] - ordered[1]).abs().median() < 0.02
    if variant == "grounding-dino-tiny":
        assert ((reference[1] - half[1]).abs().amax(-1) < 0.05).float().mean() > 0.6


def test_scores_of_a_prompt_are_those_of_its_own_words():
    # [CLS] a person . red bike . [SEP] [PAD]
    assert prompt_spans([101, 7, 8, 1012, 9, 10, 1012, 102, 0], 1012, 2) == [[1, 2], [4, 5]]
    with pytest.raises(ValueError, match="2 prompts became 3 phrases"):
        prompt_spans([101, 7, 1012, 9, 1012, 10, 1012, 102], 1012, 2)


def scripted(loaded, monkeypatch, scores, boxes):
    monkeypatch.setattr(
        loaded, "_forward", lambda clip, frames: (torch.tensor(scores)[None], torch.tensor(boxes)[None])
    )


def test_the_best_prompt_names_the_box_and_doubles_go(weights_root, monkeypatch):
    loaded = detector(weights_root / "grounding-dino-tiny", subjects=["person"], ridden=["bicycle"])
    person, again, bike, weak = [0.5, 0.5, 0.4, 0.8], [0.51, 0.5, 0.4, 0.8], [0.5, 0.7, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]
    scripted(loaded, monkeypatch, [[0.9, 0.2], [0.8, 0.1], [0.3, 0.6], [0.2, 0.1]], [person, again, bike, weak])
    found = loaded.detect(make_clip(np.zeros((1, 100, 200, 3), np.uint8)), [0])
    assert [(d.prompt, round(d.score, 2)) for d in found] == [("person", 0.9), ("bicycle", 0.6)]
    assert found[0].box == pytest.approx((60, 10, 140, 90), abs=1e-3)


def test_a_person_who_fills_the_frame_is_kept(weights_root, monkeypatch):
    loaded = detector(weights_root / "grounding-dino-tiny", subjects=["person"], ridden=[])
    scripted(loaded, monkeypatch, [[0.9]], [[0.5, 0.5, 1.0, 1.0]])
    found = loaded.detect(make_clip(np.zeros((1, 100, 200, 3), np.uint8)), [0])
    assert found[0].box == (0, 0, 200, 100)


@pytest.mark.parametrize("variant", ["rtdetr-r50vd", "rf-detr-medium"])
def test_boxes_of_fixed_names_are_those_of_the_official_processor(weights_root, noise_clip, variant):
    """Scores and boxes in pixels equal transformers' own post-processing of the same network, for the person column."""
    loaded = detector(
        weights_root / variant, variant=variant, threshold=0.0, overlap=1.0, subjects=["person"], ridden=[]
    )
    found = loaded.detect(noise_clip, [0, 3])
    assert {d.frame for d in found} == {0, 3}
    inputs = loaded.processor(images=list(noise_clip.frames[[0, 3]]), return_tensors="pt")
    with torch.inference_mode():
        out = loaded.network(**inputs)
    scores = out.logits.sigmoid()[..., 0]
    H, W = noise_clip.size
    centre = out.pred_boxes
    for i, frame in enumerate((0, 3)):
        mine = sorted((d.score, *d.box) for d in found if d.frame == frame)
        x, y, w, h = centre[i].unbind(-1)
        corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1).clamp(0, 1) * torch.tensor([W, H, W, H])
        expected = sorted((s.item(), *box.tolist()) for s, box in zip(scores[i], corners, strict=True))
        np.testing.assert_allclose(mine, expected, rtol=1e-3, atol=2e-2)


def test_fixed_names_take_their_column_or_are_refused(weights_root, noise_clip):
    folder = weights_root / "rtdetr-r50vd"
    assert name_columns(["person", "motorcycle"], {0: "person", 3: "motorbike"}) == [0, 3]
    with pytest.raises(ValueError, match=r"does not know unicycle; it knows .*bicycle.*grounding-dino-tiny"):
        detector(folder, variant="rtdetr-r50vd", ridden=["unicycle"])


def test_unusable_folders_say_what_is_wrong(weights_root, tmp_path):
    with pytest.raises(CheckpointError, match="make weights"):
        detector(tmp_path)
    with pytest.raises(CheckpointError, match="'rt_detr' was expected"):
        detector(weights_root / "grounding-dino-tiny", variant="rtdetr-r50vd")
