"""Files beside a video become perception of a clip: the right frames, the right crop, the right K, clear refusals."""

from dataclasses import replace

import numpy as np
import pytest

from engine.geometry import camera as geometry
from engine.ingest.view import view_for
from engine.perception import Models
from engine.perception.precomputed import PrecomputedOptions, precomputed
from engine.synthetic import make_world, oracle_from_view, render
from engine.synthetic.dataset import Recording, truth_arrays, write_recording
from engine.synthetic.perceive import clip_of
from engine.types import Clip, DepthEstimate, GeometryEstimate, Tracks

NAME = "a video"


@pytest.fixture(scope="module")
def view():
    return render(make_world("street", "walk", seed=2, frames=9, fps=4.0, height=96, width=168))


@pytest.fixture
def folder(view, tmp_path):
    write_recording(tmp_path, Recording(NAME, {}, "two people"), view)
    return tmp_path


def clip_at(folder, view, frames=slice(None), size=(96, 168)) -> Clip:
    whole = clip_of(view)
    return replace(
        whole,
        uri=f"{folder}/{NAME}.mp4",
        source_frames=whole.source_frames[frames],
        frames=whole.frames[frames],
        times=whole.times[frames],
        view=view_for(96, 168, *size),
    )


def answers(clip, **options):
    models = precomputed(PrecomputedOptions(**options))
    tracks = models.tracker.track(clip)
    estimate = models.geometry.geometry(clip, tracks)
    return tracks, estimate, models.depth.depth(clip, tracks, estimate)


class Fill:
    """Answers that can be told apart, and the K that geometry was told."""

    def __init__(self):
        self.K = None

    def track(self, clip):
        labels = np.ones((len(clip.frames), *clip.size), np.uint8)
        return Tracks(labels, labels > 0, ())

    def geometry(self, clip, tracks):
        self.K = clip.K
        shape = (len(clip.frames), *clip.size)
        K = np.repeat(geometry.intrinsics(7, 7, *clip.size[::-1])[None], len(clip.frames), 0)
        return GeometryEstimate(
            K.astype(np.float32), np.full(shape, 3.0, np.float32), np.zeros(shape, bool), np.ones(shape)
        )

    def depth(self, clip, tracks, geometry):
        return DepthEstimate("metric", geometry.depth)


def test_truth_files_come_back_as_they_are(folder, view):
    tracks, estimate, depth = answers(clip_at(folder, view))
    np.testing.assert_array_equal(tracks.labels, view.labels)
    assert [(s.label, s.category) for s in tracks.subjects] == [(1, "person"), (2, "person")]
    np.testing.assert_allclose(estimate.depth, view.depth, rtol=4e-5)  # stored with a short mantissa
    np.testing.assert_array_equal(estimate.sky, view.depth == 0)
    np.testing.assert_allclose(estimate.K, view.K, rtol=1e-6)
    assert estimate.c2w_exact
    assert estimate.K_source == "user"
    np.testing.assert_array_equal(estimate.c2w[0], np.eye(4))
    np.testing.assert_allclose(estimate.c2w, geometry.invert(view.c2w[0]) @ view.c2w, atol=1e-5)
    np.testing.assert_allclose(view.c2w[0, :3, :3] @ estimate.up, [0, -1, 0], atol=1e-6)
    assert depth is None  # geometry has said it all
    assert str(folder) not in str(estimate.models) + str(tracks.models)


def test_a_clips_frames_are_chosen_and_its_first_camera_is_the_world(folder, view):
    tracks, estimate, _ = answers(clip_at(folder, view, slice(2, 9, 3)))
    np.testing.assert_array_equal(tracks.labels, view.labels[2::3])
    np.testing.assert_allclose(estimate.c2w, geometry.invert(view.c2w[2]) @ view.c2w[2::3], atol=1e-5)


@pytest.mark.parametrize("size", [(48, 84), (60, 60), (96, 60), (120, 168)])
def test_crop_and_resize_keep_every_pixel_on_its_ray(folder, view, size):
    """A pixel of the resized, cropped depth unprojects with the adjusted K onto the ray of the source pixel it took
    its value from: the same surface, within half a source pixel."""
    clip = clip_at(folder, view, size=size)
    tracks, estimate, _ = answers(clip)
    assert estimate.depth.shape == tracks.labels.shape == (9, *size)
    v = clip.view
    points = geometry.unproject_depth(estimate.K[0].astype(float), estimate.depth[0])
    uv, z = geometry.project(view.K[0], points)  # in pixels of the source
    inside = z > 0
    np.testing.assert_allclose(
        uv[..., 0][inside],
        (v.crop_x + (np.arange(size[1]) + 0.5) * v.crop_width / size[1])[None].repeat(size[0], 0)[inside],
        atol=1e-3,
    )
    found = np.zeros(inside.shape, bool)
    for shift in ([-0.01, -0.01], [-0.01, 0.01], [0.01, -0.01], [0.01, 0.01]):  # centres may fall between two pixels
        x, y = np.moveaxis(np.clip(np.floor(uv + shift), 0, [167, 95]).astype(int), -1, 0)
        same = np.abs(view.depth[0][y, x] - z) < 1e-4 * z
        found |= same & (view.labels[0][y, x] == tracks.labels[0])
    assert found[inside].all()


def test_maps_of_another_size_are_scaled_to_the_video(folder, view):
    np.savez(folder / NAME / "depth.npz", depth=view.depth[:, ::2, ::2].astype(np.float16))
    _, estimate, _ = answers(clip_at(folder, view))
    assert estimate.depth.dtype == np.float32
    np.testing.assert_allclose(estimate.depth[:, ::2, ::2], view.depth[:, ::2, ::2], rtol=1e-3)


def test_absent_files_are_named_and_the_way_out_too(folder, view):
    clip = clip_at(folder, view)
    models = precomputed(PrecomputedOptions())
    for name in ("masks.npz", "depth.npz", "camera.npz"):
        path = folder / NAME / name
        path.rename(path.with_suffix(".away"))
        with pytest.raises(FileNotFoundError, match=rf"{name}: not there.*perception\.precomputed\.fill=embedded"):
            answers(clip)
        path.with_suffix(".away").rename(path)
    assert models.tracker.available(clip)
    assert models.geometry.available(clip)
    assert not precomputed(PrecomputedOptions(root=f"{folder}/elsewhere")).tracker.available(clip)


def test_what_is_absent_is_filled_in(folder, view):
    clip, fill = clip_at(folder, view), Fill()
    models = precomputed(PrecomputedOptions(), Models(fill, fill, fill))
    (folder / NAME / "masks.npz").unlink()
    assert (models.tracker.track(clip).labels == 1).all()

    (folder / NAME / "depth.npz").rename(folder / NAME / "depth.away")
    estimate = models.geometry.geometry(clip, None)  # camera given, depth filled in by a model that is told K
    np.testing.assert_allclose(fill.K, view.K[0], rtol=1e-6)
    np.testing.assert_allclose(estimate.K, view.K, rtol=1e-6)
    assert estimate.c2w_exact
    assert (estimate.depth == 3).all()
    assert models.depth.depth(clip, None, estimate).kind == "metric"

    (folder / NAME / "depth.away").rename(folder / NAME / "depth.npz")
    (folder / NAME / "camera.npz").unlink()
    estimate = models.geometry.geometry(clip, None)  # depth given, K filled in
    assert (estimate.K[:, 0, 0] == 7).all()
    assert estimate.c2w is None
    np.testing.assert_allclose(estimate.depth, view.depth, rtol=4e-5)
    known = replace(clip, K=view.K[0], K_source="metadata")  # or the video itself knows its focal length
    estimate = precomputed(PrecomputedOptions()).geometry.geometry(known, None)
    np.testing.assert_allclose(estimate.K[0], view.K[0], rtol=1e-6)
    assert estimate.K_source == "metadata"


def test_arrays_of_the_wrong_length_are_refused(folder, view):
    arrays = truth_arrays(view)
    np.savez(folder / NAME / "masks.npz", labels=arrays["masks.npz"]["labels"][:-1])
    clip = clip_at(folder, view)
    assert len(precomputed().tracker.track(clip).labels) == 9  # decoders disagree about one last frame
    np.savez(folder / NAME / "masks.npz", labels=arrays["masks.npz"]["labels"][:6])
    with pytest.raises(ValueError, match=r"masks\.npz: clip .* shows frames 0 to 8 .* at least 9 frames"):
        precomputed().tracker.track(clip)
    np.savez(folder / NAME / "depth.npz", z=view.depth)
    with pytest.raises(ValueError, match=r"depth\.npz: expected an array 'depth', found \['z'\]"):
        precomputed().geometry.geometry(clip, None)
    write_recording(folder, Recording(NAME, {}, ""), view)
    np.savez(folder / NAME / "camera.npz", K=view.K, c2w=2 * view.c2w)
    with pytest.raises(ValueError, match="rigid motions"):
        precomputed().geometry.geometry(clip, None)


def test_labels_become_contiguous_and_void_stays_dynamic(folder, view):
    labels = np.zeros((9, 96, 168), np.uint8)
    labels[:, :10], labels[3:, 20:30], labels[:, 40:50] = 7, 3, 255
    dynamic = np.zeros(labels.shape, bool)
    dynamic[:, 60:70] = True
    np.savez(folder / NAME / "masks.npz", labels=labels, dynamic=dynamic)
    tracks = precomputed(PrecomputedOptions(category="dog")).tracker.track(clip_at(folder, view))
    assert [(s.label, s.category) for s in tracks.subjects] == [(1, "dog"), (2, "dog")]
    assert (tracks.labels[:, :10] == 2).all()
    assert (tracks.labels[3:, 20:30] == 1).all()
    assert not tracks.labels[:, 40:].any()
    assert tracks.dynamic[:, 40:50].all()
    assert tracks.dynamic[:, 60:70].all()
    assert not tracks.dynamic[:, 70:].any()
    assert (tracks.subjects[0].score == [0, 0, 0, 1, 1, 1, 1, 1, 1]).all()


def test_a_root_of_its_own_and_the_in_memory_truth_agree(folder, view, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("videos")
    clip = clip_at(elsewhere, view)
    _, estimate, _ = answers(clip, root=str(folder))
    _, models = oracle_from_view(view)
    exact = models.geometry.exact.geometry.geometry(clip, None)
    np.testing.assert_allclose(estimate.c2w, exact.c2w, atol=1e-6)
    np.testing.assert_allclose(estimate.depth, exact.depth, rtol=4e-5)
    np.testing.assert_allclose(estimate.up, exact.up, atol=1e-6)
