# SPDX-License-Identifier: Apache-2.0
"""Which series of a group stand out: one robust rule, stated on the page.

A value stands out when it is worse than the median of comparable series by more than
:data:`LIMIT` robust standard deviations on a logarithmic scale: what is measured here is positive
and skewed, and a factor of two matters as much above as below. Better values never stand out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eddymotion.reports.metrics import metric_parts
from eddymotion.robust import robust_deviation

MIN_SERIES = 8
"""With fewer comparable series nothing is suggested."""

LIMIT = 3.0
"""Robust standard deviations: 1.4826 × the median absolute deviation."""

LEAST_SPREAD = 0.1
"""Least robust standard deviation of the logarithm, about 10 %: very equal series are no reason
to suspect one that is a little worse."""


@dataclass(frozen=True)
class Scale:
    """How values of a metric are compared.

    Parameters
    ----------
    offset : float
        Added before taking the logarithm: differences that are small against it do not matter.
    by_protocol : bool
        Compare only series of the same protocol.
    worse_below : bool
        Smaller values are worse.
    from_one : bool
        Compare 1 less the value (of a correlation).
    """

    offset: float
    by_protocol: bool = False
    worse_below: bool = False
    from_one: bool = False

    def badness(self, values: np.ndarray) -> np.ndarray:
        """Return the logarithm that is larger where a value is worse, (N,)."""
        distance = 1 - values if self.from_one else values
        with np.errstate(invalid="ignore", divide="ignore"):
            logarithm = np.log(np.maximum(distance, 0) + self.offset)
        return -logarithm if self.worse_below else logarithm

    def value(self, badness: float) -> float:
        """Invert :meth:`badness`."""
        distance = float(np.exp(-badness if self.worse_below else badness)) - self.offset
        return 1 - distance if self.from_one else distance


SCALES = {
    "fd_mean": Scale(0.1),
    "fd_max": Scale(0.5),
    "outlier_slices": Scale(0.1),
    "largest_motion_range": Scale(0.5),
    "residual": Scale(1.0, by_protocol=True),
    "ndc": Scale(0.01, by_protocol=True, from_one=True),
    "tsnr_b0": Scale(1.0, by_protocol=True, worse_below=True),
    "cnr": Scale(0.05, by_protocol=True, worse_below=True),
}
"""What is judged: of what is measured before and after, the corrected series."""


@dataclass(frozen=True, eq=False)
class MetricComparison:
    """A metric of a series against those of comparable series.

    Parameters
    ----------
    metric : str
    value, median, limit : float
        In the metric's unit; beyond the limit it stands out.
    score : float
        Robust standard deviations from the median, positive where worse.
    n_series : int
        That were compared.
    """

    metric: str
    value: float
    median: float
    limit: float
    score: float
    n_series: int

    @property
    def is_outlier(self) -> bool:
        """Whether it is worse than the limit."""
        return self.score > LIMIT


def scale_of(metric: str) -> Scale | None:
    """Return how a metric is compared; None if it is not."""
    base, _, which = metric_parts(metric)
    return None if which == "raw" else SCALES.get(base)


def compare(
    metrics: Mapping[str, np.ndarray], protocols: Sequence[str]
) -> list[dict[str, MetricComparison]]:
    """Compare each series with the others.

    Parameters
    ----------
    metrics : mapping
        Name → values of all series, (N,); NaN where not known.
    protocols : (N,) sequence of str

    Returns
    -------
    list of dict
        Of each series: metric → comparison. What has too few comparable series is left out.
    """
    found: list[dict[str, MetricComparison]] = [{} for _ in protocols]
    for metric, values in metrics.items():
        scale = scale_of(metric)
        if scale is None:
            continue
        for group in _comparable(values, protocols, scale):
            for index, one in zip(group, _scores(metric, values[group], scale), strict=True):
                found[index][metric] = one
    return found


def _comparable(values: np.ndarray, protocols: Sequence[str], scale: Scale) -> list[np.ndarray]:
    """Return the groups of series that are compared, as indices."""
    names = np.array(protocols if scale.by_protocol else [""] * len(protocols))
    known = np.isfinite(values)
    groups = [np.flatnonzero(known & (names == name)) for name in np.unique(names)]
    return [group for group in groups if len(group) >= MIN_SERIES]


def _scores(metric: str, values: np.ndarray, scale: Scale) -> list[MetricComparison]:
    badness = scale.badness(values)
    middle = float(np.median(badness))
    spread = max(robust_deviation(badness - middle), LEAST_SPREAD)
    limit = scale.value(middle + LIMIT * spread)
    return [
        MetricComparison(metric, float(value), scale.value(middle), limit,
                         float(bad - middle) / spread, len(values))
        for value, bad in zip(values, badness, strict=True)
    ]  # fmt: skip


RULE = (
    f"Worse than the median of at least {MIN_SERIES} comparable series by more than {LIMIT:g} "
    "robust standard deviations on a logarithmic scale."
)
"""The rule in a sentence."""

DETAILS = (
    "A robust standard deviation is 1.4826 × the median absolute deviation, at least "
    f"{LEAST_SPREAD:g}, of the logarithm; of that of 1 − r for correlations. Displacements (of "
    "the head alone where eddy currents were found), the largest motion and lost slices are "
    "compared over all series; residual, neighbouring correlation, tSNR and CNR, all of the "
    "corrected series, within a protocol: the same voxel size and b-values. A constant, below "
    "which differences do not matter, is added first: 0.1 mm (mean displacement), 0.5 mm "
    "(largest displacement, largest motion), 0.1 % (lost slices), 1 % (residual), 0.01 (1 − r), "
    "1 (tSNR), 0.05 (CNR)."
)
"""The rule in full."""
