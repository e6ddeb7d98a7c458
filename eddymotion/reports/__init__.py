# SPDX-License-Identifier: Apache-2.0
"""What people see: figures and pages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eddymotion.io.writing import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["own_style", "pixels_of", "save_figure", "save_pixels"]

DPI = 110

COMPRESSION = 3
"""Of PNG files: 5 to 12 % larger than the default makes them, in half of the time."""


@contextmanager
def own_style() -> Iterator[None]:
    """Draw as Matplotlib does by default, whatever somebody's matplotlibrc says.

    For a function that draws it is a decorator.
    """
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as the kind its name says; the same figure gives the same bytes."""
    if path.suffix == ".svg":
        _save_drawing(figure, path)
    else:
        save_pixels(pixels_of(figure), path)


@own_style()
def _save_drawing(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, metadata={"Date": None})


@own_style()
def pixels_of(figure: Figure, dpi: int = DPI) -> np.ndarray:
    """Draw a figure, whose background is opaque: (height, width, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def save_pixels(pixels: np.ndarray, path: Path, dpi: int = DPI) -> None:
    """Write what was drawn, in any thread: that leaves the interpreter to others."""
    from PIL import Image

    options: dict[str, Any] = {"compress_level": COMPRESSION} if path.suffix == ".png" else {}
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, dpi=(dpi, dpi), **options)
