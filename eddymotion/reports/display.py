# SPDX-License-Identifier: Apache-2.0
"""What a notebook shows: two volumes that flicker, the traces of a motion, a mosaic of a series.

All of it is HTML without a script and without an address: it stays in a saved notebook, and on a
page that is made from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation

from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.images.image import Image
from eddymotion.io.images import read_image
from eddymotion.io.tsv import Table
from eddymotion.io.writing import write_text
from eddymotion.mapping.motion import Motion
from eddymotion.reports.charts import three_lines
from eddymotion.reports.layout import data_address
from eddymotion.reports.slices import PLANES, PlaneGrid
from eddymotion.reports.sprites import WHITE, Frames, encode
from eddymotion.reports.svg import Columns, Panel
from eddymotion.wording import shown

if TYPE_CHECKING:
    import nibabel as nib

HEAD_SHARE = 0.1
"""Voxels above this share of the brightest belong to the head: what is shown."""

WIDTH = 760
"""Of a picture, pixels."""

MOST_TILES = 48
"""Volumes in a mosaic."""

OUTLINE = "#FFA000"

QUALITY = 85
"""Of WebP."""

STYLE = """\
.em-flicker { position: relative; display: inline-block; max-width: 100%; background: #000; }
.em-flicker img { display: block; width: 760px; max-width: 100%; }
.em-flicker span { position: absolute; left: 8px; top: 4px; padding: 0 .3em; background: #000;
                   font: 600 14px system-ui, sans-serif; color: #fff; }
.em-flicker .em-moving { position: absolute; inset: 0;
                         animation: em-flicker 1.2s step-end infinite; }
.em-flicker:hover .em-moving { animation-play-state: paused; }
.em-flicker .em-moving span { color: #ffb000; }
@keyframes em-flicker { 0% { visibility: visible; } 50% { visibility: hidden; } }
@media (prefers-reduced-motion: reduce) {
  .em-flicker .em-moving { animation: none; visibility: hidden; }
  .em-flicker:hover .em-moving { visibility: visible; }
}
"""


@dataclass(frozen=True)
class Flicker:
    """Two pictures in the same place, one after the other; what :func:`show` returns.

    Parameters
    ----------
    pictures : dict
        Label → WebP of the fixed and of the moving volume, in three planes.
    """

    pictures: Mapping[str, bytes]

    def _repr_html_(self) -> str:
        first, second = self.pictures
        below, above = (_image_tag(label, self.pictures[label]) for label in (first, second))
        return (
            f"<style>{STYLE}</style>"
            f'<div class="em-flicker"><div>{below}<span>{escape(first)}</span></div>'
            f'<div class="em-moving">{above}<span>{escape(second)}</span></div></div>'
        )

    def save(self, path: str | Path) -> None:
        """Write it as an HTML file of its own."""
        head = '<!DOCTYPE html><meta charset="utf-8"><title>flicker</title>'
        write_text(Path(path), head + self._repr_html_() + "\n")


def show(
    fixed: Image | nib.spatialimages.SpatialImage | str | Path,
    moving: Image | nib.spatialimages.SpatialImage | str | Path,
    transform: np.ndarray | None = None,
    *,
    contour: np.ndarray | None = None,
    labels: tuple[str, str] = ("fixed", "moving"),
) -> Flicker:
    """Flicker between two volumes in three planes, in a notebook.

    Parameters
    ----------
    fixed, moving : Image, NiBabel image or path
        Three-dimensional. The moving one is shown on the grid of the fixed one, where their
        affines say.
    transform : (4, 4) array, optional
        Points of the fixed image → points of the moving one, RAS+ mm: as in
        :class:`~eddymotion.mapping.motion.Motion`, so that ``show(reference, volume, motion[i])``
        shows what the correction does to volume ``i``.
    contour : (X, Y, Z) array, optional
        On the grid of the fixed image; its edge is drawn in both pictures.
    labels : tuple of str

    Returns
    -------
    Flicker
        A notebook displays it when it is the last value of a cell (``display()`` elsewhere); the
        pointer over it holds it. ``save("flicker.html")`` writes a file.

    Raises
    ------
    EddymotionError
        If an image cannot be read or has not three dimensions, or the contour lies on another
        grid.
    """
    fixed_image, moving_image = _image(fixed), _image(moving)
    shape = fixed_image.data.shape
    if contour is not None and np.shape(contour) != shape:
        raise EddymotionError(
            f"show: the contour has shape {np.shape(contour)}, the fixed image {shape}; give a "
            "mask on the grid of the fixed image"
        )
    if labels[0] == labels[1]:
        raise EddymotionError(f"show: both labels are {shown(labels[0])}; give two that differ")
    grid = _grid(fixed_image)
    frames = Frames.of(grid, 1)
    outline = []
    if contour is not None:
        turned = apply_orientation(np.asarray(contour) > 0, io_orientation(fixed_image.affine))
        outline = frames.outline(replace(grid, mask=turned.astype(bool)))
    poses = None, transform
    pictures = {}
    for label, image, pose in zip(labels, (fixed_image, moving_image), poses, strict=True):
        planes = {name: _sampled(image, grid, name, pose) for name in PLANES}
        pictures[label] = _webp(_grey(frames.picture(planes)), outline, frames)
    return Flicker(pictures)


@singledispatch
def html_of(value: Any) -> str:
    """Draw a value as HTML.

    Raises
    ------
    TypeError
        If nobody knows how.
    """
    raise TypeError(f"{type(value).__name__}: not a value that is shown")


@html_of.register
def _(motion: Motion) -> str:
    displacement = motion.framewise_displacement()
    fd = displacement[1:]
    text = f"Motion of {len(motion)} volumes"
    if len(fd):
        text += f": framewise displacement {fd.mean():.2f} mm on average, {fd.max():.2f} at most"
    if motion.eddy_currents is not None:
        text += " (of the head alone" + _offsets(motion) + ")"
    center = "scanner's origin" if motion.center is None else "centre of the image grid"
    where = f"Translations are those of the {center}."
    parameters = motion.parameters(of_head=True)
    traces = _traces(parameters, displacement, motion.standard_errors)
    return _figure(traces, f"{text}. {where}")


def _offsets(motion: Motion) -> str:
    """Say how far eddy currents displaced volumes as a whole, where that is known."""
    eddy = motion.eddy_currents
    if eddy is None or eddy.offsets is None:
        return ""
    return f"; eddy currents displaced the volumes by up to {np.abs(eddy.offsets).max():.2f} mm"


@html_of.register
def _(dwi: DWI) -> str:
    n = len(dwi)
    shown = np.unique(np.linspace(0, n - 1, min(n, MOST_TILES)).round().astype(int))
    picture = _mosaic(dwi, shown)
    some = f"{len(shown)} of {n} volumes" if len(shown) < n else "all volumes"
    name = f"{dwi.source.name}: " if dwi.source else ""
    words = (
        f"{name}{dwi!r}. One axial slice of {some}, each as bright as it needs; left is left, "
        "anterior up."
    )
    tag = f'<img width="{WIDTH}" alt="{escape(words)}" src="{data_address(picture, ".webp")}">'
    return _figure(tag, words)


def _traces(parameters: np.ndarray, fd: np.ndarray, errors: np.ndarray | None) -> str:
    """Draw translations, rotations and framewise displacement: SVG."""
    names = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    cells = {name: [f"{x:.8g}" for x in parameters[:, k]] for k, name in enumerate(names)}
    if errors is not None:
        cells |= {f"{name}_se": [f"{x:.8g}" for x in errors[:, k]] for k, name in enumerate(names)}
    table, columns = Table(cells), Columns(range(len(parameters)))
    tops = {"translation (mm)": 12.0, "rotation (°)": 146.0, "FD (mm)": 280.0}

    def panel(name: str, low: float, high: float) -> Panel:
        height = 84.0 if name.startswith("FD") else 118.0
        return Panel(columns, tops[name], height, low, high, name)

    bars = panel("FD (mm)", 0.0, max(1.1 * float(np.nanmax(fd, initial=0.0)), 0.1))
    parts = [
        three_lines(panel, "translation (mm)", table, "trans"),
        three_lines(panel, "rotation (°)", table, "rot", scale=180 / np.pi),
        bars.frame(),
        *(bars.bar(v, float(x), "#8A8A8A") for v, x in enumerate(fd) if np.isfinite(x)),
        columns.axis(364),
    ]
    return columns.chart(388, parts, f"Head motion in {len(parameters)} volumes", "motion")


def _mosaic(dwi: DWI, shown: np.ndarray) -> bytes:
    """Lay a slice of several volumes beside each other, with their b-values: WebP."""
    from PIL import Image as Pictures
    from PIL import ImageDraw, ImageFont

    grid = PlaneGrid.of(dwi)
    frames = Frames.of(grid, 1)
    (x0, y0), (x1, y1) = frames.low[:2], frames.high[:2]
    whole = apply_orientation(dwi.signal, io_orientation(dwi.affine))
    planes = grid.plane("axial", whole)[x0:x1, y0:y1].astype(np.float32)
    columns = math.ceil(math.sqrt(1.6 * len(shown)))
    width = WIDTH // columns
    height = round(width * (y1 - y0) * grid.sizes[1] / ((x1 - x0) * grid.sizes[0]))
    rows = -(-len(shown) // columns)
    canvas = Pictures.new("L", (columns * width, rows * height))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=max(9, min(width / 8, 13)))
    for place, volume in enumerate(shown):
        tile = Pictures.fromarray(_grey(planes[..., volume].T[::-1]))
        row, column = divmod(place, columns)
        corner = (column * width, row * height)
        canvas.paste(tile.resize((width, height), Pictures.Resampling.BICUBIC), corner)
        label = f"{volume}: b={dwi.gradients.bvals[volume]:.0f}"
        draw.text((corner[0] + 3, corner[1] + 1), label, fill=255, font=font)
    return encode(canvas, QUALITY)


def _image(given: Any) -> Image:
    """Take what a user has for an image."""
    if isinstance(given, str | Path):
        given = Image(*read_image(Path(given))[:2])
    elif hasattr(given, "get_fdata"):
        given = Image(np.asarray(given.dataobj, dtype=np.float32), np.asarray(given.affine))
    if not isinstance(given, Image):
        raise EddymotionError(
            f"show: got {type(given).__name__}, expected a path, a NiBabel image or an Image; of "
            "a series give dwi.volume(i)"
        )
    if given.data.ndim != 3:
        raise EddymotionError(
            f"show: an image has {given.data.ndim} dimensions, expected 3; give one volume"
        )
    return Image(np.nan_to_num(given.data).astype(np.float32), given.affine)


def _grid(image: Image) -> PlaneGrid:
    """Turn the grid of an image to RAS+ and lay the planes through the head, roughly."""
    head = image.data > HEAD_SHARE * np.percentile(image.data, WHITE)
    return PlaneGrid.through(head if head.any() else np.ones(head.shape, bool), image.affine)


def _sampled(image: Image, grid: PlaneGrid, plane: str, pose: np.ndarray | None) -> np.ndarray:
    """Read an image in a plane of a grid; zero outside."""
    points = grid.plane_points(plane)
    values = image.spline.sample(points.reshape(-1, 3), pose)
    return np.nan_to_num(values).reshape(points.shape[:-1])


def _grey(picture: np.ndarray) -> np.ndarray:
    """Scale to 8 bits, the brightest parts white."""
    inside = picture[picture > 0]
    white = float(np.percentile(inside, WHITE)) if inside.size else 1.0
    return np.clip(255 * picture / max(white, 1e-6), 0, 255).astype(np.uint8)


def _webp(pixels: np.ndarray, outline: Sequence[Sequence[float]], frames: Frames) -> bytes:
    """Enlarge a picture to :data:`WIDTH`, draw an outline on it and label the sides."""
    from PIL import Image as Pictures
    from PIL import ImageDraw, ImageFont

    scale = max(WIDTH / pixels.shape[1], 1.0)
    size = round(pixels.shape[1] * scale), round(pixels.shape[0] * scale)
    picture = Pictures.fromarray(pixels).resize(size, Pictures.Resampling.BICUBIC).convert("RGB")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=12)
    for segment in outline:
        draw.line([scale * value for value in segment], fill=OUTLINE, width=1)
    for plane in ("coronal", "axial"):
        left, top, width, height = frames.boxes[plane]
        for side, x in (("L", left + 1), ("R", left + width - 1 - 9 / scale)):
            place = (scale * x, scale * (top + height / 2))
            draw.text(place, side, fill="#BBBBBB", font=font)
    return encode(picture, QUALITY)


def _image_tag(label: str, picture: bytes) -> str:
    alt = escape(f"{label} volume: sagittal, coronal and axial plane")
    return f'<img width="{WIDTH}" alt="{alt}" src="{data_address(picture, ".webp")}">'


def _figure(content: str, caption: str) -> str:
    style = "margin: 0; padding: 4px; max-width: 1060px; background: #fff; color: #222"
    return f'<figure style="{style}">{content}<figcaption>{escape(caption)}</figcaption></figure>'
