# SPDX-License-Identifier: Apache-2.0
"""Outputs of the runs of a session together: the off-resonance field, a merged series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eddymotion import __version__
from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.derivatives.field_files import FieldFiles, field_sidecar
from eddymotion.derivatives.finished import read_sidecar
from eddymotion.derivatives.names import Outputs
from eddymotion.derivatives.on_demand import fsl_files
from eddymotion.errors import EddymotionError
from eddymotion.estimation.runs.joined import JoinedRuns
from eddymotion.images.grid import Box, grid_distance
from eddymotion.images.image import Image
from eddymotion.io.images import write_image
from eddymotion.io.tables import write_gradient_table
from eddymotion.io.writing import together, write_json
from eddymotion.mapping.off_resonance import Readout

MERGED = (".nii.gz", ".bval", ".bvec", ".json")
"""Endings of the files of a merged series."""

SAME_GRID_MM = 1e-3

SAME_DIRECTION_DEGREES = 5.0
SAME_BVAL = 0.1
"""Part by which b-values of a pair may differ: scanners round them."""


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


def refuse_other_grids(grids: Sequence[tuple[str, Box]]) -> None:
    """Raise if the grids of runs, each with its name, differ: such runs cannot be merged."""
    if not grids:
        return
    (name, first), *others = grids
    for other, box in others:
        apart = grid_distance(first.affine, box.affine, first.shape)
        if box.shape != first.shape or apart > SAME_GRID_MM:
            raise EddymotionError(
                f"{other}: not on the grid of {name}, so that the two cannot be merged; "
                "leave --distortion-group-merge out, or give an --output-space"
            )


def concatenated(runs: Sequence[DWI]) -> DWI:
    """Concatenate the volumes of corrected runs.

    Raises
    ------
    EddymotionError
        If their grids differ.
    """
    first = runs[0]
    refuse_other_grids([(str(run.source), run) for run in runs])
    gradients = Gradients(
        np.concatenate([run.gradients.bvals for run in runs]),
        np.concatenate([run.gradients.bvecs for run in runs]),
        first.gradients.b0_threshold,
    )
    signal = np.concatenate([run.signal for run in runs], axis=3)
    return DWI(signal, first.affine, gradients, first.mask, first.source)


def averaged(
    runs: Sequence[DWI], stretches: Sequence[np.ndarray], shifts: np.ndarray
) -> tuple[DWI, int]:
    """Make one volume of each pair of opposite polarity, weighted by the squares of the stretch.

    Where an image was squeezed, little is known of what is where; where it was stretched, much.
    Volumes without a partner stay as they are, as do voxels that one run alone has seen.

    Parameters
    ----------
    runs : sequence of DWI
        Corrected, in one frame.
    stretches : sequence of (X, Y, Z) arrays
        Of each run, on that grid.
    shifts : (K, 3) array
        Displacement for a hertz in each run.

    Returns
    -------
    DWI
    int
        How many pairs there were.
    """
    whole = concatenated(runs)
    run_of = np.repeat(np.arange(len(runs)), [len(run) for run in runs])
    partner, pairs = _partners(whole.gradients, run_of, shifts), 0
    signal, kept = np.array(whole.signal, np.float32), []
    for volume, other in enumerate(partner):
        if other is not None and other < volume:
            continue
        kept.append(volume)
        if other is None:
            continue
        both = signal[..., [volume, other]]
        squares = [stretches[run_of[one]] ** 2 for one in (volume, other)]
        weights = np.stack(squares, axis=-1) * (both != 0)  # zero: not seen by that run
        total = weights.sum(axis=-1)
        signal[..., volume] = (weights * both).sum(axis=-1) / np.where(total > 0, total, 1)
        pairs += 1
    merged = DWI(signal, whole.affine, whole.gradients, whole.mask, whole.source)
    return merged.select(np.array(kept)), pairs


def _partners(gradients: Gradients, run_of: np.ndarray, shifts: np.ndarray) -> list[int | None]:
    """Find for each volume one of another polarity with the same gradient, each once."""
    partner: list[int | None] = [None] * len(gradients)
    limit = np.cos(np.deg2rad(SAME_DIRECTION_DEGREES))
    for volume in range(len(gradients)):
        if partner[volume] is not None:
            continue
        for other in range(volume + 1, len(gradients)):
            opposed = shifts[run_of[volume]] @ shifts[run_of[other]] < 0
            if partner[other] is not None or not opposed:
                continue
            b, c = gradients.bvals[[volume, other]]
            both_b0 = gradients.is_b0[volume] and gradients.is_b0[other]
            along = abs(gradients.bvecs[volume] @ gradients.bvecs[other]) >= limit
            if both_b0 or (along and abs(b - c) <= SAME_BVAL * max(b, c)):
                partner[volume], partner[other] = other, volume
                break
    return partner
