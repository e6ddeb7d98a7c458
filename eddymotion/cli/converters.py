# SPDX-License-Identifier: Apache-2.0
"""Words of the command line → values: each says what it expected."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from eddymotion.errors import absence
from eddymotion.wording import shown

Number = TypeVar("Number", int, float)


def existing_file(text: str) -> Path:
    """Convert to the path of a file that exists."""
    if not os.path.isfile(text):  # False, too, for names that no file can have
        raise argparse.ArgumentTypeError(absence(Path(text)))
    return Path(text)


@dataclass(frozen=True)
class Words:
    """Converts to a word that is known, to None if it stands for nothing, or as another does."""

    otherwise: Callable[[str], Any]
    known: tuple[str, ...]
    unset: str

    def __call__(self, text: str) -> Any:
        """Convert; ``./word`` is a file all the same."""
        if text in self.known:
            return text
        if text == self.unset:
            return None
        try:
            return self.otherwise(text)
        except argparse.ArgumentTypeError as error:
            words = " or ".join(filter(None, (*self.known, self.unset)))
            raise argparse.ArgumentTypeError(f"{error}, or write {words}") from error


def word_or_number(words: Sequence[str], least: int) -> Callable[[str], str]:
    """Make what takes one of some words, or a whole number from `least` on."""
    expected = f"{', '.join(words)}, or a whole number of at least {least}"

    def converted(text: str) -> str:
        return text if text in words else str(_number(text, int, lambda n: n >= least, expected))

    return converted


def positive(text: str) -> int:
    """Convert to a whole number above zero."""
    return _number(text, int, lambda number: number > 0, "a whole number above zero")


def not_negative_integer(text: str) -> int:
    """Convert to a whole number from zero on."""
    return _number(text, int, lambda number: number >= 0, "a whole number of at least zero")


def not_negative(text: str) -> float:
    """Convert to a number from zero on."""
    return _number(text, float, lambda number: number >= 0, "a number of at least zero")


def above_zero(text: str) -> float:
    """Convert to a number above zero."""
    return _number(text, float, lambda number: number > 0, "a number above zero")


def share(text: str) -> float:
    """Convert to a number from zero to one."""
    return _number(text, float, lambda number: 0 <= number <= 1, "a fraction from 0 to 1")


NUMBERS: Mapping[Any, Any] = {
    (float, None): above_zero,
    (float, 0): not_negative,
    (int, 0): not_negative_integer,
    (int, 1): positive,
}
"""Type and least value → what converts to it."""


def _number(
    text: str, kind: Callable[[str], Number], fits: Callable[[Number], bool], expected: str
) -> Number:
    try:
        number = kind(text)
    except ValueError:
        number = None
    if number is None or not fits(number) or number == math.inf:
        raise argparse.ArgumentTypeError(f"{shown(text)} given, expected {expected}")
    return number
