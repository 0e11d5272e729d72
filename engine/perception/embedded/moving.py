"""Residual motion: pixels next to people that move with them, not with the background behind them."""

from dataclasses import dataclass

import cv2
import numpy as np

from engine.options import option


@dataclass
class MovingOptions:
    grow: float = option(0.008, "margin around people that is never trusted as static, as a share of the image's width")
    reach: float = option(0.6, "how far from a person its things are looked for, share of its box's larger side")
    least: float = option(
        0.8, "least difference of a person's and the background's flow for a decision, pixels at half size"
    )
    steady: int = option(10, "frames on each side over which votes are added, in a window that follows the person")
    ridden: int = option(
        30,
        "the same for what stays at its place beside the person, a bicycle: at 10 frames it joined a cyclist in half "
        "of the frames, at 30 in all; a racket swings and needs the short window",
    )
    join: float = option(0.3, "least mean vote with which a place next to a person joins the dynamic mask, -1..1")
    carried: float = option(
        0.12, "least area of a carried or ridden thing that takes the label, as a share of the person's area"
    )
    extent: float = option(
        0.5, "farthest that it sticks out to the left or right of the person, as a share of the person's larger side"
    )
    aperture: float = option(
        0.3,
        "least share of a place's gradient along the difference of the two motions, 0..1: an edge that runs along it "
        "(a rail, a road's line; 17 degrees) looks the same under both and does not vote",
    )


def find_moving(
    labels: np.ndarray,
    others: np.ndarray,
    gray: np.ndarray,
    flows: tuple[np.ndarray, np.ndarray],
    o: MovingOptions,
) -> tuple[np.ndarray, np.ndarray]:
    """Labels uint8 [T,H,W] with what each subject carries or rides, and dynamic bool [T,H,W].

    labels  uint8 [T,H,W] people; others bool [T,H,W] people that are no subjects
    gray    uint8 [T,h,w] small frames; flows forward and backward between their neighbours

    Beside each person every place is carried to the neighbouring frames twice, with the person's flow and with the
    background's (an affine model fitted around the person); the better picture votes. Flow alone would not do: it
    bleeds over a person's outline. Votes are added over time in a window that follows the person. What moves along and
    reaches above the person's feet is carried or ridden and takes the label; the rest (a cast shadow) is dynamic only.
    """
    count, _, width = labels.shape
    labels = labels.copy()
    r = max(1, round(o.grow * width))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1, 2 * r + 1))
    dynamic = np.stack([cv2.dilate(p.astype(np.uint8), kernel) > 0 for p in (labels > 0) | others])
    if count < 2:
        return labels, dynamic
    h, w = gray.shape[1:]
    small = np.stack([cv2.resize(x, (w, h), interpolation=cv2.INTER_NEAREST) for x in labels])
    people = np.stack([cv2.resize(d.astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST) > 0 for d in dynamic])
    for label in range(1, int(labels.max(initial=0)) + 1):
        frames = np.array([t for t in range(count) if (small[t] == label).sum() >= 16])
        if not len(frames):
            continue
        masks = [small[t] == label for t in frames]
        boxes = _windows(masks, o.reach)
        own = np.stack([_cut(m.astype(np.float32), box) > 0.5 for m, box in zip(masks, boxes, strict=True)])
        votes = np.stack(
            [_votes(small[t] == label, people[t], box, t, gray, flows, o) for t, box in zip(frames, boxes, strict=True)]
        )
        joined, carried = np.zeros((2, *votes.shape), bool)
        for span in (o.steady, o.ridden):
            around = [abs(frames - t) <= span for t in frames]
            chosen = np.stack([_elected(votes[near], o) for near in around])
            held = np.stack([_carried(c, own[near].mean(0), o) for c, near in zip(chosen, around, strict=True)])
            # A thing is carried in most of the frames around, or not at all.
            usually = np.stack([held[near].mean(0) > 0.5 for near in around])
            joined |= chosen
            carried |= usually & chosen
        for t, box, j, c in zip(frames, boxes, joined, carried, strict=True):
            _join(labels[t], dynamic[t], j, c, box, label, width / w, kernel)
    return labels, dynamic | (labels > 0)


GRID = 96  # the person's window is looked at on a grid of this side, so that windows of all frames line up


def _windows(masks: list[np.ndarray], reach: float) -> np.ndarray:
    """Squares (x0, y0, x1, y1) around a person, one a frame, smoothed over time so that limbs do not move them; they
    may stick out of the image."""
    boxes = np.array([cv2.boundingRect(m.astype(np.uint8)) for m in masks], np.float64)
    centre, size = boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:].max(1)
    track = np.column_stack([centre, size])
    t = np.arange(len(track))
    w = np.exp(-0.5 * ((t[:, None] - t) / 2.0) ** 2)
    track = (w @ track) / w.sum(1, keepdims=True)
    half = track[:, 2:] * (0.5 + reach)
    return np.hstack([track[:, :2] - half, track[:, :2] + half])


def _votes(mask, people, box, t, gray, flows, o: MovingOptions) -> np.ndarray:
    """float32 [GRID,GRID]: how many of the two neighbouring frames say that a place goes with the person, less those
    that say that it stays with the background."""
    own = _cut(mask.astype(np.float32), box) > 0.5
    anyone = _cut(people.astype(np.float32), box, outside=1) > 0.5
    total = np.zeros((GRID, GRID), np.float32)
    for s, flow in ((t + 1, flows[0][t] if t < len(flows[0]) else None), (t - 1, flows[1][t - 1] if t > 0 else None)):
        if flow is not None:
            total += _vote(_cut(flow.astype(np.float32), box), own, anyone, box, gray[t], gray[s], o)
    return total


def _vote(flow, own, anyone, box, image, neighbour, o: MovingOptions) -> np.ndarray:
    background = ~anyone
    if background.sum() < 0.05 * GRID**2 or own.sum() < 20:
        return np.zeros((GRID, GRID), np.float32)
    here = _cut(image.astype(np.float32), box)
    behind = _affine(flow, background, here)
    # The person's flow carried outwards: blurred flow of the body over the blurred body.
    mass = cv2.GaussianBlur(own.astype(np.float32), (0, 0), GRID / 12) + 1e-4
    local = cv2.GaussianBlur(flow * own[..., None], (0, 0), GRID / 12) / mass[..., None]
    whole = np.broadcast_to(np.median(flow[own], 0), local.shape)
    free = background.astype(np.float32)
    # Static things nearer or farther than the fitted surface move along the same direction, more or less fast.
    stays = np.min([_mismatch(here, neighbour, box, k * behind, free) for k in (0.6, 0.8, 1.0, 1.25, 1.6)], 0)
    along = np.full_like(stays, np.inf)
    told = np.zeros(stays.shape, bool)
    texture = _texture(here)
    for motion in (local, whole):
        apart = np.linalg.norm(motion - behind, axis=-1) > o.least
        apart &= _seen_along(motion - behind, texture) > o.aperture
        along = np.minimum(along, np.where(apart, _mismatch(here, neighbour, box, motion, free), np.inf))
        told |= apart
    # Two grey levels of difference tell the two apart; places without texture do not vote.
    vote = np.where(along < stays - 2, 1.0, np.where(stays < along - 2, -1.0, 0.0))
    return (vote * told * background).astype(np.float32)


def _texture(image: np.ndarray) -> np.ndarray:
    """Structure tensor float32 [GRID,GRID,3] (xx, xy, yy) over 9 x 9 places: what the comparison of pictures sees."""
    x, y = cv2.Sobel(image, cv2.CV_32F, 1, 0), cv2.Sobel(image, cv2.CV_32F, 0, 1)
    return cv2.blur(np.stack([x * x, x * y, y * y], -1), (9, 9))


def _seen_along(motion: np.ndarray, texture: np.ndarray) -> np.ndarray:
    """float32 [GRID,GRID] in [0,1]: the root mean square gradient along `motion` over the whole gradient."""
    u, v = motion[..., 0], motion[..., 1]
    along = u * u * texture[..., 0] + 2 * u * v * texture[..., 1] + v * v * texture[..., 2]
    whole = (u * u + v * v) * (texture[..., 0] + texture[..., 2])
    return np.sqrt(np.maximum(along, 0) / np.maximum(whole, 1e-6))


def _affine(flow: np.ndarray, where: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The affine flow [GRID,GRID,2] that fits `flow` best `where`; Cauchy weights, since up to half of it may be
    the thing itself, and the image's gradient, since flow on even ground is a guess."""
    v, u = np.mgrid[0:GRID, 0:GRID].astype(np.float32) / GRID - 0.5
    terms = np.stack([np.ones_like(u), u, v], -1)
    gradient = np.hypot(cv2.Sobel(image, cv2.CV_32F, 1, 0), cv2.Sobel(image, cv2.CV_32F, 0, 1))
    A, b = terms[where], flow[where]
    sure = gradient[where] / (gradient[where] + 20) + 0.01
    weight = sure.copy()
    for _ in range(6):
        W = A * weight[:, None]
        x = np.linalg.solve(A.T @ W + 1e-3 * np.eye(3), W.T @ b)
        error = np.linalg.norm(A @ x - b, axis=1)
        weight = sure / (1 + (error / max(float(np.median(error)), 0.3)) ** 2)
    return terms @ x


def _mismatch(here: np.ndarray, neighbour: np.ndarray, box: np.ndarray, motion: np.ndarray, free: np.ndarray):
    """Mean absolute difference (grey levels, the `free` ones of 5 x 5 grid places) of a window and its neighbour moved
    by `motion` (pixels of the neighbour)."""
    v, u = np.mgrid[0:GRID, 0:GRID].astype(np.float32) + 0.5
    x = box[0] + u * (box[2] - box[0]) / GRID - 0.5 + motion[..., 0]
    y = box[1] + v * (box[3] - box[1]) / GRID - 0.5 + motion[..., 1]
    there = cv2.remap(
        neighbour, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    difference = cv2.blur(np.abs(here - there.astype(np.float32)) * free, (5, 5))
    return difference / np.maximum(cv2.blur(free, (5, 5)), 0.04)  # one place of 25


def _cut(field: np.ndarray, box: np.ndarray, outside: float = 0) -> np.ndarray:
    """The box of a field [h,w,...] on the grid."""
    sx, sy = (box[2] - box[0]) / GRID, (box[3] - box[1]) / GRID
    M = np.array([[sx, 0, box[0] + 0.5 * sx - 0.5], [0, sy, box[1] + 0.5 * sy - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(field, M, (GRID, GRID), flags=flags, borderValue=(outside,) * 4)


def _elected(votes: np.ndarray, o: MovingOptions) -> np.ndarray:
    """bool [GRID,GRID] from votes [n,GRID,GRID] of neighbouring frames: what goes with the person."""
    mean = votes.sum(0) / (np.abs(votes).sum(0) + 2)  # two votes against: a place that nobody voted on stays out
    return cv2.morphologyEx((mean > o.join).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0


def _carried(joined: np.ndarray, presence: np.ndarray, o: MovingOptions) -> np.ndarray:
    """bool [GRID,GRID]: the connected things among what `joined` that touch the person, reach above its feet, and are
    neither specks nor beyond what one carries or rides. `presence` is the share of frames with the person there."""
    person = presence > 0.5
    out = np.zeros_like(joined)
    if not person.any():
        return out
    swept = presence > 0.1  # limbs come and go: the feet of somebody who pedals are at their lowest in few frames
    rows, columns = np.flatnonzero(swept.any(1)), np.flatnonzero(swept.any(0))
    feet = rows[-1] - 0.1 * (rows[-1] - rows[0])  # the lowest tenth is feet and the ground around them
    side = max(np.ptp(rows), np.ptp(columns)) + 1
    touching = cv2.dilate((presence > 0.2).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    count, part = cv2.connectedComponents((joined & ~person).astype(np.uint8))
    for k in range(1, count):
        thing = part == k
        above = thing[: int(feet)].sum() / thing.sum()
        beyond = np.flatnonzero(thing.any(0))
        out_left, out_right = columns[0] - beyond[0], beyond[-1] - columns[-1]
        within = max(out_left, out_right) <= o.extent * side
        # A bicycle with its gaps is twice its rider.
        if (thing & touching).any() and above > 0.4 and within and o.carried < thing.sum() / person.sum() < 3:
            out |= thing
    return out


def _join(labels, dynamic, joined, carried, box, label, factor, kernel) -> None:
    """Write what joined a person, and the part of it that is carried (bool [GRID,GRID]), into a frame's dynamic and
    labels [H,W], in place."""
    person = labels == label
    # Nobody carries somebody else, or what is next to somebody else.
    strangers = cv2.dilate(((labels > 0) & ~person).astype(np.uint8), kernel, iterations=2) > 0
    free = ~person & ~strangers
    full = _spread(joined, box, labels.shape, factor) & free
    _, part = cv2.connectedComponents(full.astype(np.uint8))
    touching = cv2.dilate(person.astype(np.uint8), kernel, iterations=2) > 0
    beside = np.isin(part, np.setdiff1d(np.unique(part[touching]), 0))
    dynamic |= cv2.dilate(beside.astype(np.uint8), kernel) > 0
    thing = _spread(carried, box, labels.shape, factor) & beside
    # The margin between the person and its thing belongs to them too.
    whole = cv2.morphologyEx((thing | person).astype(np.uint8), cv2.MORPH_CLOSE, kernel, iterations=2) > 0
    if thing.any():
        labels[whole & (labels == 0)] = label


def _spread(grid: np.ndarray, box: np.ndarray, shape: tuple[int, int], factor: float) -> np.ndarray:
    """A bool grid over `box` (small pixels) as bool [H,W] of the whole frame, `factor` times larger."""
    sx, sy = factor * (box[2] - box[0]) / GRID, factor * (box[3] - box[1]) / GRID
    M = np.array([[sx, 0, factor * box[0] + 0.5 * sx - 0.5], [0, sy, factor * box[1] + 0.5 * sy - 0.5]])
    return cv2.warpAffine(grid.astype(np.float32), M, shape[::-1], flags=cv2.INTER_LINEAR) > 0.5
