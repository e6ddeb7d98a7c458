# SPDX-License-Identifier: Apache-2.0
"""The participant's page: what it shows is what is on disk, and text stays text."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from report_cases import (
    LOST,
    TOLD,
    copy_series,
    with_lost_slices,
    write_large,
    write_series,
    written_page,
)

from eddymotion.data.gradients import dipy_table
from eddymotion.derivatives import Outputs
from eddymotion.derivatives.citation import Methods, bibtex, boilerplate, references
from eddymotion.errors import EddymotionError
from eddymotion.estimation.maps import cnr
from eddymotion.io.tsv import Table
from eddymotion.mapping.motion import Motion
from eddymotion.reports import save_figure
from eddymotion.reports.data import ReportData, recorded_log
from eddymotion.reports.layout import VOID, embedded_json, tag
from eddymotion.reports.maps import COLOR_GAIN, color_fa, local_correlation, tsnr
from eddymotion.reports.metrics import describe_metric, quality_metrics
from eddymotion.reports.participant import write_report
from eddymotion.reports.sections import within
from eddymotion.reports.series import SeriesReport
from eddymotion.reports.slices import PlaneGrid, Slices
from eddymotion.reports.sprites import Frames
from eddymotion.reports.summary import FRAME
from eddymotion.reports.verdict import Check, Findings, Severity, judge

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class Page(HTMLParser):
    """Elements of a page, their attributes and their text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, name, attributes):
        element = SimpleNamespace(
            name=name, text="", inside=list(self.open), attributes=dict(attributes)
        )
        self.elements.append(element)
        if name not in VOID | {"meta", "link"}:
            self.open.append(element)

    def handle_startendtag(self, name, attributes):
        self.handle_starttag(name, attributes)
        if self.open and self.open[-1] is self.elements[-1]:
            self.open.pop()

    def handle_endtag(self, name):
        assert self.open.pop().name == name

    def handle_data(self, data):
        for element in self.open:
            element.text += data

    def all(self, name, **wanted):
        return [
            element
            for element in self.elements
            if element.name == name
            and all(element.attributes.get(k.rstrip("_")) == v for k, v in wanted.items())
        ]

    def data(self, prefix="s0"):
        return json.loads(self.all("script", id=f"{prefix}-data")[0].text)


@pytest.fixture(scope="module")
def site(moving, truth, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    outputs = write_series(folder, "01", with_lost_slices(moving), truth)
    return SimpleNamespace(folder=folder, outputs=outputs, page=folder / "sub-01.html")


@pytest.fixture(scope="module")
def page(site):
    return Page(site.page.read_text(encoding="utf-8"))


def test_values_are_those_of_the_tables(site, page):
    confounds = Table.read(site.outputs["confounds"])
    shown = page.data()
    assert shown["n"] == len(confounds)
    for name, values in shown["columns"].items():
        given = np.array([np.nan if value is None else value for value in values])
        np.testing.assert_array_equal(given, confounds.numbers(name), err_msg=name)
    rows = [row for row in page.all("tr") if any(
        one.attributes.get("class") == "confounds" for one in row.inside)]  # fmt: skip
    cells = [
        [one.text for one in page.elements if one.name in ("th", "td") and row in one.inside]
        for row in rows
    ]
    on_disk = [line.split("\t") for line in site.outputs["confounds"].read_text().splitlines()]
    assert [row[1:] for row in cells] == on_disk
    outliers = Table.read(site.outputs["outliers"])
    pairs = zip(outliers.columns["volume"], outliers.columns["slice"], strict=True)
    listed = [(volume, str(index)) for volume, of in shown["slices"].items() for index in of]
    assert listed == list(pairs)
    assert len(listed) >= sum(map(len, LOST.values()))


def test_numbers_of_the_verdict_are_those_of_the_tables(site, page):
    fd = Table.read(site.outputs["confounds"]).numbers("framewise_displacement")[1:]
    found = [one.text for one in page.elements if one.name == "td" and any(
        table.attributes.get("class") == "checks" for table in one.inside)][::2]  # fmt: skip
    assert found[:2] == [f"{fd.mean():.2f} mm", f"{fd.max():.2f} mm"]
    n_outliers = len(Table.read(site.outputs["outliers"]))
    assert f"({n_outliers} of " in found[2]
    headline = page.all("p", class_="headline")[0].text
    assert SeriesReport.load(site.outputs).verdict.headline in headline


def test_a_volume_that_lost_too_much_is_found(site):
    report = SeriesReport.load(site.outputs)
    assert 12 in report.findings.spoilt
    assert 5 not in report.findings.spoilt
    assert report.findings.worst(3)[0] == (12, "beyond repair")
    assert report.verdict.level > Severity.GOOD
    assert any("beyond repair" in reason for reason in report.verdict.reasons)


def test_volumes_that_the_estimation_gave_up_are_marked(site, tmp_path):
    outputs = copy_series(site.outputs, tmp_path, "02", "sub-02")
    sidecar = json.loads(outputs["sidecar"].read_text())
    recorded = {"VolumesBeyondRepair": [7, 99, "x"]}
    outputs["sidecar"].write_text(json.dumps(sidecar | {"OutlierSlices": recorded}))
    assert list(SeriesReport.load(outputs).findings.spoilt) == [7, 12]


def test_what_is_known_of_the_frame_stands_below_its_picture(site, tmp_path):
    outputs = copy_series(site.outputs, tmp_path, "02", "sub-02")
    assert 0 < outputs["b0_edges_figure"].stat().st_size < 110_000  # a third more in the page
    text = "by time ± 0.050 mm, by images ± 0.020 mm, 0.10 mm and 0.05° apart"
    sidecar = json.loads(outputs["sidecar"].read_text())
    outputs["sidecar"].write_text(json.dumps(sidecar | {"Summary": {FRAME: text}}))
    page = Page(written_page(tmp_path, "02").read_text(encoding="utf-8"))
    (section,) = page.all("section", id="s0-beforeafter")
    pictures = [one for one in page.all("img") if section in one.inside]
    edges, mask = pictures[-2:]
    for picture, words in ((edges, FRAME.capitalize()), (mask, "Mask of the brain")):
        assert picture.attributes["src"].startswith("data:image/webp")
        assert picture.attributes["alt"].startswith(words)
    assert f"{FRAME.capitalize()}: {text}." in section.text


def test_eddy_current_fields_have_a_chart(site, tmp_path):
    outputs = copy_series(site.outputs, tmp_path, "02", "sub-02")
    n = len(Table.read(outputs["confounds"]))
    names = ("offset", "offset_se", *(f"e_{term}" for term in ("x", "y", "z", "xx", "yz")))
    values = np.random.default_rng(0).normal(0, 1, (n, len(names)))
    lines = ["\t".join(names), *("\t".join(f"{v:.6g}" for v in row) for row in values)]
    outputs["eddy"].write_text("\n".join(lines) + "\n")
    page = Page(written_page(tmp_path, "02").read_text(encoding="utf-8"))
    names = [section.attributes["id"] for section in page.all("section")]
    assert names[names.index("s0-eddy") - 1 :][:3] == ["s0-maps", "s0-eddy", "s0-estimation"]
    assert outputs["eddy_figure"].read_text().count("<polyline") == 6


def test_content_comes_in_the_order_in_which_people_read(page):
    names = [section.attributes["id"].removeprefix("s0-") for section in page.all("section")]
    assert names == [
        "summary", "motion", "beforeafter", "checks", "carpet", "heldout", "shells", "maps",
        "estimation", "settings", "citation",
    ]  # fmt: skip
    assert TOLD[0][1] in page.all("section", id="s0-estimation")[0].text
    assert "@article" in page.all("section", id="s0-citation")[0].text


def test_every_figure_says_what_to_look_for(page):
    assert len(page.all("figure")) >= 7
    for figure in page.all("figure"):
        inside = [one for one in page.elements if figure in one.inside]
        captions = [one.text for one in inside if one.name == "figcaption"]
        assert len(captions) == 1
        assert len(captions[0]) > 80
        for one in inside:
            if one.name in ("svg", "canvas"):
                assert one.attributes["aria-label"]
            elif one.name == "img" and one.attributes.get("class") != "sprite":
                assert one.attributes["alt"]


def test_links_resolve_and_nothing_comes_from_elsewhere(site, page):
    names = {one.attributes["id"] for one in page.elements if "id" in one.attributes}
    links = [link.attributes["href"] for link in page.all("a")]
    assert len(links) > 15
    for link in links:
        if link.startswith("#"):
            assert link[1:] in names
        else:
            assert (site.folder / unquote(link)).is_file()
    for one in page.elements:
        for key in ("src", "href", "srcset", "data", "action"):
            value = one.attributes.get(key) or "#"
            assert value.startswith(("data:", "#", "sub-01/figures/")), (one.name, value[:80])
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0].attributes["content"]
    assert "default-src 'none'" in policy


def test_figures_are_files_with_bids_names(site):
    expected = {
        f"sub-01_desc-{name}"
        for name in (
            "motion_dwi.svg", "beforeafter_dwi.png", "carpet_dwi.svg", "heldout_dwi.png",
            "shells_dwi.svg", "maps_dwi.png", "b0edges_dwi.webp", "brain_dwi.webp",
            "hmc_report.npz", "hmc_steps.tsv",
        )
    }  # fmt: skip
    assert {path.name for path in (site.folder / "sub-01" / "figures").iterdir()} == expected


def test_derivatives_alone_give_the_same_page(site, tmp_path):
    shutil.copytree(site.folder, tmp_path / "out", ignore=shutil.ignore_patterns("*.nii.gz"))
    for path in (tmp_path / "out").rglob("*"):
        if path.suffix in (".html", ".svg"):
            path.unlink()
    again = written_page(tmp_path / "out", "sub-01")
    assert again.read_bytes() == site.page.read_bytes()
    for path in (site.folder / "sub-01" / "figures").glob("*.svg"):
        copy = tmp_path / "out" / path.relative_to(site.folder)
        assert copy.read_bytes() == path.read_bytes()


def test_hostile_names_and_metadata_stay_text(site, tmp_path):
    source = "sub-02_acq-<img src=x onerror=alert(3)>"
    outputs = copy_series(site.outputs, tmp_path, "02", source)
    hostile = dict.fromkeys((HOSTILE, "model"), HOSTILE)
    keys = ("Manufacturer", "EddymotionVersion", "Sources", HOSTILE)
    parts = ("Summary", "Settings", "StageSeconds", "PackageVersions")
    sidecar = dict.fromkeys(keys, HOSTILE) | dict.fromkeys(parts, hostile)
    outputs["sidecar"].write_text(json.dumps(sidecar))
    page = written_page(tmp_path, "02", {HOSTILE: HOSTILE})
    parsed = Page(page.read_text(encoding="utf-8"))
    assert len(parsed.all("script")) == 2
    assert not [one for one in parsed.elements for key in one.attributes if key.startswith("on")]
    assert "x" not in {one.attributes.get("src") for one in parsed.elements}
    assert sum(one.text == HOSTILE for one in parsed.elements) >= len(keys) + 2 * len(parts)
    assert parsed.all("h1")[0].text == source
    assert HOSTILE in parsed.all("section", id="errors")[0].text


def test_embedded_data_cannot_end_its_element():
    text = embedded_json("x", {"key": HOSTILE + "<!--"})
    assert text.count("<") == 2
    assert json.loads(Page(text).all("script")[0].text)["key"] == HOSTILE + "<!--"
    assert tag("p", "<b>", title='"><b>') == '<p title="&quot;&gt;&lt;b&gt;">&lt;b&gt;</p>'


def test_failures_are_reported_last_and_at_the_top(site, tmp_path):
    shutil.copytree(site.folder, tmp_path / "out")
    broken = Outputs(tmp_path / "out" / "sub-01", "sub-01", tmp_path / "out" / "sub-01/figures")
    data = broken["report_data"]
    data.write_bytes(data.read_bytes()[:-5000])
    page = written_page(tmp_path / "out", "01", {"sub-01_run-2_dwi": "no b-values"})
    parsed = Page(page.read_text(encoding="utf-8"))
    assert "2 series failed" in parsed.all("p", class_="errors")[0].text
    last = parsed.all("section")[-1]
    assert last.attributes["id"] == "errors"
    assert "no b-values" in last.text
    assert "sub-01_desc-hmc_report.npz: cannot be read" in last.text
    assert write_report(tmp_path / "nothing", "01") == {}


def test_without_the_data_of_a_run_the_tables_still_make_a_page(site, tmp_path):
    shutil.copytree(site.folder, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "sub-01" / "figures")
    page = written_page(tmp_path / "out", "01")
    parsed = Page(page.read_text(encoding="utf-8"))
    assert not parsed.all("section", id="errors")
    assert "no images of the original" in parsed.all("section", id="s0-summary")[0].text


def test_data_of_another_version_are_refused(site, tmp_path, monkeypatch):
    data = ReportData.load(site.outputs["report_data"])
    monkeypatch.setattr("eddymotion.reports.data.FORMAT", 99)
    data.save(tmp_path / "x.npz")
    monkeypatch.undo()
    with pytest.raises(EddymotionError, match="has format 99, expected 1"):
        ReportData.load(tmp_path / "x.npz")


@pytest.mark.parametrize("kept", ["no b=0", "three volumes"])
def test_short_and_odd_series_have_a_page(kept, moving, truth, tmp_path):
    gradients = moving.gradients
    volumes = {
        "no b=0": gradients.dwis,
        "three volumes": np.sort(np.append(gradients.dwis[:2], gradients.b0s[:1])),
    }[kept]
    write_series(tmp_path, "01", moving.select(volumes), Motion(truth.matrices[volumes]))
    parsed = Page((tmp_path / "sub-01.html").read_text(encoding="utf-8"))
    assert not parsed.all("section", id="errors")
    assert parsed.data()["n"] == len(volumes)
    picture = tmp_path / "sub-01" / "figures" / "sub-01_desc-b0edges_dwi.webp"
    shown = "of the fluid in the b=0 image" in parsed.all("section", id="s0-beforeafter")[0].text
    assert picture.exists() == shown == (kept != "no b=0")


def test_sixty_four_large_volumes_stay_below_the_limit(site, tmp_path):
    page = write_large(site.outputs, tmp_path, "64")
    assert Page(page.read_text(encoding="utf-8")).data()["n"] == 64
    assert page.stat().st_size < 15e6


def test_sprites_show_each_volume_where_the_script_looks():
    mask = np.zeros((30, 40, 20), bool)
    mask[5:25, 5:35, 3:17] = True
    frames = Frames.of(PlaneGrid(np.diag([2.0, 2.0, 3.0, 1.0]), mask, (15, 20, 10)), 11)
    levels = np.linspace(0.05, 0.95, 11)
    shapes = {"sagittal": (40, 20), "coronal": (30, 20), "axial": (30, 40)}
    planes = {name: np.tile(levels, (*shape, 1)) for name, shape in shapes.items()}
    sheet = frames.sheet(planes, np.ones(11))
    pixels = np.asarray(Image.open(BytesIO(sheet.data)).convert("L"), float)
    for volume, level in enumerate(levels):
        row, column = divmod(volume, sheet.columns)
        frame = pixels[row * sheet.height :, column * sheet.width :]
        for left, top, width, height in frames.boxes.values():
            middle = frame[top + height // 2, left + width // 2]
            assert middle == pytest.approx(255 * level, abs=4)


def test_a_page_depends_on_nothing_but_what_is_there(site, tmp_path):
    """No time, no path, no random name: the same folder elsewhere gives the same bytes."""
    text = site.page.read_text(encoding="utf-8")
    assert str(site.folder) not in text
    assert not re.search(r"20\d\d-\d\d-\d\d", text)


def test_checks_and_their_limits():
    above = Check("x", 2.0, "2", 1.0, 3.0)
    below = Check("x", 4.0, "4", 15, 6)
    assert (above.level, below.level) == (Severity.CARE, Severity.DOUBTFUL)
    assert Check("x", float("nan"), "n/a", 1.0, 3.0).level is Severity.GOOD
    assert "care above 1, doubtful above 3" in above.rule
    assert "care below 15, doubtful below 6" in below.rule
    assert (above.reason, below.reason) == ("x: 2, above 1", "x: 4, below 6")
    few = Check("volumes beyond repair", 3.0, "1 of 32", 0.0, 10.0, " %")
    assert few.reason == "volumes beyond repair: 1 of 32"
    assert few.rule == "care if any, doubtful above 10 %"


def test_a_still_series_is_usable_and_a_wild_one_doubtful(scheme):
    def verdict(size):
        steps = np.abs(np.random.default_rng(0).normal(0, size, len(scheme)))
        table = Table({
            "framewise_displacement": ["n/a", *(f"{step}" for step in steps[1:])],
            "hmc_xcorr": ["0.97"] * len(scheme),
            "outlier_slices": ["0"] * len(scheme),
        })  # fmt: skip
        return judge(Findings.of(table, scheme, 40, None), scheme, gain=0.01)

    assert verdict(0.1).headline == "Usable"
    assert verdict(20.0).headline == "Doubtful"


def test_metrics_for_a_group(site):
    report = SeriesReport.load(site.outputs)
    metrics = quality_metrics(report)
    fd = Table.read(site.outputs["confounds"]).numbers("framewise_displacement")[1:]
    assert metrics["fd_max"] == fd.max()
    assert metrics["fd_percent_over_1mm"] == pytest.approx(100 * (fd > 1).mean())
    assert metrics["beyond_repair"] == 1
    assert metrics["ndc_corrected"] > metrics["ndc_raw"]
    assert metrics["residual_corrected"] < metrics["residual_raw"]
    assert metrics["cnr_b1000_corrected"] > 0
    columns = Table.read(site.outputs["confounds"])
    name = metrics["largest_motion"]
    scale = 1 if name.startswith("trans") else 50
    assert metrics["largest_motion_range"] == pytest.approx(scale * np.ptp(columns.numbers(name)))
    for name in metrics:
        words, unit = describe_metric(name)
        assert words
        assert unit
    with pytest.raises(KeyError):
        describe_metric("nothing")


def test_measures_equal_their_definitions(scheme):
    rng = np.random.default_rng(1)
    signal = rng.uniform(1, 2, (4, 5, len(scheme)))
    predicted = signal + rng.normal(0, 0.1, signal.shape)
    shell, voxel = scheme.shells[0], (2, 3)
    y, p = signal[voxel][shell], predicted[voxel][shell]
    contrast = cnr(predicted, signal - predicted, shell)[voxel]
    assert contrast == pytest.approx(p.std() / (y - p).std())
    b0 = signal[voxel][scheme.b0s]
    assert tsnr(signal, scheme)[voxel] == pytest.approx(b0.mean() / b0.std(ddof=1))


def test_colours_are_those_of_tensors_that_dipy_fits(moving):
    from dipy.reconst.dti import TensorModel

    view = Slices.of(moving)
    signal = np.maximum(view.planes["axial"][view.mask("axial")].astype(float), 1.0)
    view.planes["axial"][view.mask("axial")] = signal
    fit = TensorModel(dipy_table(view.gradients), fit_method="WLS").fit(signal)
    expected = np.clip(COLOR_GAIN * np.abs(fit.evecs[..., 0]) * fit.fa[:, None], 0, 1)
    found = color_fa(view, "axial")[view.mask("axial")]
    assert found.std() > 0.05
    np.testing.assert_allclose(found, expected, atol=1e-6)
    few = replace(view.gradients, bvecs=np.where(view.gradients.bvecs != 0, [1.0, 0, 0], 0))
    view.gradients = few
    assert not color_fa(view, "axial").any()


def test_local_correlation_against_a_plain_sum():
    rng = np.random.default_rng(2)
    a = rng.uniform(1, 2, (20, 24))
    b = a + rng.normal(0, 0.3, a.shape)
    mask = np.ones(a.shape, bool)
    mask[:3] = False
    found = local_correlation(a, b, np.array([2.0, 2.0]), mask)
    i, j = np.indices(a.shape)
    weights = np.exp(-(((i - 11) * 2) ** 2 + ((j - 12) * 2) ** 2) / (2 * 4.0**2)) * mask
    weights /= weights.sum()
    x, y = (values - (weights * values).sum() for values in (a, b))
    expected = (weights * x * y).sum() / np.sqrt((weights * x * x).sum() * (weights * y * y).sum())
    assert found[11, 12] == pytest.approx(expected, abs=2e-3)
    assert np.isnan(found[:3]).all()


def test_log_is_recorded_and_left_as_it_was(caplog):
    import logging

    logger = logging.getLogger("eddymotion.estimation")
    level, handlers = logger.level, list(logger.handlers)
    with recorded_log() as lines:
        logging.getLogger("eddymotion.estimation.joint").debug("step %d", 3)
    assert [message for _, message in lines] == ["step 3"]
    assert (logger.level, logger.handlers) == (level, handlers)


def test_the_boilerplate_follows_the_settings():
    joint = Methods("joint", "gp-legendre", eddy_currents="none found", reference="b0")
    plain = boilerplate(joint, version="1.2")
    assert "eddymotion 1.2" in plain
    assert "estimated together" in plain
    assert "Gaussian process" in plain
    assert "none were corrected" in plain
    loop = Methods("lovo", "dti", registration="ants", passes=3, eddy_currents="cubic",
                   reference="first", resampling="fast", replaced_outliers=True)  # fmt: skip
    other = boilerplate(loop)
    for words in ("leave-one-volume-out", "by ants, in 3 passes", "the diffusion tensor",
                  "Eddy-current fields, cubic", "frame of the first volume",
                  "replaced by them"):  # fmt: skip
        assert words in other
    assert "NiTransforms" not in other
    cited = set(
        re.findall(r"\b([A-Z][a-z]+)(?: & [A-Z][a-z]+| et al\.)?,? \(?(?:19|20)\d\d", plain)
    )
    assert cited
    assert all(name in bibtex() for name in cited)


def test_references_are_whole():
    assert len(references()) == bibtex().count("\n@") + bibtex().startswith("@")
    for line in references():
        assert re.match(r".+ \((19|20)\d\d\)\. .+\. .+", line), line
        assert "{" not in line


def test_static_files_are_packaged():
    from eddymotion.reports.layout import static_text

    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert '"reports/static/*"' in text
    assert "$digest" in static_text("page.html")


@pytest.mark.parametrize(
    ("fact", "steps", "told"),
    [
        ("not estimated, since X", ["not estimated, since X"], ["Not estimated, since X."]),
        ("one pose a volume", ["no evidence, one pose a volume (a)"],
         ["No evidence, one pose a volume (a)."]),
        ("in 2 of 9 volumes", ["2 of 9 volumes (a)", "in 2 of them by more than errors"],
         ["In 2 of 9 volumes.", "Followed: 2 of 9 volumes (a)."]),
        (None, [], []),
    ],
)  # fmt: skip
def test_motion_within_volumes_is_told_once(fact, steps, told, tmp_path):
    name = "motion within volumes"
    table = SimpleNamespace(columns={"step": [f"{name}: {step}" for step in steps]})
    series = SimpleNamespace(summary={name: fact}, steps=table, charts={})
    assert re.findall(r"<p[^>]*>(.*?)</p>", within(series, tmp_path / "page.html")) == told


def test_pictures_are_opaque(tmp_path):
    figure = Figure()
    figure.subplots().plot([0, 1])
    save_figure(figure, tmp_path / "line.png")
    with Image.open(tmp_path / "line.png") as picture:
        assert picture.mode == "RGB"
        assert picture.getpixel((0, 0)) == (255, 255, 255)
