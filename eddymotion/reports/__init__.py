# SPDX-License-Identifier: Apache-2.0
"""What people see: figures and pages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from eddymotion.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["save_figure"]


def save_figure(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Write a figure as the kind its name says; the same figure gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi, metadata=metadata)
