# SPDX-License-Identifier: Apache-2.0
"""Tables that somebody else wrote: any separator; errors say what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from eddymotion.errors import EddymotionError, absence
from eddymotion.io.tsv import MISSING
from eddymotion.mapping.rigid import PARAMETERS
from eddymotion.wording import cut, why


@dataclass(frozen=True)
class GivenTable:
    """A table with a header row.

    Parameters
    ----------
    path : Path
        For messages.
    columns : dict
        Name → cells, as text.
    """

    path: Path
    columns: dict[str, list[str]]

    @classmethod
    def read(cls, path: Path) -> GivenTable:
        """Read a table whose cells tabs separate, else commas, else blanks.

        Raises
        ------
        EddymotionError
            If it is missing, no text, or has not as many cells in each row.
        """
        if not path.is_file():
            raise EddymotionError(absence(path))
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise EddymotionError(f"{path}: not a text file; expected a table") from error
        separator = "\t" if "\t" in text else "," if "," in text else None
        lines = filter(None, text.splitlines())
        rows = [[cell.strip() for cell in line.split(separator)] for line in lines]
        if len(rows) < 2:
            raise EddymotionError(
                f"{path}: found {len(rows)} row(s), expected a header and values"
            )
        for number, row in enumerate(rows):
            if len(row) != len(rows[0]):
                raise EddymotionError(
                    f"{path}: row {number} has {len(row)} cells, the header {len(rows[0])}; "
                    "expected as many in each row"
                )
        return cls(path, dict(zip(rows[0], map(list, zip(*rows[1:], strict=True)), strict=True)))

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def renamed(self, new: Callable[[str], str]) -> GivenTable:
        """Return the same with other names of its columns."""
        return replace(self, columns={new(name): cells for name, cells in self.columns.items()})

    def numbers(self, *names: str) -> np.ndarray:
        """Return columns as numbers, (N, k); ``n/a`` becomes NaN.

        Raises
        ------
        EddymotionError
            If there is no such column, or it holds other words.
        """
        return np.stack([self._numbers(name) for name in names], axis=1)

    def _numbers(self, name: str) -> np.ndarray:
        if name not in self:
            raise EddymotionError(
                f"{self.path}: no column {name}; found {cut(', '.join(self.columns))}; name the "
                "columns so"
            )
        cells = self.columns[name]
        try:
            return np.array([np.nan if cell in (MISSING, "") else float(cell) for cell in cells])
        except ValueError as error:
            raise EddymotionError(
                f"{self.path}: column {name}: {why(error)}; expected numbers"
            ) from error

    def parameters(self) -> np.ndarray:
        """Return the six parameters of each volume, (N, 6) mm and rad.

        Raises
        ------
        EddymotionError
            If some are missing.
        """
        values = self.numbers(*PARAMETERS)
        if unknown := np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist():
            raise EddymotionError(
                f"{self.path}: row {unknown[0]} (counted from 0) has no number for some of "
                f"{', '.join(PARAMETERS)}; complete it"
            )
        return values
