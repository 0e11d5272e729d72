"""The still part of a world: streets under the sun and rooms under a lamp, furnished from a seed."""

from dataclasses import dataclass

import numpy as np

from engine.synthetic.mesh import Material, Mesh, box, capsule, ellipsoid, loft, merge, moved, prism, quad, yaw_pose


@dataclass(frozen=True)
class Light:
    """A sun (position None: `direction` [3] unit, from the surface to the light) or a lamp at `position` [3] metres;
    linear `strength` of the light and `ambient` light from all around."""

    direction: np.ndarray
    position: np.ndarray | None
    strength: float
    ambient: float


@dataclass(frozen=True)
class Scenery:
    mesh: Mesh
    light: Light
    open_air: bool  # a sky is seen where nothing is hit


def make_scenery(kind: str, seed: int) -> Scenery:
    """The scenery "street" or "room" of a seed. The middle (|x| < 2.5 m) stays free for walkers."""
    rng = np.random.default_rng([seed, 3])
    return {"street": _street, "room": _room}[kind](rng)


def _shade(rng: np.random.Generator, low: float, high: float) -> tuple[float, float, float]:
    """A muted tint."""
    red, green, blue = (rng.uniform(low, high) * (1 + rng.uniform(-0.10, 0.10, 3))).tolist()
    return red, green, blue


def _floor(x0, x1, z0, z1, material) -> Mesh:
    return quad((x0, 0, z0), (0, 0, z1 - z0), (x1 - x0, 0, 0), material)


# --- the street -------------------------------------------------------------------------------------------------------


def _street(rng: np.random.Generator) -> Scenery:
    z0, z1, kerb, walk = -30.0, 75.0, 3.2, 5.6
    road, pavement, lawn = Material("asphalt", 1.8), Material("paving", 2.4), Material("grass", 1.6)
    paint = Material("plaster", 1.0, (0.95, 0.95, 0.9))
    parts = [_floor(-kerb, kerb, z0, z1, road)]
    for side in (-1, 1):
        a, b = sorted((side * kerb, side * walk))
        parts.append(_floor(a, b, z0, z1, pavement))
        a, b = sorted((side * walk, side * 60))
        parts.append(_floor(a, b, z0, z1, lawn))
        z = z0 + rng.uniform(0, 4)
        while z < z1 - 8:
            width = float(rng.uniform(6.5, 10))
            parts.append(_house(rng, side, z, width))
            if rng.random() < 0.55:
                parts.append(_hedge(rng, side * (walk + 0.5), z + width / 2, width * rng.uniform(0.3, 0.8)))
            z += width + rng.uniform(0.8, 3.0)
        for z in np.arange(z0 + rng.uniform(2, 6), z1, 8.5):
            parts.append(_tree(rng, (side * (walk - 0.7), z + rng.uniform(-1.5, 1.5))))
        for z in np.arange(z0 + rng.uniform(0, 9), z1, 13.0):
            parts.append(_lamp_post(side * (kerb + 0.35), z))
        for z in np.arange(z0 + rng.uniform(3, 9), z1, 9.0):
            kind = rng.integers(3)
            at = (side * (walk - 0.5), float(z))
            parts.append((_bench, _bin, _sign)[kind](rng, side, at))
        for z in np.arange(z0 + rng.uniform(0, 8), z1, 11.0):
            if rng.random() < 0.6:
                parts.append(_car(rng, (side * (kerb - 0.1), float(z) + rng.uniform(-1, 1))))
    for z in np.arange(z0, z1, 6.0):  # a few millimetres high, so that road and paint are never the same surface
        parts.append(box((0, -0.001, z), (0.12, 0.002, 2.5), paint))
    parts.append(_house(rng, 0, z1, 60.0))
    for x in np.linspace(-24, 24, 9):
        parts.append(_tree(rng, (x + rng.uniform(-1, 1), z1 - 3)))
    azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 0.95)
    direction = np.array([np.cos(elevation) * np.sin(azimuth), -np.sin(elevation), np.cos(elevation) * np.cos(azimuth)])
    return Scenery(merge(parts), Light(direction, None, 1.1, 0.48), open_air=True)


def _house(rng: np.random.Generator, side: int, z: float, width: float) -> Mesh:
    """A house whose front stands along the street on `side` from z to z + width; side 0 closes the street at z."""
    storeys = int(rng.integers(2, 4))
    height, depth, setback = 2.9 * storeys + 0.4, 8.0, float(rng.uniform(7.0, 8.5))
    texture = str(rng.choice(["brick", "stone", "plaster", "brick"]))
    wall = Material(texture, 2.2, _shade(rng, 0.72, 0.98))
    trim = Material("plaster", 1.5, (0.95, 0.93, 0.9))
    tiles = Material("roof", 2.4, _shade(rng, 0.7, 1.1))
    # Built with the front at local z = 0 facing -z, then turned to the street.
    parts = [box((0, -height / 2, depth / 2), (width, height, depth), wall)]
    parts.append(box((0, -0.2, -0.03), (width + 0.04, 0.4, 0.1), Material("stone", 1.5, (0.8, 0.8, 0.8))))
    parts.append(box((0, -height, -0.1), (width + 0.3, 0.16, 0.4), trim))
    for edge in (-1, 1):  # a saddle roof
        eave = np.array([-width / 2 - 0.2, -height, depth / 2 + edge * (depth / 2 + 0.4)])
        parts.append(quad(eave, (width + 0.4, 0, 0), (0, -2.2, -edge * (depth / 2 + 0.4)), tiles))
    columns = max(2, round(width / 2.6))
    xs = (np.arange(columns) + 0.5) / columns * width - width / 2
    doorway = int(rng.integers(columns))
    shutter = Material("planks", 1.0, _shade(rng, 0.5, 1.0)) if rng.random() < 0.5 else None
    for storey in range(storeys):
        for i, x in enumerate(xs):
            base = 2.9 * storey
            if storey == 0 and i == doorway:
                parts.append(_panel("door", x, 0.0, 1.05, 2.15, _shade(rng, 0.7, 1.3)))
                parts.append(box((x, -0.08, -0.35), (1.5, 0.16, 0.6), Material("stone", 1.2)))
                continue
            parts.append(_panel("window", x, base + 0.95, 1.15, 1.45, (1.0, 1.0, 1.0)))
            parts.append(box((x, -(base + 0.90), -0.08), (1.35, 0.09, 0.22), trim))
            if shutter:
                for edge in (-1, 1):
                    parts.append(box((x + edge * 0.86, -(base + 1.67), -0.03), (0.5, 1.45, 0.06), shutter))
    if rng.random() < 0.5:
        at = (doorway + 1) % columns
        parts.append(_panel(f"poster{rng.integers(4)}", xs[at] - width / columns / 2, 1.1, 0.7, 1.0, (1.0, 1.0, 1.0)))
    house = merge(parts)
    if side == 0:
        return moved(house, yaw_pose(0.0, (0, 0, z)))
    return moved(house, yaw_pose(side * np.pi / 2, (side * setback, 0, z + width / 2)))


def _panel(texture: str, x: float, base: float, width: float, height: float, tint) -> Mesh:
    """A window, door or poster whose texture fills it once: a slab 4 cm before the wall at local z = 0."""
    # The tile is one unit of uv: uv counts in widths and heights instead of metres.
    corner = np.array([x - width / 2, -(base + height), -0.04])
    face = quad(corner, (width, 0, 0), (0, height, 0), Material(texture, 1.0, tuple(tint)))
    face = Mesh(
        face.vertices,
        -face.normals if face.normals[0, 2] > 0 else face.normals,
        np.array([[0.002, 0.002], [0.998, 0.002], [0.998, 0.998], [0.002, 0.998]]),
        face.faces,
        face.material,
        face.materials,
    )
    rim = box((x, -(base + height / 2), -0.018), (width + 0.02, height + 0.02, 0.034), Material("plaster", 1.0))
    return merge([face, rim])


def _tree(rng: np.random.Generator, at: tuple[float, float]) -> Mesh:
    height = float(rng.uniform(2.3, 3.0))
    trunk = moved(capsule(height, 0.09, 0.16, Material("bark", 0.8), sides=10), yaw_pose(0, (0, -height, 0)))
    leaf = Material("leaves", 1.3, _shade(rng, 0.75, 1.15))
    parts = [trunk]
    for _ in range(9):
        r = float(rng.uniform(0.5, 0.95))
        x, z = rng.normal(0, 0.55, 2)
        parts.append(ellipsoid((x, -height - rng.uniform(0.1, 1.5), z), (r, 0.8 * r, r), leaf, 12))
    return moved(merge(parts), yaw_pose(rng.uniform(0, 6), (at[0], 0, at[1])))


def _hedge(rng: np.random.Generator, x: float, z: float, length: float) -> Mesh:
    return box((x, -0.5, z), (0.5, 1.0, length), Material("leaves", 0.9, _shade(rng, 0.75, 1.0)))


def _lamp_post(x: float, z: float) -> Mesh:
    iron = Material("fabric", 0.4, (0.22, 0.24, 0.25))
    pole = moved(capsule(4.2, 0.035, 0.06, iron, sides=8), yaw_pose(0, (x, -4.2, z)))
    glass = Material("plaster", 0.5, (1.0, 1.0, 0.9))
    return merge([pole, box((x, -4.35, z), (0.3, 0.34, 0.3), glass), box((x, -0.15, z), (0.22, 0.3, 0.22), iron)])


def _bench(rng: np.random.Generator, side: int, at: tuple[float, float]) -> Mesh:
    slat, iron = Material("wood", 0.9, _shade(rng, 0.9, 1.3)), Material("fabric", 0.4, (0.2, 0.2, 0.21))
    parts = [box((0, -0.45, 0.12 * i - 0.2), (1.6, 0.04, 0.10), slat) for i in range(4)]
    parts += [box((0, -0.62 - 0.14 * i, 0.25), (1.6, 0.10, 0.03), slat) for i in range(3)]
    parts += [box((x, -0.22, 0), (0.06, 0.44, 0.45), iron) for x in (-0.7, 0.7)]
    return moved(merge(parts), yaw_pose(side * np.pi / 2, (at[0], 0, at[1])))


def _bin(rng: np.random.Generator, side: int, at: tuple[float, float]) -> Mesh:
    steel, rim = Material("planks", 0.5, _shade(rng, 0.5, 0.9)), Material("fabric", 0.4, (0.15, 0.2, 0.17))
    can = loft([(-0.85, 0.02, 0.02, 0), (-0.85, 0.24, 0.24, 0), (0, 0.20, 0.20, 0)], steel)
    ring = loft([(-0.90, 0.25, 0.25, 0), (-0.82, 0.25, 0.25, 0)], rim)
    return moved(merge([can, ring]), yaw_pose(0, (at[0], 0, at[1])))


def _sign(rng: np.random.Generator, side: int, at: tuple[float, float]) -> Mesh:
    """A poster on two posts, facing along the street."""
    poster = moved(_panel(f"poster{rng.integers(4)}", 0, 0.7, 0.9, 1.25, (1, 1, 1)), yaw_pose(0, (0, 0, 0)))
    iron = Material("fabric", 0.4, (0.25, 0.25, 0.27))
    posts = [box((x, -1.0, 0.04), (0.06, 2.0, 0.06), iron) for x in (-0.45, 0.45)]
    back = box((0, -1.325, 0.03), (0.92, 1.27, 0.05), Material("wood", 0.8))
    return moved(merge([poster, back, *posts]), yaw_pose(side * 0.6, (at[0], 0, at[1])))


def _car(rng: np.random.Generator, at: tuple[float, float]) -> Mesh:
    """A parked car along the kerb."""
    lacquer = Material("skin", 1.0, _shade(rng, 0.25, 0.9))
    glass, tyre = Material("skin", 1.0, (0.16, 0.19, 0.22)), Material("fabric", 0.3, (0.10, 0.10, 0.10))
    lamp, plate = Material("skin", 1.0, (0.95, 0.92, 0.8)), Material(f"poster{rng.integers(4)}", 0.5)
    body = [(-2.0, 0.24), (-2.12, 0.36), (-2.08, 0.62), (-1.9, 0.74), (-0.95, 0.88), (1.6, 0.92), (2.05, 0.84)]
    body += [(2.12, 0.5), (2.0, 0.24)]
    cabin, top = (
        [(-0.98, 0.86), (-0.30, 1.36), (0.90, 1.38), (1.62, 0.88)],
        [(-0.36, 1.34), (-0.2, 1.43), (0.8, 1.43), (1.0, 1.34)],
    )
    car = [prism(body, 1.72, lacquer), prism(cabin, 1.44, glass), prism(top, 1.5, lacquer)]
    hub = Material("skin", 1.0, (0.6, 0.6, 0.62))
    for x in (-0.78, 0.78):
        for z in (-1.25, 1.25):
            wheel = loft(
                [(-0.1, 0.02, 0.02, 0), (-0.1, 0.31, 0.31, 0), (0.1, 0.31, 0.31, 0), (0.1, 0.02, 0.02, 0)], tyre
            )
            roll = np.array([[0, 1, 0, x], [-1, 0, 0, -0.31], [0, 0, 1, z], [0, 0, 0, 1]], float)
            car += [moved(wheel, roll), ellipsoid((1.1 * x, -0.31, z), (0.03, 0.17, 0.17), hub, 10)]
        car.append(box((x * 0.75, -0.58, -2.07), (0.28, 0.12, 0.06), lamp))
        car.append(box((x * 0.75, -0.66, 2.07), (0.28, 0.12, 0.06), Material("skin", 1.0, (0.7, 0.1, 0.1))))
    car.append(box((0, -0.42, -2.11), (0.5, 0.12, 0.05), plate))
    return moved(merge(car), yaw_pose(0 if rng.random() < 0.5 else np.pi, (at[0], 0, at[1])))


# --- the room ---------------------------------------------------------------------------------------------------------


def _room(rng: np.random.Generator) -> Scenery:
    x1, z0, z1, height = 4.6, -2.6, 11.2, 3.1
    wall = Material(str(rng.choice(["wallpaper", "plaster", "wallpaper", "brick"])), 1.7, _shade(rng, 0.75, 0.98))
    back = Material(str(rng.choice(["brick", "wallpaper", "planks"])), 2.0, _shade(rng, 0.8, 1.0))
    floor = Material(str(rng.choice(["planks", "tiles"])), 2.0)
    parts = [_floor(-x1, x1, z0, z1, floor)]
    parts.append(
        quad((-x1, -height, z0), (2 * x1, 0, 0), (0, 0, z1 - z0), Material("plaster", 2.0, (0.96, 0.96, 0.94)))
    )
    for x in (-x1, x1):
        parts.append(quad((x, -height, z0), (0, 0, z1 - z0), (0, height, 0), wall))
        parts.append(box((x, -0.06, (z0 + z1) / 2), (0.04, 0.12, z1 - z0), Material("wood", 1.0, (1.4, 1.4, 1.4))))
    for z, material in ((z0, wall), (z1, back)):
        parts.append(quad((-x1, -height, z), (2 * x1, 0, 0), (0, height, 0), material))
    parts.append(
        box((0, -0.0015, 4.5), (3.6, 0.003, 5.5), Material("carpet", 1.8, tuple(rng.uniform(0.45, 1.1, 3).tolist())))
    )
    # The panels of _panel lie at local z = 0 and face -z.
    walls = [(yaw_pose(0, (0, 0, z1)), 3.6), (yaw_pose(np.pi / 2, (x1, 0, 4.3)), 6.0)]
    walls += [(yaw_pose(-np.pi / 2, (-x1, 0, 4.3)), 6.0), (yaw_pose(np.pi, (0, 0, z0)), 3.6)]
    for pose, reach in walls:
        xs = np.arange(-reach, reach + 0.1, 2.0) + rng.uniform(-0.2, 0.2)
        for x in xs:
            kind = rng.random()
            if kind < 0.22:
                item = [_panel("window", x, 0.95, 1.3, 1.5, (1.0, 1.0, 1.0))]
            elif kind < 0.60:
                w = float(rng.uniform(0.6, 1.0))
                item = [_panel(f"poster{rng.integers(4)}", x, 1.2, w, 1.3 * w, (1.0, 1.0, 1.0))]
            elif kind < 0.85:
                item = [_shelf(x)]
            else:
                item = [_panel("door", x, 0.0, 1.0, 2.1, _shade(rng, 0.9, 1.5))]
            parts.append(moved(merge(item), pose))
    for side in (-1, 1):
        for z in np.arange(z0 + 1.5, z1 - 1, 3.0):
            make = (_sofa, _table, _plant)[rng.integers(3)]
            x = side * (x1 - 0.95)
            parts.append(moved(make(rng), yaw_pose(side * np.pi / 2, (x, 0, z + rng.uniform(-0.3, 0.3)))))
    parts.append(moved(_plant(rng), yaw_pose(0, (-3.2, 0, z1 - 0.8))))
    parts.append(moved(_sofa(rng), yaw_pose(0, (rng.uniform(-0.5, 1.5), 0, z1 - 0.75))))
    lamp = np.array([rng.uniform(-1.2, 1.2), -height + 0.25, rng.uniform(2.5, 4.5)])
    return Scenery(merge(parts), Light(np.array([0.0, -1, 0]), lamp, 1.0, 0.44), open_air=False)


def _shelf(x: float) -> Mesh:
    front = _panel("books", x, 0.05, 1.5, 2.0, (1.0, 1.0, 1.0))
    case = box((x, -1.05, 0), (1.6, 2.1, 0.3), Material("wood", 1.0))
    return merge([moved(front, yaw_pose(0, (0, 0, -0.15))), case])


def _sofa(rng: np.random.Generator) -> Mesh:
    cloth = Material(str(rng.choice(["fabric", "checks", "stripes"])), 0.8, _shade(rng, 0.4, 0.9))
    parts = [box((0, -0.22, 0), (1.9, 0.44, 0.85), cloth), box((0, -0.45, 0.34), (1.9, 0.9, 0.2), cloth)]
    parts += [box((x, -0.32, 0), (0.2, 0.64, 0.87), cloth) for x in (-0.96, 0.96)]
    pillow = Material("checks", 0.3, _shade(rng, 0.7, 1.2))
    return merge([*parts, ellipsoid((0.5, -0.62, 0.17), (0.22, 0.2, 0.1), pillow)])


def _table(rng: np.random.Generator) -> Mesh:
    oak = Material("wood", 0.9, _shade(rng, 1.0, 1.5))
    parts = [box((0, -0.74, 0), (1.5, 0.04, 0.8), oak)]
    parts += [box((x, -0.36, z), (0.06, 0.72, 0.06), oak) for x in (-0.68, 0.68) for z in (-0.33, 0.33)]
    for _ in range(4):
        size = rng.uniform(0.1, 0.3, 3)
        at = (rng.uniform(-0.5, 0.5), -0.76 - size[1] / 2, rng.uniform(-0.2, 0.2))
        parts.append(box(at, size, Material(f"poster{rng.integers(4)}", 0.5), float(rng.uniform(0, 3))))
    return merge(parts)


def _plant(rng: np.random.Generator) -> Mesh:
    pot = loft(
        [(-0.42, 0.02, 0.02, 0), (-0.42, 0.22, 0.22, 0), (0, 0.15, 0.15, 0)], Material("roof", 0.8, (1.1, 1, 0.9))
    )
    leaf = Material("leaves", 0.7, _shade(rng, 0.8, 1.2))
    blobs = [
        ellipsoid(
            (*(rng.normal(0, 0.13, 1)), -0.75 - 0.13 * i, rng.normal(0, 0.13)), rng.uniform(0.18, 0.32, 3), leaf, 12
        )
        for i in range(6)
    ]
    return merge([pot, *blobs])
