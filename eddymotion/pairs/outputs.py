# SPDX-License-Identifier: Apache-2.0
"""What is written of a registered pair."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eddymotion.evaluation.landmarks import LandmarkErrors
from eddymotion.evaluation.summaries import landmark_summary
from eddymotion.io.images import write_image
from eddymotion.io.transforms import FORMATS, write_linear
from eddymotion.io.tsv import table_text
from eddymotion.io.warps import whole_displacements, write_displacements
from eddymotion.io.writing import together, write_json, write_text
from eddymotion.pairs.inputs import FilePair, PairSettings
from eddymotion.pairs.measures import PairOverlay
from eddymotion.registration import Registration

WARPS = ("_warp.nii.gz", "_inversewarp.nii.gz")

PICTURES = ("_overlay.png", "_difference.png", "_displacement.png")

LINEAR_PART = "_affine"
"""Between prefix and ending of linear transforms that are not the whole one."""


@dataclass(frozen=True)
class PairOutputs:
    """Names of what is written: all begin with a prefix."""

    prefix: Path

    def __getitem__(self, ending: str) -> Path:
        return self.prefix.with_name(self.prefix.name + ending)

    def linear(self, transform: str, formats: tuple[str, ...]) -> list[Path]:
        """Return the files of the linear transform, or of the linear part of a nonlinear one."""
        part = LINEAR_PART if transform == "syn" else ""
        return [self[part + FORMATS[name]] for name in formats]

    @property
    def resampled(self) -> Path:
        """The moving image on the grid of the fixed one."""
        return self["_resampled.nii.gz"]

    @property
    def summary(self) -> Path:
        """All figures; written last."""
        return self[".json"]

    @property
    def landmarks(self) -> Path:
        """One row a landmark."""
        return self["_landmarks.tsv"]

    def all(self) -> set[Path]:
        """Return all that a run might write."""
        everything = {self.resampled, self.summary, self.landmarks}
        everything |= {self[ending] for ending in (*WARPS, *PICTURES)}
        for transform in ("affine", "syn"):
            everything |= set(self.linear(transform, tuple(FORMATS)))
        return everything


def write_all(
    pair: FilePair,
    outputs: PairOutputs,
    settings: PairSettings,
    registration: Registration,
    comparisons: tuple[PairOverlay, PairOverlay],
    errors: LandmarkErrors | None,
    summary: dict[str, Any],
) -> list[Path]:
    """Write everything or nothing.

    What an earlier run left under names that this one does not write is removed: it would be taken
    for a part of this one.
    """
    with together() as named:
        written = outputs.linear(settings.transform, settings.formats)
        for path in written:
            write_linear(path, registration.matrix, pair.fixed, pair.moving)
        if registration.warp is not None:
            written += _write_warps(pair, outputs, registration)
        write_image(outputs.resampled, comparisons[1].shown, pair.fixed.affine)
        written.append(outputs.resampled)
        if errors is not None:
            written.append(_write_landmarks(outputs, errors))
        written += _write_pictures(pair, outputs, registration, comparisons)
        summary["outputs"] = [path.name for path in written]
        write_json(outputs.summary, summary)
    for stale in outputs.all() - named:
        stale.unlink(missing_ok=True)
    return written


def _write_warps(pair: FilePair, outputs: PairOutputs, registration: Registration) -> list[Path]:
    """Write the whole transform as displacement fields, each on the grid it starts from."""
    paths = [outputs[ending] for ending in WARPS]
    for path, image, inverse in zip(paths, (pair.fixed, pair.moving), (False, True), strict=True):
        x, y, z = image.data.shape
        field = whole_displacements(registration, (x, y, z), image.affine, inverse=inverse)
        write_displacements(path, field, image.affine)
    return paths


def _write_landmarks(outputs: PairOutputs, errors: LandmarkErrors) -> Path:
    table = landmark_summary(errors, True).tables["landmarks"]
    write_text(outputs.landmarks, table_text(table))
    return outputs.landmarks


def _write_pictures(
    pair: FilePair,
    outputs: PairOutputs,
    registration: Registration,
    comparisons: tuple[PairOverlay, PairOverlay],
) -> list[Path]:
    from eddymotion.reports import save_figure
    from eddymotion.reports.registration import (
        difference_figure,
        displacement_figure,
        overlay_figure,
    )

    before, after = comparisons
    fixed, head, affine = pair.fixed.data, pair.head, pair.fixed.affine
    inside = (before.inside, after.inside)
    figures = (
        overlay_figure(fixed, before.shown, after.shown, head, affine),
        difference_figure(fixed, before.shown, after.shown, inside, head, affine),
        displacement_figure(fixed, head, affine, lambda x: registration.map(x) - x),
    )
    paths = [outputs[ending] for ending in PICTURES]
    for figure, path in zip(figures, paths, strict=True):
        save_figure(figure, path)
    return paths
