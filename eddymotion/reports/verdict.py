# SPDX-License-Identifier: Apache-2.0
"""Is the scan usable? A plain rule over few numbers, stated on the page.

Each check compares a number with two limits: above (or below) the first the series wants care,
beyond the second it is doubtful. The worst check decides. Between-volume motion is what the
correction removes, so that displacement counts for what comes with it: signal lost within volumes,
and directions that are no longer what was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from eddymotion.data.gradients import Gradients, comparable_groups
from eddymotion.estimation.outliers import MANY_LOST
from eddymotion.io.tsv import Table
from eddymotion.mapping.rigid import twist_millimetres
from eddymotion.wording import listed

JUMP_MM = 1.0
"""Framewise displacement above which a volume is marked as a jump."""

TENSOR_DIRECTIONS = 6


class Severity(IntEnum):
    """How bad it is."""

    GOOD = 0
    CARE = 1
    DOUBTFUL = 2


@dataclass(frozen=True)
class Check:
    """One number, its limits and what follows.

    Parameters
    ----------
    label : str
    value : float
        NaN: not known, and without consequence.
    text : str
        The value with its unit.
    care, doubtful : float
        Limits; larger is worse unless `doubtful` is the smaller one.
    unit : str
    """

    label: str
    value: float
    text: str
    care: float
    doubtful: float
    unit: str = ""

    @property
    def level(self) -> Severity:
        """Where the value lies."""
        sign = 1 if self.doubtful >= self.care else -1
        if not sign * self.value > sign * self.care:
            return Severity.GOOD
        return Severity.DOUBTFUL if sign * self.value > sign * self.doubtful else Severity.CARE

    @property
    def rule(self) -> str:
        """The limits in words."""
        return f"care {self._beyond(self.care)}, doubtful {self._beyond(self.doubtful)}"

    @property
    def reason(self) -> str:
        """What was found, and which limit that is beyond."""
        limit = self.doubtful if self.level == Severity.DOUBTFUL else self.care
        return f"{self.label}: {self.text}" + (f", {self._beyond(limit)}" if limit else "")

    def _beyond(self, limit: float) -> str:
        if not limit:
            return "if any"
        side = "above" if self.doubtful >= self.care else "below"
        return f"{side} {limit:g}{self.unit}"


@dataclass(frozen=True)
class Notice:
    """What was said about a series and is no number.

    Parameters
    ----------
    label, text : str
    level : Severity
    """

    label: str
    text: str
    level: Severity

    @property
    def rule(self) -> str:
        """What follows, in words."""
        return f"{self.level.name.lower()} where it is found"

    @property
    def reason(self) -> str:
        """What was said."""
        return f"{self.label}: {self.text}"


@dataclass(frozen=True)
class Verdict:
    """What the checks say together.

    Parameters
    ----------
    checks : tuple of Check or Notice
    """

    checks: tuple[Check | Notice, ...]

    @property
    def level(self) -> Severity:
        """The worst of the checks."""
        return max((check.level for check in self.checks), default=Severity.GOOD)

    @property
    def headline(self) -> str:
        """The verdict in a few words."""
        return {
            Severity.GOOD: "Usable",
            Severity.CARE: "Usable with care",
            Severity.DOUBTFUL: "Doubtful",
        }[self.level]

    @property
    def reasons(self) -> list[str]:
        """What is not good, worst first."""
        bad = [check for check in self.checks if check.level > Severity.GOOD]
        return [check.reason for check in sorted(bad, key=lambda check: -check.level)]

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.headline, "; ".join(self.reasons))))


@dataclass(frozen=True, eq=False)
class Findings:
    """What stands out in a series, by volume.

    Parameters
    ----------
    fd : (N,) array
        Framewise displacement of the head, mm; NaN for the first. Where the offset of
        eddy-current fields is known, it is without that.
    fd_with_offset : (N,) array
        The same of the poses, which hold the offset.
    correlation : (N,) array
        With the held-out prediction, after correction.
    outliers : (N,) array
        Outlier slices.
    judged : (N,) array
        Slices that were judged.
    deficit : (N,) array
        Median correlation of the shell less that of the volume.
    jumps, spoilt : index arrays
        Volumes after a jump; volumes beyond repair.
    """

    fd: np.ndarray
    fd_with_offset: np.ndarray
    correlation: np.ndarray
    outliers: np.ndarray
    judged: np.ndarray
    deficit: np.ndarray
    jumps: np.ndarray
    spoilt: np.ndarray

    @classmethod
    def of(
        cls,
        confounds: Table,
        gradients: Gradients,
        n_slices: int,
        z: np.ndarray | None,
        beyond_repair: Sequence[int] | np.ndarray = (),
    ) -> Findings:
        """Read them off the confounds.

        Parameters
        ----------
        confounds : Table
        gradients : Gradients
        n_slices : int
        z : (N, Z) array, optional
            NaN where a slice was not judged; all count without it.
        beyond_repair : sequence of int
            Volumes beyond repair by
            :func:`~eddymotion.estimation.outliers.volumes_beyond_repair`.
        """
        fd_with_offset = confounds.numbers("framewise_displacement")
        head = confounds.numbers("framewise_displacement_head")
        fd = np.where(np.isfinite(head), head, fd_with_offset)
        correlation = confounds.numbers("hmc_xcorr")
        outliers = np.nan_to_num(confounds.numbers("outlier_slices")).astype(int)
        if z is None:
            judged = np.where(gradients.is_b0, 0, n_slices)
        else:
            judged = np.isfinite(z).sum(axis=1)
        is_beyond_repair = (outliers > MANY_LOST * np.maximum(judged, 1)) & (outliers > 0)
        is_beyond_repair[
            [volume for volume in beyond_repair if 0 <= volume < len(is_beyond_repair)]
        ] = True
        deficit = _below_shell(correlation, gradients)
        jumps = np.flatnonzero(np.nan_to_num(fd) > JUMP_MM)
        spoilt = np.flatnonzero(is_beyond_repair)
        return cls(fd, fd_with_offset, correlation, outliers, judged, deficit, jumps, spoilt)

    @property
    def has_offset(self) -> bool:
        """Whether the poses hold an offset of eddy-current fields, which the head has not."""
        return not np.array_equal(self.fd, self.fd_with_offset, equal_nan=True)

    def worst(self, count: int) -> list[tuple[int, str]]:
        """Return volumes worth a look, worst first, with what is wrong with them.

        In turn: beyond repair, correlation furthest below its shell, largest jump, most outlier
        slices.
        """
        rankings = [
            [(v, "beyond repair") for v in self.spoilt],
            [(v, f"correlation {self.correlation[v]:.3f}") for v in _largest(self.deficit)],
            [(v, f"FD {self.fd[v]:.2f} mm") for v in _largest(self.fd)],
            [
                (v, f"{self.outliers[v]} outlier slice{'s' if self.outliers[v] > 1 else ''}")
                for v in np.argsort(-self.outliers, kind="stable")
                if self.outliers[v]
            ],
        ]
        found: dict[int, str] = {}
        for turn in range(len(self.fd)):
            for ranking in rankings:
                if turn < len(ranking) and len(found) < count:
                    found.setdefault(int(ranking[turn][0]), ranking[turn][1])
        return list(found.items())


def _below_shell(correlation: np.ndarray, gradients: Gradients) -> np.ndarray:
    """How far correlations are below the median of their shell, (N,); NaN where not known."""
    deficit = np.full(len(correlation), np.nan)
    for group in (gradients.b0s, *comparable_groups(gradients)):
        values = correlation[group]
        if np.isfinite(values).any():
            deficit[group] = np.nanmedian(values) - values
    return deficit


def _largest(values: np.ndarray) -> np.ndarray:
    order = np.argsort(-np.where(np.isfinite(values), values, -np.inf), kind="stable")
    return order[np.isfinite(values[order])]


def judge(
    findings: Findings,
    gradients: Gradients,
    gain: float = float("nan"),
    *,
    errors: np.ndarray | None = None,
    within: Check | None = None,
    notices: Sequence[Notice] = (),
) -> Verdict:
    """Apply the rule.

    Parameters
    ----------
    findings : Findings
    gradients : Gradients
    gain : float
        Mean correlation with the prediction after correction less that before; NaN: not known.
    errors : (N,) array, optional
        From :func:`pose_errors`: NaN where a volume could not be placed.
    within : Check, optional
        From :func:`far_within`.
    notices : sequence of Notice
        What else was said about the series.
    """
    fd = findings.fd[np.isfinite(findings.fd)]
    dwis = gradients.dwis
    n_judged, n_lost = int(findings.judged.sum()), int(findings.outliers.sum())
    share = 100 * n_lost / n_judged if n_judged else float("nan")
    spoilt = 100 * len(findings.spoilt) / max(len(dwis), 1)
    left = len(np.setdiff1d(dwis, findings.spoilt))
    mean, largest = (fd.mean(), fd.max()) if len(fd) else (np.nan, np.nan)
    mean_text, largest_text = f"{mean:.2f} mm", f"{largest:.2f} mm"
    if findings.has_offset:
        both = findings.fd_with_offset[np.isfinite(findings.fd_with_offset)]
        mean_text += f" ({both.mean():.2f} mm with the eddy-current offset)"
        largest_text += f" ({both.max():.2f} mm with the eddy-current offset)"
    lost_text = f"{share:.2f} % ({n_lost} of {n_judged})" if n_judged else "not judged"
    return Verdict((
        Check("mean framewise displacement", mean, mean_text, 0.5, 3.0, " mm"),
        Check("largest framewise displacement", largest, largest_text, 3.0, 15.0, " mm"),
        Check("slices that lost signal", share, lost_text, 1.0, 10.0, " %"),
        Check("volumes beyond repair", spoilt,
              f"{len(findings.spoilt)} of {len(dwis)}" + _listed(findings.spoilt),
              0.0, 10.0, " %"),
        Check("usable diffusion-weighted volumes", left, f"{left}", 15, TENSOR_DIRECTIONS),
        Check("gain in correlation with the prediction", gain,
              "n/a" if np.isnan(gain) else f"{gain:+.3f}", -0.002, -0.02),
        *([] if errors is None else _checks_of_errors(errors[dwis])),
        *([] if within is None else [within]),
        *notices,
    ))  # fmt: skip


def _checks_of_errors(errors: np.ndarray) -> tuple[Check, Check]:
    known = errors[np.isfinite(errors)]
    lost = np.flatnonzero(~np.isfinite(errors))
    usual = float(np.quantile(known, 0.9)) if len(known) else float("nan")
    return (
        Check("standard error of the poses", usual, f"{usual:.2f} mm in nine of ten volumes",
              0.6, 2.0, " mm"),
        Check("volumes that could not be placed", 100 * len(lost) / max(len(errors), 1),
              f"{len(lost)} of {len(errors)}", 0.0, 10.0, " %"),
    )  # fmt: skip


def far_within(excursions: np.ndarray, voxel: float) -> Check | None:
    """Judge how many volumes the head moved far within; None where it was not followed.

    Parameters
    ----------
    excursions : (N,) array
        How far it moved within each volume, mm; NaN where that is not known.
    voxel : float
        Shortest edge of a voxel, mm.
    """
    known = excursions[np.isfinite(excursions)]
    if not known.size or not np.isfinite(voxel):
        return None
    far = np.flatnonzero(np.nan_to_num(excursions) > voxel)
    text = f"{len(far)} of {len(excursions)}{_listed(far)}; at most {known.max():.2f} mm"
    return Check("moved by more than a voxel within a volume", 100 * len(far) / len(excursions),
                 text, 10.0, 50.0, " %")  # fmt: skip


def pose_errors(confounds: Table) -> np.ndarray | None:
    """Return the standard error of each pose, mm at 50 mm from the centre, (N,), if known."""
    names = [f"{kind}_{axis}_se" for kind in ("trans", "rot") for axis in "xyz"]
    if not set(names) <= set(confounds.columns):
        return None
    in_mm = twist_millimetres()
    errors = np.stack([confounds.numbers(name) for name in names], axis=1) * in_mm
    return np.sqrt((errors**2).sum(axis=1))


def _listed(volumes: Sequence[int] | np.ndarray) -> str:
    if not len(volumes):
        return ""
    return f" (volume{'s' if len(volumes) > 1 else ''} {listed(volumes)})"
