# SPDX-License-Identifier: Apache-2.0
"""The step behind ``eddymotion-fieldmap``: paths in → field, corrected images, summary."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from eddymotion.derivatives.field_files import field_sidecar
from eddymotion.errors import EddymotionError
from eddymotion.estimation.off_resonance import (
    STIFFNESS,
    FieldEstimate,
    estimate_off_resonance,
)
from eddymotion.estimation.off_resonance.measured import MapAgreement
from eddymotion.fieldmaps.inputs import (
    FieldmapPaths,
    FieldmapSettings,
    Inputs,
    read_inputs,
    refuse_settings,
)
from eddymotion.fieldmaps.outputs import FieldmapOutputs
from eddymotion.images.image import Image
from eddymotion.images.masking import brain_mask
from eddymotion.io.images import write_image
from eddymotion.io.writing import refuse_overwriting, together

log = logging.getLogger(__name__)

ALIKE = 0.8
"""Correlation below which corrected images agree too little to be believed."""

DARK_SHARE = 0.02
"""Of the brain, from which on a warning says that signal is missing."""


def field_from(inputs: Inputs, seed: int) -> tuple[str, FieldEstimate]:
    """Make the field, and say from what: from opposite polarities where there are such."""
    if len(inputs.images) > 1:
        found = estimate_off_resonance(inputs.images, mask=inputs.mask, seed=seed)
        return "opposite phase encodings", found
    assert inputs.measured is not None
    first = inputs.images[0]
    mask = brain_mask(first.image.data) if inputs.mask is None else inputs.mask
    field = inputs.measured.field_for(first.image, first.readout, mask, seed)
    still = np.eye(4)[None]
    return "measured map", FieldEstimate(field, inputs.images, still, still, np.ones(1), mask)


def make_fieldmap(
    paths: FieldmapPaths, folder: Path, settings: FieldmapSettings
) -> dict[str, Any]:
    """Make a field and write everything about it.

    Parameters
    ----------
    paths : FieldmapPaths
    folder : Path
        Where the outputs go.
    settings : FieldmapSettings

    Returns
    -------
    dict
        The sidecar of the field.

    Raises
    ------
    EddymotionError
        If the files or options cannot be used; nothing is written then.
    """
    from eddymotion.reports.fieldmap import write_fieldmap_page

    refuse_settings(paths, settings)
    outputs = FieldmapOutputs(folder, paths.images, settings.fsl_outputs)
    refuse_overwriting(outputs.all(), paths)
    inputs = read_inputs(paths, settings)
    if inputs.nominal and outputs.fsl:
        raise EddymotionError(
            "--fsl-outputs: no TotalReadoutTime next to the images, without which the field has "
            "no scale; give --readout-time"
        )
    started = time.perf_counter()
    method, made = field_from(inputs, settings.random_seed)
    seconds, seed = time.perf_counter() - started, settings.random_seed
    summary = sidecar_of(made, method, inputs, paths, seconds, seed)
    advise(made, summary)
    combined = Image(made.combined, made.grid[1])
    readouts = [image.readout for image in made.images] if outputs.fsl else []
    with together():
        for path, image in zip(outputs.corrected(), made.corrected, strict=True):
            write_image(path, np.nan_to_num(image), combined.affine)
        write_fieldmap_page(outputs.field.page, paths.images, made, summary)
        outputs.field.write_topup(made.field, made.poses, readouts, combined)
        outputs.field.write(made.field, made.hertz, combined, summary)
    return summary


def sidecar_of(
    made: FieldEstimate,
    method: str,
    inputs: Inputs,
    paths: FieldmapPaths,
    seconds: float,
    seed: int,
) -> dict[str, Any]:
    """Return the sidecar of the field."""
    moved = made.displacement[made.mask]
    before, after = made.similarity
    names = [path.name for path in paths.images]
    summary = field_sidecar(names, method, "arbitrary" if inputs.nominal else "Hz") | {
        "Encodings": list(inputs.encodings),
        "ReadoutTimesKnown": not inputs.nominal,
        "RMSDisplacement": _rounded(np.sqrt(np.mean(moved**2))),
        "DisplacementPercentiles": _percentiles(moved),
        "FieldPercentiles": _percentiles(made.hertz[made.mask]),
        "FoldedShare": _rounded(made.folded),
        "DarkShare": _rounded(made.dark),
        "KnotSpacing": [_rounded(size) for size in made.field.lattice.spacing],
        "Seconds": _rounded(seconds),
    }
    if len(made.images) > 1:
        summary |= {
            "Similarity": {"Before": _rounded(before), "After": _rounded(after)},
            "Stiffness": STIFFNESS,
            "Gauge": "translations along the phase encoding are those of a rigid registration "
            "of the distorted images, since a constant field cannot be determined",
            "Poses": [pose.round(6).tolist() for pose in made.poses],
            "Gains": [_rounded(gain) for gain in made.gains],
        }
    if inputs.measured is not None:
        summary["MeasuredMap"] = [path.name for path in paths.measured]
        if len(made.images) > 1 and (found := _compared(made, inputs, seed)) is not None:
            summary["MeasuredComparison"] = found
    return summary


def _compared(made: FieldEstimate, inputs: Inputs, seed: int) -> dict[str, float] | None:
    """Compare a measured map, where it holds, with the field of the images, a constant apart."""
    measured, affine = inputs.measured, made.grid[1]
    assert measured is not None
    there = measured.beside(Image(made.combined, affine), made.mask, seed)
    found = MapAgreement.of(made.hertz, there)
    if found is None:
        log.warning("the measured map has no values in the brain of the images; check both")
        return None
    return {
        "Correlation": _rounded(found.correlation),
        "Slope": _rounded(found.slope),
        "RMSDifference": _rounded(found.rms * made.images[0].readout.mm_per_hertz),
    }


def advise(made: FieldEstimate, summary: dict[str, Any]) -> None:
    """Warn of what looks wrong."""
    similarity = summary.get("Similarity")
    if similarity and not similarity["After"] >= max(ALIKE, similarity["Before"]):
        log.warning(
            "the corrected images hardly agree (correlation %.3f → %.3f); check the report, "
            "PhaseEncodingDirection, and that the images are of the same head and contrast",
            similarity["Before"], similarity["After"],
        )  # fmt: skip
    if made.folded:
        log.warning(
            "%.2f %% of the brain is folded in one of the images (several places at one "
            "position): they cannot be separated there", 100 * made.folded,
        )  # fmt: skip
    if made.dark > DARK_SHARE:
        log.warning(
            "%.1f %% of the brain is dark in the corrected images: lost signal cannot be "
            "recovered", 100 * made.dark,
        )  # fmt: skip


def _percentiles(values: np.ndarray) -> dict[str, float]:
    return {str(q): _rounded(np.percentile(values, q)) for q in (1, 5, 50, 95, 99)}


def _rounded(value: Any) -> float:
    return float(f"{float(value):.6g}")
