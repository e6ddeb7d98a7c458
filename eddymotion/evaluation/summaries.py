# SPDX-License-Identifier: Apache-2.0
"""Results → what is printed and written: a short table, columns for TSV, figures for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from eddymotion.data.gradients import Gradients
from eddymotion.evaluation.landmarks import LandmarkErrors, distance_summary
from eddymotion.evaluation.motion import ALL, MotionComparison, MotionScore
from eddymotion.evaluation.series import SeriesQuality
from eddymotion.evaluation.trajectory import SliceComparisons, TrajectoryScore
from eddymotion.robust import over_known

DIGITS = 6
DECIMALS = 9
"""Significant digits of what is written, and how many decimals at most."""

METHODS, FRAMES = ("estimated", "nothing"), ("free", "given")

MotionScores = Mapping[tuple[str, str, str], MotionScore]
"""Method, frame and group of volumes → score."""

MOTION_LABELS = [
    "", "frame", "volumes", "n", "RMSE mm", "RMSE °", "max mm", "max °", "TRE mm", "TRE 95 %",
    "TRE max", "slope t", "slope r", "bias mm", "bias °",
]  # fmt: skip

MOTION_DESCRIPTION = {
    "frames": "given: as the files say; free: without the constant rigid offset between the two "
    "reference frames (least squares over the main group)",
    "methods": "estimated; nothing: the identity for all volumes",
    "errors": "of true⁻¹ · estimated: displacement of the centre (mm) and extrinsic x-y-z angles "
    "(degrees); rmse over volumes and axes, axes are x, y, z in RAS+; max is of the length of the "
    "translation and of the angle of the rotation",
    "rms_displacement": "root mean square over a sphere of 80 mm about the centre (Jenkinson "
    "1999), mean and maximum over volumes",
    "tre": "target registration error: distance between where the two transforms put a point, "
    "over volumes and points",
    "slope": "of estimated on true parameters about their means; null without true motion",
    "bias": "mean error",
    "coverage_percent": "share of the parameters within 1.96 standard errors of the truth, in the "
    "given frame; null without standard errors",
}

SLICES_DESCRIPTION = {
    "displacement": "of a slice: root mean square over the points of the brain that were in it, "
    "between where the estimated and the true pose of the slice put them",
    "frames": "given: as the files say; free: without a constant rigid offset of the b=0 volumes, "
    "and another of the diffusion-weighted ones",
    "frame": "how far these two offsets are apart, at the middle of the brain",
    "methods": "estimated; mean poses: the true mean pose of each volume for all of its slices; "
    "nothing: the identity",
    "slices": "that hold at least a third of the points of the fullest one",
    "coverage_percent": "share of the parameters of these slices within 1.96 standard errors of "
    "the truth, in the given frame; null without standard errors",
}

SERIES_DESCRIPTION = {
    "loo": "agreement of each volume with its prediction by a model from the others: variance "
    "explained (r2), Pearson correlation, RMS difference in percent of the mean; means over the "
    "diffusion-weighted volumes",
    "ndc": "correlation of each diffusion-weighted volume with its nearest neighbour in q-space "
    "(Yeh et al. 2019)",
    "fwhm": "smoothness of the residual from the model, divided by its standard deviation over "
    "the volumes in each voxel, in the quieter half of the voxels: FWHM of the Gaussian that "
    "makes white noise as smooth, from first differences; median over the diffusion-weighted "
    "volumes, along the image axes and their geometric mean",
    "between_correlation": "Pearson correlation of each volume of one series with the same volume "
    "of the other",
}


@dataclass(frozen=True, eq=False)
class Summary:
    """What is reported of a comparison.

    Parameters
    ----------
    printed : sequence of rows
        Cells of a short table, the header first.
    tables : mapping
        Name → column → values: one row a volume, landmark or group.
    figures : mapping
        For JSON, keys with units, NaN as None.
    """

    printed: Sequence[Sequence[str]]
    tables: Mapping[str, Mapping[str, Any]]
    figures: Mapping[str, Any]

    def joined(self, other: Summary, name: str) -> Summary:
        """Return this with the tables of another, and its figures under a name."""
        return Summary(self.printed, {**self.tables, **other.tables},
                       {**self.figures, name: other.figures})  # fmt: skip


def motion_summary(
    comparison: MotionComparison, points_are: str, bvals: np.ndarray | None
) -> Summary:
    """Summarise a comparison of motions.

    Parameters
    ----------
    comparison : MotionComparison
    points_are : str
        Where the target registration error was measured, in words.
    bvals : (N,) array, optional
    """
    scores = {
        (method, frame, group): comparison.score(method, frame, group)
        for frame, method, group in product(FRAMES, METHODS, comparison.groups)
    }
    rows = [
        {"method": method, "frame": frame, "volumes": group, **_flat(asdict(score))}
        for (method, frame, group), score in scores.items()
    ]
    tables = {
        "volumes": _motion_volumes(comparison, bvals),
        "scores": {key: [row[key] for row in rows] for key in rows[0]},
    }
    figures = {"tre_points": points_are} | _motion_figures(comparison, scores)
    return Summary(_motion_printed(comparison, scores), _columns(tables), rounded(figures))


def _motion_figures(comparison: MotionComparison, scores: MotionScores) -> dict[str, Any]:
    return {
        "n_volumes": len(comparison.true),
        "main_group": comparison.main_group,
        "center_ras_mm": comparison.center,
        "coverage_percent": comparison.coverage_percent,
        "offset_matrix_ras_mm": comparison.offset,
        "scores": {
            method: {
                frame: {group: asdict(scores[method, frame, group]) for group in comparison.groups}
                for frame in FRAMES
            }
            for method in METHODS
        },
        "description": MOTION_DESCRIPTION,
    }


def _motion_printed(comparison: MotionComparison, scores: MotionScores) -> list[list[str]]:
    """Put the scores of the main group side by side, and of other groups if several."""
    main = comparison.main_group
    shown = [(method, frame, main) for frame, method in product(FRAMES, METHODS)]
    others = [group for group in comparison.groups if group not in (main, ALL)]
    if len(others) > 1:
        shown += [("estimated", "free", group) for group in others]
    compared = [MOTION_LABELS, *([*key, *_motion_cells(scores[key])] for key in shown)]
    return [list(row) for row in zip(*compared, strict=True)]


def _motion_cells(score: MotionScore) -> list[str]:
    numbers = (
        score.rmse_translation_mm, score.rmse_rotation_deg, score.max_translation_mm,
        score.max_rotation_deg, score.tre_mean_mm, score.tre_p95_mm, score.tre_max_mm,
        score.slope_translation, score.slope_rotation, score.bias_translation_mm,
        score.bias_rotation_deg,
    )  # fmt: skip
    return [str(score.n_volumes), *map(_cell, numbers)]


def _motion_volumes(comparison: MotionComparison, bvals: np.ndarray | None) -> dict[str, Any]:
    columns: dict[str, Any] = {"volume": np.arange(len(comparison.true))}
    if bvals is not None:
        columns["bval"] = bvals
    for frame in ("given", "free"):
        deviation = comparison.deviations["estimated", frame]
        for axis, values in zip("xyz", deviation.errors[:, :3].T, strict=True):
            columns[f"{frame}_error_trans_{axis}_mm"] = values
        for axis, values in zip("xyz", np.rad2deg(deviation.errors[:, 3:]).T, strict=True):
            columns[f"{frame}_error_rot_{axis}_deg"] = values
        columns[f"{frame}_rms_displacement_mm"] = deviation.displacement
        columns[f"{frame}_tre_mean_mm"] = deviation.distances.mean(axis=1)
        columns[f"{frame}_tre_max_mm"] = deviation.distances.max(axis=1)
    nothing = comparison.deviations["nothing", "given"]
    columns["nothing_given_tre_mean_mm"] = nothing.distances.mean(axis=1)
    return columns


def slices_summary(found: SliceComparisons) -> Summary:
    """Summarise a comparison of the poses of slices."""
    estimated = found.estimated
    main = estimated.main_group
    shown = [("estimated", frame, main) for frame in ("free", "given")]
    shown += [(method, "free", main) for method in found.methods if method != "estimated"]
    shown += [("estimated", "free", group) for group in estimated.groups
              if group not in (main, ALL)]  # fmt: skip
    scores = {key: found.methods[key[0]].score(*key[1:]) for key in shown}
    printed: list[list[str]] = [
        ["slices", "frame", "volumes", "n", "RMS mm", "95 %", "worst", "RMSE mm", "RMSE °",
         "volumes mm", "volumes °"]
    ]  # fmt: skip
    printed += [[*key, *_slice_cells(score)] for key, score in scores.items()]
    apart_mm, apart_deg = estimated.frame
    if np.isfinite(apart_mm):
        printed += [[], [f"frames of b=0 and of the other volumes: {_cell(apart_mm)} mm and "
                         f"{_cell(apart_deg)}° apart"]]  # fmt: skip
    if np.isfinite(found.coverage_percent):
        printed += [[], ["95 % intervals of slices that hold the truth: "
                         f"{found.coverage_percent:.1f} %"]]  # fmt: skip
    figures = {
        "main_group": main,
        "frame_mm": apart_mm,
        "frame_deg": apart_deg,
        "coverage_percent": found.coverage_percent,
        "scores": [
            {"method": method, "frame": frame, "volumes": group, **asdict(score)}
            for (method, frame, group), score in scores.items()
        ],
        "description": SLICES_DESCRIPTION,
    }
    return Summary(printed, _columns({"slices": _slice_columns(found)}), rounded(figures))


def _slice_cells(score: TrajectoryScore) -> list[str]:
    count, *numbers = asdict(score).values()
    return [str(count), *map(_cell, numbers)]


def _slice_columns(found: SliceComparisons) -> dict[str, Any]:
    """One row a slice of a volume; slices that do not count have no errors."""
    used = found.estimated.used
    volumes, slices = (np.asarray(index) for index in np.indices(used.shape))
    displacement = {
        f"{frame}_displacement_mm": found.estimated.displacement[frame]
        for frame in ("given", "free")
    }
    within = {"mean_poses_displacement_mm": found.methods["mean poses"].displacement["free"]}
    columns = {"volume": volumes, "slice": slices, "time": found.times, "used": used.astype(int)}
    return {name: values.ravel() for name, values in (columns | displacement | within).items()}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Give each of the three axes a column: ``rmse_axes_mm`` becomes ``rmse_x_mm``, and so on."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, tuple):
            flat |= {
                key.replace("axes", axis): part for axis, part in zip("xyz", value, strict=True)
            }
        else:
            flat[key] = value
    return flat


def landmark_summary(errors: LandmarkErrors, has_transform: bool) -> Summary:
    """Summarise the errors of landmarks."""
    columns: dict[str, Any] = {"label": list(errors.labels)}
    points: dict[str, np.ndarray] = {"fixed": errors.fixed, "moving": errors.moving}
    if has_transform:
        points["mapped"] = errors.mapped
    for name, values in points.items():
        for axis, column in zip("xyz", values.T, strict=True):
            columns[f"{name}_{axis}_mm"] = column
    columns["tre_before_mm"] = errors.before
    figures: dict[str, Any] = {
        "n_landmarks": len(errors.labels),
        "tre_before": distance_summary(errors.before),
    }
    if has_transform:
        columns["tre_after_mm"] = errors.after
        figures["tre_after"] = distance_summary(errors.after)
        figures["tre_after_inverse_mean_mm"] = errors.inverse_mean_mm
    figures["description"] = {
        "tre": "distance in mm between a landmark of the moving image and the same landmark of "
        "the fixed image: before, as it is; after, mapped by the transform",
        "points": "RAS+ mm",
    }
    printed = [["landmarks", "n", "mean mm", "median mm", "p95 mm", "max mm"]]
    for when in ("before", "after"):
        if f"tre_{when}" in figures:
            cells = [_cell(value) for value in figures[f"tre_{when}"].values()]
            printed.append([when, str(len(errors.labels)), *cells])
    return Summary(printed, _columns({"landmarks": columns}), rounded(figures))


def series_summary(
    qualities: Mapping[str, SeriesQuality],
    gradients: Gradients,
    between: np.ndarray | None,
    about: Mapping[str, Any],
) -> Summary:
    """Summarise the quality of one or two series.

    Parameters
    ----------
    qualities : mapping
        Name → quality.
    gradients : Gradients
        Of the first series.
    between : (N,) array, optional
        Correlation of the two series.
    about : mapping
        What else belongs to the figures: files, voxels, model.
    """
    columns: dict[str, Any] = {"volume": np.arange(len(gradients)), "bval": gradients.bvals}
    figures: dict[str, Any] = dict(about)
    dwis = gradients.dwis
    header = ["series", "LOO R²", "LOO corr", "residual %", "NDC", "NDC min", "FWHM mm", "i", "j",
              "k"]  # fmt: skip
    printed = [header]
    for name, quality in qualities.items():
        columns |= {
            f"{name}_loo_r2": quality.loo_r2,
            f"{name}_loo_correlation": quality.loo_correlation,
            f"{name}_loo_residual_percent": quality.loo_residual_percent,
            f"{name}_neighbour": ["n/a" if n < 0 else int(n) for n in quality.neighbours],
            f"{name}_ndc": quality.ndc,
            f"{name}_fwhm_mm": quality.fwhm_mean_mm,
        }
        summary = {
            "loo_r2_mean": over_known(np.mean, quality.loo_r2[dwis]),
            "loo_correlation_mean": over_known(np.mean, quality.loo_correlation[dwis]),
            "loo_residual_percent_mean": over_known(np.mean, quality.loo_residual_percent[dwis]),
            "ndc_mean": over_known(np.mean, quality.ndc[dwis]),
            "ndc_min": over_known(np.min, quality.ndc[dwis]),
            "fwhm_mm": over_known(np.median, quality.fwhm_mean_mm[dwis]),
            **{f"fwhm_{axis}_mm": over_known(np.median, values[dwis])
               for axis, values in zip("ijk", quality.fwhm_mm.T, strict=True)},
        }  # fmt: skip
        figures[name] = {**summary, "n_dwis": len(dwis)}
        printed.append([name, *map(_cell, summary.values())])
    if between is not None:
        columns["between_correlation"] = between
        figures["between_correlation_mean"] = over_known(np.mean, between)
        figures["between_correlation_min"] = over_known(np.min, between)
        printed += [
            [],
            [f"correlation of the two series: mean {_cell(over_known(np.mean, between))}, "
             f"least {_cell(over_known(np.min, between))}"],
        ]  # fmt: skip
    figures["description"] = SERIES_DESCRIPTION
    return Summary(printed, _columns({"volumes": columns}), rounded(figures))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Format cells as columns: the first left, the others right; one cell alone is a sentence."""
    tabular = [row for row in rows if len(row) > 1]
    widths = [max(map(len, column)) for column in zip(*tabular, strict=True)]
    lines = []
    for row in rows:
        if len(row) < 2:
            lines.append("".join(row))
            continue
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def rounded(value: Any) -> Any:
    """Round numbers to a few significant digits, inside lists and mappings, too; NaN → None."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    if isinstance(value, np.ndarray):
        return [rounded(item) for item in value.tolist()]
    if isinstance(value, (float, np.floating)):
        if not np.isfinite(value):
            return None
        return round(float(f"{value:.{DIGITS}g}"), DECIMALS) + 0.0  # no negative zeros
    if isinstance(value, np.integer):
        return int(value)
    return value


def _columns(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list]]:
    """Round the values of tables; NaN → ``n/a``."""
    return {
        name: {
            key: ["n/a" if value is None else value for value in rounded(values)]
            for key, values in columns.items()
        }
        for name, columns in tables.items()
    }


def _cell(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{round(value, 3) + 0.0:.3f}"
