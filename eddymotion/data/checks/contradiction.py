# SPDX-License-Identifier: Apache-2.0
"""What the images say against the table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Contradiction:
    """What the images say against the table.

    Parameters
    ----------
    found : str
        Which volumes, and what they show.
    reading : str
        What would fit.
    certain : bool
        Whether no head could look so.
    """

    found: str
    reading: str
    certain: bool = True

    def __str__(self) -> str:
        return f"{self.found}; {self.reading}"
