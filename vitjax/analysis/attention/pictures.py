"""Maps over images, as the small-dataset paper has them: bilinear, scaled, rainbow, half opaque."""

import io
import math
from collections.abc import Sequence

import numpy as np

from vitjax.analysis.attention.look import Look

COLORMAP, ALPHA = "rainbow", 0.5
LEAST = 160  # pixels of the longer side of a picture; smaller ones are enlarged
MOST_ROWS = 12  # images in the picture of all maps side by side


def scaled(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map `[h, w]` at (height, width) pixels, bilinear, then from 0 at its minimum to 1 at its maximum.

    A map that is the same everywhere becomes 0.
    """
    import cv2

    large = cv2.resize(values.astype(np.float64), size[::-1], interpolation=cv2.INTER_LINEAR)
    low, high = large.min(), large.max()
    return (large - low) / (high - low) if high > low else np.zeros_like(large)


def overlay(picture: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A map `[h, w]` in colours over a uint8 `[H, W, 3]` picture, as such a picture; red is the maximum."""
    import matplotlib

    colors = matplotlib.colormaps[COLORMAP](scaled(values, picture.shape[:2]))[..., :3]
    return np.round((1 - ALPHA) * picture + ALPHA * 255 * colors).astype(np.uint8)


def tiles(pictures: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
    """Pictures of one size `[H, W, 3]` in rows of about as many as there are rows, on white."""
    height, width, _ = pictures[0].shape
    across = math.ceil(math.sqrt(len(pictures) * height / width))
    down = math.ceil(len(pictures) / across)
    sheet = np.full((down * (height + gap) - gap, across * (width + gap) - gap, 3), 255, np.uint8)
    for at, picture in enumerate(pictures):
        y, x = at // across * (height + gap), at % across * (width + gap)
        sheet[y : y + height, x : x + width] = picture
    return sheet


def enlarged(picture: np.ndarray) -> np.ndarray:
    """The picture with every pixel so many times as large that the longer side has `LEAST` pixels or more."""
    times = max(1, math.ceil(LEAST / max(picture.shape[:2])))
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def png(picture: np.ndarray) -> bytes:
    """A uint8 `[H, W, 3]` RGB picture as a PNG file."""
    import cv2

    return cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1].tobytes()


def drawn(look: Look, method: str, index: int) -> np.ndarray:
    """Image `index` under the map of a method; of `heads`, under that of each head in turn."""
    picture, values = look.network.pictures[index], look.maps[method][index]
    if method != "heads":
        return overlay(picture, values)
    return tiles([enlarged(overlay(picture, head)) for head in values])


def side_by_side(looks: Sequence[Look]) -> bytes | None:
    """The images and all their maps as one PNG, one row an image; None where only heads were asked for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = [method for method in looks[0].maps if method != "heads"]
    if not methods:
        return None
    rows = min(len(looks[0].answers), MOST_ROWS)
    columns = [(look, method) for method in methods for look in looks]
    figure = Figure(figsize=(1.3 * (1 + len(columns)), 1.3 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, 1 + len(columns), squeeze=False)
    for row, plots in enumerate(grid):
        plots[0].imshow(looks[0].network.pictures[row])
        for plot, (look, method) in zip(plots[1:], columns, strict=True):
            plot.imshow(drawn(look, method, row))
            if row == 0:
                what = look.shown_layer.name if method == "cls" else method
                plot.set_title(f"{look.network.label}\n{what}", fontsize=7)
        for plot in plots:
            plot.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
