"""Triangle meshes with normals, texture coordinates in metres and materials, and the few shapes worlds are made of.

World axes of the synthetic worlds: x right, y DOWN, z forward (OpenCV's, so that headings and poses need no flip); the
ground is y = 0 and a height h is y = -h.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Vector = Sequence[float] | np.ndarray  # x, y, z


@dataclass(frozen=True)
class Material:
    """A texture by name, the edge of its tile in metres and a tint that multiplies it (sRGB, 0..1)."""

    texture: str
    tile: float = 2.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Mesh:
    """vertices [V,3] metres, normals [V,3] unit, uv [V,2] metres along the surface, faces int [F,3],
    material int [F] index into `materials`."""

    vertices: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    faces: np.ndarray
    material: np.ndarray
    materials: tuple[Material, ...]


def merge(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of many; equal materials are shared."""
    materials = tuple(dict.fromkeys(m for mesh in meshes for m in mesh.materials))
    index = {m: i for i, m in enumerate(materials)}
    start = np.cumsum([0] + [len(m.vertices) for m in meshes])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.normals for m in meshes]),
        np.concatenate([m.uv for m in meshes]),
        np.concatenate([m.faces + s for m, s in zip(meshes, start, strict=False)]),
        np.concatenate([np.array([index[x] for x in m.materials])[m.material] for m in meshes]),
        materials,
    )


def moved(mesh: Mesh, pose: np.ndarray) -> Mesh:
    """The mesh under a rigid motion [4,4]."""
    R = pose[:3, :3]
    return Mesh(
        mesh.vertices @ R.T + pose[:3, 3], mesh.normals @ R.T, mesh.uv, mesh.faces, mesh.material, mesh.materials
    )


def yaw_pose(yaw: float, at: Vector) -> np.ndarray:
    """Rigid motion that turns +z to (sin yaw, 0, cos yaw) and then moves to `at`."""
    c, s = np.cos(yaw), np.sin(yaw)
    out = np.eye(4)
    out[:3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    out[:3, 3] = at
    return out


def quad(corner: Vector, side_u: Vector, side_v: Vector, material: Material) -> Mesh:
    """A parallelogram from `corner` along two sides (metres); uv runs along the sides."""
    corner, u, v = (np.asarray(x, float) for x in (corner, side_u, side_v))
    normal = np.cross(u, v) / np.linalg.norm(np.cross(u, v))
    lu, lv = np.linalg.norm(u), np.linalg.norm(v)
    # The texture starts at a place that depends on the corner, so that equal walls do not look alike.
    offset = np.array([corner @ u / lu, corner @ v / lv])
    return Mesh(
        np.stack([corner, corner + u, corner + u + v, corner + v]),
        np.repeat(normal[None], 4, 0),
        np.array([[0, 0], [lu, 0], [lu, lv], [0, lv]]) + offset,
        np.array([[0, 1, 2], [0, 2, 3]]),
        np.zeros(2, int),
        (material,),
    )


def box(centre: Vector, size: Vector, material: Material, yaw: float = 0.0) -> Mesh:
    """A box of `size` metres (x, y, z) around `centre`, turned by `yaw` radians about the vertical."""
    size, centre = np.asarray(size, float), np.asarray(centre, float)
    flat = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)
    vertices, normals, uv = np.zeros((6, 4, 3)), np.zeros((6, 4, 3)), np.zeros((6, 4, 2))
    for i in range(6):
        axis, sign = i // 2, 2 * (i % 2) - 1
        u, v = ((2, 1), (0, 2), (0, 1))[axis]  # the texture's x and y: upright on the sides
        vertices[i][:, [u, v]], vertices[i][:, axis] = flat / 2 * size[[u, v]], sign * size[axis] / 2
        normals[i][:, axis] = sign
        uv[i] = flat / 2 * size[[u, v]] + centre[[u, v]]  # boxes at other places look different
    quads = 4 * np.arange(6)[:, None, None] + np.array([[0, 1, 2], [0, 2, 3]])
    mesh = Mesh(
        vertices.reshape(-1, 3),
        normals.reshape(-1, 3),
        uv.reshape(-1, 2),
        quads.reshape(-1, 3),
        np.zeros(12, int),
        (material,),
    )
    return moved(mesh, yaw_pose(yaw, centre))


def prism(profile: Sequence[tuple[float, float]], width: float, material: Material) -> Mesh:
    """A profile [(z, height), ...], star-shaped about its centre and run through from low front upwards, drawn out to
    `width` metres along x around x = 0."""
    outline = np.array([(z, -h) for z, h in profile])
    centre, half, parts = outline.mean(0), width / 2, []
    for (z0, y0), (z1, y1) in zip(outline, np.roll(outline, -1, 0), strict=True):
        parts.append(quad((-half, y0, z0), (width, 0, 0), (0, y1 - y0, z1 - z0), material))
        for x in (-half, half):
            corners = np.array([(x, y0, z0), (x, y1, z1), (x, centre[1], centre[0])])
            normals = np.broadcast_to([np.sign(x), 0.0, 0.0], (3, 3))
            parts.append(
                Mesh(corners, normals, corners[:, [2, 1]], np.array([[0, 1, 2]]), np.zeros(1, int), (material,))
            )
    return merge(parts)


def loft(rings: Sequence[tuple[float, float, float, float]], material: Material, sides: int = 16) -> Mesh:
    """A closed tube along +y through elliptic rings (y, half width x, half depth z, offset z), in metres.

    Normals are those of the smooth surface (averaged over the faces).
    """
    y, a, b, o = np.asarray(rings, float).T
    angle = np.linspace(0, 2 * np.pi, sides + 1)  # the seam is doubled, so that uv does not run backwards
    vertices = np.stack(
        [a[:, None] * np.cos(angle), np.repeat(y[:, None], sides + 1, 1), b[:, None] * np.sin(angle) + o[:, None]], -1
    )
    along = np.concatenate([[0], np.cumsum(np.hypot(np.diff(y), np.diff(np.maximum(a, b))))])
    girth = np.maximum(a, b).max()
    uv = np.stack([np.broadcast_to(angle * girth, vertices.shape[:2]), np.repeat(along[:, None], sides + 1, 1)], -1)
    du = np.stack([-a[:, None] * np.sin(angle), 0 * vertices[..., 1], b[:, None] * np.cos(angle)], -1)
    du[0], du[-1] = du[1], du[-2]  # the end rings may be points
    dv = np.gradient(vertices, axis=0)
    normals = np.cross(dv, du)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)
    n, m = vertices.shape[:2]
    i = (np.arange(n - 1)[:, None] * m + np.arange(m - 1)).ravel()
    faces = np.concatenate([np.stack([i, i + 1, i + m], -1), np.stack([i + 1, i + m + 1, i + m], -1)])
    return Mesh(
        vertices.reshape(-1, 3),
        normals.reshape(-1, 3),
        uv.reshape(-1, 2),
        faces,
        np.zeros(len(faces), int),
        (material,),
    )


def capsule(length: float, top: float, bottom: float, material: Material, flat: float = 1.0, sides: int = 14) -> Mesh:
    """A tapered capsule from (0,0,0) to (0,length,0) with end radii `top` and `bottom`; depth radii times `flat`."""
    cap = np.linspace(0, np.pi / 2, 5)
    rings = [(-top * np.cos(t), top * np.sin(t)) for t in cap]
    rings += [(length + bottom * np.sin(t), bottom * np.cos(t)) for t in cap]
    return loft([(y, r, r * flat, 0) for y, r in rings], material, sides)


def ellipsoid(centre: Vector, radii: Vector, material: Material, sides: int = 18) -> Mesh:
    """An ellipsoid with half axes `radii` (x, y, z) around `centre`."""
    t = np.linspace(0, np.pi, sides // 2 + 1)
    rx, ry, rz = radii
    mesh = loft([(-ry * np.cos(a), rx * np.sin(a), rz * np.sin(a), 0) for a in t], material, sides)
    unit = mesh.vertices / np.square([rx, ry, rz])  # gradient of the implicit surface
    normals = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    return Mesh(mesh.vertices + np.asarray(centre, float), normals, mesh.uv, mesh.faces, mesh.material, mesh.materials)
