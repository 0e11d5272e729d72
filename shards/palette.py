"""One stable colour per subject, the same in conditions, masks and maps."""

import numpy as np

# The strong half of matplotlib's tab20, then the light half, so that the first ten subjects differ most.
SUBJECT_COLOURS = np.array(
    [
        (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189),
        (140, 86, 75), (227, 119, 194), (127, 127, 127), (188, 189, 34), (23, 190, 207),
        (174, 199, 232), (255, 187, 120), (152, 223, 138), (255, 152, 150), (197, 176, 213),
        (196, 156, 148), (247, 182, 210), (199, 199, 199), (219, 219, 141), (158, 218, 229),
    ],
    np.uint8,
)  # fmt: skip


def subject_colour(label: int) -> tuple[int, int, int]:
    """RGB 0..255 of subject `label` (1..N); repeats after 20."""
    red, green, blue = SUBJECT_COLOURS[(label - 1) % len(SUBJECT_COLOURS)]
    return int(red), int(green), int(blue)
