"""The embedded Geometry: camera motion, metric scale from people, plane-sweep depth, a ground plane and a backdrop."""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from engine.geometry.camera import invert, pixel_grid, pose, rays, unproject
from engine.geometry.classify import MotionOptions, fit_pan, long_tracks
from engine.geometry.sfm import Reconstruction, solve_monocular
from engine.geometry.tracks import PointTracks, TrackOptions, track_points
from engine.options import option
from engine.perception.embedded.body import body_depth
from engine.perception.embedded.complete import complete, upsample
from engine.perception.embedded.flow import shrink
from engine.perception.embedded.focal import FocalOptions, prior_intrinsics
from engine.perception.embedded.ground import GroundOptions, Plane, fit_ground, ground_from_feet, prior_up
from engine.perception.embedded.measure import measure_people
from engine.perception.embedded.pose import PoseNet
from engine.perception.embedded.scale import (
    Contact,
    ScaleOptions,
    contacts,
    focal_sigma,
    people_scale,
    smooth_distances,
)
from engine.perception.embedded.sky import SkyOptions, find_sky
from engine.perception.embedded.sweep import SweepOptions, sweep
from engine.types import Clip, GeometryEstimate, Tracks


@dataclass
class EmbeddedGeometryOptions:
    focal: FocalOptions = option(FocalOptions(), "focal length where neither user nor metadata gives one")
    points: TrackOptions = option(TrackOptions(), "points followed for the camera's motion")
    sweep: SweepOptions = option(SweepOptions(), "plane-sweep stereo")
    ground: GroundOptions = option(GroundOptions(), "ground plane")
    scale: ScaleOptions = option(ScaleOptions(), "metres")
    sky: SkyOptions = option(SkyOptions(), "sky")
    backdrop: float = option(
        4.0, "distance of the backdrop over the people's median distance, where the camera does not move"
    )
    least_parallax: float = option(
        1.7,
        "median motion of the points that turning on the spot does not explain, pixels at 832 wide, below which the "
        "camera is taken to turn only: rolling shutter and lens distortion alone leave about 1 (1.3 on a tele pan)",
    )
    farthest: float = option(200.0, "no depth beyond this many metres: parallax and ground grazing end there")


@dataclass(frozen=True)
class _Stereo:
    """What is known at the sweep's size: inverse depth and confidence [T,h,w], K [T,3,3] there."""

    inverse: np.ndarray
    confidence: np.ndarray
    K: np.ndarray
    gray: np.ndarray
    moving: np.ndarray


class EmbeddedGeometry:
    """Depth without any depth network. One instance per worker; deterministic."""

    def __init__(self, options: EmbeddedGeometryOptions) -> None:
        self.options = options
        self.net = PoseNet()

    def geometry(self, clip: Clip, tracks: Tracks) -> GeometryEstimate:
        """Intrinsics, metric depth, sky, poses in metres and the up direction.

        Works with any tracker's masks. Poses are None where the camera's motion could not be solved.
        `models["embedded"]` tells the class of the motion and which cue gave the scale: "people", "camera_height" or
        "median_depth".
        """
        o = self.options
        K, K_source = prior_intrinsics(clip, o.focal)
        prior_sigma = 0.0 if clip.K is not None else o.focal.prior_sigma
        points = track_points(clip.frames, ~tracks.dynamic, o.points)
        motion = solve_monocular(points, K, prior_sigma)
        free = motion.quality["free_focal"], motion.quality["focal_log_sigma"]
        motion = _believable(motion, points, K, clip.size[1], o.least_parallax)
        if clip.K is None and not np.allclose(motion.K[:, 0, 0], K[0, 0], rtol=1e-3):
            K_source = "estimated"
        solved, solved_sigma = free if motion.kind == "general" else (float(np.median(motion.K[:, 0, 0])), np.inf)
        focal_log_sigma = focal_sigma(solved, solved_sigma, K[0, 0], prior_sigma)
        K, c2w = motion.K, motion.c2w
        people = measure_people(self.net, clip.frames, tracks.labels, len(tracks.subjects), K, o.scale.stature)
        stereo = self._stereo(clip, tracks, motion)

        uprights = [c2w[t, :3, :3] @ m.upright for person in people for t, (_, m) in person.items()]
        up = prior_up(c2w, np.array(uprights).reshape(-1, 3))
        standing = [contacts(person, up, c2w) for person in people]
        scale, sigma, factors, cue, plane = self._metres(stereo, c2w, K, up, standing)
        sigma = float(np.hypot(np.hypot(sigma, focal_log_sigma), o.scale.failed_sigma * (motion.kind == "failed")))
        c2w = c2w.copy()
        c2w[:, :3, 3] *= scale
        stereo = replace(stereo, inverse=stereo.inverse / np.float32(scale))

        depth, confidence, sky = self._surfaces(clip, stereo, c2w, plane, people)
        self._place_people(clip, tracks, people, factors, plane, c2w, K, depth, confidence)
        return GeometryEstimate(
            K=K.astype(np.float32),
            depth=depth,
            sky=sky,
            confidence=confidence,
            c2w=None if motion.kind == "failed" else c2w.astype(np.float32),
            log_scale_sigma=sigma,
            K_source=K_source,
            up=plane.normal.astype(np.float32),
            models={**self.net.models, "embedded": {"camera": motion.kind, "scale": cue, "licence": "Apache-2.0"}},
        )

    # --- stereo

    def _stereo(self, clip: Clip, tracks: Tracks, motion: Reconstruction) -> _Stereo:
        height, width = clip.size
        factor = max(1.0, width / self.options.sweep.width)
        frames = shrink(clip.frames, factor)
        h, w = frames.shape[1:3]
        gray = np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames])
        moving = np.stack(
            [cv2.resize(d.astype(np.uint8), (w, h), interpolation=cv2.INTER_AREA) > 0 for d in tracks.dynamic]
        )
        K = motion.K.copy()
        K[:, 0] *= w / width
        K[:, 1] *= h / height
        known = np.isfinite(motion.points[:, 0]) if len(motion.points) else np.zeros(0, bool)
        inverse = confidence = np.zeros(gray.shape, np.float32)
        if motion.kind == "general" and known.sum() >= 20:
            nearest = _nearest(motion.points[known], motion.c2w)
            inverse, confidence = sweep(gray, ~moving, K[0], motion.c2w, (0.0, 1 / nearest), self.options.sweep)
        return _Stereo(inverse, confidence, K, gray, moving)

    # --- metres and the ground

    def _metres(
        self, stereo: _Stereo, c2w: np.ndarray, K: np.ndarray, up: np.ndarray, standing: list[list[Contact]]
    ) -> tuple[float, float, list[float], str, Plane]:
        """Metres per unit, its log's standard deviation, each person's factor, the cue used, the ground in metres."""
        o = self.options
        parallax = bool((stereo.confidence > 0.3).any())
        if not parallax:
            feet, eyes = _feet(standing, K, c2w)
            plane = ground_from_feet(feet, c2w[:, :3, 3], up, o.ground) if len(feet) else None
            if plane is None:
                level = Plane(up, float(c2w[0, :3, 3] @ up) - o.scale.camera_height, 0.0)
                # How far the camera looks down is unknown too: ten degrees move the ground by about 40 %.
                sigma = float(np.hypot(o.scale.camera_height_sigma, 0.4))
                return 1.0, sigma, [1.0] * len(standing), "camera_height", level
            found = people_scale([_ratios(c, plane, stereo, K, c2w) for c in standing], o.scale.stature_sigma)
            scale, sigma, factors = found or (1.0, o.scale.stature_sigma, [1.0] * len(standing))
            return 1.0, float(np.hypot(sigma, 0.05)), factors, "people", plane.scaled(scale)
        points, weight, eyes = _cloud(stereo, c2w)
        plane = fit_ground(points, weight, eyes, up, o.ground)
        found = people_scale([_ratios(c, plane, stereo, K, c2w) for c in standing], o.scale.stature_sigma)
        if found is not None:
            scale, sigma, factors = found
            cue = "people"
        elif plane is not None:
            scale = o.scale.camera_height / float(np.median(plane.height(c2w[:, :3, 3])))
            sigma, factors, cue = o.scale.camera_height_sigma, [1.0] * len(standing), "camera_height"
        else:
            scale = o.scale.median_depth * float(np.median(stereo.inverse[stereo.confidence > 0.3]))
            sigma, factors, cue = o.scale.median_depth_sigma, [1.0] * len(standing), "median_depth"
        if plane is None:
            # No floor in sight: one far below keeps the surface's prior without touching what stereo saw.
            plane = Plane(up, float(np.percentile(points @ up, 1)), 0.0)
        return scale, sigma, factors, cue, plane.scaled(scale)

    # --- surfaces

    def _surfaces(
        self, clip: Clip, stereo: _Stereo, c2w: np.ndarray, plane: Plane, people: list
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Metric depth, confidence float32 [T,H,W] and sky bool [T,H,W] of the world without people."""
        o, (height, width) = self.options, clip.size
        sure = stereo.confidence > 0.3
        if sure.any():
            far = float(np.percentile(stereo.inverse[sure], 3))
        else:
            distances = [m.distance for person in people for _, m in person.values()]
            far = 1 / (o.backdrop * (float(np.median(distances)) if distances else o.scale.median_depth))
        far = max(far, 1 / o.farthest)
        depth = np.zeros((len(clip.frames), height, width), np.float32)
        confidence, sky = np.zeros_like(depth), np.zeros(depth.shape, bool)
        grid, size = pixel_grid(*stereo.gray.shape[1:]), stereo.gray.shape[:0:-1]
        views = zip(c2w, stereo.K, strict=True)
        grounds = np.stack([plane.inverse_depth(c, rays(K, grid)).astype(np.float32) for c, K in views])
        small = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in clip.frames])
        blocked = stereo.moving | (grounds > far)
        skies = find_sky(small, blocked, stereo.inverse, stereo.confidence, 3 * far, o.sky)
        for t, frame in enumerate(clip.frames):
            ground, open_air = grounds[t], skies[t]
            prior = np.maximum(ground, np.float32(far))
            weight = np.where(open_air, 0, stereo.confidence[t])
            if plane.support > 0.3:  # nothing lies under a floor: a moving shadow and a reflection only look as if
                weight = np.where(stereo.inverse[t] < 0.85 * ground, 0, weight)
            surface = complete(stereo.inverse[t], weight, prior, stereo.gray[t], open_air)
            surface = np.maximum(surface, 1 / o.farthest)
            full = upsample(surface, stereo.gray[t], cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))
            sky[t] = cv2.resize(open_air.astype(np.float32), (width, height)) > 0.5
            depth[t] = np.where(sky[t], 0, 1 / np.maximum(full, 1 / o.farthest))
            # a guess is little, but more than nothing: a camera that only turns renders well from any depth
            guess = np.where(ground > far, max(0.3 * plane.support, 0.06), 0.06)
            trust = np.maximum(weight, guess).astype(np.float32)
            confidence[t] = np.where(sky[t], 0, cv2.resize(trust, (width, height)))
        return depth, confidence, sky

    def _place_people(self, clip, tracks, people, factors, plane, c2w, K, depth, confidence) -> None:
        """Write the bodies' own depth into their pixels, in place."""
        height, width = clip.size
        for label, (person, factor) in enumerate(zip(people, factors, strict=True), 1):
            if len(person) < 3:
                continue
            frames = np.array(sorted(person))
            distance = np.array([person[t][1].distance for t in frames])
            smooth = factor * smooth_distances(frames, distance, len(clip.frames))
            for t in np.flatnonzero((tracks.labels == label).any((1, 2))):
                mask = tracks.labels[t] == label
                if t in person:
                    body, metric = person[t]
                    grid, _ = body_depth(metric, body, height, width)
                    z = cv2.resize(factor * grid, (width, height)) + np.float32(smooth[t] - factor * metric.distance)
                    depth[t][mask] = np.maximum(z[mask], 0.1)
                    confidence[t][mask] = 0.6
                else:
                    depth[t][mask] = smooth[t]
                    confidence[t][mask] = 0.3


def _believable(
    motion: Reconstruction, points: PointTracks, K: np.ndarray, width: int, least_parallax: float
) -> Reconstruction:
    """The reconstruction; one that only turns where the parallax (pixels at 832 wide) is too small to hold a path; one
    at rest with the prior K [3,3] where no solution was found."""
    count, nothing = len(motion.c2w), np.full_like(motion.points, np.nan)
    if motion.kind == "failed":
        still = np.repeat(np.eye(4)[None], count, 0)
        return replace(motion, c2w=still, K=np.repeat(K[None], count, 0), points=nothing)
    if motion.kind != "general" or motion.quality["parallax_px"] >= least_parallax * width / 832:
        return motion
    uv = long_tracks(points).uv.astype(np.float64)
    R, focal, _ = fit_pan(uv, K, MotionOptions().rotation_px * width / 832)
    lens = np.repeat(K[None], count, 0)
    lens[:, [0, 1], [0, 1]] *= focal[:, None]
    return replace(motion, c2w=pose(R, np.zeros((count, 3))), K=lens, kind="rotation", points=nothing)


def _nearest(points: np.ndarray, c2w: np.ndarray) -> float:
    """A depth nearer than almost all reconstructed points in the frames that look at them."""
    w2c = invert(c2w[:: max(1, len(c2w) // 8)])
    z = np.einsum("ti,mi->tm", w2c[:, 2, :3], points) + w2c[:, 2, 3:]
    positive = z[z > 1e-3]
    return 0.7 * float(np.percentile(positive, 2))


def _cloud(stereo: _Stereo, c2w: np.ndarray, most: int = 20000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """World points [M,3] of confident stereo, their weight [M] and the camera centres [M,3] that saw them."""
    t, y, x = np.nonzero((stereo.confidence > 0.4) & (stereo.inverse > 1e-6))
    keep = np.linspace(0, len(t) - 1, min(most, len(t))).astype(int)
    t, y, x = t[keep], y[keep], x[keep]
    # With parallax the focal length is one for the whole clip.
    local = unproject(stereo.K[0], np.stack([x, y], -1) + 0.5, 1 / stereo.inverse[t, y, x].astype(np.float64))
    world = np.einsum("nij,nj->ni", c2w[t, :3, :3], local) + c2w[t, :3, 3]
    return world, stereo.confidence[t, y, x].astype(np.float64), c2w[t, :3, 3]


def _feet(standing: list[list[Contact]], K: np.ndarray, c2w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World points [k,3] of all contacts by their metric depth, and the camera centres."""
    all_contacts = [c for person in standing for c in person]
    if not all_contacts:
        return np.zeros((0, 3)), np.zeros((0, 3))
    t = np.array([c.frame for c in all_contacts])
    local = np.array([unproject(K[c.frame], c.uv, np.array(c.z)) for c in all_contacts])
    return np.einsum("nij,nj->ni", c2w[t, :3, :3], local) + c2w[t, :3, 3], c2w[t, :3, 3]


def _ratios(person: list[Contact], plane: Plane | None, stereo: _Stereo, K: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    """Metric depth of a person's soles over the scene's depth under them: of the ground plane, or, where there is
    none, of the confident stereo around the feet."""
    out = []
    zoom = stereo.K[0, 0, 0] / K[0, 0, 0]
    h, w = stereo.gray.shape[1:]
    for c in person:
        if plane is not None:
            inverse = float(plane.inverse_depth(c2w[c.frame], rays(K[c.frame], c.uv)))
        else:
            x, y = (c.uv * zoom).astype(int)
            r = max(3, w // 40)
            window = np.s_[c.frame, max(y - r // 2, 0) : min(y + r, h), max(x - r, 0) : min(x + r, w)]
            good = stereo.confidence[window] > 0.3
            inverse = float(np.median(stereo.inverse[window][good])) if good.sum() >= 10 else 0.0
        out.append(c.z * inverse if inverse > 0 else np.nan)
    return np.array(out)
