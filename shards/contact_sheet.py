"""One picture that shows whether a sample is right: frames, masks, depth, conditions, identities, a map from above."""

from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shards import depth16
from shards.palette import subject_colour
from shards.schema import HOLE

PAPER, INK, FAINT, LINE = (255, 255, 255), (33, 37, 41), (108, 117, 125), (222, 226, 230)
LABEL_WIDTH, MARGIN, GAP = 110, 24, 6


def contact_sheet(sample: Mapping[str, Any], columns: int = 6, cell: int = 300) -> Image.Image:
    """Draw one sample.

    sample   member name -> decoded value (`shards.codec.decode`); needs meta.json and at least one video
    columns  frames shown, spread evenly from first to last
    cell     width of a frame in the sheet, pixels
    """
    meta = sample["meta.json"]
    height, width, frames = meta["height"], meta["width"], meta["frames"]
    if height > width:  # portrait: keep the sheet's height bounded
        cell = round(cell * width / height * 1.2)
    size = (cell, round(cell * height / width))
    picks = np.unique(np.linspace(0, frames - 1, columns).round().astype(int))
    rows = [(name, draw) for name, draw in _rows(sample) if draw is not None]

    sheet_width = 2 * MARGIN + LABEL_WIDTH + len(picks) * (size[0] + GAP)
    lower = max(420, sheet_width // 4)
    top = MARGIN + 76
    sheet = Image.new("RGB", (sheet_width, top + len(rows) * (size[1] + GAP) + lower + 2 * MARGIN + 20), PAPER)
    pen = ImageDraw.Draw(sheet)
    _header(pen, meta, sheet_width)

    for column, t in enumerate(picks):
        x = MARGIN + LABEL_WIDTH + column * (size[0] + GAP)
        pen.text((x, top - 18), f"frame {t}   {t / meta['fps']:.2f} s", FAINT, _font(13))
    for row, (name, draw) in enumerate(rows):
        y = top + row * (size[1] + GAP)
        pen.multiline_text((MARGIN, y + 4), name, INK, _font(14), spacing=3)
        for column, t in enumerate(picks):
            x = MARGIN + LABEL_WIDTH + column * (size[0] + GAP)
            sheet.paste(_resize(draw(int(t)), size), (x, y))

    y = top + len(rows) * (size[1] + GAP) + MARGIN
    half = (sheet_width - 3 * MARGIN) // 2
    _panel(sheet, pen, (MARGIN, y), "seen from above", top_down(sample, (half, lower)))
    _panel(sheet, pen, (2 * MARGIN + half, y), "identities", _identities(sample, (half, lower // 2)))
    _quality(pen, meta, (2 * MARGIN + half, y + lower // 2 + 44), half)
    return sheet


def depth_colours(depth: np.ndarray, near: float, far: float) -> np.ndarray:
    """uint8 RGB [H,W,3] of z-depth in metres: near is warm, far is cold (log scale), no value is black."""
    value = np.log(np.clip(depth, near, far) / near) / np.log(far / near)
    colours = cv2.applyColorMap(np.rint(255 * (0.95 - 0.9 * value)).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    return np.where((depth > 0)[..., None], colours, 0).astype(np.uint8)


def overlay_labels(frame: np.ndarray, labels: np.ndarray, dynamic: np.ndarray | None = None) -> np.ndarray:
    """Frame [H,W,3] with each subject tinted and outlined in its colour; other dynamic pixels tinted white."""
    out = frame.astype(np.float32)
    if dynamic is not None:
        other = dynamic & (labels == 0)
        out[other] = 0.55 * out[other] + 0.45 * 255
    for label in np.unique(labels[(labels > 0) & (labels != HOLE)]):
        mask = labels == label
        colour = np.array(subject_colour(label), np.float32)
        out[mask] = 0.55 * out[mask] + 0.45 * colour
        inside = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=max(2, frame.shape[1] // 300))
        out[mask & (inside == 0)] = colour
    return out.clip(0, 255).astype(np.uint8)


def top_down(sample: Mapping[str, Any], size: tuple[int, int]) -> Image.Image:
    """Map of the world seen along its up direction: background points, camera path with viewing directions, and
    every subject's path with its Gaussian (2 sigma) and heading at a few frames. North is the first view."""
    width, height = size
    image = np.full((height, width, 3), 250, np.uint8)
    camera, subjects = sample["camera.npz"], sample["subjects.npz"]
    plane = _ground_axes(camera["up"])  # [2,3]: world -> (right, forward)
    path = camera["c2w"][:, :3, 3] @ plane.T
    centres = subjects["mean"] @ plane.T
    scale, origin = _fit(np.concatenate([path, centres.reshape(-1, 2)]), size)

    def pixel(points: np.ndarray) -> np.ndarray:
        return np.stack([(points[..., 0] - origin[0]) * scale, height - (points[..., 1] - origin[1]) * scale], -1)

    cloud = sample.get("background_holistic.npz")
    if cloud is not None and len(cloud["xyz"]):
        step = max(1, len(cloud["xyz"]) // 150_000)
        spots = pixel(cloud["xyz"][::step] @ plane.T).astype(int)
        inside = ((spots >= 0) & (spots < (width, height))).all(-1)
        tint = (0.45 * cloud["rgb"][::step][inside] + 0.55 * 255).astype(np.uint8)
        image[spots[inside, 1], spots[inside, 0]] = tint

    sheet = Image.fromarray(image).resize((2 * width, 2 * height), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(sheet)
    _draw_camera(pen, 2 * pixel(path), camera, plane)
    for n in range(len(centres)):
        _draw_subject(pen, n, 2 * pixel(centres[n]), subjects, plane, 2 * scale)
    _scale_bar(pen, scale, size)
    return sheet.resize(size, Image.Resampling.LANCZOS)


# --- rows ---------------------------------------------------------------------------------------------------


def _rows(sample: Mapping[str, Any]) -> list[tuple[str, Callable[[int], np.ndarray] | None]]:
    """(title, frame index -> RGB image) of every row; None where the sample lacks the members."""
    meta = sample["meta.json"]
    video, masks, depth = (sample.get(n) for n in ("target.mp4", "masks.npz", "depth.npz"))
    conditions = []
    for name in ("anchor", "holistic"):
        rgb = sample.get(f"condition_{name}_rgb.mp4")
        conditions.append((f"{name}\nRGB", None if rgb is None else lambda t, rgb=rgb: rgb[t]))
    scene_depth = None if depth is None else depth16.decode(depth["code"], *map(float, depth["range"]))
    ranges = _display_range(scene_depth)
    rows = [
        ("clip", None if video is None else lambda t: video[t]),
        (
            "subjects\nand moving\npixels",
            None
            if video is None or masks is None
            else lambda t: overlay_labels(video[t], masks["labels"][t], masks["dynamic"][t]),
        ),
        ("depth", None if scene_depth is None else lambda t: depth_colours(scene_depth[t], *ranges)),
        *conditions,
    ]
    for name in ("anchor", "holistic"):
        code = sample.get(f"condition_{name}_depth.mkv")
        near, far = meta["depth_range"][f"condition_{name}_depth.mkv"]
        rows.append(
            (
                f"{name}\ndepth",
                None
                if code is None
                else lambda t, code=code, near=near, far=far: depth_colours(
                    depth16.decode(code[t], near, far), *ranges
                ),
            )
        )
    return rows


def _display_range(depth: np.ndarray | None) -> tuple[float, float]:
    """The 1st to 99th percentile of depth: what the colours span, the same for every row."""
    if depth is None or not (depth > 0).any():
        return 0.5, 50.0
    near, far = np.percentile(depth[::4, ::4, ::4][depth[::4, ::4, ::4] > 0], [1, 99])
    return float(near), float(max(far, near * 1.1))


# --- map ----------------------------------------------------------------------------------------------------


def _ground_axes(up: np.ndarray) -> np.ndarray:
    """Rows right and forward [2,3]: an orthonormal basis of the plane across `up`, forward nearest the first view."""
    forward = np.array([0, 0, 1.0]) - up[2] * up
    forward /= max(float(np.linalg.norm(forward)), 1e-9)
    return np.stack([np.cross(forward, up), forward])


def _fit(points: np.ndarray, size: tuple[int, int]) -> tuple[float, np.ndarray]:
    """Pixels per metre and the ground point at the lower left corner, so that all points fit with a margin."""
    points = points[np.isfinite(points).all(-1)]
    low, high = points.min(0), points.max(0)
    pad = 0.15 * max(float((high - low).max()), 2.0)
    low, high = low - pad, high + pad
    scale = float(min(np.array(size) / (high - low)))
    return scale, (low + high) / 2 - np.array(size) / scale / 2


def _draw_camera(
    pen: ImageDraw.ImageDraw, path: np.ndarray, camera: Mapping[str, np.ndarray], plane: np.ndarray
) -> None:
    pen.line([tuple(p) for p in path], fill=INK, width=4)
    half_fov = np.arctan(camera["K"][0, 0, 2] / camera["K"][0, 0, 0])
    for t in np.unique(np.linspace(0, len(path) - 1, 6).round().astype(int)):
        view = camera["c2w"][t, :3, 2] @ plane.T
        angle = np.arctan2(view[0], view[1])
        corners = [path[t] + 44 * np.array([np.sin(angle + s), -np.cos(angle + s)]) for s in (-half_fov, half_fov)]
        pen.line([tuple(path[t]), tuple(corners[0]), tuple(corners[1]), tuple(path[t])], fill=INK, width=2)


def _draw_subject(
    pen: ImageDraw.ImageDraw,
    n: int,
    path: np.ndarray,
    subjects: Mapping[str, np.ndarray],
    plane: np.ndarray,
    scale: float,
) -> None:
    colour = subject_colour(n + 1)
    observed = subjects["observed"][n]
    for t in range(len(path) - 1):
        if observed[t] or t % 2:  # bridged stretches are dashed
            pen.line([tuple(path[t]), tuple(path[t + 1])], fill=colour, width=5)
    for t in np.unique(np.linspace(0, len(path) - 1, 6).round().astype(int)):
        covariance = plane @ subjects["cov"][n, t] @ plane.T
        values, vectors = np.linalg.eigh(covariance)
        circle = np.linspace(0, 2 * np.pi, 40)
        ring = 2 * scale * (vectors * np.sqrt(np.maximum(values, 0))) @ np.stack([np.cos(circle), np.sin(circle)])
        pen.line([(path[t, 0] + x, path[t, 1] - y) for x, y in ring.T], fill=colour, width=2)
        heading = subjects["heading"][n, t]
        if np.isfinite(heading):
            direction = np.array([np.sin(heading), 0, np.cos(heading)]) @ plane.T
            tip = path[t] + 40 * np.array([direction[0], -direction[1]])
            pen.line([tuple(path[t]), tuple(tip)], fill=colour, width=4)
    pen.text(tuple(path[0] + (10, -34)), str(n + 1), colour, _font(30))


def _scale_bar(pen: ImageDraw.ImageDraw, scale: float, size: tuple[int, int]) -> None:
    metres = next((m for m in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if m * scale > size[0] / 8), 100)
    x, y = 30, 2 * size[1] - 30
    pen.line([(x, y), (x + 2 * metres * scale, y)], fill=INK, width=6)
    pen.text((x, y - 40), f"{metres:g} m", INK, _font(28))


# --- panels -------------------------------------------------------------------------------------------------


def _header(pen: ImageDraw.ImageDraw, meta: Mapping[str, Any], width: int) -> None:
    source = meta["source"]
    pen.text((MARGIN, MARGIN - 6), meta["key"], INK, _font(24))
    name = str(source["uri"]).rsplit("/", 1)[-1]
    count = len(meta["subjects"])
    line = (
        f"{name}   {source['start_s']:.2f} to {source['end_s']:.2f} s   {meta['frames']} frames, "
        f"{meta['width']} x {meta['height']}, {meta['fps']:g} fps   camera: {meta['camera_kind']}   "
        f"{count} subject{'s' * (count != 1)}   focal: {meta['K_source']}"
        f"   {meta['verdict']}{': ' if meta['reasons'] else ''}{', '.join(meta['reasons'])}"
    )
    pen.text((MARGIN, MARGIN + 26), line, FAINT, _font(15))
    pen.line([(MARGIN, MARGIN + 52), (width - MARGIN, MARGIN + 52)], fill=LINE)


def _panel(sheet: Image.Image, pen: ImageDraw.ImageDraw, at: tuple[int, int], title: str, image: Image.Image) -> None:
    pen.text(at, title, INK, _font(14))
    sheet.paste(image, (at[0], at[1] + 24))


def _identities(sample: Mapping[str, Any], size: tuple[int, int]) -> Image.Image:
    """The identity crops side by side on a chequerboard, with the frame each came from."""
    width, height = size
    panel = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(panel)
    subjects = sample["meta.json"]["subjects"]
    if not subjects:
        pen.text((0, 0), "no subjects in this clip", FAINT, _font(15))
    x = 0
    for entry in subjects:
        rgba = sample[entry["identity"]]
        scale = min((height - 24) / rgba.shape[0], width / max(3, len(subjects)) / rgba.shape[1])
        crop = Image.fromarray(rgba).resize((max(1, int(rgba.shape[1] * scale)), max(1, int(rgba.shape[0] * scale))))
        yy, xx = np.mgrid[0 : crop.height, 0 : crop.width] // 8
        board = np.where(((xx + yy) % 2 == 0)[..., None], 255, 232).astype(np.uint8).repeat(3, -1)
        tile = Image.fromarray(board)
        tile.paste(crop, (0, 0), crop)
        panel.paste(tile, (x, 0))
        pen.text(
            (x, crop.height + 4), f"{entry['label']}  frame {entry['frame']}", subject_colour(entry["label"]), _font(14)
        )
        x += max(crop.width, 90) + 12
    return panel


def _quality(pen: ImageDraw.ImageDraw, meta: Mapping[str, Any], at: tuple[int, int], width: int) -> None:
    x, y = at
    pen.text((x, y), "quality", INK, _font(14))
    for i, (name, value) in enumerate(sorted(meta["quality"].items())):
        column, row = divmod(i, 7)
        pen.text((x + column * width // 2, y + 24 + 22 * row), f"{name}", FAINT, _font(14))
        pen.text((x + column * width // 2 + 210, y + 24 + 22 * row), f"{value:.4g}", INK, _font(14))


def _resize(image: np.ndarray, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
