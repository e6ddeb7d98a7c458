"""What people see: figures and pages. Imports matplotlib; import it where it is used."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eddymotion.files import replacing

__all__ = ["save_figure"]


def save_figure(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Write a figure as the kind its name says; the same figure gives the same bytes."""
    FigureCanvasAgg(figure)
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi, metadata=metadata)
