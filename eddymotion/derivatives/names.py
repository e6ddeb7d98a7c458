# SPDX-License-Identifier: Apache-2.0
"""Where the outputs of a series go: BIDS names, as data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path

from eddymotion.io.images import image_stem

SPACES = ("", "T1w")
"""Names of output spaces: none, the participant's own T1w."""

CORRECTED = "_desc-preproc_dwi"
"""What follows the source and the space in the names of the corrected series."""


@dataclass(frozen=True)
class Outputs:
    """The output files of one series; the patterns are in ``outputs.json``.

    Parameters
    ----------
    folder : Path
        ``OUTPUT_DIR/sub-X[/ses-Y]``, or any folder when `flat`.
    src : str
        Name of the input without ``_dwi.nii.gz``, all entities kept.
    figures : Path
        Where pictures go.
    flat : bool
        Put the files into `folder` itself, not into ``dwi/``: a series outside a BIDS dataset.
    space : str
        One of :data:`SPACES`: the entity ``space`` of images that lie there.
    """

    folder: Path
    src: str
    figures: Path
    flat: bool = False
    space: str = ""

    @classmethod
    def in_folder(cls, folder: Path, image: Path) -> Outputs:
        """Name the outputs of an image outside a BIDS dataset."""
        return cls(folder, source_name(image), folder / "figures", flat=True)

    @classmethod
    def of_sidecar(cls, sidecar: Path, figures: Path) -> Outputs:
        """Recognise the outputs of a series by the sidecar of the corrected image, in ``dwi/``."""
        stem = sidecar.name.removesuffix(f"{CORRECTED}.json")
        src, _, space = stem.partition("_space-")
        return cls(sidecar.parents[1], src, figures, space=space)

    def elsewhere(self) -> list[Outputs]:
        """Return the outputs of the same series in the other spaces."""
        return [replace(self, space=space) for space in SPACES if space != self.space]

    def __iter__(self) -> Iterator[str]:
        """Keys of all outputs that a series may have."""
        return iter(_patterns())

    def __getitem__(self, kind: str) -> Path:
        """Path of an output, by its key in ``outputs.json``."""
        entity, target = f"_space-{self.space}" if self.space else "", self.space or "target"
        pattern = _patterns()[kind].format(src=self.src, space=entity, target=target)
        folder, _, name = pattern.partition("/")
        if folder == "figures":
            return self.figures / name
        return self.folder / name if self.flat else self.folder / folder / name


def source_name(image: Path) -> str:
    """Return the name of an image without its extension and its ``_dwi`` suffix."""
    return image_stem(image).removesuffix("_dwi")


@cache
def _patterns() -> dict[str, str]:
    return json.loads(files(__package__).joinpath("outputs.json").read_text(encoding="utf-8"))
