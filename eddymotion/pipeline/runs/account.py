# SPDX-License-Identifier: Apache-2.0
"""What is reported of a run among those of its session: summary, sidecar, warnings, methods.

Each function takes a :class:`~eddymotion.pipeline.runs.SessionRun`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from eddymotion.data.checks import DataIssue
from eddymotion.derivatives.citation import Methods
from eddymotion.estimation.runs.joined import JoinedRuns
from eddymotion.pipeline.runs import SessionRun

AGREE = 0.8
"""Correlation of the runs' b=0 images below which their common frame is doubted. Real ones of two
scanners: 0.93 to 0.98; with a wrong polarity 0.5 to 0.84."""

FAR_MM = 25.0
"""Standard deviation of displacements above which a field is doubted: heads have 2 to 8."""


def summary_of(run: SessionRun) -> dict[str, str]:
    """Say for the summary which runs lie in one frame, and what the field does."""
    joined = run.joined
    if joined is None:
        return {}
    return _frame_in_summary(run, joined) | _field_in_summary(joined)


def _frame_in_summary(run: SessionRun, joined: JoinedRuns) -> dict[str, str]:
    told = {}
    if len(joined) > 1:
        told["runs in one frame"] = ", ".join(Path(name).name for name in run.names)
        before, after = joined.similarity
        if np.isfinite(after):
            told["runs in one frame"] += (
                f"; correlation of the b=0 images {after:.3f}, before correction {before:.3f}"
            )
    if run.tie is not None:
        told["frame, by other runs"] = str(run.tie)
    return told


def _field_in_summary(joined: JoinedRuns) -> dict[str, str]:
    if joined.hertz is None:
        return {}
    spread = joined.hertz[joined.mask].std()
    source = "from a field map" if joined.measured else "from images of other phase encodings"
    hertz = "" if joined.nominal else f"{spread:.1f} Hz, "
    told = {
        "off-resonance field": f"{hertz}{spread * joined.mm_per_hertz:.2f} mm (standard "
        f"deviation in the brain), {source}"
    }
    if (found := joined.comparison) is not None:
        apart = found.rms * joined.mm_per_hertz
        told["measured map"] = (
            f"not used, since the field comes from the runs; compared with it: r = "
            f"{found.correlation:.3f}, slope {found.slope:.2f}, {apart:.2f} mm RMS apart"
        )
    return told


def methods_with(run: SessionRun, methods: Methods) -> Methods:
    """Add to the methods of a series what the other runs of its session had to do with it."""
    joined = run.joined
    if joined is None:
        return methods
    source = "given" if joined.measured else "runs"
    n_runs = len(joined) if len(joined) > 1 else 0
    return replace(methods, n_runs=n_runs, off_resonance=source if joined.field else "")


def issues_of(run: SessionRun) -> list[DataIssue]:
    """Warn of runs left out or unlike each other, and of a field too strong for a head."""
    joined, found = run.joined, []
    if run.unused:
        found.append(DataIssue(
            "runs",
            f"{', '.join(run.unused)}: could not be used for the common frame and the "
            "off-resonance field of the session; see the log for the reason",
        ))  # fmt: skip
    if joined is not None and len(joined) > 1 and joined.similarity[1] < AGREE:
        no_field = "add PhaseEncodingDirection to all sidecars if it differs between the runs, "
        found.append(DataIssue(
            "runs",
            f"the b=0 images of the runs of this session correlate by only r = "
            f"{joined.similarity[1]:.2f}, expected {AGREE:g}: their common frame may be "
            f"wrong; {no_field if joined.field is None else ''}compare the corrected runs, or "
            "correct each separately with --separate-all-dwis",
        ))  # fmt: skip
    if (spread := _spread_mm(run)) > FAR_MM:
        found.append(DataIssue(
            "field",
            f"the off-resonance field displaces the brain by {spread:.0f} mm (standard "
            f"deviation), expected {FAR_MM:g} at most; check that the field is in Hz, and "
            "TotalReadoutTime in seconds",
            severe=True,
        ))  # fmt: skip
    return found


def _spread_mm(run: SessionRun) -> float:
    """Return the standard deviation of the displacement in the brain of this run, mm."""
    return 0.0 if run.joined is None else float(np.linalg.norm(run.joined.spread_mm(run.number)))


def sidecar_of_run(run: SessionRun) -> dict[str, Any]:
    """Return what the sidecar of the corrected series says of its place among the runs."""
    if run.joined is None:
        return {}
    shift = run.joined.shifts[run.number]
    known = bool(np.isfinite(shift).all())
    return {
        "Runs": list(run.names),
        "RunPose": run.joined.poses[run.number].tolist(),
        "RunPoseErrors": run.joined.errors[run.number].tolist(),
        "RunFieldSpread": run.joined.spread_mm(run.number).tolist(),
        "RunTie": run.tie and run.tie.plain(),
        "MillimetresPerHertz": shift.tolist() if known else None,
        "OffResonanceCorrected": run.joined.field is not None and known,
    }
