# SPDX-License-Identifier: Apache-2.0
"""Files that FSL's eddy writes next to the corrected series, for programs that read them.

*Coordinates.* ``newimage``: voxel index times voxel size, mm, x counted from the other end where
the affine's determinant is positive; ``c`` is the middle of the grid there.

*Movement.* Six parameters per volume: translations (mm), angles (rad)::

    x → Rx Ry Rz (x − c) + c + t        reference → volume

where ``Rx(a)`` turns by −a in the right-handed sense: the angles are the extrinsic x-y-z angles
of the inverse rotation.

*Movement over time*, if motion within volumes was followed: the same six parameters, one row per
excitation, in order of time, as eddy writes them with ``--mporder``.

*Field.* In Hz, a polynomial of the scanner position ``s`` in mm from ``c``, the constant last.
Signal from ``s`` is recorded at ``s + Hz · readout time · voxel size`` along the phase-encoding
vector of the acquisition parameters.

The constant of the field and the translation of the head along the phase encoding cannot be
distinguished: the offsets of :class:`~eddymotion.mapping.eddy_currents.EddyCurrents`, which are
part of the poses, are moved into the constant, as eddy does with what follows the gradients.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from nibabel.affines import apply_affine

from eddymotion.data.gradients import Gradients, to_fsl
from eddymotion.data.series import Series
from eddymotion.derivatives.course import poses_of_excitations
from eddymotion.errors import EddymotionError
from eddymotion.images.grid import fsl_coordinates
from eddymotion.io.images import write_image
from eddymotion.io.topup import movement_parameters, table
from eddymotion.io.writing import write_text
from eddymotion.mapping.eddy_currents import N_TERMS, SCALE_MM, TERMS, polynomial_terms
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.off_resonance import NOMINAL_READOUT_S
from eddymotion.mapping.slice_poses import SlicePoses

EDDY_TERMS = (
    "x", "y", "z",
    "xx", "yy", "zz", "xy", "xz", "yz",
    "xxx", "yyy", "zzz", "xxy", "xxz", "xyz", "xyy", "yyz", "xzz", "yzz",
)  # fmt: skip
"""eddy's order of the terms of a field, before the constant."""

TITLES = {
    "outlier_map": "One row per scan, one column per slice. Outlier: 1, Non-outlier: 0",
    "outlier_n_stdev_map": "One row per scan, one column per slice. b0s set to zero",
    "outlier_n_sqr_stdev_map": "One row per scan, one column per slice. b0s set to zero",
}
"""First lines, as eddy writes them."""

OPTIONAL = (
    *TITLES, "outlier_report", "movement_over_time", "post_eddy_shell_alignment_parameters",
    "cnr_maps.nii.gz",
)  # fmt: skip
"""Files that not every run has."""


class OutlierTables(NamedTuple):
    """Eddy's measures of slices, (N, Z) each; NaN where a slice was not judged.

    Parameters
    ----------
    flagged : bool array
        Outliers.
    n_stdev, n_sqr_stdev : array
        Deviation of the mean, and of the mean square, of the difference to the prediction, in
        standard deviations; signal loss is negative in the first.
    """

    flagged: np.ndarray
    n_stdev: np.ndarray
    n_sqr_stdev: np.ndarray


def write_fsl_eddy(
    prefix: str | Path,
    motion: Motion,
    original: Series,
    corrected: Series,
    *,
    outliers: OutlierTables | tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    cnr: np.ndarray | None = None,
) -> list[Path]:
    """Write eddy's files, ``PREFIX.eddy_parameters`` and so on.

    Parameters
    ----------
    prefix : path
        eddy's base name. With that of the corrected image without ``.nii.gz``, programs find
        the image, too.
    motion : Motion
    original : Series
        Its grid is that of the parameters, its mask that of the movement RMS. Its readout time
        makes hertz of the fields (:data:`NOMINAL_READOUT_S` when not known), its phase encoding
        is that of a motion without fields (the second image axis when not known).
    corrected : Series
        Its gradients and grid are those of the rotated b-vectors and the CNR maps.
    outliers : OutlierTables, optional
    cnr : (X, Y, Z, 1 + shells) array, optional
        SNR of the b=0 volumes, then CNR of each shell.

    Returns
    -------
    list of Path
        The files written.
    """
    readout_time = original.acquisition.common_readout_time
    frame = _Frame.of(original, motion, readout_time or NOMINAL_READOUT_S)
    poses = frame.poses(motion)
    parameters = frame.parameters(poses)
    texts = {
        "parameters": table(np.hstack([parameters, frame.fields(motion)])),
        "movement_rms": table(frame.movement_rms(poses)),
        "restricted_movement_rms": table(frame.movement_rms(poses, restricted=True)),
        "rotated_bvecs": table(to_fsl(corrected.gradients.bvecs, corrected.affine).T + 0.0),
        "acqparams.txt": frame.acquisition,
        "index.txt": " ".join(["1"] * len(motion)) + "\n",
        "conventions.txt": _conventions(Path(prefix).name, frame, readout_time),
    }
    if (between := _between_shells(parameters, original.gradients)) is not None:
        texts["post_eddy_shell_alignment_parameters"] = between
    if (course := poses_of_excitations(motion, original.acquisition)) is not None:
        texts["movement_over_time"] = table(frame.course(course, motion))
    if outliers is not None:
        texts |= _outlier_texts(OutlierTables(*outliers), original)
    paths = {name: Path(f"{prefix}.eddy_{name}") for name in (*texts, *OPTIONAL)}
    for name in OPTIONAL:
        paths[name].unlink(missing_ok=True)
    for name, text in texts.items():
        write_text(paths[name], text)
    if cnr is not None:
        write_image(paths["cnr_maps.nii.gz"], np.asarray(cnr, np.float32), corrected.affine)
    return [path for path in paths.values() if path.exists()]


@dataclass(frozen=True, eq=False)
class _Frame:
    """eddy's coordinates of a series, and how it was acquired.

    Parameters
    ----------
    to_fsl : (4, 4) array
        RAS+ mm → ``newimage`` mm.
    center : (3,) array
        Middle of the grid, ``newimage`` mm.
    moments : (4, 4) array
        Mean of the products of x, y, z, 1 over the brain, ``newimage`` mm.
    pe : (3,) array
        RAS+.
    axis, sign : int
        Phase-encoding axis in the ``newimage`` grid, and which way.
    hz_to_mm : float
        Readout time times voxel size along the axis.
    readout_time : float
        Seconds.
    """

    to_fsl: np.ndarray
    center: np.ndarray
    moments: np.ndarray
    pe: np.ndarray
    axis: int
    sign: int
    hz_to_mm: float
    readout_time: float

    @classmethod
    def of(cls, original: Series, motion: Motion, readout_time: float) -> _Frame:
        """Measure a series."""
        pe = original.acquisition.common_phase_encoding
        to_fsl = fsl_coordinates(original.shape, original.affine)
        if motion.eddy_currents is not None:
            pe = motion.eddy_currents.pe
        elif pe is None:
            pe = np.linalg.inv(to_fsl)[:3, 1]
        along = to_fsl[:3, :3] @ pe
        axis = int(np.argmax(np.abs(along)))
        brain = apply_affine(to_fsl @ original.affine, np.argwhere(original.mask))
        homogeneous = np.hstack([brain, np.ones((len(brain), 1))])
        return cls(
            to_fsl,
            apply_affine(to_fsl, original.center),
            homogeneous.T @ homogeneous / len(brain),
            np.asarray(pe, float),
            axis,
            1 if along[axis] > 0 else -1,
            readout_time * float(original.voxel_sizes[axis]),
            readout_time,
        )

    @property
    def acquisition(self) -> str:
        """The one line of the acquisition parameters."""
        vector = [0, 0, 0]
        vector[self.axis] = self.sign
        return " ".join(map(str, vector)) + f" {self.readout_time:g}\n"

    def poses(self, motion: Motion) -> np.ndarray:
        """Return the movement without the offsets of the fields, ``newimage`` mm: (N, 4, 4)."""
        return self.to_fsl @ motion.head @ np.linalg.inv(self.to_fsl)

    def course(self, poses: SlicePoses, motion: Motion) -> np.ndarray:
        """Return the parameters at each excitation, without the offsets of fields: (N G, 6)."""
        head, eddy = poses.matrices, motion.eddy_currents
        if eddy is not None:
            head = np.linalg.inv(eddy.shifts)[:, None] @ head
        matrices = self.to_fsl @ head.reshape(-1, 4, 4) @ np.linalg.inv(self.to_fsl)
        return self.parameters(matrices)

    def parameters(self, poses: np.ndarray) -> np.ndarray:
        """Return translations (mm) and angles (rad), (N, 6)."""
        return movement_parameters(poses, self.center)

    def movement_rms(self, poses: np.ndarray, *, restricted: bool = False) -> np.ndarray:
        """Measure the brain's displacement to the reference and the volume before, RMS, (N, 2) mm.

        Restricted: without the translation along the phase-encoding axis.
        """
        poses = poses.copy()
        if restricted:
            poses[:, self.axis, 3] -= self.parameters(poses)[:, self.axis]

        def rms(displacement: np.ndarray) -> np.ndarray:
            square = np.einsum("nij,jk,nik->n", displacement, self.moments, displacement)
            return np.sqrt(np.maximum(square, 0.0))

        to_reference = rms(poses[:, :3] - np.eye(4)[:3])
        return np.stack([to_reference, np.append(0.0, rms(np.diff(poses[:, :3], axis=0)))], axis=1)

    def fields(self, motion: Motion) -> np.ndarray:
        """Return the coefficients of the fields, Hz and mm, the constant last: (N, 4, 10 or 20).

        Without fields those of a quadratic one, eddy's default. A polynomial stays one under a
        change of coordinates: its new coefficients are those that give its values at more points
        than it has coefficients.
        """
        eddy = motion.eddy_currents
        if eddy is None:
            return np.zeros((len(motion), N_TERMS["quadratic"] + 1))
        terms = EDDY_TERMS[: eddy.coefficients.shape[1] or N_TERMS["quadratic"]]
        lattice = np.array(list(product((-60.0, -20.0, 20.0, 60.0), repeat=3)))
        values = polynomial_terms(lattice / SCALE_MM, len(terms))
        values = values[:, [TERMS.index(term) for term in terms]]
        design = np.hstack([values, np.ones((len(lattice), 1))])
        head = apply_affine(np.linalg.inv(self.to_fsl), lattice + self.center)
        moved = [
            offset + eddy.displacement(volume, head - offset * self.pe)
            for volume, offset in enumerate(_offsets(motion))
        ]
        coefficients = np.linalg.lstsq(design, np.transpose(moved), rcond=None)[0].T
        units = [SCALE_MM ** len(term) for term in (*terms, "")]
        return -coefficients / self.hz_to_mm / units


def _offsets(motion: Motion) -> np.ndarray:
    """Displacement of the centre by the fields that the poses hold, mm against `pe`: (N,)."""
    eddy = motion.eddy_currents
    if eddy is None or eddy.offsets is None:
        return np.zeros(len(motion))
    return np.nan_to_num(eddy.offsets)


def _outlier_texts(outliers: OutlierTables, original: Series) -> dict[str, str]:
    """Format the three maps and the report; b=0 volumes have none, as in eddy."""
    expected = (len(original), original.shape[2])
    if any(np.shape(table) != expected for table in outliers):
        raise EddymotionError(
            f"FSL outputs: outlier tables of shape {[np.shape(table) for table in outliers]}, "
            f"expected {expected}, volumes by slices"
        )
    judged = ~original.gradients.is_b0[:, None]
    flagged, mean, square = (np.nan_to_num(table * judged) for table in outliers)
    maps = zip(TITLES.items(), (flagged.astype(int), mean, square), strict=True)
    texts = {name: title + "\n" + _spaced(table) for (name, title), table in maps}
    texts["outlier_report"] = "".join(
        f"Slice {s} in scan {v} is an outlier with mean {mean[v, s]:.6g} standard deviations "
        f"off, and mean squared {square[v, s]:.6g} standard deviations off.\n"
        for s, v in np.argwhere(flagged.T)
    )
    return texts


def _spaced(rows: Iterable[np.ndarray]) -> str:
    """Format as eddy's maps are: six digits, a blank after each."""
    return "".join("".join(f"{value + 0:.6g} " for value in row) + "\n" for row in rows)


def _between_shells(parameters: np.ndarray, gradients: Gradients) -> str | None:
    """Mean difference of movement from a b=0 volume to its neighbours, shell by shell.

    The second of the two comparisons of eddy's file; there is no registration of shell means here.
    """
    lines = [
        "These between shell parameters were calculated using interspersed b0-volumes",
        "Movement parameters relative b0-shell",
    ]
    heads = ("x-tr (mm)", "y-tr (mm)", "z-tr (mm)", "x-rot (deg)", "y-rot (deg)", "z-rot (deg)")
    widths = (10, 10, 10, 12, 12, 12)
    found = False
    for shell, bval in zip(gradients.shells, gradients.shell_bvals, strict=True):
        steps = [
            parameters[volume] - parameters[b0]
            for b0 in gradients.b0s
            for volume in (b0 - 1, b0 + 1)
            if volume in shell
        ]
        if not steps:
            continue
        found = True
        mean = np.mean(steps, axis=0) * np.repeat([1.0, 180.0 / np.pi], 3)
        lines += [
            f"Shell {round(bval, -2):.3g} to b0-shell",
            "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True)),
            "".join(f"{v + 0.0:>{w}.3g}" for v, w in zip(mean, widths, strict=True)),
        ]
    ending = "The movement parameters presented above have been calculated but not used"
    return "\n".join([*lines, "", "", ending]) + "\n" if found else None


def _conventions(name: str, frame: _Frame, readout_time: float | None) -> str:
    known = (
        f"The readout time, {readout_time:g} s, is TotalReadoutTime of the series."
        if readout_time
        else f"The readout time of the series is not known; {frame.readout_time:g} s is "
        "assumed. The Hz refer to it, so that displacements (Hz times readout time times voxel "
        "size) are correct."
    )
    terms = ", ".join(EDDY_TERMS)
    paragraphs = (
        "Written by eddymotion, in the units, signs and coordinates of FSL's eddy.",
        f"{name}.eddy_parameters: one row per volume. Translation (mm) and rotation (rad) "
        "along and about x, y, z, from the reference to the volume, about the middle of the "
        f"grid; then the field (Hz, polynomial in mm from the middle): {terms}, up to its "
        "order, and the constant last.",
        f"{name}.eddy_acqparams.txt, {name}.eddy_index.txt: the phase encoding that the field "
        f"refers to, as given to eddy. {known}",
        f"{name}.eddy_post_eddy_shell_alignment_parameters: from b=0 volumes and their "
        "neighbours. Means of shells are not registered; there is no file of translations along "
        "the phase encoding.",
        f"{name}.eddy_movement_over_time, if motion within volumes was followed: the "
        "same six parameters, one row per excitation, volume by volume.",
        "Outliers: b=0 volumes are excluded, as in eddy.",
    )
    command = (
        f"eddy_quad {name} -idx {name}.eddy_index.txt -par {name}.eddy_acqparams.txt "
        "-m MASK -b BVAL"
    )
    return "\n\n".join([*(textwrap.fill(p, 99) for p in paragraphs), command]) + "\n"
