# SPDX-License-Identifier: Apache-2.0
"""What is written of a field, as sdcflows names it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eddymotion.derivatives.field_files import FieldFiles
from eddymotion.io.images import image_stem
from eddymotion.io.topup import topup_files

SUFFIXES = ("_dwi", "_epi", "_bold", "_sbref", "_b0")
"""Of echo-planar images: what a name goes on with instead."""


@dataclass(frozen=True)
class FieldmapOutputs:
    """Names of what is written.

    Parameters
    ----------
    folder : Path
    images : tuple of Path
        The inputs.
    fsl : bool
        Whether the field is written as FSL's topup does, too.
    """

    folder: Path
    images: tuple[Path, ...]
    fsl: bool = False

    @property
    def stem(self) -> str:
        """Name of the first image without its polarity and its suffix."""
        return re.sub(r"_dir-[A-Za-z0-9]+", "", _without_suffix(self.images[0]))

    @property
    def field(self) -> FieldFiles:
        """Files of the field."""
        return FieldFiles(self.folder, self.stem)

    def corrected(self) -> list[Path]:
        """Paths of the corrected images, in the order of the inputs."""
        names = [_without_suffix(path) for path in self.images]
        if len(set(names)) < len(names):
            names = [f"{name}_run-{number}" for number, name in enumerate(names, start=1)]
        return [self.folder / f"{name}_desc-preproc_epi.nii.gz" for name in names]

    def all(self) -> Sequence[Path]:
        """Return all that a run writes."""
        topup = topup_files(self.field.topup) if self.fsl else []
        return [*self.field.all(), *self.corrected(), *topup, self.field.page]


def _without_suffix(path: Path) -> str:
    name = image_stem(path)
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name
