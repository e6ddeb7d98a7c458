# SPDX-License-Identifier: Apache-2.0
"""How a head can move: the patterns by name."""

from __future__ import annotations

from typing import Literal

Pattern = Literal["none", "drift", "moderate", "high", "swap15", "swap30", "swap50", "scattered"]
"""A name of :data:`PATTERNS`."""

PATTERNS: dict[Pattern, str] = {
    "none": "at rest",
    "drift": "slow drift",
    "moderate": "drift with three jumps of about 2° and 3 mm",
    "high": "drift with eight larger jumps",
    "swap15": "at rest, but 15 % of the volumes are replaced by moved copies, up to 5 mm and 8° "
    "along and about each axis (after Cieslak et al. 2024)",
    "swap30": "30 % of the volumes replaced",
    "swap50": "50 % of the volumes replaced",
    "scattered": "each volume displaced by itself, up to 20 mm and 25° along and about each axis",
}
"""Motion between volumes: each is scanned at one pose."""

Course = Literal["slow-drift", "fast-drift", "nods", "jumps", "breathing"]
"""A name of :data:`COURSES`."""

COURSES: dict[Course, str] = {
    "slow-drift": "drift, a few tenths of a millimetre a volume",
    "fast-drift": "drift of several millimetres over a few volumes",
    "nods": "nods of 1 to 5 s and 1 to 4°, every 20 s or so",
    "jumps": "sudden movements of about 3 mm and 2° in the midst of volumes",
    "breathing": "up and down and a nod at 0.28 Hz, always the same",
}
"""Motion that goes on while a volume is scanned, slice by slice."""
