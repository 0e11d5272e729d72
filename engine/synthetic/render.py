"""Renders a world as one agent sees it, by ray casting on the CPU, with the exact truth of every pixel.

Depth and labels are those of the ray through the pixel's centre, nothing else. Colour is that ray's too, except at
edges (depth, normal, material, shadow), where four more rays are averaged.
"""

from dataclasses import dataclass

import numpy as np

from engine.geometry import camera as geometry
from engine.synthetic.figure import pose_figure
from engine.synthetic.mesh import Mesh, merge, yaw_pose
from engine.synthetic.texture import Atlas
from engine.synthetic.world import World

# Rotated grid of four samples in a pixel (offsets from its centre): no two share a row or a column.
_SUBSAMPLES = np.array([[-0.125, -0.375], [0.375, -0.125], [-0.375, 0.125], [0.125, 0.375]])
_SHADOW_BIAS = 0.004  # metres off the surface, so that faceted round surfaces do not shade themselves


@dataclass(frozen=True)
class View:
    """What one agent saw, and the truth.

    frames   uint8 [T,H,W,3] RGB
    depth    float32 [T,H,W] z-depth in metres at pixel centres, 0 = sky
    labels   uint8 [T,H,W], 0 = background, n = the n-th of `figures` (the camera's holder is not in the picture)
    K        float64 [T,3,3] pixels
    c2w      float64 [T,4,4] camera to the world's frame, metres, exact
    figures  agent index of every label: figures[n-1] has label n
    centroid float32 [N,T,3] world metres, mean of the surface points behind each figure's pixels, NaN when unseen
    root     float32 [N,T,3] world metres, centre of each figure's pelvis
    heading  float32 [N,T] radians, atan2(d_x, d_z) of the facing direction
    """

    world: World
    agent: int
    frames: np.ndarray
    depth: np.ndarray
    labels: np.ndarray
    K: np.ndarray
    c2w: np.ndarray
    figures: tuple[int, ...]
    centroid: np.ndarray
    root: np.ndarray
    heading: np.ndarray


def render(world: World, agent: int = 0) -> View:
    """The view of one agent. Equal worlds give equal bytes."""
    if not 0 <= agent < len(world.agents):
        raise ValueError(f"agent {agent}: the world has agents 0 to {len(world.agents) - 1}")
    painter = _Painter(world)
    others = tuple(i for i in range(len(world.agents)) if i != agent)
    T, H, W, N = world.frames, world.height, world.width, len(others)
    path = world.agents[agent].camera
    frames, depth = np.zeros((T, H, W, 3), np.uint8), np.zeros((T, H, W), np.float32)
    labels = np.zeros((T, H, W), np.uint8)
    centroid, root = np.full((N, T, 3), np.nan, np.float32), np.zeros((N, T, 3), np.float32)
    heading = np.stack([world.agents[i].motion.heading for i in others]) if others else np.zeros((0, T))
    for t in range(T):
        posed = [_posed(world, i, t) for i in range(len(world.agents))]
        frames[t], depth[t], labels[t] = painter.paint(path.K[t], path.c2w[t], [m for m, _ in posed], agent)
        for n, i in enumerate(others):
            root[n, t] = posed[i][1]
            mine = labels[t] == n + 1
            if mine.any():
                points = geometry.unproject(path.K[t], geometry.pixel_grid(H, W)[mine], depth[t][mine])
                centroid[n, t] = geometry.transform(path.c2w[t], points.mean(0, dtype=np.float64))
    return View(
        world, agent, frames, depth, labels, path.K, path.c2w, others, centroid, root, heading.astype(np.float32)
    )


def _posed(world: World, agent: int, t: int) -> tuple[Mesh, np.ndarray]:
    a = world.agents[agent]
    x, z = a.motion.ground[t]
    return pose_figure(a.figure, yaw_pose(a.motion.heading[t], (x, 0, z)), a.motion.phase[t], a.motion.effort[t])


class _Faces:
    """Per-face tables that turn a hit (face, barycentric coordinates) into normal, texture place and material."""

    def __init__(self, mesh: Mesh, material: np.ndarray):
        corners = np.concatenate([mesh.normals, mesh.uv], 1)[mesh.faces].astype(np.float32)  # [F,3,5]
        self.base, self.du, self.dv = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        a, b, c = np.moveaxis(mesh.vertices.astype(np.float64)[mesh.faces], 1, 0)
        normal = np.cross(b - a, c - a)
        self.plane = np.concatenate([normal, np.einsum("fc,fc->f", normal, a)[:, None]], 1)  # n and n.a
        self.material = material

    def at(self, face: np.ndarray, bary: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(normal [P,3], not unit; uv [P,2])."""
        value = self.base[face] + bary[:, :1] * self.du[face] + bary[:, 1:] * self.dv[face]
        return value[:, :3], value[:, 3:]

    def depth(self, face: np.ndarray, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Ray parameter float64 [P] where rays from one origin [3] cross the planes of the faces: the caster's own,
        in float32, is off by some millimetres where a large face is seen at a grazing angle."""
        plane = self.plane[face]
        return (plane[:, 3] - plane[:, :3] @ origin) / np.einsum("pc,pc->p", plane[:, :3], direction)


class _Painter:
    """Casts the rays of one world. The scenery's tree is built once; the figures' is rebuilt every frame."""

    def __init__(self, world: World):
        self.height, self.width = world.height, world.width
        self.light, self.open_air = world.scenery.light, world.scenery.open_air
        scenery = world.scenery.mesh
        bodies = [part for a in world.agents for _, part in a.figure.parts]
        self.materials = tuple(dict.fromkeys([*scenery.materials, *(m for b in bodies for m in b.materials)]))
        self.material_index = {m: i for i, m in enumerate(self.materials)}
        self.atlas = Atlas(sorted({m.texture for m in self.materials} | {"mottle"}), world.seed)
        self.texture = np.array([self.atlas.index[m.texture] for m in self.materials])
        self.tile = np.array([m.tile for m in self.materials], np.float32)
        self.tint = np.array([m.tint for m in self.materials], np.float32)
        self.scenery = _Faces(scenery, self._global(scenery))
        self.scenery_rays = _scene(scenery)

    def _global(self, mesh: Mesh) -> np.ndarray:
        return np.array([self.material_index[m] for m in mesh.materials])[mesh.material]

    def paint(self, K, c2w, bodies: list[Mesh], holder: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(RGB uint8 [H,W,3], z-depth float32 [H,W], labels uint8 [H,W]); everyone's shadow falls, the holder's own
        body is not seen."""
        seen = [b for i, b in enumerate(bodies) if i != holder]
        self.shadow_rays = _scene(merge(bodies))
        self.figures = None
        if seen:
            mesh = merge(seen)
            self.figures = _Faces(mesh, self._global(mesh))
            self.figure_label = np.repeat(np.arange(1, len(seen) + 1), [len(b.faces) for b in seen]).astype(np.uint8)
            self.figure_rays = _scene(mesh)
            self.figure_box = _bounds(K, geometry.transform(geometry.invert(c2w), mesh.vertices))

        grid = geometry.pixel_grid(self.height, self.width).reshape(-1, 2).astype(np.float64)
        colour, depth, label, mark = self._cast(K, c2w, grid)
        edge = _edges(depth, label, mark, (self.height, self.width))
        where = np.flatnonzero(edge)
        if len(where):
            fine = (grid[where][None] + _SUBSAMPLES[:, None]).reshape(-1, 2)
            colour[where] = self._cast(K, c2w, fine)[0].reshape(4, -1, 3).mean(0)
        shape = (self.height, self.width)
        return _encode(colour).reshape(*shape, 3), depth.reshape(shape), label.reshape(shape)

    def _cast(self, K, c2w, uv):
        """Linear colour [P,3], depth [P], label [P] and a mark [P,4] (normal and material-with-shadow) that tells
        edges, of image points uv [P,2]."""
        # With z = 1 in the camera's frame the ray parameter of a hit IS its z-depth.
        direction, centre = geometry.rays(K, uv) @ c2w[:3, :3].T, c2w[:3, 3]
        rays = np.concatenate([np.broadcast_to(centre, direction.shape), direction], 1).astype(np.float32)
        depth, face, bary = _hits(self.scenery_rays, rays)
        label = np.zeros(len(uv), np.uint8)
        if self.figures is not None:
            x0, y0, x1, y1 = self.figure_box
            near = np.flatnonzero((uv[:, 0] > x0) & (uv[:, 0] < x1) & (uv[:, 1] > y0) & (uv[:, 1] < y1))
            z, f, b = _hits(self.figure_rays, rays[near])
            front = z < depth[near]
            i = near[front]
            depth[i], face[i], bary[i], label[i] = z[front], f[front], b[front], self.figure_label[f[front]]
        hit = np.isfinite(depth)
        colour = self._sky(direction)
        mark = np.zeros((len(uv), 4), np.float32)
        for faces, which in ((self.scenery, hit & (label == 0)), (self.figures, label > 0)):
            i = np.flatnonzero(which)
            if faces is not None and len(i):
                depth[i] = faces.depth(face[i], centre, direction[i])
                point = centre + depth[i, None] * direction[i]
                colour[i], mark[i] = self._shade(faces, face[i], bary[i], point, direction[i], depth[i] / K[0, 0])
        return colour, np.where(hit, depth, 0).astype(np.float32), label, mark

    def _shade(self, faces, face, bary, point, direction, pixel):
        """Linear colour of surface points and their marks; `pixel` is the width of a pixel there in metres."""
        normal, uv = faces.at(face, bary)
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
        facing = -np.einsum("pc,pc->p", normal, direction)
        normal[facing < 0] *= -1
        facing = np.abs(facing) / np.linalg.norm(direction, axis=1)
        material = faces.material[face]
        tile = self.tile[material]
        # A pixel's footprint is `pixel` across the slope and pixel / facing along it; their geometric mean is between
        # blur and shimmer.
        width = pixel / np.sqrt(np.clip(facing, 0.05, 1))
        albedo = self.atlas.read(self.texture[material], uv / tile[:, None], width / tile) / 255
        stain = np.full(len(face), self.atlas.index["mottle"])
        scale = np.float32(9.0)  # metres: far from any tile, so that the product does not repeat in view
        albedo *= self.atlas.read(stain, uv / scale, width / scale) / 235 * self.tint[material]
        to_light = self.light.direction[None] if self.light.position is None else self.light.position - point
        to_light = np.broadcast_to(to_light, point.shape).astype(np.float32)
        distance = np.linalg.norm(to_light, axis=1)
        cosine = np.einsum("pc,pc->p", normal, to_light) / distance
        lit = cosine > 0
        i = np.flatnonzero(lit)
        shadow = np.concatenate([point[i] + _SHADOW_BIAS * normal[i], to_light[i]], 1).astype(np.float32)
        far = np.inf if self.light.position is None else 1.0
        lit[i] = ~(_blocked(self.scenery_rays, shadow, far) | _blocked(self.shadow_rays, shadow, far))
        sun = self.light.strength * np.where(lit, cosine, 0)
        if self.light.position is not None:
            sun *= 12 / (6 + distance**2)  # softened inverse square: 1 at 2.4 m
        ambient = self.light.ambient * (0.80 - 0.20 * normal[:, 1] + 0.10 * normal[:, 0])
        light = ambient[:, None] * [0.94, 0.99, 1.08] + sun[:, None] * [1.06, 1.0, 0.90]
        colour = np.square(np.clip(albedo, 0, 1)) * light  # sRGB to linear, with the exponent 2 for 2.2
        return colour, np.concatenate([normal, (2 * material + lit)[:, None]], 1)

    def _sky(self, direction):
        if not self.open_air:
            return np.zeros((len(direction), 3), np.float32)
        up = np.clip(-direction[:, 1] / np.linalg.norm(direction, axis=1), 0, 1)[:, None]
        return (np.array([0.62, 0.74, 0.86]) + up * np.array([-0.55, -0.42, -0.10])).astype(np.float32)


def _scene(mesh: Mesh):
    import open3d as o3d

    scene = o3d.t.geometry.RaycastingScene()
    vertices, faces = mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32)
    scene.add_triangles(vertices, faces)  # type: ignore[call-overload]  # arrays are taken; Open3D's stub is silent
    return scene


def _hits(scene, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ray parameter float32 [P], inf where nothing is hit; face int [P]; barycentric [P,2])."""
    answer = scene.cast_rays(np.ascontiguousarray(rays))
    face = answer["primitive_ids"].numpy().astype(np.int64)
    depth = answer["t_hit"].numpy()
    face[~np.isfinite(depth)] = 0
    return depth.copy(), face, answer["primitive_uvs"].numpy().copy()


def _blocked(scene, rays: np.ndarray, far: float) -> np.ndarray:
    if not len(rays):
        return np.zeros(0, bool)
    return scene.test_occlusions(np.ascontiguousarray(rays), tnear=0.0, tfar=far).numpy()


def _bounds(K, points) -> tuple[float, float, float, float]:
    """Image box (x0, y0, x1, y1) that holds camera-frame points; everything when one is close to the camera plane."""
    if points[:, 2].min() < 0.1:
        return -np.inf, -np.inf, np.inf, np.inf
    uv, _ = geometry.project(K, points)
    return (*(uv.min(0) - 1), *(uv.max(0) + 1))


def _edges(depth, label, mark, shape) -> np.ndarray:
    """bool [P] pixels at an edge of shape, material or shadow, one pixel to either side."""
    H, W = shape
    inverse = np.where(depth > 0, 1 / np.maximum(depth, 1e-6), 0).reshape(H, W)
    label, kind, normal = label.reshape(H, W), mark[:, 3].reshape(H, W), mark[:, :3].reshape(H, W, 3)
    out = np.zeros((H, W), bool)
    for a, b in (((slice(None), slice(1, None)), (slice(None), slice(-1))), ((slice(1, None),), (slice(-1),))):
        jump = np.abs(inverse[a] - inverse[b]) > 0.03 * np.maximum(inverse[a], inverse[b])
        step = jump | (label[a] != label[b]) | (kind[a] != kind[b])
        step |= np.einsum("hwc,hwc->hw", normal[a], normal[b]) < 0.85
        out[a] |= step
        out[b] |= step
    return out.ravel()


def _encode(linear: np.ndarray) -> np.ndarray:
    return np.rint(255 * np.sqrt(np.clip(linear, 0, 1))).astype(np.uint8)
