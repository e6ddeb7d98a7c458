# SPDX-License-Identifier: Apache-2.0
"""Tests that any implementation of a protocol passes: subclass them in a few lines."""

from __future__ import annotations

from eddymotion.testing.pairs import KnownPair, known_pair
from eddymotion.testing.registration import RegistrarConformance

__all__ = ["KnownPair", "RegistrarConformance", "known_pair"]
