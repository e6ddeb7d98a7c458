# SPDX-License-Identifier: Apache-2.0
"""Inputs of a field: images and sidecars → values; missing ones are reported."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from eddymotion.data.gradients import B0_THRESHOLD
from eddymotion.errors import EddymotionError
from eddymotion.estimation.off_resonance.images import Distorted
from eddymotion.estimation.off_resonance.measured import MeasuredMap, phase_difference, radians
from eddymotion.images.gaps import filled_volume
from eddymotion.images.grid import grid_distance
from eddymotion.images.image import Image
from eddymotion.io.images import read_image
from eddymotion.io.series import read_mask
from eddymotion.io.sidecars import READOUT_FIELDS, metadata_beside, readout_time_of, usable
from eddymotion.io.tables import read_numbers, table_named_after
from eddymotion.io.topup import FIELD_OF_TOPUP, is_topup_coefficients
from eddymotion.mapping.off_resonance import NOMINAL_READOUT_S, Readout
from eddymotion.wording import shown

log = logging.getLogger(__name__)

SAME_GRID_MM = 0.5

INCOMPLETE_PHASES = "--phase1 and --phase2 are needed together; give both, or --phasediff"

FIELDS = (
    "PhaseEncodingDirection", "PhaseEncodingAxis", *READOUT_FIELDS, "EchoTime", "EchoTime1",
    "EchoTime2", "Units",
)  # fmt: skip


@dataclass(frozen=True)
class FieldmapPaths:
    """The files of a field.

    Parameters
    ----------
    images : tuple of Path
        Echo-planar; the field is made in the frame and on the grid of the first.
    phasediff, phase1, phase2, fieldmap : Path, optional
        Measured maps: a difference of phases, the phases of two echoes, or a map in its units.
    magnitude : Path, optional
        Of the measured map.
    mask : Path, optional
        The brain, on the grid of the first image.
    """

    images: tuple[Path, ...]
    phasediff: Path | None = None
    phase1: Path | None = None
    phase2: Path | None = None
    fieldmap: Path | None = None
    magnitude: Path | None = None
    mask: Path | None = None

    def __iter__(self) -> Iterator[Path]:
        others = (*self.measured, self.magnitude, self.mask)
        return (path for path in (*self.images, *others) if path is not None)

    @property
    def measured(self) -> tuple[Path, ...]:
        """Files of the measured map; none if there is no map."""
        given = (self.phasediff, self.phase1, self.phase2, self.fieldmap)
        return tuple(path for path in given if path is not None)


@dataclass(frozen=True)
class FieldmapSettings:
    """How a field is made; names are those of the command-line options."""

    pe_axis: tuple[str, ...] = ()
    readout_time: tuple[float, ...] = ()
    echo_times: tuple[float, ...] = ()
    units: str | None = None
    ignore: tuple[str, ...] = ()
    random_seed: int = 0
    fsl_outputs: bool = False


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the files hold.

    Parameters
    ----------
    images : tuple of Distorted
    encodings : tuple of dict
        ``PhaseEncodingDirection`` and ``TotalReadoutTime`` that were used.
    nominal : bool
        Whether the readout times are not known.
    measured : MeasuredMap, optional
    mask : (X, Y, Z) bool array, optional
    """

    images: tuple[Distorted, ...]
    encodings: tuple[dict[str, Any], ...]
    nominal: bool
    measured: MeasuredMap | None
    mask: np.ndarray | None


def read_inputs(paths: FieldmapPaths, settings: FieldmapSettings) -> Inputs:
    """Read all files of a field.

    Raises
    ------
    EddymotionError
        If one cannot be used, or what has to be known is not.
    """
    sidecars = [usable(metadata_beside(path), *FIELDS, owner=path.name) for path in paths.images]
    directions = _directions(paths.images, sidecars, settings.pe_axis)
    images = [_volume(path, settings.ignore) for path in paths.images]
    found = [
        readout_time_of(sidecar, direction, image.data.shape)
        for sidecar, direction, image in zip(sidecars, directions, images, strict=True)
    ]
    times, nominal = _readout_times(paths, found, settings.readout_time)
    distorted = tuple(
        Distorted(image, Readout.of(image.affine, direction, time), path.name)
        for path, image, direction, time in zip(
            paths.images, images, directions, times, strict=True
        )
    )
    encodings = tuple(
        {"PhaseEncodingDirection": direction, "TotalReadoutTime": None if nominal else time}
        for direction, time in zip(directions, times, strict=True)
    )
    measured = read_measured(paths, settings) if paths.measured else None
    mask = None
    if paths.mask is not None:
        shape, affine, owner = images[0].data.shape, images[0].affine, paths.images[0].name
        mask = read_mask(paths.mask, shape, affine, owner, settings.ignore)
        if not mask.any():
            raise EddymotionError(f"{paths.mask}: marks no voxel; give the brain of the image")
    return Inputs(distorted, encodings, nominal, measured, mask)


def _directions(
    paths: Sequence[Path], sidecars: Sequence[dict[str, Any]], given: Sequence[str]
) -> list[str]:
    """Return the phase encoding of each image: as the call says, else as the sidecars do."""
    if given:
        if len(given) != len(paths):
            raise EddymotionError(
                f"--pe-axis: {len(given)} given, expected one for each of the {len(paths)} "
                "images, in the same order"
            )
        return list(given)
    found = []
    for path, sidecar in zip(paths, sidecars, strict=True):
        direction = sidecar.get("PhaseEncodingDirection")
        if direction is None:
            axis = sidecar.get("PhaseEncodingAxis")
            only = f" (PhaseEncodingAxis {axis} does not give the polarity)" if axis else ""
            raise EddymotionError(
                f"{path}: no PhaseEncodingDirection next to it{only}; add it to the sidecar, or "
                "give --pe-axis with one for each image, such as j- j"
            )
        found.append(direction)
    return found


def _readout_times(
    paths: FieldmapPaths, found: Sequence[float | None], given: Sequence[float]
) -> tuple[list[float], bool]:
    """Return the readout time of each image (s), and whether they are not known.

    `found` are those of the sidecars.
    """
    images = paths.images
    if given:
        return _one_each(given, len(images)), False
    known = [time for time in found if time is not None]
    if len(known) == len(images):
        return known, False
    missing = next(path for path, time in zip(images, found, strict=True) if time is None)
    if paths.measured:
        raise EddymotionError(
            f"{missing}: no TotalReadoutTime next to it, without which displacements are not "
            "known from a measured map; add it to the sidecar (s), or give --readout-time"
        )
    if len(set(known)) > 1:
        listed = " and ".join(f"{time:g}" for time in sorted(set(known)))
        raise EddymotionError(
            f"{missing}: no TotalReadoutTime next to it, and those of the other images differ "
            f"({listed} s); add it to the sidecar (s), or give --readout-time"
        )
    used = known[0] if known else NOMINAL_READOUT_S
    log.warning(
        "%s: no TotalReadoutTime next to it; %g s is assumed for all images%s",
        missing.name, used,
        "" if known else ": corrected images are right if all are equal, but the field in Hz "
                         "has no scale",
    )  # fmt: skip
    return [used] * len(images), not known


def _one_each(times: Sequence[float], n_images: int) -> list[float]:
    if len(times) not in (1, n_images):
        raise EddymotionError(
            f"--readout-time: {len(times)} given, expected one, or one for each of "
            f"{n_images} images"
        )
    return list(times) * (n_images // len(times))


def _volume(path: Path, ignore: Sequence[str]) -> Image:
    """Read an image; of a series the first b=0 volume, or the first."""
    data, affine, _ = read_image(path, ignore)
    if data.ndim == 4:
        data = np.ascontiguousarray(data[..., _first_b0(path, data.shape[3])])
    if data.ndim != 3 or min(data.shape) < 4:
        raise EddymotionError(
            f"{path}: found an image of shape {data.shape}, expected three dimensions of four or "
            "more voxels each; give the whole volume"
        )
    data = filled_volume(data, path.name)
    if data.min() == data.max():
        raise EddymotionError(
            f"{path}: all voxels are {float(data.flat[0]):g}, so it shows nothing; check the file"
        )
    return Image(data, affine)


def _first_b0(path: Path, n_volumes: int) -> int:
    table = table_named_after(path, "bval")
    if not table.is_file():
        return 0
    bvals = read_numbers(table).ravel()
    if len(bvals) != n_volumes:
        raise EddymotionError(
            f"{table}: {len(bvals)} b-values for {n_volumes} volumes; give the table of this image"
        )
    found = np.flatnonzero(bvals <= B0_THRESHOLD)
    if not len(found):
        raise EddymotionError(
            f"{path}: no b=0 volume (least b-value {bvals.min():g}); fields are estimated from "
            "images without diffusion weighting; give one"
        )
    return int(found[0])


def read_measured(paths: FieldmapPaths, settings: FieldmapSettings) -> MeasuredMap:
    """Read the measured map."""
    magnitude = None if paths.magnitude is None else _volume(paths.magnitude, settings.ignore)
    if magnitude is None:
        log.warning(
            "no --magnitude: the map is assumed to be aligned with the image and valid where it "
            "is not zero"
        )
    if paths.fieldmap is not None:
        return _in_units(paths.fieldmap, magnitude, settings)
    if paths.phasediff is not None:
        phases = _phases(paths.phasediff, settings.ignore)
        times = settings.echo_times or _times(paths.phasediff, ("EchoTime1", "EchoTime2"))
    elif paths.phase1 is not None and paths.phase2 is not None:
        phases, times = _of_two_echoes(paths.phase1, paths.phase2, settings)
    else:
        raise EddymotionError(INCOMPLETE_PHASES)
    return MeasuredMap.of_phases(phases, magnitude, abs(times[1] - times[0]))


def _in_units(path: Path, magnitude: Image | None, settings: FieldmapSettings) -> MeasuredMap:
    """Read a map in Hz, rad/s or T."""
    if is_topup_coefficients(path):
        raise EddymotionError(
            f"{path}: holds spline coefficients of topup, not a map; {FIELD_OF_TOPUP}, and "
            "--units Hz"
        )
    values = _volume(path, settings.ignore)
    units = settings.units or _sidecar(path).get("Units")
    if units is None:
        raise EddymotionError(
            f"{path}: no Units next to it; add Hz, rad/s or T to the sidecar, or give --units"
        )
    return MeasuredMap.in_units(values, units, magnitude)


def _of_two_echoes(
    one: Path, other: Path, settings: FieldmapSettings
) -> tuple[Image, tuple[float, ...]]:
    """Read the phases of two echoes: their difference, later less earlier, and their times (s)."""
    first, second = (_phases(path, settings.ignore) for path in (one, other))
    _refuse_other_grid(other, second, one, first)
    times = settings.echo_times or (*_times(one, ("EchoTime",)), *_times(other, ("EchoTime",)))
    early, late = (first, second) if times[0] < times[1] else (second, first)
    return Image(phase_difference(early.data, late.data), first.affine), times


def _phases(path: Path, ignore: Sequence[str]) -> Image:
    image = _volume(path, ignore)
    return Image(radians(image.data, str(path)), image.affine)


def _sidecar(path: Path) -> dict[str, Any]:
    return usable(metadata_beside(path), *FIELDS, owner=path.name)


def _times(path: Path, names: Sequence[str]) -> tuple[float, ...]:
    """Return echo times (s) of a sidecar."""
    sidecar = _sidecar(path)
    for name in names:
        if not isinstance(sidecar.get(name), (int, float)):
            raise EddymotionError(
                f"{path}: no {name} next to it; add it to the sidecar (s), or give --echo-times"
            )
    return tuple(float(sidecar[name]) for name in names)


def _refuse_other_grid(path: Path, image: Image, owner: Path, first: Image) -> None:
    shape = first.data.shape
    if image.data.shape != shape:
        raise EddymotionError(
            f"{path}: has shape {image.data.shape}, {owner.name} {shape}; give one on the same "
            "grid"
        )
    if (apart := grid_distance(image.affine, first.affine, shape)) > SAME_GRID_MM:
        raise EddymotionError(
            f"{path}: lies up to {apart:.1f} mm from the grid of {owner.name}; give one on the "
            "same grid"
        )


def refuse_settings(paths: FieldmapPaths, settings: FieldmapSettings) -> None:
    """Raise if the options contradict each other, before anything is read."""
    for contradiction in chain(_about_files(paths), _about_values(paths, settings)):
        raise EddymotionError(contradiction)


def _about_files(paths: FieldmapPaths) -> Iterator[str]:
    maps = {"--phasediff": paths.phasediff, "--phase1": paths.phase1 or paths.phase2,
            "--fieldmap": paths.fieldmap}  # fmt: skip
    given = [option for option, path in maps.items() if path is not None]
    if len(given) > 1:
        yield f"{given[0]} and {given[1]} are two measured maps; give only one"
    if (paths.phase1 is None) != (paths.phase2 is None):
        yield INCOMPLETE_PHASES
    if paths.magnitude is not None and not given:
        yield (
            "--magnitude applies to a measured map; add --phasediff, --phase1 and --phase2, or "
            "--fieldmap"
        )
    if len(paths.images) == 1 and not given:
        yield (
            f"{paths.images[0]}: one image alone does not show its distortion; add one of the "
            "opposite polarity, or a measured map (--phasediff, --phase1 and --phase2, "
            "--fieldmap)"
        )


def _about_values(paths: FieldmapPaths, settings: FieldmapSettings) -> Iterator[str]:
    if settings.units is not None and paths.fieldmap is None:
        yield f"--units {shown(settings.units)} applies to --fieldmap only; leave it out"
    if settings.echo_times and settings.echo_times[0] == settings.echo_times[1]:
        yield (
            f"--echo-times: both are {settings.echo_times[0]:g} s; give two different times, in s"
        )
