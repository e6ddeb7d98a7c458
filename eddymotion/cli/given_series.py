# SPDX-License-Identifier: Apache-2.0
"""The series of a call of ``eddymotion-correct`` that names several, and how they go together."""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eddymotion.bids.series import Sorted, flattened
from eddymotion.bids.sessions import with_polarity
from eddymotion.cli.choice import refuse_one_axis
from eddymotion.derivatives.names import source_name
from eddymotion.errors import EddymotionError
from eddymotion.io.headers import affine_of, read_header
from eddymotion.io.series import refuse_unreadable
from eddymotion.io.sidecars import FIELDS, SeriesFiles, metadata_beside, usable
from eddymotion.pipeline.contradictions import refuse_joining_one
from eddymotion.pipeline.runs.mergeable import refuse_unmergeable
from eddymotion.pipeline.settings import Settings
from eddymotion.pipeline.stages import tables_of

log = logging.getLogger(__name__)

OF_ONE = {
    "bval": "--bval: one table given for {} series; give each one in a file of its name",
    "bvec": "--bvec: one table given for {} series; give each one in a file of its name",
    "brain_mask": "--mask: one mask given for {} series; leave it out",
}
"""Options that hold for a single series with diffusion weighting → what to say of several."""


def series_together(options: argparse.Namespace, settings: Settings) -> list[SeriesFiles]:
    """Return the series that are to be corrected; each names those that it belongs with.

    Those with b=0 alone are not corrected, but show how the others are distorted.

    Raises
    ------
    EddymotionError
        If several cannot be corrected together.
    """
    images: list[Path] = options.dwi
    _refuse_same_files(images)
    _refuse_same_names(images)
    first = _with_files_beside(images[0], options.bval, options.bvec)
    every = [first, *map(_with_files_beside, images[1:])]
    found = Sorted.of({"": every}, settings.b0_threshold)
    for name, why in flattened(found.refused).items():
        raise EddymotionError(f"{name}: {why}")
    series = found.series[""]
    if not series:
        raise EddymotionError(
            f"{images[0]} and {len(images) - 1} more: b=0 volumes alone, so that there is nothing "
            "to correct; join single volumes into one 4-D file with its b-values (mrcat -axis 3, "
            "fslmerge -t)"
        )
    if len(series) == 1:
        refuse_joining_one(settings.given, has_b0s=True)
    for name, why in OF_ONE.items():
        if len(series) > 1 and getattr(options, name) is not None:
            raise EddymotionError(why.format(len(series)))
    _refuse_unreadable(series, found.b0s[""], settings)
    refuse_unmergeable(series, settings)
    if settings.separate_all_dwis:
        return list(series)
    refuse_one_axis(series, settings.pe_axis)
    runs = tuple(with_polarity([*series, *found.b0s[""]]))
    _warn_of_unknown_encoding(runs)
    return [replace(run, runs=runs) for run in runs if not run.is_b0]


def _warn_of_unknown_encoding(runs: Sequence[SeriesFiles]) -> None:
    """Warn that distortion is not found, where nobody says along which way images have it."""
    key = "PhaseEncodingDirection"
    unknown = [run.dwi.name for run in runs if not usable(run.metadata or {}, key)]
    if unknown:
        log.warning("%s: no sidecar with %s, so that the distortion between the images is not "
                    'corrected; write one beside each, such as {"%s": "j-", "TotalReadoutTime": '
                    "0.05}", ", ".join(unknown), key, key)  # fmt: skip


def _refuse_unreadable(
    series: Sequence[SeriesFiles], b0s: Sequence[SeriesFiles], settings: Settings
) -> None:
    """Raise if an image cannot be read, before the motion in those before it is estimated."""
    for one in series:
        refuse_unreadable(one.dwi, one.bval, one.bvec,
                          b0_threshold=settings.b0_threshold, ignore=settings.ignore)  # fmt: skip
    for one in b0s:
        affine_of(one.dwi, read_header(one.dwi), settings.ignore)


def _refuse_same_files(images: Sequence[Path]) -> None:
    """Raise if an image is named twice, be it through a link."""
    for first, second in itertools.combinations(images, 2):
        if first.samefile(second):
            names = str(first) if first == second else f"{first} and {second}"
            raise EddymotionError(f"{names}: the same image twice; name each once")


def _refuse_same_names(images: Sequence[Path]) -> None:
    """Raise if the outputs of two images would have the same names."""
    by_name: dict[str, Path] = {}
    for image in images:
        other = by_name.setdefault(source_name(image), image)
        if other is not image:
            raise EddymotionError(
                f"{other} and {image}: their outputs would have the same names; rename one of "
                "them, with its tables and sidecar"
            )


def _with_files_beside(
    image: Path, bval: Path | None = None, bvec: Path | None = None
) -> SeriesFiles:
    """Return an image with its tables, those given or those beside it, and its sidecar."""
    bval, bvec = (
        table if table.is_file() else None for table in tables_of(SeriesFiles(image, bval, bvec))
    )
    fields = metadata_beside(image)
    known = {key: fields[key] for key in FIELDS if key in fields}
    return SeriesFiles(image, bval, bvec, uri=image.name, metadata=known)
