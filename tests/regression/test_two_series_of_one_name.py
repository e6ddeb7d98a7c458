# SPDX-License-Identifier: Apache-2.0
"""Of two series whose files have one name, in two folders, the plot showed the second alone."""

import shutil

from eddymotion.cli import evaluate
from eddymotion.reports import comparison


def test_both_series_are_drawn(series, tmp_path, monkeypatch):
    shutil.copytree(series.parent, tmp_path / "other")
    drawn = []
    draw = comparison.series_figure
    monkeypatch.setattr(comparison, "series_figure", lambda *args, **options: drawn.append(
        draw(*args, **options)) or drawn[0])  # fmt: skip
    both = [str(series), str(tmp_path / "other" / series.name)]
    assert evaluate.main(["series", *both, "-o", str(tmp_path / "x")]) == 0
    assert [line.get_label() for line in drawn[0].axes[0].lines] == ["A", "B"]
