# SPDX-License-Identifier: Apache-2.0
"""A motion as two files: its transforms, and all else that was estimated.

The transforms are ITK text, which other programs read and write. What does not fit there (standard
errors, the error of the frame, eddy-current fields, motion within volumes) is in a JSON file
beside it. Both keep full precision: what is read equals what was written. An off-resonance field
belongs to all runs of a session and has files of its own; between steps that pass it on, the JSON
file holds it, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from eddymotion.data.series import Series
from eddymotion.errors import EddymotionError
from eddymotion.images.grid import fsl_coordinates
from eddymotion.io.itk import read_itk, write_itk
from eddymotion.io.writing import replacing, together, write_json, write_text
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.motion import FrameEvidence, Motion
from eddymotion.mapping.off_resonance import OffResonance, SeriesField
from eddymotion.mapping.trajectory import Trajectory
from eddymotion.wording import why


def write_motion(
    xfm_file: Path, details_file: Path, motion: Motion, *, whole: bool = False
) -> None:
    """Write a motion.

    Parameters
    ----------
    xfm_file : Path
        ITK text, one transform a volume.
    details_file : Path
        JSON, everything else.
    motion : Motion
    whole : bool
        With its off-resonance field.
    """
    write_itk(xfm_file, motion.matrices)
    content = _details(motion, whole=whole)
    if motion.alone is not None:
        content["alone"] = {
            "matrices": motion.alone.matrices.tolist(),
            **_details(motion.alone, whole=whole),
        }
    write_json(details_file, content)


def read_written_motion(xfm_file: str | Path, details_file: str | Path | None = None) -> Motion:
    """Read what :func:`write_motion` wrote, or transforms alone.

    Parameters
    ----------
    xfm_file : path
        ITK text; the matrices are those of this file in any case.
    details_file : path, optional

    Raises
    ------
    EddymotionError
        If a file cannot be read, or the two do not belong together.
    """
    matrices = _matrices(xfm_file)
    if details_file is None:
        return Motion(matrices)
    try:
        content = json.loads(Path(details_file).read_text(encoding="utf-8"))
        n_volumes = content["n_volumes"]
        if n_volumes != len(matrices):
            raise EddymotionError(
                f"{details_file}: belongs to {n_volumes} volumes, {xfm_file} has {len(matrices)} "
                "transforms; give the two files that were written together"
            )
        return _motion(matrices, content)
    except EddymotionError:
        raise
    except Exception as error:  # whatever somebody has put there
        raise EddymotionError(
            f"{details_file}: cannot be read as the details of a motion ({why(error)}); give the "
            "file that was written next to the transforms, or none"
        ) from error


def _details(motion: Motion, *, whole: bool) -> dict[str, Any]:
    """Return all but the matrices as what JSON can hold."""
    left_out = ("matrices", "trajectory", "alone", *(() if whole else ("off_resonance",)))
    content = {"n_volumes": len(motion)} | _plain(motion, without=left_out)
    if motion.trajectory is not None:
        content["trajectory"] = _packed(motion.trajectory)
    return content


def _matrices(xfm_file: str | Path) -> np.ndarray:
    try:
        return read_itk(xfm_file)
    except (OSError, ValueError, IndexError) as error:
        raise EddymotionError(
            f"{xfm_file}: cannot be read as transforms ({error}); give an ITK text file with one "
            "transform per volume"
        ) from error


def _motion(matrices: np.ndarray, content: dict[str, Any]) -> Motion:
    """Turn what :func:`write_motion` made of all but the matrices into a motion again."""
    n_volumes = content.pop("n_volumes")
    readers: dict[str, Callable[[Any], Any]] = {
        "eddy_currents": _eddy_currents,
        "frame_evidence": _frame_evidence,
        "off_resonance": _distortion,
        "order_doubt": str,
        "within_doubt": str,
        "trajectory": lambda packed: _unpacked(n_volumes, **packed),
        "alone": lambda other: _motion(_value(other.pop("matrices")), other),
    }
    parts = {
        name: None if value is None else readers.get(name, _value)(value)
        for name, value in content.items()
    }
    return Motion(matrices, **parts)


def _eddy_currents(content: dict[str, Any]) -> EddyCurrents:
    return EddyCurrents(**{name: _value(value) for name, value in content.items()})


def _frame_evidence(content: dict[str, Any]) -> FrameEvidence:
    contradicted = bool(content.pop("contradicted"))
    numbers = {name: np.nan if x is None else float(x) for name, x in content.items()}
    return FrameEvidence(**numbers, contradicted=contradicted)


def _distortion(content: dict[str, Any]) -> SeriesField:
    field = OffResonance(**{name: _value(value) for name, value in content["field"].items()})
    return SeriesField(field, _value(content["shifts"]), bool(content["modulated"]))


def _packed(trajectory: Trajectory) -> dict[str, Any]:
    """Write a trajectory once for slices that share it, and for volumes that have one."""
    errors, n_slices = trajectory.standard_errors, trajectory.n_slices
    of_slices = [trajectory.within.swapaxes(0, 1).reshape(n_slices, -1)]
    if errors is not None:
        known = np.nan_to_num(errors, nan=-1.0)
        of_slices.append(known.swapaxes(0, 1).reshape(n_slices, -1))
    _, first, member = np.unique(
        np.hstack(of_slices), axis=0, return_index=True, return_inverse=True
    )
    volumes = np.flatnonzero(trajectory.moving)
    return {
        "axis": trajectory.axis,
        "affine": trajectory.affine.tolist(),
        "excitation": member.ravel().tolist(),
        "volumes": volumes.tolist(),
        "within": trajectory.within[np.ix_(volumes, first)].tolist(),
        "standard_errors": None if errors is None else _plain(errors[:, first]),
    }


def _unpacked(
    n_volumes: int,
    axis: int,
    affine: Any,
    excitation: Sequence[int],
    volumes: Sequence[int],
    within: Any,
    standard_errors: Any,
) -> Trajectory:
    """Invert :func:`_packed`."""
    matrices = np.tile(np.eye(4), (n_volumes, len(excitation), 1, 1))
    if len(volumes):
        matrices[volumes] = np.array(within, float)[:, excitation]
    errors = None if standard_errors is None else _value(standard_errors)[:, excitation]
    return Trajectory(matrices, np.array(affine, float), int(axis), errors)


def _plain(value: Any, without: tuple[str, ...] = ()) -> Any:
    """Turn a dataclass of arrays and numbers into what JSON can hold; NaN becomes null."""
    if is_dataclass(value):
        names = (entry.name for entry in fields(value) if entry.name not in without)
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, np.ndarray):
        return np.where(np.isfinite(value), value, None).tolist()  # type: ignore[call-overload]
    if isinstance(value, str):
        return value
    return float(value) if value is not None and np.isfinite(value) else None


def _value(value: Any) -> Any:
    """Turn lists into arrays again; null within an array is NaN."""
    if value is None:
        return None
    return np.array(value, dtype=float) if isinstance(value, list) else float(value)


def write_x5(path: Path, motion: Motion, original: Series) -> None:
    """Write the motion as X5 (HDF5), with NiTransforms.

    The domain is where the transforms start from, the reference frame: on the grid of the original
    series, since the corrected one may lie in the space of another image.
    """
    from nitransforms.linear import LinearTransformsMapping

    reference = nib.Nifti1Image(np.empty(original.shape, np.uint8), original.affine)
    mapping = LinearTransformsMapping(motion.matrices, reference=reference)
    with replacing(path) as temporary:
        mapping.to_filename(str(temporary), fmt="X5")


def write_fsl_matrices(folder: Path, motion: Motion, original: Series, reference: Series) -> None:
    """Write one FLIRT matrix a volume (``MAT_0000`` …), original volume → reference.

    FLIRT's coordinates depend on the grids at both ends; both lie in the scanner's coordinates.
    """
    from_original = np.linalg.inv(fsl_coordinates(original.shape, original.affine))
    to_reference = fsl_coordinates(reference.shape, reference.affine)
    with together():
        for index, matrix in enumerate(motion.matrices):
            flirt = to_reference @ np.linalg.inv(matrix) @ from_original
            rows = ("  ".join(repr(float(value)) for value in row) for row in flirt)
            write_text(folder / f"MAT_{index:04d}", "\n".join(rows) + "\n")
