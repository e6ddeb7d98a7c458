# SPDX-License-Identifier: Apache-2.0
"""Diffusion tensor and kurtosis, log-linear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.errors import EddymotionError
from eddymotion.models.base import (
    LEVERAGE_GUARD,
    as_rows,
    column_basis,
    from_rows,
    held_out_operator,
    least_squares_precision,
    neighbours,
)

MIN_SIGNAL_FRACTION = 1e-4
"""Signals are raised to this part of the largest before the logarithm."""

LARGEST_EXCESS = 10.0
"""How far (logarithm) predictions may be above the largest signal: what few directions hardly
determine would overflow."""

DEPENDENT = 1e-6
"""Columns that differ by less, relative to their length, are regarded as equal."""

VOXELS_AT_A_TIME = 8192


@dataclass(frozen=True)
class TensorModel:
    """Log-linear diffusion tensor (Basser et al. 1994) or kurtosis (Jensen et al. 2005) fit.

    b=0 volumes take part in the fit. Predictions are ``exp`` of the predicted logarithm.

    Parameters
    ----------
    weighted : bool
        Weigh each volume with the square of its fitted signal (Salvador et al. 2005), as DIPY's
        WLS does. The weights come from the ordinary fit to *all* volumes of the voxel and are
        held fixed when one is left out; given them, the prediction is exact.
    kurtosis : bool
        Add the fifteen kurtosis terms. Needs two shells and 15 directions.
    min_q_distance : float
        As in :class:`~eddymotion.models.base.LinearModel`; not available with `weighted`.
    """

    weighted: bool = False
    kurtosis: bool = False
    min_q_distance: float = 0.0

    def __post_init__(self) -> None:
        if self.weighted and self.min_q_distance > 0:
            raise EddymotionError(
                "model: min_q_distance is not available with the weighted tensor fit; "
                "use dti, dki or gp"
            )

    def leave_one_out(self, signal: np.ndarray, gradients: Gradients) -> np.ndarray:
        """Predict each volume from the others; see :meth:`Model.leave_one_out`."""
        design = design_matrix(gradients, kurtosis=self.kurtosis)
        volumes = as_rows(signal)
        log_signal = np.log(np.maximum(volumes, MIN_SIGNAL_FRACTION * volumes.max()))
        most = log_signal.max() + LARGEST_EXCESS
        if self.weighted:
            predicted = weighted_leave_one_out(design, log_signal)
        else:
            operator = held_out_operator(
                least_squares_precision(design),
                neighbours(gradients, self.min_q_distance),
            )
            predicted = operator.astype(volumes.dtype) @ log_signal
        return from_rows(np.exp(np.minimum(predicted, most)), signal.shape)


def design_matrix(gradients: Gradients, *, kurtosis: bool = False) -> np.ndarray:
    """Design matrix of the logarithm of the signal; trace-weighted volumes average directions.

    Raises
    ------
    EddymotionError
        If the scheme does not determine the parameters.
    """
    name, rows = ("dki", _kurtosis_rows) if kurtosis else ("dti", _tensor_rows)
    isotropic = gradients.is_trace
    bvecs = np.where(isotropic[:, None], [1.0, 0.0, 0.0], gradients.bvecs)
    design = rows(gradients.bvals, bvecs)
    if isotropic.any():  # a geometric mean over three orthogonal directions is linear in the log
        axes = [np.where(isotropic[:, None], axis, bvecs) for axis in np.eye(3)]
        averaged = np.mean([rows(gradients.bvals, bvecs) for bvecs in axes], axis=0)
        design = np.where(isotropic[:, None], averaged, design)
    norms = np.linalg.norm(design, axis=0)
    rank = np.linalg.matrix_rank(design / np.where(norms > 0, norms, 1.0), rtol=DEPENDENT)
    if rank < design.shape[1] or len(design) <= rank:  # nothing would be left to predict with
        raise EddymotionError(
            f"model {name}: without one volume this scheme does not determine its "
            f"{design.shape[1]} parameters "
            f"({len(gradients.dwis)} diffusion-weighted volumes, {len(gradients.shells)} "
            f"shell(s), {len(gradients.b0s)} b=0); use --model gp or average"
        )
    return design


def _tensor_rows(bvals: np.ndarray, bvecs: np.ndarray) -> np.ndarray:
    """``ln S = ln S₀ − b gᵀDg``: columns Dxx, Dxy, Dyy, Dxz, Dyz, Dzz, −ln S₀, as in DIPY.

    Written out here since importing DIPY takes half a second and 50 MB in each run.
    """
    x, y, z = bvecs.T
    products = [x * x, 2 * x * y, y * y, 2 * x * z, 2 * y * z, z * z]
    return -np.column_stack([*(bvals * product for product in products), np.ones_like(bvals)])


def _kurtosis_rows(bvals: np.ndarray, bvecs: np.ndarray) -> np.ndarray:
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dki import design_matrix

    return design_matrix(gradient_table(bvals, bvecs=bvecs))


def weighted_leave_one_out(design: np.ndarray, log_signal: np.ndarray) -> np.ndarray:
    """Leave-one-out predictions at fixed, voxel-wise weights.

    With ``w`` the squared ordinary fit and ``A = XᵀWX`` of a voxel, the leverage is
    ``hᵢ = wᵢ xᵢᵀA⁻¹xᵢ`` and the prediction ``yᵢ − (yᵢ − ŷᵢ)/(1 − hᵢ)``
    (:mod:`eddymotion.models.base`).

    Parameters
    ----------
    design : (N, p) array
    log_signal : (N, V) array

    Returns
    -------
    (N, V) array
        In the precision of `log_signal`; NaN where the leverage is one.
    """
    columns = column_basis(design)  # predictions do not depend on the basis, rounding does
    n, p = columns.shape
    hat = columns @ columns.T
    products = np.einsum("np,nq->npq", columns, columns).reshape(n, p * p)
    predicted = np.empty_like(log_signal)
    for start in range(0, log_signal.shape[1], VOXELS_AT_A_TIME):
        chunk = slice(start, start + VOXELS_AT_A_TIME)
        y = log_signal[:, chunk].T.astype(float)
        fitted = y @ hat
        weights = np.exp(2 * (fitted - fitted.max(axis=1, keepdims=True)))
        inverse = np.linalg.inv((weights @ products).reshape(-1, p, p))
        moments = (weights * y) @ columns
        smooth = np.einsum("vpq,vq->vp", inverse, moments) @ columns.T
        slack = 1 - weights * (inverse.reshape(-1, p * p) @ products.T)
        slack[slack <= LEVERAGE_GUARD] = np.nan
        predicted[:, chunk] = (y - (y - smooth) / slack).T
    return predicted


def fit_tensors(signal: np.ndarray, gradients: Gradients) -> np.ndarray:
    """Fit diffusion tensors as :class:`TensorModel` with `weighted` does, to all volumes.

    Parameters
    ----------
    signal : (V, N) array
        Above zero.
    gradients : Gradients

    Returns
    -------
    (V, 3, 3) array
        mm²/s where b-values are in s/mm², along the axes of the b-vectors.

    Raises
    ------
    EddymotionError
        If the scheme does not determine a tensor.
    """
    design = _tensor_rows(gradients.bvals, gradients.bvecs)
    scale = np.maximum(np.linalg.norm(design, axis=0), np.finfo(float).tiny)
    columns = design / scale
    n, p = columns.shape
    rank = np.linalg.matrix_rank(columns, rtol=DEPENDENT)
    if rank < p:
        raise EddymotionError(
            f"a tensor has {p} parameters with the signal at b=0, and {len(gradients)} volumes "
            f"determine {rank} of them"
        )
    products = np.einsum("np,nq->npq", columns, columns).reshape(n, p * p)
    y = np.log(signal.astype(float))
    basis = column_basis(design)
    fitted = y @ basis @ basis.T
    weights = np.exp(2 * (fitted - fitted.max(axis=1, keepdims=True)))
    normal = (weights @ products).reshape(-1, p, p)
    moments = (weights * y) @ columns
    found = np.linalg.solve(normal, moments[:, :, None])[:, :, 0] / scale
    return found[:, [0, 1, 3, 1, 2, 4, 3, 4, 5]].reshape(-1, 3, 3)
