# SPDX-License-Identifier: Apache-2.0
"""Estimators, as values that carry their own options."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.estimation.estimate import Estimate
from eddymotion.estimation.joint import solve_jointly
from eddymotion.estimation.joint.first_levels import FEW_FOR_FIELDS, fields_are_sought
from eddymotion.estimation.joint.levels import FINE_ITERATIONS
from eddymotion.machine.parallel import Compute
from eddymotion.mapping.eddy_currents import N_TERMS
from eddymotion.mapping.motion import Motion
from eddymotion.models import LinearModel, Model, get_model
from eddymotion.registration import GaussNewton, Registrar, get_registrar
from eddymotion.wording import shown

log = logging.getLogger(__name__)

FIELD_ORDERS = ("auto", *N_TERMS)
N_PASSES = 5
"""Of the leave-one-out loop."""


@dataclass(frozen=True)
class Joint:
    """All volumes at once, with their eddy-current fields (:mod:`eddymotion.estimation.joint`).

    Parameters
    ----------
    model : LinearModel or str
        What predicts a held-out volume; a name of :func:`eddymotion.models.get_model` or your own.
        ``auto`` chooses by the scheme.
    max_steps : int
        Largest number of steps at each level.
    eddy_current : {"auto", "none", "linear", "quadratic", "cubic"}
        Fields to estimate with the poses, from six diffusion-weighted volumes on. ``auto``: as
        many terms as the scheme allows and the data show.
    within_volume : {"auto", "none"} or int
        Motion within volumes (:mod:`eddymotion.estimation.within_volumes`): where slice timing is
        known and the data show it, not at all, or with this number of knots in every volume.
    """

    model: Model | str = "auto"
    max_steps: int = FINE_ITERATIONS
    eddy_current: str = "auto"
    within_volume: int | str = "auto"

    name: ClassVar[str] = "joint"

    def __post_init__(self) -> None:
        _refuse_none_at_all(self.max_steps)
        if self.eddy_current not in FIELD_ORDERS:
            raise EddymotionError(
                f"eddy_current is {shown(self.eddy_current)}, expected one of "
                f"{', '.join(FIELD_ORDERS)}"
            )
        _check_within_volume(self.within_volume)
        if not isinstance(self.model, str):
            _refuse_joint(why_loop(self.model, None))

    why: ClassVar[str] = ""

    def for_scheme(self, gradients: Gradients) -> Joint:
        """Return the same with the model made for a scheme."""
        model = _made(self.model, gradients)
        return Joint(model, self.max_steps, self.eddy_current, self.within_volume)

    def seeks_fields(self, gradients: Gradients) -> bool:
        """Whether fields are estimated in such a scheme."""
        return fields_are_sought(gradients, self.eddy_current)

    def estimate(self, dwi: DWI, compute: Compute) -> Estimate:
        """Find the poses within groups, with standard errors."""
        model = _made(self.model, dwi.gradients)
        assert isinstance(model, LinearModel)
        self._warn_of_unused_options(dwi, model)
        return solve_jointly(
            dwi,
            model=model,
            max_steps=self.max_steps,
            eddy_currents=self.eddy_current,
            compute=compute,
        )

    def follow(
        self, dwi: DWI, estimate: Estimate, motion: Motion, compute: Compute
    ) -> Estimate | None:
        """Follow the head through volumes within which it moved; None where it did not.

        Parameters
        ----------
        dwi : DWI
        estimate : Estimate
            From :meth:`estimate`.
        motion : Motion
            The same in one frame.
        compute : Compute
        """
        if self.within_volume == "none" or estimate.period_scatter is None:
            return None
        demanded = self.within_volume != "auto"
        untimed = dwi.acquisition.why_untimed
        undetermined = estimate.undetermined is not None
        if why := untimed or undetermined * "the images do not determine all of the motion":
            is_odd = untimed and dwi.acquisition.slicing.times is not None
            log.log(
                logging.WARNING if demanded or is_odd else logging.INFO,
                "motion within volumes: not estimated, since %s", why,
            )  # fmt: skip
            return None
        from eddymotion.estimation.within_volumes import follow_head  # few series need it

        model = _made(self.model, dwi.gradients)
        assert isinstance(model, LinearModel)
        n_knots = int(self.within_volume) if demanded else None
        return follow_head(dwi, estimate, motion, model, n_knots=n_knots, compute=compute)

    def _warn_of_unused_options(self, dwi: DWI, model: Model) -> None:
        if self.eddy_current != "none" and not self.seeks_fields(dwi.gradients):
            log.log(
                logging.INFO if self.eddy_current == "auto" else logging.WARNING,
                "eddy currents %s: no fields are estimated, since that needs %d "
                "diffusion-weighted volumes, found %d",
                self.eddy_current, FEW_FOR_FIELDS, len(dwi.gradients.dwis),
            )  # fmt: skip
        if getattr(model, "min_q_distance", 0.0) > 0:
            log.info("min_q_distance: joint uses it for judging slices, not for the motion")


@dataclass(frozen=True)
class LeaveOneOut:
    """Leave one volume out, predict it, register it, repeat (:mod:`eddymotion.estimation.lovo`).

    Parameters
    ----------
    model : Model or str
        As of :class:`Joint`; it need not be linear.
    registrar : Registrar or str
        What registers a volume to its prediction; a name of
        :func:`eddymotion.registration.get_registrar` or your own.
        :class:`~eddymotion.registration.GaussNewton` when not given.
    n_passes : int
        Passes over the series.
    """

    model: Model | str = "auto"
    registrar: Registrar | str | None = None
    n_passes: int = N_PASSES

    name: ClassVar[str] = "lovo"

    def __post_init__(self) -> None:
        _refuse_none_at_all(self.n_passes)

    def for_scheme(self, gradients: Gradients) -> LeaveOneOut:
        """Return the same with the model made for a scheme."""
        return LeaveOneOut(_made(self.model, gradients), self.registrar, self.n_passes)

    @property
    def why(self) -> str:
        """Why it is not :class:`Joint`; empty where that could do it as well."""
        return "" if isinstance(self.model, str) else why_loop(self.model, self.registrar)

    def seeks_fields(self, gradients: Gradients) -> bool:
        """Whether fields are estimated: never."""
        return False

    def follow(
        self, dwi: DWI, estimate: Estimate, motion: Motion, compute: Compute
    ) -> Estimate | None:
        """Follow nothing: the loop has one pose a volume."""
        return None

    def estimate(self, dwi: DWI, compute: Compute) -> Estimate:
        """Find the poses within groups, without standard errors."""
        from eddymotion.estimation.lovo import leave_one_out_loop  # few runs need it

        log.info("eddy currents: the leave-one-out loop does not estimate fields")
        registrar = self.registrar or GaussNewton()
        return leave_one_out_loop(
            dwi,
            model=_made(self.model, dwi.gradients),
            registrar=get_registrar(registrar) if isinstance(registrar, str) else registrar,
            n_iterations=self.n_passes,
            compute=compute,
        )


Estimator = Joint | LeaveOneOut
ESTIMATORS = {kind.name: kind for kind in (Joint, LeaveOneOut)}


def choose_estimator(
    name: str | None,
    model: Model | str = "auto",
    registrar: Registrar | str | None = None,
    *,
    gradients: Gradients,
    n_iterations: int | None = None,
    eddy_current: str = "auto",
    within_volume: int | str = "auto",
) -> Estimator:
    """Choose the estimator that model and registrar allow, where options are given one by one.

    Parameters
    ----------
    name : {"joint", "lovo"}, optional
        ``joint`` when not given, unless model or registrar asks for the loop.
    model : Model or str
    registrar : Registrar or str, optional
        One that is given asks for the loop.
    gradients : Gradients
        The scheme, by which a model is chosen.
    n_iterations : int, optional
        Passes of the loop, or the largest number of steps at each level of ``joint``.
    eddy_current : str
        As of :class:`Joint`.
    within_volume : str or int
        As of :class:`Joint`.

    Raises
    ------
    EddymotionError
        If the one asked for is unknown or cannot use them.
    """
    if name not in (None, *ESTIMATORS):
        raise EddymotionError(
            f"estimator {shown(name)} is unknown; use one of {', '.join(ESTIMATORS)}"
        )
    model = _made(model, gradients)
    needs_loop = why_loop(model, registrar)
    if name == "joint":
        _refuse_joint(needs_loop)
    chosen = name or ("lovo" if needs_loop else "joint")
    if chosen == "joint":
        n_steps = _or_else(n_iterations, FINE_ITERATIONS)
        return Joint(model, n_steps, eddy_current, within_volume)
    if eddy_current not in ("auto", "none"):
        Joint(eddy_current=eddy_current)  # an unknown word is answered by the known ones
        raise EddymotionError(
            f"eddy currents {eddy_current}: only the estimator joint estimates fields; use "
            "--estimator joint, or --eddy-current none"
        )
    _check_within_volume(within_volume)
    if within_volume not in ("auto", "none"):
        raise EddymotionError(
            f"motion within volumes, {within_volume} knots: only the estimator joint follows the "
            "head within volumes; use --estimator joint, or --within-volume none"
        )
    return LeaveOneOut(model, registrar, _or_else(n_iterations, N_PASSES))


def why_loop(model: Model, registrar: Registrar | str | None) -> str:
    """Say why the leave-one-out loop alone can use model and registrar; empty if it need not."""
    if not isinstance(model, LinearModel):
        return f"the model {type(model).__name__} is not linear in the signal"
    return "" if registrar is None else "a registration was chosen"


def _refuse_joint(needs_loop: str) -> None:
    """Raise if there is a reason, of :func:`why_loop`, for which ``joint`` cannot be used."""
    if needs_loop:
        raise EddymotionError(
            f"estimator joint: {needs_loop}; use --estimator lovo, or --model gp and the "
            "default registration"
        )


def _made(model: Model | str, gradients: Gradients) -> Model:
    return get_model(model, gradients) if isinstance(model, str) else model


def _check_within_volume(option: int | str) -> None:
    """Raise unless it is ``auto``, ``none`` or a number of knots from two on."""
    is_number = isinstance(option, int) and not isinstance(option, bool)
    if option in ("auto", "none") or (is_number and option >= 2):  # type: ignore[operator]
        return
    raise EddymotionError(
        f"within_volume is {shown(option)}, expected auto, none, or a number of knots per volume "
        "of at least 2"
    )


def _or_else(given: int | None, default: int) -> int:
    return default if given is None else given


def _refuse_none_at_all(n_iterations: int) -> None:
    if n_iterations < 1:
        raise EddymotionError(f"n_iterations is {n_iterations}, expected at least 1")
