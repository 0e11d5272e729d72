"""Procedural textures with detail to track, and the mip-mapped atlas that shading reads.

Every texture is a tile that repeats, uint8 sRGB [512,512,3]. Noise is filtered white noise with a 1/f^p spectrum made
by an FFT, so it repeats without a seam.
"""

from collections.abc import Callable

import cv2
import numpy as np

TILE = 512  # texels; with the usual 2 m tile 4 mm a texel, about one pixel at 3 m and a focal of 720 px
_PAD = 2  # texels around each level, so that bilinear reads wrap


def noise(rng: np.random.Generator, power: float = 1.5, stretch: float = 1.0) -> np.ndarray:
    """Tile [512,512] of zero mean and unit variance with amplitude spectrum 1/f^power; `stretch` > 1 draws it out
    along x."""
    fy, fx = np.meshgrid(np.fft.fftfreq(TILE), np.fft.rfftfreq(TILE), indexing="ij")
    f = np.hypot(fx * stretch, fy)
    f[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((TILE, TILE))) / f**power
    tile = np.fft.irfft2(spectrum, s=(TILE, TILE))
    return (tile - tile.mean()) / tile.std()


def _paint(value: np.ndarray, colour: tuple[float, float, float]) -> np.ndarray:
    return value[..., None] * np.asarray(colour, float)


def _masonry(rng: np.random.Generator, rows: int, columns: int, gap: int, shift: bool, spread: float):
    """(brightness of each stone [512,512], 1 where there is mortar)."""
    y, x = np.mgrid[0:TILE, 0:TILE]
    row = y * rows // TILE
    x = (x + (row % 2) * (TILE // columns // 2) * shift) % TILE
    column = x * columns // TILE
    stone = rng.normal(1, spread, (rows, columns))[row, column]
    edge = ((y * rows) % TILE < gap * rows) | ((x * columns) % TILE < gap * columns)
    return stone, edge


def brick(rng):
    stone, mortar = _masonry(rng, 26, 8, 3, True, 0.14)
    wall = _paint(stone + 0.07 * noise(rng, 0.8), (0.62, 0.33, 0.25))
    return np.where(mortar[..., None], _paint(1 + 0.08 * noise(rng, 0.6), (0.72, 0.69, 0.64)), wall)


def stone(rng):
    block, mortar = _masonry(rng, 8, 5, 4, True, 0.10)
    wall = _paint(block + 0.09 * noise(rng, 1.0), (0.66, 0.62, 0.54))
    return np.where(mortar[..., None], _paint(1 + 0.06 * noise(rng, 0.6), (0.42, 0.40, 0.37)), wall)


def paving(rng):
    slab, joint = _masonry(rng, 6, 6, 3, False, 0.07)
    floor = _paint(slab + 0.07 * noise(rng, 0.7), (0.60, 0.59, 0.57))
    return np.where(joint[..., None], 0.30 + 0 * floor, floor)


def tiles(rng):
    slab, joint = _masonry(rng, 5, 5, 3, False, 0.03)
    y, x = np.mgrid[0:TILE, 0:TILE]
    dark = ((y * 5 // TILE + x * 5 // TILE) % 2)[..., None]
    vein = np.abs(noise(rng, 1.6))[..., None] < 0.05
    slab = _paint(slab + 0.03 * noise(rng, 1.2), (0.84, 0.80, 0.73)) * (1 - 0.33 * dark) * (1 - 0.18 * vein)
    return np.where(joint[..., None], 0.45 + 0 * slab, slab)


def planks(rng):
    board, gap = _masonry(rng, 10, 2, 2, True, 0.12)
    grain = noise(rng, 1.0, stretch=12)
    floor = _paint(board + 0.10 * grain, (0.56, 0.39, 0.24))
    return np.where(gap[..., None], 0.35 * floor, floor)


def wood(rng):
    return _paint(1 + 0.13 * noise(rng, 1.1, stretch=10), (0.50, 0.35, 0.22))


def asphalt(rng):
    speck = np.clip(noise(rng, 0.75), -2.5, 2.5)
    crack = np.abs(noise(rng, 1.9)) < 0.006
    return _paint(1 + 0.15 * speck + 0.07 * noise(rng, 1.4) - 0.4 * crack, (0.36, 0.36, 0.37))


def grass(rng):
    blade = np.clip(noise(rng, 0.5, stretch=0.4), -2.5, 2.5)
    patch = noise(rng, 1.5)
    return _paint(1 + 0.17 * blade, (0.30, 0.44, 0.16)) + _paint(0.05 * patch, (1.0, 0.6, 0.2))


def leaves(rng):
    image = _paint(0.55 + 0.05 * noise(rng, 1.0), (0.22, 0.40, 0.14))
    for _ in range(1500):
        cx, cy = rng.integers(0, TILE, 2)
        shade = float(rng.uniform(0.5, 1.35))
        colour = tuple(shade * c for c in (0.25, 0.47, 0.15))
        size, angle = (int(rng.integers(6, 13)), int(rng.integers(3, 6))), float(rng.uniform(0, 180))
        cv2.ellipse(image, (int(cx), int(cy)), size, angle, 0, 360, colour, -1, cv2.LINE_AA)
    return image


def bark(rng):
    return _paint(1 + 0.22 * noise(rng, 0.9, stretch=0.15), (0.36, 0.28, 0.21))


def roof(rng):
    tile, edge = _masonry(rng, 14, 12, 3, True, 0.12)
    return np.where(edge[..., None], 0.22, _paint(tile + 0.06 * noise(rng, 0.8), (0.52, 0.25, 0.18)))


def plaster(rng):
    return _paint(0.90 + 0.030 * noise(rng, 0.6) + 0.035 * noise(rng, 1.7), (1.0, 1.0, 1.0))


def wallpaper(rng):
    image = _paint(0.86 + 0.02 * noise(rng, 0.7), (1.0, 1.0, 1.0))
    x = np.arange(TILE)
    image *= 1 - 0.10 * ((x * 8 // TILE) % 2)[..., None]
    for i in range(8):
        for j in range(8):
            centre = (i * 64 + 32, (j * 64 + 32 * (i % 2)) % TILE)
            shade = float(rng.uniform(0.45, 0.75))
            cv2.circle(image, centre, int(rng.integers(6, 13)), (shade, shade, shade * 0.9), -1, cv2.LINE_AA)
            cv2.circle(image, centre, 4, (0.95, 0.9, 0.8), -1, cv2.LINE_AA)
    return image


def carpet(rng):
    y, x = np.mgrid[0:TILE, 0:TILE] * 2 * np.pi / TILE
    weave = 0.12 * np.clip(noise(rng, 0.3), -2, 2)
    value = np.sign(np.sin(6 * x) * np.sin(6 * y)) * 0.18 + np.sign(np.sin(2 * x + 2 * y)) * 0.14
    return np.stack([0.55 + value + weave, 0.30 + 0.5 * value + weave, 0.28 - 0.3 * value + weave], -1)


def fabric(rng):
    return _paint(0.92 + 0.05 * np.clip(noise(rng, 0.4), -2, 2) + 0.05 * noise(rng, 1.4), (1.0, 1.0, 1.0))


def stripes(rng):
    y = np.mgrid[0:TILE, 0:TILE][0]
    return fabric(rng) * (1 - 0.55 * ((y * 12 // TILE) % 2))[..., None]


def checks(rng):
    y, x = np.mgrid[0:TILE, 0:TILE] * 10 // TILE
    return fabric(rng) * (1 - 0.28 * (y % 2) - 0.28 * (x % 2))[..., None]


def denim(rng):
    y, x = np.mgrid[0:TILE, 0:TILE]
    twill = 0.05 * np.sin((x + y) * 2 * np.pi * 64 / TILE)
    return _paint(0.85 + twill + 0.07 * noise(rng, 1.2), (1.0, 1.0, 1.0))


def skin(rng):
    return _paint(0.97 + 0.02 * noise(rng, 1.2), (1.0, 1.0, 1.0))


def hair(rng):
    return _paint(0.85 + 0.25 * noise(rng, 0.9, stretch=0.1), (1.0, 1.0, 1.0))


def window(rng):
    """One window, the whole tile: white frame, glass with a reflection, curtains."""
    y, x = np.mgrid[0:TILE, 0:TILE] / TILE
    glass = np.stack([0.25 + 0.25 * y, 0.32 + 0.25 * y, 0.40 + 0.22 * y], -1) * (1 + 0.08 * noise(rng, 1.8)[..., None])
    curtain = (x < 0.25) | (x > 0.78)
    glass = np.where(curtain[..., None], (0.72 + 0.10 * np.sin(x * 120))[..., None] * [1.0, 0.95, 0.86], glass)
    frame = (np.minimum(x, 1 - x) < 0.07) | (np.minimum(y, 1 - y) < 0.06) | (abs(x - 0.5) < 0.025)
    frame |= abs(y - 0.38) < 0.02
    return np.where(frame[..., None], 0.90 + 0.02 * noise(rng, 0.8)[..., None], glass)


def door(rng):
    image = wood(rng) * 1.1
    for y0, y1 in ((40, 230), (280, 470)):
        for x0, x1 in ((60, 230), (280, 450)):
            cv2.rectangle(image, (x0, y0), (x1, y1), (0.22, 0.14, 0.09), 8)
    cv2.circle(image, (480, 260), 14, (0.85, 0.75, 0.4), -1, cv2.LINE_AA)
    return image


def poster(rng):
    """One poster, the whole tile: coloured shapes and lines of text on a light ground."""
    image = np.ones((TILE, TILE, 3)) * rng.uniform(0.75, 0.95, 3)
    for _ in range(9):
        a, b = rng.integers(30, TILE - 30, (2, 2))
        colour = tuple(float(c) for c in rng.uniform(0.1, 0.9, 3))
        if rng.random() < 0.5:
            cv2.circle(image, tuple(map(int, a)), int(rng.integers(20, 90)), colour, -1, cv2.LINE_AA)
        else:
            cv2.rectangle(image, tuple(map(int, a)), tuple(map(int, b)), colour, int(rng.choice([-1, 8])))
    for line in range(4):
        text = "".join(chr(int(c)) for c in rng.integers(65, 91, 9))
        cv2.putText(
            image, text, (24, 80 + line * 120), cv2.FONT_HERSHEY_SIMPLEX, 2.2, (0.08, 0.08, 0.1), 6, cv2.LINE_AA
        )
    cv2.rectangle(image, (0, 0), (TILE - 1, TILE - 1), (0.15, 0.12, 0.1), 20)
    return image


def books(rng):
    """A shelf of books: coloured spines, six shelves a tile."""
    image = np.full((TILE, TILE, 3), 0.12)
    shelf = TILE // 6
    for row in range(6):
        x = 4
        while x < TILE - 12:
            width, height = int(rng.integers(9, 26)), int(rng.integers(50, 76))
            colour = tuple(float(c) for c in rng.uniform(0.15, 0.85, 3))
            bottom = row * shelf + shelf - 6
            cv2.rectangle(image, (x, bottom - height), (min(x + width, TILE - 4), bottom), colour, -1)
            cv2.line(image, (x + 3, bottom - height + 9), (x + width - 3, bottom - height + 9), (0.9, 0.85, 0.6), 2)
            x += width + 2
        cv2.rectangle(image, (0, row * shelf + shelf - 6), (TILE, row * shelf + shelf), (0.45, 0.31, 0.19), -1)
    return image


def mottle(rng):
    """Large soft stains that multiply every surface, so that tiles do not repeat visibly."""
    return _paint(0.86 + 0.06 * noise(rng, 1.7) + 0.025 * noise(rng, 1.0), (1.0, 1.0, 1.0))


TEXTURES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    f.__name__: f
    for f in [
        *(brick, stone, paving, tiles, planks, wood, asphalt, grass, leaves, bark, roof, plaster, wallpaper, carpet),
        *(fabric, stripes, checks, denim, skin, hair, window, door, books, mottle),
    ]
} | {f"poster{i}": poster for i in range(4)}


class Atlas:
    """All textures of a world with their mip levels in one image, read by one `cv2.remap` per level of the blend."""

    def __init__(self, names: list[str], seed: int):
        self.index = {name: i for i, name in enumerate(names)}
        self.levels = int(np.log2(TILE)) - 2  # the smallest level has 8 texels
        sizes = [TILE >> level for level in range(self.levels)]
        self.row = TILE + 2 * _PAD
        self.left = np.cumsum([0] + [s + 2 * _PAD for s in sizes])[:-1]
        self.image = np.zeros((self.row * len(names), self.left[-1] + sizes[-1] + 2 * _PAD, 3), np.uint8)
        for i, name in enumerate(names):
            # Each texture has its own stream: adding one does not repaint the others.
            rng = np.random.default_rng([seed, *name.encode()])
            tile = (np.clip(TEXTURES[name](rng), 0, 1) * 255).astype(np.uint8)
            for left, size in zip(self.left, sizes, strict=True):
                level = cv2.resize(tile, (size, size), interpolation=cv2.INTER_AREA)
                block = np.pad(level, ((_PAD, _PAD), (_PAD, _PAD), (0, 0)), mode="wrap")
                self.image[i * self.row : i * self.row + len(block), left : left + len(block)] = block

    def read(self, texture: np.ndarray, uv: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """uint8-range float32 [P,3] trilinear samples: texture int [P], uv [P,2] in tiles, footprint [P] of a pixel
        in tiles."""
        level = np.clip(np.log2(np.maximum(footprint * TILE, 1e-9)), 0, self.levels - 1.001)
        low = level.astype(np.int64)
        blend = (level - low).astype(np.float32)[:, None]
        uv = uv - np.floor(uv)
        a, b = self._level(texture, uv, low), self._level(texture, uv, low + 1)
        return a + (b - a) * blend

    def _level(self, texture, uv, level):
        size = (TILE >> level).astype(np.float32)
        x = self.left[level] + _PAD + uv[:, 0] * size - 0.5
        y = texture * self.row + _PAD + uv[:, 1] * size - 0.5
        # remap wants an image of coordinates: rows of 4096 keep both sides under its 32767 limit.
        count = len(x)
        pad = -count % 4096
        x, y = (np.pad(c.astype(np.float32), (0, pad)).reshape(-1, 4096) for c in (x, y))
        return cv2.remap(self.image, x, y, cv2.INTER_LINEAR).reshape(-1, 3)[:count].astype(np.float32)
