# SPDX-License-Identifier: Apache-2.0
"""Signal models: each predicts a volume of a series from the others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from eddymotion.data.gradients import Gradients
from eddymotion.errors import EddymotionError
from eddymotion.models.average import AverageModel
from eddymotion.models.base import LinearModel, Model
from eddymotion.models.covariance import SphericalCovariance
from eddymotion.models.gaussian_process import GaussianProcessModel
from eddymotion.models.harmonics import HarmonicCovariance, LegendreCovariance
from eddymotion.models.qspace import MaternCovariance
from eddymotion.models.tensor import TensorModel, design_matrix
from eddymotion.wording import shown

__all__ = [
    "AverageModel",
    "GaussianProcessModel",
    "LegendreCovariance",
    "LinearModel",
    "MaternCovariance",
    "Model",
    "SphericalCovariance",
    "TensorModel",
    "choose_model",
    "get_model",
]

log = logging.getLogger(__name__)

MODEL_NAMES = (
    "auto", "gp", "gp-legendre", "gp-spherical", "gp-qspace", "average", "dti", "wls-dti", "dki",
    "dipy:NAME",
)  # fmt: skip

MIN_DIRECTIONS_FOR_GP = 6
"""With fewer diffusion-weighted volumes a covariance has nothing to learn from."""


BUILDERS: dict[str, Callable[..., Model]] = {
    "gp-legendre": partial(GaussianProcessModel, LegendreCovariance()),
    "gp-spherical": partial(GaussianProcessModel, SphericalCovariance()),
    "gp-qspace": partial(GaussianProcessModel, MaternCovariance()),
    "average": AverageModel,
    "dti": TensorModel,
    "wls-dti": partial(TensorModel, weighted=True),
    "dki": partial(TensorModel, kurtosis=True),
}
"""Names whose model does not depend on the scheme."""


def get_model(
    name: str, gradients: Gradients, *, min_q_distance: float = 0.0, n_procs: int = 1
) -> Model:
    """Turn a name into a model, which predicts a volume from the others.

    Parameters
    ----------
    name : str
        One of :data:`MODEL_NAMES`; ``dipy:NAME`` is any DIPY model.
    gradients : Gradients
        Of the series; ``auto`` chooses by them.
    min_q_distance : float
        See :class:`~eddymotion.models.base.LinearModel`.
    n_procs : int
        Processes for the explicit refits of DIPY models.

    Returns
    -------
    Model

    Raises
    ------
    EddymotionError
        If there is no such model, or it cannot be used with this scheme or this distance.
    """
    if name == "auto":
        name = choose_model(gradients)
    if name.startswith("dipy:"):
        from eddymotion.models.dipy import DipyModel, find_model

        if min_q_distance > 0:
            raise EddymotionError(
                f"model {name}: min_q_distance is not available with refitted DIPY models; "
                "use dti, dki or gp"
            )
        return DipyModel(find_model(name.removeprefix("dipy:")), n_procs=n_procs)
    if name in ("dti", "wls-dti", "dki"):
        design_matrix(gradients, kurtosis=name == "dki")  # raises where the scheme is too small
    if name == "gp":
        name = _gaussian_process_for(gradients)
    return _builder(name)(min_q_distance=min_q_distance)


def name_of(model: Model) -> str:
    """Return the name by which :func:`get_model` makes such a model; of others their class."""
    if isinstance(model, TensorModel):
        return "dki" if model.kurtosis else "wls-dti" if model.weighted else "dti"
    if isinstance(model, AverageModel):
        return "average"
    names: dict[type, str] = {
        LegendreCovariance: "gp-legendre",
        HarmonicCovariance: "gp-legendre",
        SphericalCovariance: "gp-spherical",
        MaternCovariance: "gp-qspace",
    }
    if isinstance(model, GaussianProcessModel) and type(model.covariance) in names:
        return names[type(model.covariance)]
    refitted = getattr(model, "model", None)  # of DIPY
    return f"dipy:{refitted.__name__}" if isinstance(refitted, type) else type(model).__name__


def serves_joint(name: str) -> bool:
    """Whether a model of that name can be used by the joint solution: linear in the signal.

    Raises
    ------
    EddymotionError
        If there is no such model.
    """
    if name in ("auto", "gp"):
        return True
    if name.startswith("dipy:"):
        from eddymotion.models.dipy import find_model

        find_model(name.removeprefix("dipy:"))
        return False
    return isinstance(_builder(name)(), LinearModel)


def _builder(name: str) -> Callable[..., Model]:
    if name not in BUILDERS:
        raise EddymotionError(
            f"model {shown(name)} is unknown; use one of {', '.join(MODEL_NAMES)}"
        )
    return BUILDERS[name]


def choose_model(gradients: Gradients) -> str:
    """Choose a model for a scheme and log the reason."""
    n_dwis, n_shells = len(gradients.dwis), len(gradients.shells)
    if n_dwis < MIN_DIRECTIONS_FOR_GP:
        name, reason = "average", f"only {n_dwis} directions"
    elif gradients.is_shelled:
        name = _gaussian_process_for(gradients)
        reason = f"{n_dwis} directions on {n_shells} shell{'s' if n_shells > 1 else ''}"
    else:
        name, reason = _gaussian_process_for(gradients), "the b-values form no shells"
    log.info("model: %s (%s)", name, reason)
    return name


def _gaussian_process_for(gradients: Gradients) -> str:
    return "gp-legendre" if gradients.is_shelled else "gp-qspace"
