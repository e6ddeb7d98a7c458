# SPDX-License-Identifier: Apache-2.0
"""Rigid motion: parameters ⇄ matrices, and how far things moved.

One direction everywhere: a matrix is 4×4, in RAS+ millimetres, and maps points of the
*reference* to points of the *original volume*, the direction of NiTransforms. Reading volume
``i`` at ``motion[i] @ x`` therefore shows what the reference shows at ``x``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from eddymotion.errors import EddymotionError
from eddymotion.machine.frozen import freeze, selected
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.off_resonance import SeriesField
from eddymotion.mapping.rigid import framewise_displacement, rigid_matrix, rigid_parameters
from eddymotion.mapping.trajectory import Trajectory
from eddymotion.mapping.volume import VolumeMapping
from eddymotion.wording import HtmlValue


@dataclass(frozen=True)
class FrameEvidence:
    """Evidence from time and images on the frame of diffusion-weighted volumes relative to b=0.

    Parameters
    ----------
    bval : float
        Mean b-value of the volumes, s/mm².
    by_time, by_images : float
        Standard errors (mm an axis) of the offset from each of them alone; NaN where the images
        do not determine it.
    apart_mm, apart_degrees : float
        How far the two are apart; NaN likewise.
    contradicted : bool
        Whether that is beyond their errors.
    """

    bval: float
    by_time: float
    by_images: float
    apart_mm: float
    apart_degrees: float
    contradicted: bool

    def __str__(self) -> str:
        text = f"by time ± {self.by_time:.3f} mm"
        if not np.isfinite(self.by_images):
            return f"{text}, the images tell nothing"
        return (
            f"{text}, by images ± {self.by_images:.3f} mm, "
            f"{self.apart_mm:.2f} mm and {self.apart_degrees:.2f}° apart"
        )


@dataclass(frozen=True, eq=False)
class Motion(HtmlValue):
    """The pose of the head in each volume of a series.

    Parameters
    ----------
    matrices : (N, 4, 4) array
        Rigid matrices, reference → volume, RAS+ mm.
    standard_errors : (N, 6) array, optional
        Standard errors of the three translations (mm) and rotations (rad) of
        :func:`rigid_parameters`, where the estimator gives them.
    frame_error : float, optional
        Standard error (mm an axis) of what brings diffusion-weighted volumes into the frame of
        the b=0 volumes: an offset that they have in common.
    eddy_currents : EddyCurrents, optional
        What else displaces the volumes, in the scanner's frame.
    unplaced : (N,) bool array, optional
        Volumes that agree with their prediction nowhere: their pose is that of their neighbours in
        time, and their standard errors are NaN. None where all could be placed.
    undetermined : (k, 6) array, optional
        Directions that the images do not show: unit vectors of translation (mm) and rotation (mm
        at 50 mm from the centre of the brain, for a human head) in the reference frame. Nothing
        moves along them, and standard errors of parameters that they affect are NaN.
    off_resonance : SeriesField, optional
        What displaces the volumes with the head: the off-resonance field.
    frame_evidence : FrameEvidence, optional
        How the frames of the b=0 and of the other volumes were joined; of several groups that
        which fits least.
    center : (3,) array, optional
        Centre of the image grid of the series, RAS+ mm: where translations are measured. The
        scanner's origin where it is not known.
    trajectory : Trajectory, optional
        How the head moved within the volumes; `matrices` are the mean poses then.
    order_doubt : str, optional
        Why slices were hardly acquired in the order given by SliceTiming, so that motion within
        volumes was not followed; None where nothing speaks against it.
    frame_covariance : (6, 6) array, optional
        Covariance of the offset that `frame_error` is of: mm and rad about the centre of the
        brain.
    within_doubt : str, optional
        Volumes within which the head seems to have moved, while the times of their slices are
        unknown.
    alone : Motion, optional
        What the series alone showed, where it is a run that others brought into one frame.
    """

    matrices: np.ndarray
    standard_errors: np.ndarray | None = None
    frame_error: float | None = None
    eddy_currents: EddyCurrents | None = None
    unplaced: np.ndarray | None = None
    undetermined: np.ndarray | None = None
    frame_evidence: FrameEvidence | None = None
    off_resonance: SeriesField | None = None
    center: np.ndarray | None = None
    trajectory: Trajectory | None = None
    order_doubt: str | None = None
    frame_covariance: np.ndarray | None = None
    within_doubt: str | None = None
    alone: Motion | None = None

    def __post_init__(self) -> None:
        freeze(self, "motion", matrices="N 4 4", standard_errors="N 6", undetermined="k 6",
               center="3", frame_covariance="6 6")  # fmt: skip
        freeze(self, "motion", bool, unplaced=f"{len(self)}")
        if not np.isfinite(self.matrices).all():
            raise EddymotionError("motion: the matrices hold NaN or Inf")
        for part, what in (
            (self.eddy_currents, "eddy-current fields for"),
            (self.off_resonance, "an off-resonance field for"),
            (self.trajectory, "a trajectory of"),
        ):
            if part is not None and len(part) != len(self):
                raise EddymotionError(f"motion: {len(self)} poses but {what} {len(part)} volumes")

    @classmethod
    def identity(cls, n_volumes: int) -> Motion:
        """No motion in any of `n_volumes` volumes."""
        return cls(np.tile(np.eye(4), (n_volumes, 1, 1)))

    def __len__(self) -> int:
        return len(self.matrices)

    def __repr__(self) -> str:
        known = [f"{len(self)} volumes"]
        if self.standard_errors is not None:
            known.append("with standard errors")
        if self.eddy_currents is not None:
            known.append(f"{self.eddy_currents.order} eddy-current fields")
        if self.trajectory is not None:
            known.append(f"motion within {int(self.trajectory.moving.sum())} of them")
        return f"Motion({', '.join(known)})"

    def __getitem__(self, volume: int) -> np.ndarray:
        return self.matrices[volume]

    @property
    def rotations(self) -> np.ndarray:
        """The rotation part of each matrix, (N, 3, 3)."""
        return self.matrices[:, :3, :3]

    @property
    def moved_within(self) -> np.ndarray:
        """Volumes within which the head moved, (N,) bool."""
        return np.zeros(len(self), bool) if self.trajectory is None else self.trajectory.moving

    def mapping(self, volume: int) -> VolumeMapping:
        """Where points of the head were recorded in a volume."""
        known = self._mappings.get(volume)
        if known is None:
            known = self._mappings[volume] = self._mapping(volume)
        return known

    @cached_property
    def _mappings(self) -> dict[int, VolumeMapping]:
        """Those that were asked for."""
        return {}

    def _mapping(self, volume: int) -> VolumeMapping:
        eddy, known = self.eddy_currents, self.off_resonance
        mapping = VolumeMapping(
            self.matrices[volume],
            None if eddy is None else eddy.select(slice(volume, volume + 1)),
        )
        if known is not None:
            mapping = replace(
                mapping,
                off_resonance=known.field,
                shift=known.shifts[volume],
                modulated=known.modulated,
            )
        if self.trajectory is not None:
            slices = self.trajectory.of_volume(volume, self.matrices[volume])
            mapping = replace(mapping, slices=slices)
        return mapping

    def recorded(self, volume: int, points: np.ndarray) -> np.ndarray:
        """Where points (P, 3) of the reference are in an original volume, RAS+ mm: (P, 3)."""
        return self.mapping(volume).recorded(points)

    def displaced(self, volume: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray | float]:
        """Return where points (P, 3) of the reference are, and what multiplies the signal there.

        Returns
        -------
        recorded : (P, 3) array
            In an original volume, RAS+ mm.
        factor : (P,) array, or 1
            Takes the eddy-current field out of the signal.
        """
        return self.mapping(volume).displaced(points)

    def check_length(self, n_volumes: int, who: str) -> None:
        """Raise an error of `who` unless there are `n_volumes` poses."""
        if len(self) != n_volumes:
            raise EddymotionError(
                f"{who}: {len(self)} transforms for {n_volumes} volumes; expected one per volume"
            )

    @property
    def frame_doubt(self) -> str | None:
        """Warning where time and images give different frames; None where they agree."""
        evidence = self.frame_evidence
        if evidence is None or not evidence.contradicted:
            return None
        return (
            f"time and images give different frames for the volumes with b={evidence.bval:.0f} "
            f"and those with b=0 ({evidence}): their common frame is known within "
            f"{self.frame_error:.2f} mm only; check the edges of the b=0 image on "
            "diffusion-weighted volumes in the report"
        )

    def select(self, volumes: np.ndarray | slice) -> Motion:
        """Poses, their errors and fields of some of the volumes."""
        return selected(
            replace(self, alone=None), volumes, "matrices", "standard_errors", "eddy_currents",
            "unplaced", "off_resonance", "trajectory",
        )  # fmt: skip

    @property
    def head(self) -> np.ndarray:
        """Poses of the head alone, without the offsets of the fields, (N, 4, 4)."""
        if self.eddy_currents is None:
            return self.matrices
        return np.linalg.inv(self.eddy_currents.shifts) @ self.matrices

    def head_at(self, slice_: int) -> np.ndarray:
        """Poses of the head alone while a slice of each volume was recorded, (N, 4, 4)."""
        if self.trajectory is None:
            return self.head
        within = self.trajectory.within[:, slice_]
        if self.eddy_currents is not None:
            shifts = self.eddy_currents.shifts
            within = np.linalg.inv(shifts) @ within @ shifts
        return within @ self.head

    def parameters(self, center: np.ndarray | None = None, *, of_head: bool = False) -> np.ndarray:
        """Return translations (mm) and rotations (rad) as in the confounds, (N, 6).

        Parameters
        ----------
        center : (3,) array, optional
            Where translations are measured, RAS+ mm; :attr:`center` when not given.
        of_head : bool
            Without the offsets of eddy-current fields, which translations hold otherwise.
        """
        return rigid_parameters(self.head if of_head else self.matrices, self._about(center))

    def framewise_displacement(self, center: np.ndarray | None = None) -> np.ndarray:
        """Return the framewise displacement of the head, mm: (N,), NaN for the first volume.

        Without the offset of eddy-current fields (Power et al. 2012): the column
        ``framewise_displacement_head`` of the confounds where there is one, else
        ``framewise_displacement``. `center` as in :meth:`parameters`.
        """
        return framewise_displacement(self.parameters(center, of_head=True))

    def _about(self, center: np.ndarray | None) -> np.ndarray:
        known = self.center if center is None else center
        return np.zeros(3) if known is None else np.asarray(known, float)

    def updated(self, volumes: np.ndarray, matrices: np.ndarray) -> Motion:
        """Return a copy in which `volumes` have new `matrices`, of unknown error (NaN)."""
        new, errors = self.matrices.copy(), self.standard_errors
        new[volumes] = matrices
        if errors is not None:
            errors = errors.copy()
            errors[volumes] = np.nan
        return replace(self, matrices=new, standard_errors=errors)

    def with_errors_of_slices(self, change: Callable[[np.ndarray], np.ndarray]) -> Motion:
        """Return a copy in which the standard errors of slices (N, Z, 6) are changed, if any."""
        course = self.trajectory
        if course is None or course.standard_errors is None:
            return self
        changed = replace(course, standard_errors=change(course.standard_errors))
        return replace(self, trajectory=changed)

    def relative_to(self, volume: int, center: np.ndarray | None = None) -> Motion:
        """Return the same motion with `volume` as the reference: that matrix is the identity.

        Standard errors are propagated to first order, those of `volume` being added to all others:
        it is known by definition now, and has none. Errors of two volumes, and of the parameters
        of one, count as independent, since nothing is known of what they share. What they do
        share (the error of the former reference, and :attr:`frame_error` among
        diffusion-weighted volumes) cancels in truth, so that the errors are then too large rather
        than too small.

        Parameters
        ----------
        volume : int
        center : (3,) array, optional
            Where the standard errors take translations, RAS+ mm: the centre of the image grid.
            :attr:`center` when not given; it matters little unless the new reference is turned
            far.
        """
        matrices = self.matrices @ np.linalg.inv(self.matrices[volume])
        errors = self.standard_errors
        if errors is not None:
            errors = _relative_errors(self.matrices, errors, volume, self._about(center))
        return replace(self, matrices=matrices, standard_errors=errors)


def _relative_errors(
    matrices: np.ndarray, errors: np.ndarray, volume: int, center: np.ndarray
) -> np.ndarray:
    """Propagate standard errors (N, 6) to the parameters of ``T_i T_volume⁻¹``, (N, 6)."""
    tiny = 1e-5
    found = rigid_parameters(matrices, center)

    def relative(own: np.ndarray, reference: np.ndarray) -> np.ndarray:
        own, reference = (rigid_matrix(p[..., :3], p[..., 3:], center) for p in (own, reference))
        return rigid_parameters(own @ np.linalg.inv(reference), center)

    variance = np.zeros(errors.shape)
    for column, step in enumerate(tiny * np.eye(6)):
        for of_own, of_reference, error in (
            (step, 0.0, errors[:, [column]]),
            (0.0, step, errors[volume, column]),
        ):
            above, below = (
                relative(found + side * of_own, found[volume] + side * of_reference)
                for side in (1, -1)
            )
            variance += ((above - below) / (2 * tiny) * error) ** 2
    variance[volume] = 0.0
    return np.sqrt(variance)
