# SPDX-License-Identifier: Apache-2.0
"""Registering two images: files → transform, resampled image, pictures, summary."""

from __future__ import annotations

from eddymotion.pairs.inputs import PairPaths, PairSettings
from eddymotion.pairs.outputs import PairOutputs
from eddymotion.pairs.register import register_pair

__all__ = ["PairOutputs", "PairPaths", "PairSettings", "register_pair"]
