# SPDX-License-Identifier: Apache-2.0
"""The page of a group without a name for the motion within volumes ended the group level."""

import re

from report_cases import copy_series, write_series

from eddymotion.derivatives.confounds import EXCURSION
from eddymotion.io.tsv import Table, table_text
from eddymotion.reports.group_report import build_group_report


def test_a_series_followed_within_volumes_is_gathered(moving, truth, tmp_path):
    first = write_series(tmp_path, "01", moving, truth)
    followed = copy_series(first, tmp_path, "02", "sub-02")
    columns = Table.read(followed["confounds"]).columns
    columns[EXCURSION] = ["0.25", *["1.5"] * (len(columns["bval"]) - 1)]
    followed["confounds"].write_text(table_text(columns))
    build_group_report(tmp_path)
    assert Table.read(tmp_path / "group_dwi.tsv").columns["within_max"] == ["n/a", "1.5"]
    page = (tmp_path / "group_dwi.html").read_text(encoding="utf-8")
    assert re.findall(r"<button[^>]*>motion within</button>", page)
