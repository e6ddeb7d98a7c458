# SPDX-License-Identifier: Apache-2.0
"""The coefficients of eddy-current fields as unknowns beside the poses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.estimation.equations.unknowns import Block, PriorTerms
from eddymotion.estimation.fields.prior import NO_PRIOR, FieldPrior
from eddymotion.mapping.eddy_currents import SCALE_MM, polynomial_terms
from eddymotion.mapping.field_kernels import weigh_terms
from eddymotion.mapping.motion import Motion

FIELDS = "eddy currents"


@dataclass(frozen=True, eq=False)
class UnknownFields(Block):
    """The coefficients of the eddy-current fields of a motion as unknowns: steps ``e ← e − ε``.

    Parameters
    ----------
    gradients : Gradients
        Of the volumes, in the scanner's frame.
    size : int
        Terms of the fields.
    center : (3,) array
        Of the terms, RAS+ mm.
    known : FieldPrior
    design : (N, D) array, optional
        What the fields of all volumes are linear in, if they share the unknowns.
    """

    gradients: Gradients
    size: int
    center: np.ndarray
    known: FieldPrior = NO_PRIOR
    design: np.ndarray | None = None

    name = FIELDS

    def lengths(self, points: np.ndarray) -> np.ndarray:
        """Root-mean-square displacement (mm) of points (V, 3) for each coefficient, (K,)."""
        terms = polynomial_terms((points - self.center) / SCALE_MM, self.size)
        return np.sqrt((terms**2).mean(axis=0))

    def columns(self, motion: Motion, points: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """Return the slopes along the phase encoding, times the terms."""
        assert motion.eddy_currents is not None
        units = motion.eddy_currents.units_of(motion.matrices)
        encodings = np.einsum("nab,a->nb", motion.rotations, motion.eddy_currents.pe)
        found = np.empty((len(slopes), self.size, len(points)), np.float32)
        against = -np.einsum("nkp,nk->np", slopes, encodings.astype(np.float32))
        for of_volume, weights, columns in zip(units, against, found, strict=True):
            weigh_terms(points, of_volume, weights, columns)
        return found

    def moved(self, motion: Motion, step: np.ndarray) -> Motion:
        """Take a step (N, K); the common part of the fields is as the prior has it."""
        eddy = motion.eddy_currents
        assert eddy is not None
        coefficients = self.known.centred(eddy.coefficients - step, self.gradients)
        return replace(motion, eddy_currents=replace(eddy, coefficients=coefficients))

    def prior(self, motion: Motion) -> PriorTerms | None:
        """Return what is known of the fields before."""
        assert motion.eddy_currents is not None
        return self.known.terms(motion.eddy_currents.coefficients, self.gradients)
