# SPDX-License-Identifier: Apache-2.0
"""Any DIPY model that can predict, by explicit refits: slow, general, the reference in tests."""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import numpy as np
from dipy.reconst.base import ReconstModel

from eddymotion.data.gradients import Gradients, dipy_table
from eddymotion.errors import EddymotionError
from eddymotion.machine.children import end_with_parent, importing_safely, why_alone
from eddymotion.models.tensor import MIN_SIGNAL_FRACTION
from eddymotion.wording import why

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DipyModel:
    """Leave-one-out prediction with a DIPY ``ReconstModel``, refitted once a volume.

    b=0 volumes take part in the fits and are predicted by the mean of the others.

    Parameters
    ----------
    model : callable
        ``model(gtab, **options)`` returns an object with ``fit(data)`` whose result has
        ``predict(gtab)``: a ``ReconstModel`` class, or a function that builds one (a spherical
        deconvolution with its response, say). It must be importable, since other processes use it.
    options : dict
        Passed to `model`.
    n_procs : int
        Processes; the result does not depend on it.
    """

    model: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    n_procs: int = 1

    def leave_one_out(self, signal: np.ndarray, gradients: Gradients) -> np.ndarray:
        """Predict each volume from the others; see :meth:`eddymotion.models.Model.leave_one_out`.

        Voxels without signal in any volume are predicted as zero, without a fit; single values
        that are not positive are raised to a small one, of which there is a logarithm.
        """
        _refuse_trace(gradients)
        voxels = np.asarray(signal).reshape(-1, signal.shape[-1])
        filled, positive = _with_signal(voxels)
        predicted = np.zeros(voxels.shape, np.float32)
        task = (self.model, self.options, positive, gradients)
        targets = gradients.dwis.tolist()
        for target, result in zip(targets, self._refits(task, targets), strict=True):
            predicted[filled, target] = result
        b0s = gradients.b0s
        for target in b0s:
            others = b0s[b0s != target]
            predicted[:, target] = voxels[:, others].mean(axis=1) if len(others) else np.nan
        return predicted.reshape(signal.shape)

    def _refits(self, task: Task, targets: list[int]) -> Iterator[np.ndarray]:
        n_procs = min(self.n_procs, len(targets))
        if n_procs > 1 and (reason := why_alone()):
            log.warning("model dipy: fitted in one process: %s", reason)
            n_procs = 1
        if n_procs <= 1:
            yield from (_predict_one(*task, target) for target in targets)
            return
        # each process gets the series once, when it starts, and then the numbers of volumes
        with importing_safely(), ProcessPoolExecutor(
            n_procs, mp_context=get_context("spawn"), initializer=_keep, initargs=(task,)
        ) as pool:  # fmt: skip
            yield from pool.map(_predict_kept, targets)

    def predict_one(self, signal: np.ndarray, gradients: Gradients, target: int) -> np.ndarray:
        """Predict one diffusion-weighted volume from the others, as :meth:`leave_one_out` does.

        Parameters
        ----------
        signal : (..., N) array
        gradients : Gradients
        target : int
            The volume that is held out.

        Returns
        -------
        (...) array, float32
        """
        _refuse_trace(gradients)
        voxels = np.asarray(signal).reshape(-1, signal.shape[-1])
        filled, positive = _with_signal(voxels)
        predicted = np.zeros(len(voxels), np.float32)
        predicted[filled] = _predict_one(self.model, self.options, positive, gradients, target)
        return predicted.reshape(signal.shape[:-1])


def _refuse_trace(gradients: Gradients) -> None:
    if gradients.is_trace.any():
        raise EddymotionError(
            f"model dipy: volume {np.flatnonzero(gradients.is_trace)[0]} has a b-value but no "
            "direction, which DIPY cannot use; use --model gp, dti or average"
        )


def _with_signal(voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which voxels have any signal, and theirs, positive throughout."""
    filled = np.flatnonzero((voxels > 0).any(axis=1))
    return filled, np.maximum(voxels[filled], MIN_SIGNAL_FRACTION * voxels.max(initial=0))


Task = tuple[Callable[..., Any], dict[str, Any], np.ndarray, Gradients]
"""Model, options, voxels and gradients: what all refits of a series share."""

_kept: list[Task] = []


def _keep(task: Task) -> None:
    """In a separate process: keep the series for all volumes that will be requested."""
    end_with_parent()
    _kept[:] = [task]


def _predict_kept(target: int) -> np.ndarray:
    return _predict_one(*_kept[0], target)


def _predict_one(
    model: Callable[..., Any],
    options: dict[str, Any],
    voxels: np.ndarray,
    gradients: Gradients,
    target: int,
) -> np.ndarray:
    """Fit to all volumes but `target` and predict it: (V,)."""
    try:
        others = np.arange(len(gradients)) != target
        estimates_s0 = "return_S0_hat" in inspect.signature(model).parameters
        if estimates_s0:  # else predictions are scaled with a signal that was not fitted
            options = {"return_S0_hat": True} | options
        fit = model(dipy_table(gradients.select(others)), **options).fit(voxels[:, others])
        with_b0 = Gradients(
            np.array([0.0, gradients.bvals[target]]),
            np.array([[0.0, 0.0, 0.0], gradients.bvecs[target]]),
            gradients.b0_threshold,
        )
        if _asks_for_s0(fit) and not estimates_s0 and len(gradients.b0s):
            s0 = voxels[:, gradients.b0s].mean(axis=1)
            predicted = fit.predict(dipy_table(with_b0), S0=s0)
        else:
            predicted = fit.predict(dipy_table(with_b0))
        return np.asarray(predicted).reshape(len(voxels), -1)[:, -1]
    except (EddymotionError, MemoryError):
        raise
    except Exception as error:  # there is no end to what DIPY's models and their solvers raise
        name = getattr(model, "__name__", str(model))
        raise EddymotionError(
            f"model dipy:{name}: DIPY cannot predict with it ({why(error)}); choose another model"
        ) from error


def _asks_for_s0(fit: Any) -> bool:
    from dipy.reconst.multi_voxel import MultiVoxelFit

    return isinstance(fit, MultiVoxelFit) or "S0" in inspect.signature(fit.predict).parameters


def find_model(name: str) -> type[ReconstModel]:
    """Find a DIPY model class by name, e.g. ``TensorModel``.

    Raises
    ------
    EddymotionError
        If DIPY has none of that name, listing those it has.
    """
    import dipy.reconst

    known: dict[str, type[ReconstModel]] = {}
    for module_info in pkgutil.iter_modules(dipy.reconst.__path__):
        if module_info.name in ("tests", "benchmarks"):
            continue
        try:
            module = importlib.import_module(f"dipy.reconst.{module_info.name}")
        except ImportError:  # a module that wants an optional package
            continue
        for class_name, found in inspect.getmembers(module, inspect.isclass):
            own = issubclass(found, ReconstModel) and found.__module__ == module.__name__
            if own and _needs_only_gradients(found):
                known[class_name] = found  # type: ignore[assignment]
    if name not in known:
        raise EddymotionError(
            f"model dipy:{name}: DIPY has no such model that needs only the gradients; choose "
            f"from {', '.join(sorted(known))}"
        )
    return known[name]


def _needs_only_gradients(model: type) -> bool:
    """Whether a class can be built from a gradient table alone."""
    parameters = list(inspect.signature(model).parameters.values())[1:]
    required = [
        p for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]  # fmt: skip
    return not required
