# SPDX-License-Identifier: Apache-2.0
"""``eddymotion-evaluate`` from outside: files, numbers, messages."""

import json

import numpy as np
import pytest

from eddymotion.cli import evaluate
from eddymotion.derivatives import save
from eddymotion.io.images import write_image
from eddymotion.io.itk import write_itk
from eddymotion.mapping.motion import Motion
from eddymotion.resampling import resample
from eddymotion.simulation import write_bids


@pytest.fixture(scope="module")
def folder(tmp_path_factory, moving, truth, estimated):
    """A simulated series, its truth, and what the estimator makes of it."""
    root = tmp_path_factory.mktemp("evaluate")
    image = write_bids(root / "bids", "x", moving, truth)
    corrected = resample(moving, estimated, engine="fast")
    save(corrected, estimated, root / "out")
    write_image(root / "mask.nii.gz", moving.mask.astype(np.uint8), moving.affine)
    (root / "raw").symlink_to(image.parent)
    return root


def call(*arguments):
    return evaluate.main([str(argument) for argument in arguments])


def table(path):
    header, *rows = (line.split("\t") for line in path.read_text().splitlines())
    return dict(zip(header, zip(*rows, strict=True), strict=True))


def found(folder, ending):
    return next((folder / "out").rglob(f"*{ending}"))


def test_motion_writes_tables_figures_and_a_plot(folder, tmp_path, capsys, truth):
    estimate = found(folder, "confounds_timeseries.tsv")
    true = folder / "bids" / "truth" / "sub-x_xfm.txt"
    prefix = tmp_path / "new" / "x"
    assert call("motion", estimate, true, "--mask", folder / "mask.nii.gz", "-o", prefix) == 0
    printed = capsys.readouterr().out
    head = [line.split()[1:][:2] for line in printed.splitlines()[1:3]]
    assert printed.split()[:2] == ["estimated", "nothing"]
    assert head == [["free", "free"], ["b>100", "b>100"]]
    assert max(map(len, printed.splitlines()[:15])) <= 80
    assert "95 % intervals" in printed
    figures = json.loads(prefix.with_name("x.json").read_text())
    scores = figures["scores"]
    assert scores["estimated"]["free"]["b>100"]["tre_mean_mm"] < 0.4
    assert scores["nothing"]["free"]["b>100"]["tre_mean_mm"] > 1
    assert 0.9 < scores["estimated"]["free"]["b>100"]["slope_translation"] < 1.1
    assert 50 < figures["coverage_percent"] <= 100
    volumes = table(prefix.with_name("x_volumes.tsv"))
    assert len(volumes["volume"]) == len(truth)
    assert volumes["bval"][0] == "0"
    assert len(table(prefix.with_name("x_scores.tsv"))["method"]) == 4 * 4
    assert prefix.with_name("x.png").read_bytes().startswith(b"\x89PNG")
    assert not list(prefix.parent.glob(".*"))


def test_motion_in_other_formats_gives_the_same(folder, capsys):
    true = folder / "bids" / "truth"
    image = next((folder / "raw").glob("*.nii.gz"))
    for estimate, truth in (
        (found(folder, "xfm.txt"), true / "sub-x_xfm.txt"),
        (found(folder, "xfm.x5"), true / "sub-x_motion.tsv"),
    ):
        assert call("motion", estimate, truth, "--reference", image) == 0
    first, second = capsys.readouterr().out.split("frame")[1:]
    rows = [text.splitlines()[3:14] for text in (first, second)]
    numbers = [[row[8:].split()[0] for row in table] for table in rows]
    np.testing.assert_allclose(*(np.array(row, float) for row in numbers), atol=2e-3)


def test_landmarks(tmp_path, capsys):
    shift = np.eye(4)
    shift[:3, 3] = [3, -4, 0]
    points = "\n".join(f"{x}\t{y}\t{z}\tP{x}" for x, y, z in [(0, 1, 2), (10, 5, -3), (20, -8, 4)])
    moved = "\n".join(
        f"{x + 3}\t{y - 4}\t{z}\tP{x}" for x, y, z in [(20, -8, 4), (0, 1, 2), (10, 5, -3)]
    )
    fixed, moving = tmp_path / "fixed.tsv", tmp_path / "moving.tsv"
    fixed.write_text("x\ty\tz\tlabel\n" + points + "\n")
    moving.write_text("x\ty\tz\tlabel\n" + moved + "\n")
    write_itk(tmp_path / "two.txt", np.stack([np.linalg.inv(shift), shift]))
    xfm = ("--xfm", tmp_path / "two.txt", "--volume")
    prefix = tmp_path / "x"
    plot = ("--plot-format", "svg")
    assert call("landmarks", fixed, moving, *xfm, 1, "-o", prefix, *plot) == 0
    figures = json.loads((tmp_path / "x.json").read_text())
    assert figures["tre_before"]["mean_mm"] == pytest.approx(5)
    assert figures["tre_after"]["max_mm"] == pytest.approx(0)
    assert table(tmp_path / "x_landmarks.tsv")["tre_before_mm"] == ("5", "5", "5")
    assert "<svg" in (tmp_path / "x.svg").read_text()
    capsys.readouterr()
    assert call("landmarks", fixed, moving, *xfm, 0) == 0
    assert "maps points of FIXED to points of MOVING" in capsys.readouterr().err
    assert call("landmarks", fixed, moving, *xfm[:2]) == 2
    assert "--volume" in capsys.readouterr().err


def test_two_series_and_one(folder, tmp_path, capsys):
    raw = next((folder / "raw").glob("*.nii.gz"))
    corrected = found(folder, "desc-preproc_dwi.nii.gz")
    assert (
        call("series", raw, corrected, "--mask", folder / "mask.nii.gz", "-o", tmp_path / "x") == 0
    )
    figures = json.loads((tmp_path / "x.json").read_text())
    for key in ("ndc_mean", "loo_r2_mean"):
        assert figures["b"][key] > figures["a"][key] + 0.03
    volumes = table(tmp_path / "x_volumes.tsv")
    assert float(volumes["between_correlation"][0]) > 0.99
    assert volumes["a_ndc"][0] == "n/a"
    assert (tmp_path / "x.png").is_file()
    capsys.readouterr()
    assert call("series", corrected) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("a ")


def test_wrong_calls_are_one_line(folder, tmp_path, capsys):
    true = folder / "bids" / "truth" / "sub-x_xfm.txt"
    motion = folder / "bids" / "truth" / "sub-x_motion.tsv"
    write_itk(tmp_path / "short.txt", Motion.identity(3).matrices)
    write_itk(tmp_path / "x.json", Motion.identity(3).matrices)
    raw = next((folder / "raw").glob("*.nii.gz"))
    wrong = {
        "COMMAND": [],
        "'landmarks'": ["landmark"],
        "--reference?": ["motion", true, true, "--refrence", raw],
        "--reference IMAGE": ["motion", motion, true],
        "3 estimated transforms": ["motion", tmp_path / "short.txt", true],
        "from 0 to": ["motion", true, true, "--relative-to", "99"],
        "no such file": ["motion", tmp_path / "none.txt", true],
        "overwritten": ["motion", tmp_path / "x.json", true, "-o", tmp_path / "x"],
        "a folder; add": ["motion", true, true, "-o", tmp_path],
        "use one of": ["series", raw, "--model", "nothing"],
        "cannot be written": ["motion", true, true, "-o", tmp_path / "short.txt" / "x"],
        "landmarks must be in": ["landmarks", true, true],
    }
    before = sorted(tmp_path.iterdir())
    for hint, arguments in wrong.items():
        try:
            code = call(*arguments)
        except SystemExit as exit_:
            code = exit_.code
        message = capsys.readouterr().err
        assert code == 2, hint
        assert message.count("\n") == 1, message
        assert hint in message
    assert sorted(tmp_path.iterdir()) == before
