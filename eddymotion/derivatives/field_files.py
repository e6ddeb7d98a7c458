# SPDX-License-Identifier: Apache-2.0
"""An off-resonance field on disk, by the names of sdcflows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eddymotion import __version__
from eddymotion.images.image import Image
from eddymotion.io.images import write_image
from eddymotion.io.topup import topup_files, write_topup
from eddymotion.io.writing import read_json, write_json
from eddymotion.mapping.off_resonance import OffResonance, Readout

FIELD_ID = "auto00000"

KINDS = ("preproc", "coeff", "epi")
"""The field (Hz), its coefficients, and the image that it belongs to."""


@dataclass(frozen=True)
class FieldFiles:
    """Where a field goes.

    Parameters
    ----------
    folder : Path
    stem : str
        What the names begin with: ``sub-X[_ses-Y]``.
    """

    folder: Path
    stem: str

    def path(self, kind: str, ending: str = ".nii.gz") -> Path:
        """Path of one of :data:`KINDS`."""
        return self._named(f"desc-{kind}_fieldmap{ending}")

    @property
    def page(self) -> Path:
        """The page with pictures."""
        return self._named("fieldmap.html")

    @property
    def topup(self) -> Path:
        """Base name of the field as FSL's topup writes it."""
        return self._named("topup")

    def _named(self, ending: str) -> Path:
        return self.folder / f"{self.stem}_fmapid-{FIELD_ID}_{ending}"

    def all(self) -> list[Path]:
        """Return images and sidecars."""
        return [self.path(kind, ending) for kind in KINDS for ending in (".nii.gz", ".json")]

    def write(
        self, field: OffResonance, hertz: np.ndarray, image: Image, sidecar: dict[str, Any]
    ) -> None:
        """Write a field, also on the grid of the corrected image, and that; its sidecar last."""
        write_image(self.path("preproc"), hertz, image.affine)
        write_image(self.path("coeff"), field.coefficients.astype(np.float32), field.affine)
        write_image(self.path("epi"), image.data, image.affine)
        of_image = {key: sidecar[key] for key in ("B0FieldIdentifier", "Sources", "GeneratedBy")}
        write_json(self.path("epi", ".json"), of_image)
        write_json(self.path("coeff", ".json"), sidecar)
        write_json(self.path("preproc", ".json"), sidecar)

    def write_topup(
        self, field: OffResonance, poses: np.ndarray, readouts: Sequence[Readout], image: Image
    ) -> None:
        """Write the field as topup does; without readouts that of an earlier run goes."""
        if readouts:
            write_topup(self.topup, field, poses, readouts, image.data.shape, image.affine)
            return
        for path in topup_files(self.topup):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove what an earlier run has written; what another program has stays."""
        if read_json(self.path("preproc", ".json")).get("B0FieldIdentifier") != FIELD_ID:
            return
        for path in (*self.all(), *topup_files(self.topup)):
            path.unlink(missing_ok=True)


def field_sidecar(sources: Sequence[str], method: str, unit: str) -> dict[str, Any]:
    """Return what the sidecars of all fields say: from which images, and by which method."""
    return {
        "Description": "Off-resonance field in the frame of the first source",
        "Units": unit,
        "B0FieldIdentifier": FIELD_ID,
        "Sources": list(sources),
        "IntendedFor": list(sources),
        "GeneratedBy": [{"Name": "eddymotion", "Version": __version__}],
        "Method": method,
    }
