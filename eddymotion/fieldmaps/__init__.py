# SPDX-License-Identifier: Apache-2.0
"""Off-resonance fields: files → field, corrected images, pictures, summary."""

from __future__ import annotations

from eddymotion.fieldmaps.inputs import FieldmapPaths, FieldmapSettings
from eddymotion.fieldmaps.make import make_fieldmap
from eddymotion.fieldmaps.outputs import FieldmapOutputs

__all__ = ["FieldmapOutputs", "FieldmapPaths", "FieldmapSettings", "make_fieldmap"]
