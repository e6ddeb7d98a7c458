# SPDX-License-Identifier: Apache-2.0
"""What speaks against a series reaches the verdict: warnings, errors, volumes not placed."""

import numpy as np
import pytest

from eddymotion.data.gradients import Gradients
from eddymotion.io.tsv import Table
from eddymotion.reports.verdict import Findings, Notice, Severity, judge, pose_errors

GRADIENTS = Gradients(
    np.r_[0.0, np.full(20, 1000.0)], np.random.default_rng(0).normal(size=(21, 3))
)


def table(error):
    names = [f"{kind}_{axis}_se" for kind in ("trans", "rot") for axis in "xyz"]
    cells = [["0.0", *(["0.001" if name.startswith("rot") else error] * 20)] for name in names]
    columns = {"framewise_displacement": ["n/a", *["0.1"] * 20], "hmc_xcorr": ["0.9"] * 21,
               "outlier_slices": ["0"] * 21, **dict(zip(names, cells, strict=True))}  # fmt: skip
    rows = ["\t".join(columns), *("\t".join(row) for row in zip(*columns.values(), strict=True))]
    return Table.parse("\n".join(rows) + "\n")


def verdict(error, notices=()):
    confounds = table(error)
    findings = Findings.of(confounds, GRADIENTS, 0, None)
    return judge(findings, GRADIENTS, errors=pose_errors(confounds), notices=notices)


@pytest.mark.parametrize(("error", "level"), [
    ("0.05", Severity.GOOD), ("0.5", Severity.CARE), ("3.0", Severity.DOUBTFUL),
    ("n/a", Severity.DOUBTFUL),
])  # fmt: skip
def test_errors_of_the_poses_count(error, level):
    assert verdict(error).level == level


@pytest.mark.parametrize("level", [Severity.CARE, Severity.DOUBTFUL])
def test_warnings_count_and_are_reported(level):
    found = verdict("0.05", [Notice("denoised", "hardly any noise", level)])
    assert found.level == level
    assert found.reasons == ["denoised: hardly any noise"]
