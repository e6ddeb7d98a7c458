# SPDX-License-Identifier: Apache-2.0
"""Which part of the translations along the phase encoding is the fields'."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.estimation.fields.following import pose_regressors
from eddymotion.estimation.fields.prior import drivers_of
from eddymotion.mapping.motion import Motion
from eddymotion.robust import Cauchy, robust_deviation, sandwich

log = logging.getLogger(__name__)

OFFSET_ITERATIONS = 50

OFFSET_SIZE = 2.0
"""Displacement of the middle by eddy currents, over that at 80 mm from it: .5 to 3 in
three real series."""


def with_offsets(motion: Motion, gradients: Gradients) -> Motion:
    """Attribute to the fields their part of the translation along the phase-encoding axis.

    The head moves little between two consecutive volumes, while the gradient turns: steps of the
    translation at the centre are regressed on steps of ``q``, with Cauchy weights, since heads
    jump now and then. Poses keep the sum. Where fields follow the head, the head moves far, and
    its steps correlate with ``q`` by chance: fields that otherwise hardly change with ``q`` get
    none of that.

    Parameters
    ----------
    motion : Motion
        Diffusion-weighted volumes in a frame of their own, with fields; their offsets, if any,
        are those of :func:`.following.with_offsets_of_poses`.
    gradients : Gradients
        In the scanner's frame.

    Returns
    -------
    Motion
        Its fields have offsets, with their standard errors.
    """
    eddy, dwis = motion.eddy_currents, gradients.dwis
    if eddy is None:
        return motion
    along = (motion.head[dwis] @ np.append(eddy.center, 1.0))[:, :3] @ eddy.pe
    q = gradients.qvecs
    response, covariance = _regress_robustly(-np.diff(along), np.diff(q[dwis], axis=0))
    followed = eddy.offsets
    if followed is not None:
        size = OFFSET_SIZE * _linear_response(motion, gradients)
        gain = size**2 * np.linalg.inv(covariance + size**2 * np.eye(3))
        response, covariance = gain @ response, gain @ covariance
    variances = np.einsum("nj,jk,nk->n", q, covariance, q)
    offsets, errors = q @ response, np.sqrt(variances)
    if followed is not None:
        offsets = offsets + followed
    log.info("eddy currents: offset along the phase encoding up to %.2f mm (± %.2f)",
             np.abs(offsets).max(), errors.max())  # fmt: skip
    return replace(motion, eddy_currents=replace(eddy, offsets=offsets, offset_errors=errors))


def _linear_response(motion: Motion, gradients: Gradients) -> float:
    """Root mean square of what linear fields do for each unit of ``q``, beside the poses, mm."""
    eddy, dwis = motion.eddy_currents, gradients.dwis
    assert eddy is not None
    poses = pose_regressors(motion.matrices[dwis], eddy.center, 0)
    drivers = drivers_of(gradients.select(dwis), poses)
    linear = eddy.coefficients[dwis, :3]
    away = drivers - drivers.mean(axis=0)
    response = np.linalg.lstsq(away, linear - linear.mean(axis=0), rcond=0.05)[0]
    return float(np.sqrt(np.mean(response[:3] ** 2)))


def _regress_robustly(steps: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Regress steps (n,) on columns (n, k) with Cauchy weights: coefficients, covariance."""
    weights = np.ones(len(steps))
    for _ in range(OFFSET_ITERATIONS):
        normal = np.linalg.pinv(columns.T * weights @ columns, rcond=1e-3, hermitian=True)
        response = normal @ (columns.T @ (weights * steps))
        residual = steps - columns @ response
        weights = Cauchy.within(robust_deviation(residual)).weights(residual**2)
    scores = columns * (weights * residual)[:, None]
    return response, sandwich(normal @ scores.T, n_fitted=columns.shape[1])
