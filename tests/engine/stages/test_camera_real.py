"""Camera paths from real sensor depth, against the recorded poses (which are themselves good to 0.6 to 2 cm)."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from engine.geometry.camera import first_frame_world, invert
from engine.geometry.sfm import solve_monocular
from engine.geometry.tracks import TrackOptions, track_points
from engine.stages.camera import CameraOptions, solve_camera
from engine.stages.scene import SceneOptions, fuse_scene
from engine.types import GeometryEstimate, Tracks
from tests.bench.accuracy import path_errors
from tests.engine.geometry.analytic_room import clip_of

pytestmark = pytest.mark.real


def read(images: list[Path], depths: list[Path], unit: float) -> tuple[np.ndarray, np.ndarray]:
    """(frames uint8 [T,H,W,3], depth float32 [T,H,W] metres) of sorted files."""
    frames = np.stack([cv2.cvtColor(cv2.imread(str(p)), cv2.COLOR_BGR2RGB) for p in images])
    depth = np.stack([cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in depths]).astype(np.float32)
    return frames, np.where(depth == 65535, 0, depth) * unit


def solve(frames: np.ndarray, depth: np.ndarray, K: np.ndarray, K_source: str = "user"):
    nobody = np.zeros(depth.shape, bool)
    geometry = GeometryEstimate(
        K=np.repeat(K[None], len(frames), 0).astype(np.float32),
        depth=depth,
        sky=nobody,
        confidence=(depth > 0).astype(np.float32),
        K_source=K_source,
    )
    clip = clip_of(frames)
    scene = fuse_scene(clip, Tracks(nobody.astype(np.uint8), nobody, ()), geometry, None, SceneOptions())
    return solve_camera(clip, scene, CameraOptions())


def test_7scenes(real_data: Path):
    folder = real_data / "camera_pose" / "7scenes_a"
    images = sorted(folder.glob("*.color.jpg"))
    frames, depth = read(images, sorted(folder.glob("*.depth.png")), 1e-3)
    truth = np.stack([np.loadtxt(str(p).replace("color.jpg", "pose.txt")) for p in images])
    # Its colour camera was never calibrated (585 px is the depth camera's; the usual guess for colour is 525 px).
    K = np.array([[525.0, 0, 320], [0, 525, 240], [0, 0, 1]])
    camera = solve(frames, depth, K, "prior")
    found = path_errors(camera.c2w, first_frame_world(truth))
    assert camera.kind == "general"
    assert found["ate"] * found["path_m"] < 0.03
    assert abs(found["scale"]) < 0.08


def test_redwood(real_data: Path):
    folder = real_data / "camera_pose" / "open3d_redwood_5"
    frames, depth = read(sorted((folder / "color").iterdir()), sorted((folder / "depth").iterdir()), 1e-3)
    rows = (folder / "trajectory.log").read_text().splitlines()
    truth = np.stack([np.loadtxt(rows[5 * i + 1 : 5 * i + 5]) for i in range(len(frames))])
    camera = solve(frames, depth, np.array([[525.0, 0, 319.5], [0, 525, 239.5], [0, 0, 1]]))
    found = path_errors(camera.c2w, first_frame_world(truth))
    assert camera.kind == "general"
    assert found["ate"] < 0.02  # 2 mm of 10 cm
    assert found["rotation_deg"] < 0.2


def test_tum_cabinet_is_no_video_and_says_so(real_data: Path):
    """0.7 frames a second around a plain cabinet: nothing can be followed; the answer must be `failed`, not a path."""
    folder = real_data / "camera_pose" / "tum_fr3_cabinet"
    frames, depth = read(sorted((folder / "rgb").iterdir()), sorted((folder / "depth").iterdir()), 1 / 5000)
    camera = solve(frames, depth, np.array([[535.4, 0, 320.1], [0, 539.2, 247.6], [0, 0, 1]]))
    assert camera.kind == "failed"
    assert np.isfinite(camera.c2w).all()


@pytest.mark.parametrize("name", ["0bf152ef84195293", "0f68374b76390082", "2f25826f0d0ef09a", "3f79dc32d575bcdc"])
def test_real_estate_10k_without_depth(real_data: Path, name: str):
    folder = real_data / "camera_pose" / "re10k_clips_dev"
    video = cv2.VideoCapture(str(folder / f"{name}.mp4"))
    frames = []
    while (read := video.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    frames = np.stack(frames)
    table = np.loadtxt(folder / f"{name}.txt", skiprows=1)[: len(frames)]
    height, width = frames.shape[1:3]
    K = np.array([[table[0, 1] * width, 0, width / 2], [0, table[0, 2] * height, height / 2], [0, 0, 1]])
    w2c = np.tile(np.eye(4), (len(table), 1, 1))
    w2c[:, :3] = table[:, 7:].reshape(-1, 3, 4)
    truth = first_frame_world(invert(w2c))
    options = TrackOptions(cells=[12, 18], per_cell=3, window=13)
    found = solve_monocular(track_points(frames, None, options), K, 0.0, keyframe_every=2)
    assert found.kind == "general"
    errors = path_errors(found.c2w, truth)
    assert errors["sim3"] < 0.05
    assert errors["rotation_deg"] < 1.0
