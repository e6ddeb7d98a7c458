# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' own machinery: common convention of the tools, kept rows, pages."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("psutil")

from benchmarks import accuracy, cieslak, equality, peer_tools, peers, real, registrars, tables
from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.io.images import write_image
from eddymotion.io.itk import write_itk
from eddymotion.io.tables import write_gradient_table
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rigid_matrix, rigid_parameters
from eddymotion.simulation import Grid, acquire, procedural_head

PATH = re.compile(r"(?<![\w.])/(home|root|tmp|work|usr)\b")


def test_dipy_matrices_map_the_reference_to_the_volume(tmp_path):
    head = procedural_head(8.0)
    gradients = Gradients([0, 700, 700], [[0, 0, 0], [1, 0, 0], [0, 0.6, 0.8]])
    pose = rigid_matrix(np.array([6.0, -9.0, 4.0]), np.deg2rad([8.0, 0.0, -10.0]), np.zeros(3))
    poses = Motion.identity(3).updated(np.arange(1, 3), pose)
    dwi = acquire(head, gradients, poses, Grid.covering(head, 6.0, "LAS"), snr=100)
    write_image(tmp_path / "dwi.nii.gz", dwi.signal, dwi.affine)
    write_gradient_table(tmp_path / "dwi.bval", tmp_path / "dwi.bvec", gradients, dwi.affine)
    found = peer_tools.run("dipy", tmp_path, 1)
    parameters, true = (rigid_parameters(m, np.zeros(3)) for m in (found[1], pose))
    for part in (slice(0, 3), slice(3, 6)):  # an inverse would have a slope of -1
        slope = parameters[part] @ true[part] / (true[part] @ true[part])
        assert 0.6 < slope < 1.4
    np.testing.assert_array_equal(peer_tools.run("nothing", tmp_path, 1)[2], np.eye(4))


def test_itk_transforms_become_ras():
    pose = rigid_matrix(np.array([1.0, 2.0, 3.0]), np.array([0.1, -0.2, 0.3]), np.zeros(3))
    lps = peer_tools.LPS @ pose @ peer_tools.LPS
    center = np.array([10.0, -20.0, 5.0])
    translation = lps[:3, 3] - center + lps[:3, :3] @ center
    transform = SimpleNamespace(
        parameters=[*lps[:3, :3].ravel(), *translation], fixed_parameters=center
    )
    np.testing.assert_allclose(peer_tools.from_itk(transform), pose, atol=1e-12)


def test_a_process_is_timed_and_its_last_words_are_kept():
    options = SimpleNamespace(n_threads=1, timeout=30.0)
    code = "import sys; x = bytearray(80_000_000); sum(range(10**6)); sys.exit('no such model')"
    used, words = peers.run_measured([peers.sys.executable, "-c", code], options)
    assert words == "no such model"
    assert 0 < used["cpu_seconds"] <= used["seconds"] + 0.5
    code = "import time; x = bytearray(80_000_000); time.sleep(0.4)"
    used, words = peers.run_measured([peers.sys.executable, "-c", code], options)
    assert words == ""
    assert 80 < used["peak_mb"] < 200


def test_rows_are_kept_and_not_measured_again(tmp_path):
    rows = tables.Rows(tmp_path / "rows.tsv", ("series", "seed"))
    rows.add({"series": "a", "seed": 0, "mm": 0.25, "error": ""})
    rows.add({"series": "a", "seed": 1, "error": "cannot\tread\nit"})
    again = tables.Rows(tmp_path / "rows.tsv", ("series", "seed"))
    assert again.has(series="a", seed=1)
    assert not again.has(series="a", seed=2)
    assert again.rows[0]["mm"] == 0.25
    assert again.rows[1]["error"] == "cannot read it"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["measured", "page of 1"]),
        (["--no-page"], ["measured"]),
        (["--render"], ["page of 0"]),
        (["--seeds", "4", "5"], ["measured", "page of 2"]),
    ],
)
def test_a_benchmark_measures_and_writes_as_it_is_told(tmp_path, words, expected, monkeypatch):
    monkeypatch.setattr(tables.sys, "argv", ["benchmarks/some.py"])
    parser = tables.parser("What is measured.", "some.tsv", seeds=[3], n_threads=2)
    options = parser.parse_args([*words, "--rows", str(tmp_path / "new" / "rows.tsv")])
    done = []

    def measure(options, rows):
        done.append("measured")
        for seed in options.seeds:
            rows.add({"seed": seed})

    tables.run(options, ("seed",), measure, lambda rows, _: done.append(f"page of {len(rows)}"))
    assert done == expected
    assert options.n_threads == 2


def test_peers_page_shows_medians_failures_and_no_paths(tmp_path, monkeypatch):
    monkeypatch.setattr(peers.sys, "argv", ["/work/benchmarks/peers.py", "--work", "/tmp/x"])
    rows = tables.Rows(tmp_path / "rows.tsv", peers.KEY)
    for seed, mm in enumerate((0.1, 0.3, 0.2)):
        rows.add(peer_row("joint", seed, mm))
    rows.add(peer_row("nothing", 0, 1.5))
    failed = {name: peer_row("nifreeze:gp", 0, 0)[name] for name in (*peers.KEY, "shape")}
    rows.add({**failed, "threads": 1, "seconds": 2.0, "error": "TypeError: no gtab"})
    tables.keep_provenance(tmp_path / "rows.json")
    peers.render(rows, tmp_path / "rows.json", tmp_path / "docs")
    page = (tmp_path / "docs" / "peers.md").read_text()
    assert "| 3 | 0.200 / 0.200 |" in page
    assert "fails: `TypeError: no gtab`" in page
    assert "python -m benchmarks.peers --work x" in page
    assert not PATH.search(page)
    assert (tmp_path / "docs" / "peers-s-3mm.png").stat().st_size > 5000


def peer_row(tool, seed, mm):
    names = ("free_mm", "free_deg", "frame_mm", "frame_deg", "largest_mm", "slope_t", "slope_r")
    return {"series": "s", "voxel_mm": "3", "seed": seed, "tool": tool, "shape": "4×4×4×9",
            "threads": 1, "seconds": 1.5, "cpu_seconds": 1.2, "peak_mb": 100,
            **dict.fromkeys(names, mm)}  # fmt: skip


def test_engines_stand_in_one_table_with_medians_over_the_seeds(tmp_path):
    names = ("nothing", "frame", "free")
    rows = [
        {"series": "b1000", "seed": seed, "registrar": name, "volumes": 27, "grid": "5×5×5",
         "seconds": 9.0, "cpu_seconds": 8.0, "largest_mm": seed / 10, "slope_t": 1, "slope_r": 1,
         **{f"{n}_{unit}": mm + seed / 10 for n in names for unit in ("mm", "deg")}}
        for name, mm in (("joint", 0.0), ("elastix:motion", 0.5)) for seed in (0, 1, 2)
    ]  # fmt: skip
    tables.keep_provenance(tmp_path / "rows.json")
    registrars.render(rows, tmp_path / "rows.json", tmp_path)
    page = (tmp_path / "registrars.md").read_text()
    assert "| b1000 | **joint** | 3 | 0.10 / 0.10 | 0.100 / 0.100 |" in page
    assert "| b1000 | elastix:motion | 3 | 0.60 / 0.60 | 0.600 / 0.600 |" in page
    assert not PATH.search(page)
    assert registrars.engine_of("dipy").transforms[-1] == "syn"
    with pytest.raises(SystemExit, match="leave it out with --registrars"):
        registrars.engine_of("elastics")


def test_published_figures_stand_beside_ours(tmp_path):
    row = {"scheme": "ABCD", "percent_moved": 15, "seed": 0, "estimator": "joint",
           "voxel_mm": "2", "volumes": 103, "seconds": 20.0}  # fmt: skip
    names = ("nothing", "frame", "free")
    row |= {f"{name}_{unit}": 0.04 for name in names for unit in ("mm", "deg")}
    row |= {"slope_t": 1.0, "slope_r": 1.0}
    tables.keep_provenance(tmp_path / "rows.json")
    cieslak.render([row], tmp_path / "rows.json", tmp_path)
    page = (tmp_path / "cieslak.md").read_text()
    assert "0.53 / 0.98" in page  # SHORELine
    assert "The phantom is not the published one" in page


def test_repeated_directions_are_found(tiny):
    assert real.repeated_halves(tiny) is None
    twice = DWI(np.concatenate([tiny.signal, tiny.signal], axis=3), tiny.affine,
                Gradients(np.tile(tiny.gradients.bvals, 2), np.tile(tiny.gradients.bvecs, (2, 1))),
                tiny.mask)  # fmt: skip
    halves = real.repeated_halves(twice)
    assert halves is not None
    distance = real.tensor_distance(twice, twice, halves)
    assert distance["fa_rms"] == distance["md_rms"] == 0


def test_rows_of_other_heads_scan_the_head_they_name():
    sources = accuracy.Sources([])
    seen = {}
    for name in ("heads-tiny", "heads-slab"):
        row = replace(accuracy.SERIES[name], voxel_sizes=14.0)
        seen[name], truth = row.simulate(sources.head(row, 2), 2, 1)
        np.testing.assert_array_equal(truth[0], np.eye(4))
    assert len(seen["heads-tiny"]) == 13
    assert len(seen["heads-slab"]) == 28
    assert seen["heads-slab"].shape[2] == 3
    fitted = accuracy.SERIES["heads-b15"]
    assert fitted.is_fitted
    with pytest.raises(SystemExit, match="--real BIDS_DIR"):  # not another head instead
        sources.head(fitted, 0)


def outputs(folder, *, version="1.0.0.dev1+gabc", seconds=1.0, shift=0.0, bright=100.0):
    """What a run might keep, and its digests."""
    case = folder / "case"
    case.mkdir(parents=True)
    write_image(case / "dwi.nii.gz", np.full((3, 3, 3), bright, np.float32), np.eye(4))
    pose = rigid_matrix(np.array([shift, 0.0, 0.0]), np.zeros(3), np.zeros(3))
    write_itk(case / "xfm.txt", pose[None])
    sidecar = {"EddymotionVersion": version, "time": f"{seconds} s", "Settings": {"model": "gp"}}
    (case / "dwi.json").write_text(json.dumps(sidecar), encoding="utf-8")
    (case / "dwi.tsv").write_text(f"seconds\tx\n{seconds}\t{shift}\n", encoding="utf-8")
    (case / "dwi.html").write_text(f"<p>{version} {folder}<td>{seconds} s</td>", encoding="utf-8")
    contents = {
        path.relative_to(folder).as_posix(): equality.read(path, folder)
        for path in case.iterdir()
    }  # fmt: skip
    equality.keep(folder, contents, {"case": "done"})
    return folder


def compared(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["equality", "compare", *map(str, words)])
    return equality.main()


def test_runs_are_equal_whoever_made_them_and_when(tmp_path, monkeypatch, capsys):
    before = outputs(tmp_path / "before")
    after = outputs(tmp_path / "after", version="1.0.0.dev2+gdef", seconds=2.5)
    assert compared(monkeypatch, before, after) == 0
    assert capsys.readouterr().out == "5 of 5 files equal bit by bit\n"


def test_what_differs_is_reported_and_measured(tmp_path, monkeypatch, capsys):
    before = outputs(tmp_path / "before")
    after = outputs(tmp_path / "after", shift=2e-5, bright=100.01)
    assert compared(monkeypatch, before, after) == 1
    out = capsys.readouterr().out
    assert "case/xfm.txt: poses up to 2e-05 mm apart, transform 0" in out
    assert re.search(r"case/dwi.nii.gz: image: up to 0.0001 of the 99th percentile", out)
    assert "case/dwi.tsv: x: up to" in out
    assert "2 of 5 files equal" in out
    allowed = ("--poses-mm", 1e-4, "--images", 1e-3, "--numbers", 1)
    (after / "case/dwi.tsv").write_text("seconds\tx\n1.0\t0.0\n", encoding="utf-8")
    assert compared(monkeypatch, before, after, *allowed) == 0
    assert compared(monkeypatch, before, after, *allowed[2:]) == 1  # the poses
    assert np.load(before / "poses.npz")["case/xfm.txt"].shape == (1, 4, 4)
