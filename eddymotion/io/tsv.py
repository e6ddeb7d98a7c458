# SPDX-License-Identifier: Apache-2.0
"""Tables as they are on disk: a report shows their cells, it does not compute them again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eddymotion.errors import EddymotionError
from eddymotion.wording import why

MISSING = "n/a"


@dataclass(frozen=True)
class Table:
    """A BIDS table.

    Parameters
    ----------
    columns : dict
        Name → cells, as text.
    """

    columns: dict[str, list[str]]

    @classmethod
    def read(cls, path: Path) -> Table:
        """Read tab-separated text with a header.

        Raises
        ------
        EddymotionError
            If it is missing or its rows have not all the same length.
        """
        try:
            return cls.parse(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EddymotionError(f"{path}: cannot be read ({why(error)}); run again") from error

    @classmethod
    def parse(cls, text: str) -> Table:
        """Take tab-separated text apart.

        Raises
        ------
        ValueError
            If its rows have not all the same length.
        """
        rows = [line.split("\t") for line in text.split("\n") if line]
        if not rows or any(len(row) != len(rows[0]) for row in rows):
            raise ValueError("expected a header and rows of the same length")
        header, *body = rows
        return cls({name: [row[k] for row in body] for k, name in enumerate(header)})

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def numbers(self, name: str) -> np.ndarray:
        """Return a column as floats (N,): NaN for n/a, for other words, and without the column."""
        cells = self.columns.get(name, [MISSING] * len(self))
        return np.array([_number(cell) for cell in cells], dtype=float)


def is_number(text: str) -> bool:
    """Whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(cell: str) -> float:
    return float(cell) if is_number(cell) else float("nan")


def table_text(columns: Mapping[str, Iterable[object]]) -> str:
    """Format columns as tab-separated text with a header row; NaN is written as ``n/a``.

    Tabs and line ends within a cell become spaces.
    """
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    return "".join("\t".join(map(_cell, row)) + "\n" for row in rows)


def _cell(value: object) -> str:
    if isinstance(value, (float, np.floating)):
        return MISSING if np.isnan(value) else f"{value:.8g}"
    return " ".join(str(value).split())
