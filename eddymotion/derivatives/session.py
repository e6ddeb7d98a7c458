# SPDX-License-Identifier: Apache-2.0
"""Outputs of the runs of a session together: the off-resonance field, a merged series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eddymotion import __version__
from eddymotion.data.series import DWI
from eddymotion.derivatives.field_files import FieldFiles, field_sidecar
from eddymotion.derivatives.finished import read_sidecar
from eddymotion.derivatives.names import Outputs
from eddymotion.derivatives.on_demand import fsl_files
from eddymotion.errors import EddymotionError
from eddymotion.estimation.runs.joined import JoinedRuns
from eddymotion.images.image import Image
from eddymotion.io.images import write_image
from eddymotion.io.tables import write_gradient_table
from eddymotion.io.writing import together, write_json
from eddymotion.mapping.off_resonance import Readout

MERGED = (".nii.gz", ".bval", ".bvec", ".json")
"""Endings of the files of a merged series."""


@dataclass(frozen=True)
class SessionOutputs:
    """Where the outputs of a session go.

    Parameters
    ----------
    folder : Path
        ``OUTPUT_DIR/sub-X[/ses-Y]``.
    who : str
        ``sub-X[_ses-Y]``.
    space : str
        As of :class:`Outputs`.
    flat : bool
        As of :class:`Outputs`: puts the merged series into `folder` itself.
    """

    folder: Path
    who: str
    space: str = ""
    flat: bool = False

    @classmethod
    def of(cls, outputs: Outputs) -> SessionOutputs:
        """Derive them from the outputs of one of its runs."""
        kept = [part for part in outputs.src.split("_") if part.startswith(("sub-", "ses-"))]
        return cls(outputs.folder, "_".join(kept) or outputs.src, outputs.space, outputs.flat)

    @property
    def field(self) -> FieldFiles:
        """Files of the off-resonance field."""
        return FieldFiles(self.folder / "fmap", self.who)

    def merged(self, ending: str) -> Path:
        """Path of the merged series."""
        space = f"_space-{self.space}" if self.space else ""
        folder = self.folder if self.flat else self.folder / "dwi"
        return folder / f"{self.who}{space}_desc-merged_dwi{ending}"

    def remove_merged(self) -> None:
        """Remove the merged series of an earlier run: its runs are written again."""
        for ending in MERGED:
            self.merged(ending).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove what an earlier run has written under this name: its runs are now another's."""
        self.remove_merged()
        self.field.remove()


def remove_elsewhere(outputs: Outputs) -> None:
    """Remove outputs of an earlier run of the same series in another space.

    The merged series of its session is removed, too, since one of its runs is written again.

    Tables, transforms and pictures are those of the last run; images of an earlier one would not
    match them. The sidecar is removed first. In a folder that is not one of our datasets, files
    without a sidecar of ours are kept: other programs use such names, too.
    """
    if not outputs.flat:
        SessionOutputs.of(outputs).remove_merged()
    keep = {outputs[kind] for kind in outputs}
    for other in outputs.elsewhere():
        if other.flat and not read_sidecar(other):
            continue
        merged = map(SessionOutputs.of(other).merged, MERGED)
        paths = [other["sidecar"], *(other[kind] for kind in other), *fsl_files(other), *merged]
        for path in (path for path in paths if path not in keep):
            path.unlink(missing_ok=True)


def write_field(
    outputs: SessionOutputs, joined: JoinedRuns, names: Sequence[str], *, fsl: bool = False
) -> None:
    """Write the off-resonance field of a session, its coefficients, and the image it belongs to.

    Parameters
    ----------
    outputs : SessionOutputs
    joined : JoinedRuns
        With a field.
    names : sequence of str
        The runs, as BIDS URIs.
    fsl : bool
        Whether to write it in the format of FSL's topup, too.
    """
    field, hertz = joined.field, joined.hertz
    if field is None or hertz is None:
        raise EddymotionError("write_field: these runs have no off-resonance field")
    mm = joined.mm_per_hertz * hertz[joined.mask]
    before, after = joined.similarity
    method = "field map" if joined.measured else "opposite phase encodings"
    sidecar = field_sidecar(names, method, joined.unit)
    sidecar["Description"] += ", which moves with the head"
    sidecar |= {
        "MillimetresPerHertz": [
            float(np.linalg.norm(shift)) if np.isfinite(shift).all() else None
            for shift in joined.shifts
        ],
        "RMSDisplacement": round(float(np.sqrt((mm**2).mean())), 4),
        "Gauge": "a constant field is not told from a translation along the phase encoding: each "
        "run is held where registration, and the head at rest between runs, put it",
        "Similarity": {
            "Before": None if np.isnan(before) else round(before, 4),
            "After": None if np.isnan(after) else round(after, 4),
        },
        "Poses": joined.poses.round(8).tolist(),
    }
    if (found := joined.comparison) is not None:
        sidecar["MeasuredComparison"] = {
            "Correlation": round(found.correlation, 4),
            "Slope": round(found.slope, 4),
            "RMSDifference": round(float(found.rms * joined.mm_per_hertz), 4),
        }
    known = bool(np.isfinite(joined.shifts).all())
    readouts = [Readout.of_shift(shift) for shift in joined.shifts] if fsl and known else []
    image = Image(joined.mean, joined.affine)
    with together():
        outputs.field.write(field, hertz, image, sidecar)
        outputs.field.write_topup(field, joined.poses, readouts, image)


def write_merged(
    outputs: SessionOutputs,
    merged: DWI,
    how: str,
    names: Sequence[str],
    pairs: int,
    repetition_time: float | None,
) -> None:
    """Write the runs of a session as one series."""
    repeated = {} if repetition_time is None else {"RepetitionTime": repetition_time}
    with together():
        write_image(outputs.merged(".nii.gz"), np.asarray(merged.signal), merged.affine,
                    repetition_time)  # fmt: skip
        write_gradient_table(
            outputs.merged(".bval"), outputs.merged(".bvec"), merged.gradients, merged.affine
        )
        write_json(outputs.merged(".json"), {
            "Description": "Runs of a session in one frame",
            "Merged": how,
            "Pairs": pairs,
            "Sources": list(names),
            **repeated,
            "SkullStripped": False,
            "GeneratedBy": [{"Name": "eddymotion", "Version": __version__}],
        })  # fmt: skip
