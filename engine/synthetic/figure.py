"""A clothed human figure of rigid parts on a skeleton, and its walk.

Bones are frames with x to the figure's right, y down, z forward. Proportions are shares of the stature after Winter,
Biomechanics and Motor Control of Human Movement, fig. 4.1 (segment lengths), rounded.
"""

from dataclasses import dataclass

import numpy as np

from engine.synthetic.mesh import Material, Mesh, box, capsule, ellipsoid, loft, merge, moved

# Joint heights and half widths as shares of the stature.
HIP, SHOULDER, NECK = 0.53, 0.815, 0.845
THIGH, SHIN, FOOT = 0.245, 0.246, 0.039  # the three add up to HIP
UPPER_ARM, FOREARM = 0.175, 0.150
HIP_WIDTH, SHOULDER_WIDTH = 0.052, 0.110
LEG = THIGH + SHIN

SHIRTS = ((0.80, 0.16, 0.14), (0.13, 0.36, 0.78), (0.93, 0.73, 0.12), (0.16, 0.56, 0.30), (0.58, 0.24, 0.62))
TROUSERS = ((0.20, 0.24, 0.36), (0.28, 0.27, 0.27), (0.52, 0.45, 0.34), (0.16, 0.17, 0.20), (0.35, 0.28, 0.24))
SKINS = ((0.90, 0.70, 0.58), (0.72, 0.50, 0.37), (0.46, 0.31, 0.22), (0.95, 0.77, 0.66))
HAIRS = ((0.16, 0.11, 0.08), (0.36, 0.24, 0.13), (0.08, 0.08, 0.09), (0.62, 0.47, 0.25))


@dataclass(frozen=True)
class Figure:
    """stature in metres; parts: mesh per bone in the bone's own frame; stride in metres a gait cycle (two steps)."""

    stature: float
    parts: tuple[tuple[str, Mesh], ...]
    stride: float


def make_figure(agent: int, seed: int) -> Figure:
    """The figure of an agent: agents of a world wear distinct colours, seeds change who wears what."""
    rng = np.random.default_rng([seed, agent, 7])
    first = seed % len(SHIRTS)
    stature = float(rng.uniform(1.70, 1.85))
    shirt = Material(("fabric", "stripes", "checks")[(agent + seed) % 3], 0.5, SHIRTS[(first + agent) % len(SHIRTS)])
    trousers = Material("denim", 0.35, TROUSERS[(first + 2 * agent) % len(TROUSERS)])
    skin = Material("skin", 0.5, SKINS[rng.integers(len(SKINS))])
    hair = Material("hair", 0.3, HAIRS[rng.integers(len(HAIRS))])
    parts = _body(stature, shirt, trousers, skin, hair, long_hair=bool(rng.random() < 0.5))
    # A step is about 0.41 of the stature at normal speed; the swing below is set to the same length.
    return Figure(stature, parts, stride=2 * 0.41 * stature)


def _body(s: float, shirt: Material, trousers: Material, skin: Material, hair: Material, long_hair: bool):
    shoe, sole = Material("fabric", 0.3, (0.20, 0.18, 0.18)), Material("fabric", 0.3, (0.8, 0.8, 0.78))
    dark = Material("skin", 0.5, (0.10, 0.08, 0.08))
    lips = Material("skin", 0.5, (0.62, 0.26, 0.26))
    white = Material("skin", 0.5, (0.95, 0.95, 0.95))

    pelvis = loft(
        [
            (-0.070 * s, 0.010, 0.010, 0),
            (-0.065 * s, 0.078 * s, 0.056 * s, 0),
            (-0.01 * s, 0.089 * s, 0.063 * s, -0.003),
            (0.030 * s, 0.090 * s, 0.066 * s, -0.005),
            (0.055 * s, 0.06 * s, 0.045 * s, 0),
            (0.062 * s, 0.01, 0.01, 0),
        ],
        trousers,
        20,
    )
    # Torso frame: origin at the pelvis joint, chest above (y negative).
    rise = SHOULDER - HIP
    chest = loft(
        [
            (-(rise + 0.028) * s, 0.012, 0.012, 0),
            (-(rise + 0.024) * s, 0.045 * s, 0.040 * s, 0),
            (-(rise + 0.006) * s, 0.104 * s, 0.052 * s, 0),
            (-(rise - 0.030) * s, 0.112 * s, 0.064 * s, 0.004),
            (-(rise - 0.085) * s, 0.102 * s, 0.068 * s, 0.006),
            (-0.120 * s, 0.086 * s, 0.062 * s, 0.004),
            (-0.065 * s, 0.091 * s, 0.070 * s, 0),
            (-0.040 * s, 0.097 * s, 0.075 * s, -0.001),
            (-0.038 * s, 0.01, 0.01, 0),
        ],
        shirt,
        22,
    )
    neck = moved(capsule(0.050 * s, 0.030 * s, 0.034 * s, skin), _at(0, -(NECK - HIP + 0.035) * s, 0.002))
    # Head frame: origin at the top of the neck.
    r = 0.0655 * s  # half the head's height
    skull = ellipsoid((0, -r, 0.010), (0.045 * s, r, 0.055 * s), skin)
    cap = ellipsoid((0, -1.30 * r, -0.004), (0.0485 * s, 0.80 * r, 0.0585 * s), hair)
    face = [skull, cap]
    if long_hair:
        face.append(ellipsoid((0, -0.62 * r, -0.030), (0.046 * s, 1.15 * r, 0.034 * s), hair))
    front = 0.010 + 0.055 * s
    for side in (-1, 1):
        face.append(ellipsoid((side * 0.0185 * s, -1.02 * r, front - 0.009), (0.014, 0.008, 0.006), white, 10))
        face.append(ellipsoid((side * 0.0185 * s, -1.02 * r, front - 0.004), (0.0065, 0.0065, 0.004), dark, 10))
        face.append(ellipsoid((side * 0.0190 * s, -1.22 * r, front - 0.008), (0.016, 0.0035, 0.006), hair, 10))
        face.append(ellipsoid((side * 0.0455 * s, -0.95 * r, 0.008), (0.007, 0.030, 0.018), skin, 10))
    face.append(ellipsoid((0, -0.78 * r, front + 0.002), (0.011, 0.022, 0.014), skin, 10))
    face.append(ellipsoid((0, -0.46 * r, front - 0.011), (0.021, 0.0065, 0.007), lips, 10))

    upper, fore = UPPER_ARM * s, FOREARM * s
    sleeve = capsule(upper, 0.030 * s, 0.025 * s, shirt)
    arm = capsule(fore, 0.0235 * s, 0.016 * s, skin)
    cuff = capsule(0.25 * fore, 0.0265 * s, 0.026 * s, shirt)
    hand = ellipsoid((0, fore + 0.040 * s, 0.004), (0.014 * s, 0.046 * s, 0.024 * s), skin, 12)
    thumb = ellipsoid((0, fore + 0.022 * s, 0.022 * s), (0.008 * s, 0.022 * s, 0.009 * s), skin, 10)
    thigh = capsule(THIGH * s, 0.054 * s, 0.036 * s, trousers)
    shin = capsule(SHIN * s, 0.0355 * s, 0.026 * s, trousers)
    shoe_length = 0.150 * s
    foot = ellipsoid((0, 0.012 * s, 0.052 * s), (0.026 * s, 0.024 * s, shoe_length / 2), shoe, 14)
    ground = box((0, (FOOT - 0.006) * s, 0.052 * s), (0.046 * s, 0.012 * s, 0.9 * shoe_length), sole)

    bones = {"pelvis": [pelvis], "torso": [chest, neck], "head": face}
    for limb in ("left", "right"):
        bones[f"{limb} upper arm"] = [sleeve]
        bones[f"{limb} forearm"] = [arm, cuff, hand, thumb]
        bones[f"{limb} thigh"] = [thigh]
        bones[f"{limb} shin"] = [shin]
        bones[f"{limb} foot"] = [foot, ground]
    return tuple((name, merge(meshes)) for name, meshes in bones.items())


def _at(x: float, y: float, z: float) -> np.ndarray:
    out = np.eye(4)
    out[:3, 3] = x, y, z
    return out


def _turn(axis: str, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    out = np.eye(4)
    out[:3, :3] = {
        "x": [[1, 0, 0], [0, c, -s], [0, s, c]],  # + raises a hanging limb forward
        "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],  # + turns +z towards +x
        "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }[axis]
    return out


def skeleton(figure: Figure, phase: float, effort: float) -> dict[str, np.ndarray]:
    """Pose [4,4] of every bone relative to the point on the ground below the pelvis, facing +z.

    phase: gait cycle in radians, 0 = left heel strike. effort: 0 = standing, 1 = normal walk. The body is lowered or
    raised so that its lowest point touches the ground exactly.
    """
    s = figure.stature
    # The swing that makes a step of half a stride with straight legs.
    swing = effort * np.arcsin(figure.stride / 4 / (LEG * s))
    out = {}
    hips = _at(0, 0, 0) @ _turn("y", 0.10 * effort * np.cos(phase)) @ _turn("z", 0.03 * effort * np.sin(phase))
    out["pelvis"] = hips
    torso = _turn("y", -0.10 * effort * np.cos(phase)) @ _turn("x", -0.03 - 0.03 * effort)
    out["torso"] = torso
    nod = 0.03 + 0.02 * effort * np.cos(2 * phase)
    out["head"] = torso @ _at(0, -(NECK - HIP + 0.022) * s, 0.008 * s) @ _turn("x", nod)
    for name, side, shift in (("left", -1, 0.0), ("right", 1, np.pi)):
        p = phase + shift
        hip = swing * np.cos(p)
        # The knee gives a little at heel strike and bends in the swing, most a little before mid-swing.
        knee = 0.06 + effort * (0.14 * max(0.0, np.sin(2 * p)) * (np.sin(p) > 0) + 0.85 * max(0.0, -np.sin(p + 0.35)))
        ankle = 0.75 * (hip - knee) - 0.2 * effort * max(0.0, np.cos(p))
        thigh = hips @ _at(side * HIP_WIDTH * s, 0, 0) @ _turn("x", hip + 0.03)
        shin = thigh @ _at(0, THIGH * s, 0) @ _turn("x", -knee)
        out[f"{name} thigh"], out[f"{name} shin"] = thigh, shin
        out[f"{name} foot"] = shin @ _at(0, SHIN * s, 0) @ _turn("x", -ankle) @ _turn("y", side * 0.10)
        arm = -0.85 * swing * np.cos(p)
        shoulder = torso @ _at(side * SHOULDER_WIDTH * s, -(SHOULDER - HIP - 0.022) * s, 0)
        upper = shoulder @ _turn("z", -side * 0.11) @ _turn("x", arm)
        out[f"{name} upper arm"] = upper
        elbow = 0.18 + effort * (0.20 + 0.25 * max(0.0, arm))
        out[f"{name} forearm"] = upper @ _at(0, UPPER_ARM * s, 0) @ _turn("z", side * 0.05) @ _turn("x", elbow)
    lowest = max((mesh.vertices @ out[b][1, :3]).max() + out[b][1, 3] for b, mesh in figure.parts if "foot" in b)
    return {bone: _at(0, -lowest, 0) @ pose for bone, pose in out.items()}


def pose_figure(figure: Figure, ground: np.ndarray, phase: float, effort: float) -> tuple[Mesh, np.ndarray]:
    """(mesh, root [3]) in world metres: `ground` [4,4] puts the figure's point on the ground; the root is the centre
    of the pelvis."""
    bones = {name: ground @ pose for name, pose in skeleton(figure, phase, effort).items()}
    return merge([moved(mesh, bones[name]) for name, mesh in figure.parts]), bones["pelvis"][:3, 3]
