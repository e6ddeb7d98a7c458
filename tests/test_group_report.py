# SPDX-License-Identifier: Apache-2.0
"""The group level: its table, its rule and its page, from the derivatives alone."""

import json
from html.parser import HTMLParser
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
from report_cases import copy_series, with_lost_slices, write_series

from eddymotion.cli import participant
from eddymotion.derivatives import Outputs
from eddymotion.errors import EddymotionError
from eddymotion.io.tsv import Table
from eddymotion.reports.group_report import build_group_report
from eddymotion.reports.group_rule import LIMIT, MIN_SERIES, SCALES, compare
from eddymotion.reports.metrics import describe_metric, in_order, quality_metrics
from eddymotion.reports.series import SeriesReport

N_SERIES = 10
WILD = "sub-04"
HOSTILE = "sub-05_acq-<img src=x onerror=alert(1)>'&"


def scale_motion(outputs, factor):
    """Multiply what the confounds say of the motion."""
    header, *rows = (line.split("\t") for line in outputs["confounds"].read_text().splitlines())
    moving = [k for k, name in enumerate(header) if name.startswith(("framewise", "trans", "rot"))]
    for row in rows:
        for k in moving:
            row[k] = row[k] if row[k] == "n/a" else repr(float(row[k]) * factor)
    text = "\n".join("\t".join(row) for row in [header, *rows]) + "\n"
    outputs["confounds"].write_text(text)


def as_session(outputs, folder, label):
    """Copy a series into a session of a participant."""
    copied = copy_series(outputs, folder, label, f"sub-{label}_ses-b")
    (folder / f"sub-{label}" / "ses-b").mkdir()
    (copied.folder / "dwi").rename(folder / f"sub-{label}" / "ses-b" / "dwi")
    return Outputs(folder / f"sub-{label}" / "ses-b", f"sub-{label}_ses-b", copied.figures)


@pytest.fixture(scope="module")
def made(moving, truth, tmp_path_factory):
    """A folder of ten series, one wild, one with a session, one with an ugly name."""
    folder = tmp_path_factory.mktemp("group")
    first = write_series(folder, "01", with_lost_slices(moving), truth)
    found = {"sub-01": first}
    for number in range(2, N_SERIES):
        label = f"{number:02d}"
        name = HOSTILE if number == 5 else f"sub-{label}"
        found[name] = copy_series(first, folder, label, name)
        scale_motion(found[name], 12 if name == WILD else 0.9 + 0.03 * number)
        (folder / f"sub-{label}.html").write_text("a report")
    found["sub-10_ses-b"] = as_session(first, folder, "10")
    group = build_group_report(folder, errors={"sub-11_dwi.nii.gz": HOSTILE})
    return SimpleNamespace(folder=folder, outputs=found, group=group)


@pytest.fixture(scope="module")
def table(made):
    return Table.read(made.folder / "group_dwi.tsv")


class Cells(HTMLParser):
    """Rows of the table of series, the links, and whether anything hostile became an element."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.links, self.images, self.inside, self.cell = [], [], 0, False, False
        self.feed(text)

    def handle_starttag(self, name, attributes):
        values = dict(attributes)
        self.images += name == "img"
        self.inside |= values.get("id") == "table"
        if name == "a":
            self.links.append(values["href"])
        if self.inside and name == "tr":
            self.rows.append([])
        if self.inside and name in ("td", "th"):
            self.rows[-1].append("")
            self.cell = True

    def handle_endtag(self, name):
        if name == "table":
            self.inside = False
        if name in ("td", "th"):
            self.cell = False

    def handle_data(self, data):
        if self.inside and self.cell:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def page(made):
    return Cells((made.folder / "group_dwi.html").read_text(encoding="utf-8"))


def test_the_table_holds_the_metrics_of_each_series(made, table):
    assert table.columns["series"] == sorted(made.outputs)
    for index, name in enumerate(table.columns["series"]):
        metrics = quality_metrics(SeriesReport.load(made.outputs[name]))
        for metric, value in metrics.items():
            cell = table.columns[metric][index]
            if isinstance(value, str):
                assert cell == value
            else:
                assert np.isclose(table.numbers(metric)[index], value, rtol=1e-5, equal_nan=True)
    wild = table.columns["series"].index(WILD)
    assert table.numbers("fd_mean")[wild] > 5 * np.median(table.numbers("fd_mean"))
    assert table.columns["session_id"][-1] == "ses-b"
    assert set(table.columns["session_id"][:-1]) == {"n/a"}
    assert set(table.columns["protocol"]) == {"4×4×4 mm, b=1000"}


def test_the_dictionary_tells_every_column(made, table):
    content = json.loads((made.folder / "group_dwi.json").read_text(encoding="utf-8"))
    assert list(content) == list(table.columns)
    assert content["fd_mean"]["Units"] == "mm"
    assert all(entry["Description"] for entry in content.values())
    assert set(table.columns["verdict"]) <= set(content["verdict"]["Levels"])
    assert f"at least {MIN_SERIES} comparable" in content["outlier"]["Description"]


def test_the_wild_one_is_suggested_and_no_other(table):
    suggested = dict(zip(table.columns["series"], table.columns["outlier"], strict=True))
    assert {"fd_mean", "fd_max", "largest_motion_range"} <= set(suggested.pop(WILD).split(","))
    assert set(suggested.values()) == {"none"}


def test_the_page_shows_the_table_and_leads_to_the_reports(made, table, page):
    head, *rows = page.rows
    assert [row[0] for row in rows] == table.columns["series"]
    assert [row[1] for row in rows] == table.columns["verdict"]
    place = next(k for k, cell in enumerate(head) if cell.startswith("mean FD"))
    shown = [f"{value:.2f}" for value in table.numbers("fd_mean")]
    assert [row[place] for row in rows] == shown
    pages = {link.partition("#")[0] for link in page.links if link.startswith("sub-")}
    assert len(pages) == N_SERIES - 1  # sub-10 has no page, and no link
    assert all((made.folder / unquote(name)).is_file() for name in pages)
    assert page.images == 0
    text = (made.folder / "group_dwi.html").read_text(encoding="utf-8")
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text


def test_links_lead_to_the_part_of_the_report(made):
    folder = made.folder
    copy_series(made.outputs["sub-01"], folder, "03", "sub-03_run-2")
    try:
        rows = build_group_report(folder, ["sub-03"]).rows
        assert [(row.series, row.part) for row in rows] == [
            ("sub-03", "s0"),
            ("sub-03_run-2", "s1"),
        ]
    finally:
        for path in folder.rglob("sub-03_run-2*"):
            path.unlink()
        build_group_report(folder)


def test_the_same_rule_in_plain_words(made, table):
    """For a skewed metric over all series, and one of a correlation within the protocol."""
    for metric, distance in (("fd_max", lambda x: x), ("ndc_corrected", lambda x: 1 - x)):
        values = table.numbers(metric)
        offset = SCALES[metric.removesuffix("_corrected")].offset
        logs = np.log(distance(values) + offset)
        spread = max(1.4826 * np.median(abs(logs - np.median(logs))), 0.1)
        expected = (logs - np.median(logs)) / spread > LIMIT
        found = compare({metric: values}, ["one"] * len(values))
        assert [one[metric].is_outlier for one in found] == expected.tolist()
        limit = found[0][metric].limit
        assert np.log(distance(limit) + offset) == pytest.approx(np.median(logs) + LIMIT * spread)


def test_few_series_and_other_protocols_are_not_compared():
    values = np.array([1.0] * MIN_SERIES + [30.0])
    assert compare({"fd_mean": values}, [""] * 9)[-1]["fd_mean"].is_outlier
    assert compare({"fd_mean": values[2:]}, [""] * 7) == [{}] * 7
    protocols = ["a"] * MIN_SERIES + ["b"]
    compared = compare({"residual_corrected": values, "fd_mean": values}, protocols)
    assert set(compared[0]) == {"residual_corrected", "fd_mean"}
    assert set(compared[-1]) == {"fd_mean"}
    better = compare({"cnr_b1000_corrected": values}, [""] * 9)
    assert not any(one["cnr_b1000_corrected"].is_outlier for one in better)
    assert compare({"cnr_b1000_corrected": 1 / values}, [""] * 9)[-1][
        "cnr_b1000_corrected"
    ].is_outlier


def test_shells_and_the_head_alone(made, tmp_path):
    """b-values that differ a little share a column; the head's FD counts where it is known."""
    outputs = copy_series(made.outputs["sub-01"], tmp_path, "01", "sub-01")
    for label, bval in (("02", "1012"), ("03", "988")):
        one = copy_series(outputs, tmp_path, label, f"sub-{label}")
        with np.load(one["report_data"]) as stored:
            arrays = dict(stored)
        rest = json.loads(arrays["rest"].tobytes())
        rest["measures"]["cnr"] = {bval: rest["measures"]["cnr"]["1000"]}
        arrays["rest"] = np.frombuffer(json.dumps(rest).encode(), np.uint8)
        np.savez_compressed(one["report_data"], **arrays)
    lines = one["confounds"].read_text().splitlines()
    head = ["framewise_displacement_head", "n/a", *["0.125"] * (len(lines) - 2)]
    one["confounds"].write_text("\n".join(map("\t".join, zip(lines, head, strict=True))) + "\n")
    group = build_group_report(tmp_path)
    assert [name for name in group.metrics if "cnr" in name] == [
        "cnr_b1000_raw", "cnr_b1000_corrected"
    ]  # fmt: skip
    assert len({*group.column("cnr_b1000_corrected")}) == 1
    assert group.column("fd_head_mean")[2] == 0.125
    assert np.isnan(group.column("fd_head_mean")[:2]).all()
    np.testing.assert_array_equal(
        group.head_column("fd_mean"), [*group.column("fd_mean")[:2], 0.125]
    )
    names = in_order(["cnr_b2000_raw", "cnr_b1000_corrected", "fd_max", "fd_mean", "n_dwi"])
    assert names == ["n_dwi", "fd_mean", "fd_max", "cnr_b1000_corrected", "cnr_b2000_raw"]
    assert "b=1000, of the corrected series" in describe_metric("cnr_b1000_corrected")[0]


def test_one_series_and_damaged_ones(made, tmp_path, capsys):
    """At the command line: 0 for a whole group, 1 with the damaged listed, 2 without any."""
    one = copy_series(made.outputs["sub-01"], tmp_path, "01", "sub-01")
    call = [str(tmp_path / "raw"), str(tmp_path), "group"]
    assert participant.main(call) == 0
    assert Table.read(tmp_path / "group_dwi.tsv").columns["outlier"] == ["n/a"]
    assert "fewer than 8 comparable series" in (tmp_path / "group_dwi.html").read_text()
    written = [(tmp_path / f"group_dwi.{kind}").read_bytes() for kind in ("tsv", "json", "html")]
    assert participant.main(call) == 0
    assert written == [
        (tmp_path / f"group_dwi.{kind}").read_bytes() for kind in ("tsv", "json", "html")
    ]
    two = copy_series(one, tmp_path, "02", "sub-02")
    two["report_data"].write_bytes(b"nonsense")
    three = copy_series(one, tmp_path, "03", "sub-03")
    three["report_data"].unlink()  # no measures, but motion
    assert participant.main(call) == 1
    assert "sub-02" in capsys.readouterr().err.splitlines()[-1]
    table = Table.read(tmp_path / "group_dwi.tsv")
    assert table.columns["series"] == ["sub-01", "sub-03"]
    assert table.columns["ndc_raw"][1] == "n/a"
    assert participant.main([*call, "--session-id", "x"]) == 2
    assert "no ses-x in" in capsys.readouterr().err
    with pytest.raises(EddymotionError, match="run the participant level first"):
        build_group_report(tmp_path / "raw")
