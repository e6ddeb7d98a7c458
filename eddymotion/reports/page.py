"""The participant's report: one file that needs no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from eddymotion import __version__
from eddymotion.files import write_text

CAPTIONS = {
    "motion": (
        "Estimated motion",
        "Look for steps (the head moved between two volumes) and drifts. Framewise displacement "
        "is the change from volume to volume.",
    ),
    "before_after": (
        "Before and after",
        "Edges that light up in the standard deviation over volumes have moved; after correction "
        "they should be thin and dark, and the line through the head straight. Colour FA: red "
        "left-right, green anterior-posterior, blue inferior-superior.",
    ),
}
"""Title and what to look for, by kind of figure."""

_MIME = {".svg": "image/svg+xml", ".png": "image/png"}


@dataclass(frozen=True)
class SeriesSection:
    """What the page shows of a series.

    Parameters
    ----------
    name : str
    summary : dict
        Label → value, shown as a table.
    figures : dict
        Key of :data:`CAPTIONS` → picture file.
    """

    name: str
    summary: dict[str, str]
    figures: dict[str, Path]


def write_page(path: Path, title: str, sections: Sequence[SeriesSection]) -> None:
    """Write the report, pictures included."""
    template = Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    body = "\n".join(_section(section) for section in sections)
    write_text(path, template.substitute(title=escape(title), version=__version__, sections=body))


def _section(section: SeriesSection) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escape(label)}</th><td>{escape(value)}</td></tr>"
        for label, value in section.summary.items()
    )
    pictures = "".join(_figure(kind, picture) for kind, picture in section.figures.items())
    return f"<h2>{escape(section.name)}</h2>\n<table>{rows}</table>\n{pictures}"


def _figure(kind: str, picture: Path) -> str:
    title, caption = CAPTIONS[kind]
    data = base64.b64encode(picture.read_bytes()).decode("ascii")
    return (
        f"<figure><img alt='{escape(title)}' src='data:{_MIME[picture.suffix]};base64,{data}'>"
        f"<figcaption><b>{escape(title)}.</b> {escape(caption)}</figcaption></figure>\n"
    )
