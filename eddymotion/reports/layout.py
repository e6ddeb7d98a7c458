# SPDX-License-Identifier: Apache-2.0
"""The page kit: one HTML file that loads nothing from anywhere.

Styles, script, pictures and data are inside. A content security policy forbids the rest: no
address is fetched and no script runs but ours, whatever a file name or a sidecar holds. Text
becomes HTML only in :func:`tag`, :func:`table` and the like, which escape it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from eddymotion import __version__
from eddymotion.io.writing import write_text
from eddymotion.reports.svg import attributes_text

MIME = {
    ".svg": "image/svg+xml", ".png": "image/png", ".webp": "image/webp", ".jpg": "image/jpeg",
}  # fmt: skip

VOID = frozenset({"img", "input", "br", "hr"})


class Html(str):
    """Text that is HTML already; any other is escaped."""

    __slots__ = ()


def tag(name: str, *content: str | None, **attributes: object) -> Html:
    """Write an element of HTML; its content as of :func:`join`, its attributes as in SVG."""
    written = attributes_text(attributes)
    return Html(f"<{name}{written}>" + ("" if name in VOID else f"{join(content)}</{name}>"))


def join(parts: Iterable[str | None]) -> Html:
    """Put pieces after each other; what is not :class:`Html` is escaped, None left out."""
    written = (part if isinstance(part, Html) else escape(part) for part in parts if part)
    return Html("".join(written))


def table(
    rows: Iterable[Sequence[str]], header: Sequence[str] | None = None, **attributes: object
) -> Html:
    """Write a table; the first cell of a row is its heading."""
    head = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in header or ())))
    body = [
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest))
        for first, *rest in rows
    ]
    return tag("table", head if header else None, tag("tbody", *body), **attributes)


def details(summary: str, *content: str, **attributes: object) -> Html:
    """Write what is folded away until somebody wants it."""
    return tag("details", tag("summary", summary), *content, **attributes)


def data_address(data: bytes, suffix: str) -> str:
    """Write the bytes of a picture as an address."""
    return f"data:{MIME[suffix]};base64,{base64.b64encode(data).decode('ascii')}"


@dataclass(frozen=True)
class Figure:
    """A picture with what to look for.

    Parameters
    ----------
    content : Html
        An inline SVG, an image, or what a script fills.
    title, caption : str
    file : str
        Address of the picture as a file, relative to the page; not linked when empty.
    """

    content: Html
    title: str
    caption: str
    file: str = ""

    def html(self) -> Html:
        """Write it."""
        link = tag("a", "as a file", href=self.file, class_="file") if self.file else None
        return tag(
            "figure",
            tag("div", self.content, class_="content"),
            tag("figcaption", tag("b", f"{self.title}. "), self.caption, link and " ", link),
        )


def image(path: Path, alt: str) -> Html:
    """Embed a picture file."""
    source = data_address(path.read_bytes(), path.suffix)
    return tag("img", src=source, alt=alt)


@dataclass(frozen=True)
class Section:
    """A part of a page, in its table of contents.

    Parameters
    ----------
    name : str
        Its address on the page, unique there.
    title : str
    content : Html
    """

    name: str
    title: str
    content: Html

    def html(self) -> Html:
        """Write it."""
        return tag("section", tag("h2", self.title), self.content, id=self.name)


def contents(sections: Iterable[Section]) -> Html:
    """Write links to sections."""
    links = [tag("a", section.title, href=f"#{section.name}") for section in sections]
    return tag("nav", *links, class_="contents", aria_label="contents")


def embedded_json(name: str, content: Any) -> Html:
    """Embed data for the script; nothing in it can end the element."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Html(f'<script type="application/json" id="{escape(name)}">{text}</script>')


def write_page(
    path: Path,
    title: str,
    body: str,
    *,
    script: str = "report.js",
    styles: Sequence[str] = ("report.css",),
) -> None:
    """Write a page.

    Parameters
    ----------
    path : Path
    title : str
    body : Html
    script : str
    styles : sequence of str
        Files of ``static/`` that become a part of it.
    """
    source = static_text(script)
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode("ascii")
    page = Template(static_text("page.html")).substitute(
        title=escape(title),
        version=escape(__version__),
        digest=digest,
        style="".join(map(static_text, styles)),
        script=source,
        body=body if isinstance(body, Html) else escape(body),
    )
    write_text(path, page)


def static_text(name: str) -> str:
    """Read a file of the package's ``static`` folder."""
    return files(__package__).joinpath("static", name).read_text(encoding="utf-8")
