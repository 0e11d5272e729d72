"""Points followed over a clip: pyramidal Lucas-Kanade, checked forward and backward, balanced over the image.

Method: Bouguet 2001, "Pyramidal implementation of the Lucas-Kanade feature tracker"; the forward-backward check is
Kalal et al. 2010; corners by Shi & Tomasi 1994 (OpenCV's implementations of all three).
"""

from dataclasses import dataclass

import cv2
import numpy as np

from engine.options import option


@dataclass
class TrackOptions:
    cells: list[int] = option([16, 28], "rows and columns of the grid that balances the points over the image")
    per_cell: int = option(2, "points wanted in each grid cell (16 x 28 x 2 = 896 points a frame)")
    window: int = option(
        21, "Lucas-Kanade window, pixels at 832 wide (2.5 % of it): holds on to blurred texture better than 15"
    )
    levels: int = option(4, "pyramid levels above the image: 4 follow jumps of about 100 pixels")
    forward_backward: float = option(1.0, "a point that does not come back to within this many pixels is dropped")
    quality: float = option(
        0.0005,
        "corner response of the weakest kept corner over the strongest: blurred ground has only weak ones",
    )
    replenish_every: int = option(2, "frames between searches for new corners in cells that have run empty")


@dataclass(frozen=True)
class PointTracks:
    """M points over T frames.

    uv  float32 [M,T,2] image coordinates in pixels (pixel centres at +0.5), NaN where the point is not seen
    """

    uv: np.ndarray

    @property
    def seen(self) -> np.ndarray:
        """bool [M,T]: where the point has a position."""
        return np.isfinite(self.uv[..., 0])

    def longest(self, minimum: int) -> "PointTracks":
        """Only the tracks seen in at least `minimum` frames."""
        return PointTracks(self.uv[self.seen.sum(1) >= minimum])


def track_points(frames: np.ndarray, static: np.ndarray | None, options: TrackOptions) -> PointTracks:
    """Follow static points through frames uint8 [T,H,W,3] RGB; `static` bool [T,H,W] says where points may be
    (None: everywhere). A point that enters a non-static pixel ends there and never returns."""
    count, height, width = frames.shape[:3]
    # A smaller image has less blur; 15 pixels are the least that hold a corner with its surroundings
    window = min(options.window, max(15, round(options.window * width / 832)))
    lk = {
        "winSize": (window, window),
        "maxLevel": options.levels,
        "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 0.01),
    }
    finished: list[tuple[int, np.ndarray]] = []  # (first frame, positions [length,2])
    alive: list[tuple[int, list[np.ndarray]]] = []
    points = np.zeros((0, 2), np.float32)  # OpenCV coordinates: pixel centres at integers
    previous = None
    for t in range(count):
        gray = cv2.cvtColor(frames[t], cv2.COLOR_RGB2GRAY)
        if len(points):
            moved, ok = _follow(previous, gray, points, lk, options.forward_backward)
            ok &= _inside(moved, None if static is None else static[t], height, width)
            finished += [_close(track) for track, keep in zip(alive, ok, strict=True) if not keep]
            alive = [track for track, keep in zip(alive, ok, strict=True) if keep]
            points = moved[ok]
            for (_, path), point in zip(alive, points, strict=True):
                path.append(point)
        if t % options.replenish_every == 0 and t < count - 1:
            new = _new_corners(gray, None if static is None else static[t], points, options)
            alive += [(t, [point]) for point in new]
            points = np.concatenate([points, new])
        previous = gray
    finished += [_close(track) for track in alive]
    finished = [track for track in finished if len(track[1]) > 1]
    uv = np.full((len(finished), count, 2), np.nan, np.float32)
    for row, (first, path) in zip(uv, finished, strict=True):
        row[first : first + len(path)] = path + np.float32(0.5)
    return PointTracks(uv)


def _close(track: tuple[int, list[np.ndarray]]) -> tuple[int, np.ndarray]:
    return track[0], np.stack(track[1])


def _follow(previous, current, points: np.ndarray, lk: dict, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions [N,2] in the current image and whether each point came back to where it started."""
    moved, there, _ = cv2.calcOpticalFlowPyrLK(previous, current, points, None, **lk)
    back, again, _ = cv2.calcOpticalFlowPyrLK(
        current, previous, moved, points.copy(), flags=cv2.OPTFLOW_USE_INITIAL_FLOW, **lk
    )
    returned = np.linalg.norm(back - points, axis=1) < limit
    return moved, (there[:, 0] == 1) & (again[:, 0] == 1) & returned


def _inside(points: np.ndarray, static: np.ndarray | None, height: int, width: int) -> np.ndarray:
    x, y = np.rint(points[:, 0]), np.rint(points[:, 1])
    inside = (x >= 1) & (y >= 1) & (x <= width - 2) & (y <= height - 2)
    if static is not None:
        xi, yi = (np.clip(x, 0, width - 1).astype(int), np.clip(y, 0, height - 1).astype(int))
        inside &= static[yi, xi]
    return inside


def _new_corners(gray: np.ndarray, static: np.ndarray | None, points: np.ndarray, options: TrackOptions) -> np.ndarray:
    """Corners float32 [N,2] for the cells that hold fewer than `per_cell` points, strongest first."""
    height, width = gray.shape
    rows, columns = options.cells
    response = cv2.cornerMinEigenVal(gray, 5)
    peak = response == cv2.dilate(response, np.ones((9, 9), np.uint8))
    peak &= response > options.quality * float(np.percentile(response, 99.9))
    peak[:8], peak[-8:], peak[:, :8], peak[:, -8:] = False, False, False, False
    if static is not None:
        peak &= static
    taken = np.zeros((height, width), np.uint8)
    for x, y in np.rint(points).astype(int):
        cv2.circle(taken, (int(x), int(y)), 6, 1, -1)
    peak &= taken == 0
    y, x = np.nonzero(peak)
    order = np.argsort(-response[y, x], kind="stable")
    y, x = y[order], x[order]

    def cell_of(px: np.ndarray, py: np.ndarray) -> np.ndarray:
        row = np.clip(py * rows // height, 0, rows - 1).astype(int)
        return row * columns + np.clip(px * columns // width, 0, columns - 1).astype(int)

    room = options.per_cell - np.bincount(cell_of(points[:, 0], points[:, 1]), minlength=rows * columns)
    cell = cell_of(x, y)
    by_cell = np.argsort(cell, kind="stable")  # within a cell the strongest stays first
    first = np.r_[0, np.flatnonzero(np.diff(cell[by_cell])) + 1] if len(cell) else np.zeros(0, int)
    rank = np.arange(len(cell)) - np.repeat(first, np.diff(np.r_[first, len(cell)]))
    chosen = by_cell[rank < room[cell[by_cell]]]
    return np.stack([x[chosen], y[chosen]], -1).astype(np.float32)


def sample_depth(depth: np.ndarray, static: np.ndarray | None, tracks: PointTracks) -> np.ndarray:
    """Depth float32 [M,T] of each observation: the median of the valid values in its 3x3 pixels, 0 = none.

    depth float32 [T,H,W] (0 = no value); pixels that are not `static` [T,H,W] give none.
    """
    count, height, width = depth.shape
    out = np.zeros(tracks.uv.shape[:2], np.float32)
    for t in range(count):
        index = np.flatnonzero(tracks.seen[:, t])
        x, y = np.floor(tracks.uv[index, t]).astype(int).T
        patch = np.full((len(index), 9), np.nan, np.float32)
        for k, (dy, dx) in enumerate((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
            yy, xx = np.clip(y + dy, 0, height - 1), np.clip(x + dx, 0, width - 1)
            good = depth[t, yy, xx] > 0
            if static is not None:
                good &= static[t, yy, xx]
            patch[good, k] = depth[t, yy[good], xx[good]]
        some = np.isfinite(patch).any(1)
        out[index[some], t] = np.nanmedian(patch[some], 1)
    return out
