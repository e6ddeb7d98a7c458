# SPDX-License-Identifier: Apache-2.0
"""What a report is made of: pictures drawn by a run, and a series read from its derivatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from eddymotion.data.gradients import B0_THRESHOLD, Gradients
from eddymotion.data.series import DWI
from eddymotion.derivatives.confounds import EXCURSION, confounds
from eddymotion.derivatives.eddy import MODEL
from eddymotion.derivatives.names import Outputs
from eddymotion.errors import EddymotionError
from eddymotion.estimation.outliers import volumes_beyond_repair
from eddymotion.io.tsv import Table, table_text
from eddymotion.io.writing import read_json, write_text
from eddymotion.machine.parallel import one_blas_thread
from eddymotion.mapping.motion import Motion
from eddymotion.models import Model
from eddymotion.reports import DPI
from eddymotion.reports.charts import carpet_chart, eddy_chart, motion_chart, sphere_chart
from eddymotion.reports.course_chart import course_chart
from eddymotion.reports.data import ReportData
from eddymotion.reports.maps import JudgedSlices, Measures, predicted_planes
from eddymotion.reports.verdict import (
    Findings,
    Notice,
    Severity,
    Verdict,
    far_within,
    judge,
    pose_errors,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN_WITH = "matplotlib.figure", "matplotlib.backends.backend_agg", "PIL.WebPImagePlugin"
"""Modules whose import takes half of the time of the pictures."""

N_BESIDE = 2
"""Threads that encode pictures and compute measures while the main thread draws figures."""

MAX_STEPS = 400
"""Of the estimation, in a report."""

N_CHOSEN = 5
"""Volumes whose held-out prediction is drawn, a typical one among them."""


def draw_series(
    outputs: Outputs,
    dwi: DWI,
    motion: Motion,
    model: Model,
    before: JudgedSlices,
    after: JudgedSlices,
    *,
    log: Sequence[tuple[float, str]] = (),
) -> ReportData:
    """Draw the pictures of a series' report, and write its data, into ``figures/``.

    Parameters
    ----------
    outputs : Outputs
    dwi : DWI
        The original series.
    motion : Motion
    model : Model
    before, after : JudgedSlices
        Of the original and of the corrected series.
    log : sequence of (seconds, message)
        From :func:`~eddymotion.reports.data.recorded_log`.
    """
    gradients = after.slices.gradients
    write_text(outputs["report_steps"], table_text(_steps(log)))
    with one_blas_thread():
        columns = confounds(gradients, motion, dwi.center, after.quality)
        table = Table.parse(table_text(columns))
        outliers = after.quality.outliers
        findings = Findings.of(table, gradients, dwi.shape[2], outliers.z.astype(np.float32),
                               volumes_beyond_repair(outliers))  # fmt: skip
        data = _draw_pictures(outputs, dwi, model, before, after, findings)
        data.save(outputs["report_data"])
    head = motion.parameters(dwi.center, of_head=True)[:, :3].T
    write_text(outputs["motion_figure"], motion_chart(table, gradients, findings, head))
    return data


def _draw_pictures(
    outputs: Outputs,
    dwi: DWI,
    model: Model,
    before: JudgedSlices,
    after: JudgedSlices,
    findings: Findings,
) -> ReportData:
    """Write the pixel images, and collect the data of the page.

    The main thread draws one figure after the other; other threads encode them, and compute the
    measures.
    """
    from eddymotion.reports import pixels_of, save_pixels
    from eddymotion.reports.edges import has_both_kinds
    from eddymotion.reports.figures import (
        b0_edges_figure,
        before_after_figure,
        brain_figure,
        heldout_figure,
        maps_figure,
    )
    from eddymotion.reports.sprites import white_levels

    first, second = (side.predictor(model, dwi.gradients) for side in (before, after))
    old, new = before.slices, after.slices
    with ThreadPoolExecutor(N_BESIDE) as beside:

        def save(figure: Figure, kind: str, dpi: int = DPI) -> None:
            saved.append(beside.submit(save_pixels, pixels_of(figure, dpi), outputs[kind], dpi))

        saved: list[Future[None]] = []
        unmoved = beside.submit(predicted_planes, old, first)
        predicted = {"after": predicted_planes(new, second), "before": unmoved.result()}
        measured = beside.submit(Measures.of, old, new, (first, second))
        data = beside.submit(
            ReportData.of, dwi, before, after, predicted["after"], type(second).__name__,
            measured.result,
        )  # fmt: skip
        save(before_after_figure(old, new), "before_after_figure")
        save(brain_figure(new), "brain_figure", dpi=100)
        if has_both_kinds(new.gradients):
            save(b0_edges_figure(old, new), "b0_edges_figure", dpi=100)
        else:
            outputs["b0_edges_figure"].unlink(missing_ok=True)  # of a run with another threshold
        save(maps_figure(old, new, predicted), "maps_figure", dpi=90)
        chosen = chosen_volumes(findings)
        heldout = heldout_figure(new, predicted["after"], chosen, white_levels(new))
        save(heldout, "heldout_figure", dpi=90)
        for pending in saved:
            pending.result()
        return data.result()


def chosen_volumes(findings: Findings) -> list[tuple[int, str]]:
    """Choose volumes to look at: the worst that have a prediction, and a typical one."""
    known = np.flatnonzero(np.isfinite(findings.correlation))
    if not len(known):
        return []
    chosen = [
        (volume, words) for volume, words in findings.worst(len(findings.fd)) if volume in known
    ][: N_CHOSEN - 1]
    taken = {volume for volume, _ in chosen}
    ranked = known[np.argsort(findings.correlation[known], kind="stable")]
    rest = [int(volume) for volume in ranked if volume not in taken]
    return chosen + ([(rest[len(rest) // 2], "typical")] if rest else [])


@dataclass(frozen=True, eq=False)
class SeriesReport:
    """What is on disk of a corrected series.

    Parameters
    ----------
    outputs : Outputs
    confounds : Table
    outliers : Table, optional
    sidecar : dict
        Of the corrected image; empty without one.
    data : ReportData, optional
        None if no run left any; the page then has no pictures of the original.
    eddy : Table, optional
        Coefficients of the eddy-current fields.
    steps : Table, optional
        Log of the estimation, with times.
    trajectory : Table, optional
        The course of the head within volumes.
    eddy_along : (3,) array, optional
        Phase-encoding vector of the fields, RAS+.
    """

    outputs: Outputs
    confounds: Table
    outliers: Table | None
    sidecar: dict[str, Any]
    data: ReportData | None
    eddy: Table | None
    steps: Table | None
    trajectory: Table | None
    eddy_along: np.ndarray | None

    @classmethod
    def load(cls, outputs: Outputs, sidecar: Mapping[str, Any] | None = None) -> SeriesReport:
        """Read the tables, the sidecar and the data that a run left.

        Parameters
        ----------
        outputs : Outputs
        sidecar : mapping, optional
            Content of the sidecar, if that is not written yet.

        Raises
        ------
        EddymotionError
            If the confounds are missing, or a file is damaged, a folder, or of another length.
        """
        table = Table.read(outputs["confounds"])
        data_file = outputs["report_data"]
        data = ReportData.load(data_file) if data_file.exists() else None
        if data is not None and len(data.bvals) != len(table):
            raise EddymotionError(
                f"{outputs['confounds']}: has {len(table)} rows, but the data of the report "
                f"{len(data.bvals)} volumes; correct the series again"
            )
        return cls(
            outputs,
            table,
            _table_if_there(outputs, "outliers"),
            _sidecar(outputs) if sidecar is None else dict(sidecar),
            data,
            _table_if_there(outputs, "eddy"),
            _table_if_there(outputs, "report_steps"),
            _table_if_there(outputs, "trajectory"),
            _phase_encoding(outputs),
        )

    @cached_property
    def gradients(self) -> Gradients:
        """b-values and rotated b-vectors, of the confounds."""
        directions = [self.confounds.numbers(f"grad_{axis}") for axis in "xyz"]
        threshold = _mapping(self.sidecar, "Settings").get("b0_threshold", B0_THRESHOLD)
        if self.data is not None:
            threshold = self.data.b0_threshold
        bvals = np.nan_to_num(self.confounds.numbers("bval"))
        return Gradients(bvals, np.nan_to_num(np.stack(directions, axis=1)), float(threshold))

    @cached_property
    def findings(self) -> Findings:
        """Volumes and slices that stand out."""
        z = None if self.data is None else self.data.z
        volumes = _list(_mapping(self.sidecar, "OutlierSlices"), "VolumesBeyondRepair", int)
        return Findings.of(self.confounds, self.gradients, self.n_slices, z, volumes)

    @property
    def summary(self) -> dict[str, Any]:
        """The summary of the run, label → value; empty if not known."""
        return _mapping(self.sidecar, "Summary")

    @property
    def reasons_beyond_repair(self) -> dict[int, str]:
        """Volume → why it is better left out."""
        reasons = _mapping(_mapping(self.sidecar, "OutlierSlices"), "ReasonsBeyondRepair")
        unnamed = "too many of its slices lost signal"
        return {int(v): str(reasons.get(str(v), unnamed)) for v in self.findings.spoilt}

    @cached_property
    def head_translations(self) -> np.ndarray:
        """Translations of the head, without the offset of eddy-current fields: (3, N), mm."""
        moved = np.array([self.confounds.numbers(f"trans_{axis}") for axis in "xyz"])
        if self.eddy_along is None:
            return moved
        offsets = np.nan_to_num(self.confounds.numbers("eddy_offset"))
        return moved + self.eddy_along[:, None] * offsets

    @cached_property
    def excursions(self) -> np.ndarray:
        """How far the head moved within each volume, (N,) mm; NaN where it was not followed."""
        return self.confounds.numbers(EXCURSION)

    @property
    def voxel(self) -> float:
        """Shortest edge of a voxel of the original series, mm; NaN where that is not known."""
        size = _mapping(self.sidecar, "MotionWithinVolumes").get("VoxelSize")
        return float(size) if isinstance(size, int | float) else float("nan")

    @property
    def n_slices(self) -> int:
        """Slices of a volume; 0 where that is not known."""
        return 0 if self.data is None else self.data.z.shape[1]

    @cached_property
    def verdict(self) -> Verdict:
        """Whether the series is usable."""
        gain = float("nan")
        if self.data is not None:
            change = self.findings.correlation - self.data.correlation_before
            known = np.isfinite(change) & ~self.gradients.is_b0
            gain = float(change[known].mean()) if known.any() else gain
        errors = pose_errors(self.confounds)
        within = far_within(self.excursions, self.voxel)
        return judge(
            self.findings, self.gradients, gain, errors=errors, within=within, notices=self.notices
        )

    @property
    def notices(self) -> list[Notice]:
        """Warnings of the run about the series."""
        return [
            Notice(
                str(warning.get("Subject", "warning")),
                str(warning.get("Text", "")),
                Severity.DOUBTFUL if warning.get("Severe") else Severity.CARE,
            )
            for warning in _list(self.sidecar, "Warnings", dict)
        ]

    @cached_property
    def outlier_list(self) -> list[tuple[int, int, float]]:
        """Volume, slice and score of each outlier, as in the table."""
        table = self.outliers
        if table is None or not len(table):
            return []
        columns = [table.numbers(name) for name in ("volume", "slice", "z_score")]
        return [(int(v), int(s), float(z)) for v, s, z in zip(*columns, strict=True)]

    @cached_property
    def charts(self) -> dict[str, str]:
        """The charts that can be drawn, by the beginning of their key in :class:`Outputs`."""
        moved = self.confounds, self.gradients, self.findings, self.head_translations
        drawn = {"motion": motion_chart(*moved)}
        if self.data is not None:
            drawn["carpet"] = carpet_chart(self.data.z, self.outlier_list, self.gradients)
            directions = self.data.bvecs_before, self.data.bvecs_after
            drawn["shells"] = sphere_chart(self.gradients, *directions)
        n, course = len(self.confounds), self.trajectory
        followed = np.isfinite([*self.excursions, self.voxel]).all()
        if course is not None and len(course) and len(course) % n == 0 and followed:
            drawn["within"] = course_chart(course, self.excursions, self.voxel)
        if self.eddy is not None and len(self.eddy) == len(self.confounds):
            drawn["eddy"] = eddy_chart(self.eddy, self.gradients)
        return drawn

    def write_charts(self) -> None:
        """Write the charts as files."""
        for kind, chart in self.charts.items():
            write_text(self.outputs[f"{kind}_figure"], chart)
        if "within" not in self.charts:
            self.outputs["within_figure"].unlink(missing_ok=True)


def _mapping(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return an object in a sidecar, which may hold anything; empty where there is none."""
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def _list(content: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    """Return the entries of a kind of a list in a sidecar; none where there is no list."""
    value = content.get(key)
    return [one for one in value if isinstance(one, kind)] if isinstance(value, list) else []


def _steps(log: Sequence[tuple[float, str]]) -> dict[str, Any]:
    """Return the columns of the table of steps: seconds since the start, and messages."""
    kept = log[:MAX_STEPS]
    return {
        "seconds": [f"{seconds:.2f}" for seconds, _ in kept],
        "step": [message for _, message in kept],
    }


def _phase_encoding(outputs: Outputs) -> np.ndarray | None:
    """Read the phase-encoding vector of the fields (3,); None without fields."""
    try:
        given = read_json(outputs["eddy_sidecar"]).get(MODEL)
        along = np.array(given["PhaseEncodingVector"], float) if isinstance(given, dict) else None
    except (KeyError, TypeError, ValueError):
        return None
    return along if along is not None and along.shape == (3,) else None


def _table_if_there(outputs: Outputs, kind: str) -> Table | None:
    """Read a table of the outputs; None if it is not there or this series has none."""
    try:
        path = outputs[kind]
    except KeyError:
        return None
    return Table.read(path) if path.exists() else None


def _sidecar(outputs: Outputs) -> dict[str, Any]:
    """Read the sidecar of the image; empty if there is none."""
    path = outputs["sidecar"]
    content = read_json(path)
    if not content and path.exists():
        raise EddymotionError(f"{path}: holds no JSON object; correct the series again")
    return content
