# SPDX-License-Identifier: Apache-2.0
"""Registration of a pair of images: one protocol, several engines."""

from __future__ import annotations

from eddymotion.mapping.registration import Registration, Warp
from eddymotion.registration.base import Registrar
from eddymotion.registration.gauss_newton import GaussNewton, Level
from eddymotion.registration.initial import initial_transform
from eddymotion.registration.registry import get_registrar, registrar_names

__all__ = [
    "GaussNewton",
    "Level",
    "Registrar",
    "Registration",
    "Warp",
    "get_registrar",
    "initial_transform",
    "registrar_names",
]
