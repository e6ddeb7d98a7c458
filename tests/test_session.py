# SPDX-License-Identifier: Apache-2.0
"""The BIDS-App on sessions of several runs."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from runs import QUICK

from eddymotion.bids.series import Sorted, find_series
from eddymotion.bids.sessions import with_polarity, with_runs
from eddymotion.cli import participant
from eddymotion.images.grid import Grid, grid_points
from eddymotion.io.itk import read_itk
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.mapping.rigid import rigid_matrix
from eddymotion.simulation import acquire, procedural_head, shelled_scheme, write_bids
from eddymotion.simulation.motion import simulate_motion

MOVED = rigid_matrix(np.array([0.0, 4.0, -3.0]), np.deg2rad([2.0, 0.0, 5.0]), np.zeros(3))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two runs, the head moved between them, and a b=0 image that is left over."""
    root, head = tmp_path_factory.mktemp("session") / "bids", procedural_head(6.0)
    grid = Grid.covering(head, 6.0)
    for run, between in (("1", np.eye(4)), ("2", MOVED)):
        scheme = shelled_scheme({1000.0: 8}, 2, seed=int(run))
        motion = simulate_motion("moderate", len(scheme), np.zeros(3), seed=int(run))
        poses = motion.relative_to(0).matrices @ between
        truth = type(motion)(poses)
        dwi = acquire(head, scheme, truth, grid, seed=int(run))
        image = write_bids(root, f"x{run}", dwi, truth)
        target = root / "sub-01" / "dwi"
        target.mkdir(parents=True, exist_ok=True)
        for path in image.parent.glob(f"sub-x{run}_*dwi.*"):
            name = path.name.replace(f"sub-x{run}", f"sub-01_run-{run}")
            shutil.move(path, target / name)
        shutil.rmtree(root / f"sub-x{run}")
    return root


@pytest.fixture(scope="module")
def corrected(dataset, tmp_path_factory):
    output = tmp_path_factory.mktemp("session-out")
    call = [dataset, output, "participant", *QUICK, "--resampling", "fast",
            "--distortion-group-merge", "concat"]  # fmt: skip
    assert participant.main([str(part) for part in call]) == 0
    return output / "sub-01" / "dwi"


def test_runs_lie_in_the_frame_of_the_first(corrected, dataset):
    image = nib.load(corrected / "sub-01_run-1_desc-preproc_dwi.nii.gz")
    points = grid_points(image.shape[:3], image.affine)[::50]
    for run, between in (("1", np.eye(4)), ("2", MOVED)):
        name = f"sub-01_run-{run}_from-orig_to-dwiref_mode-image_desc-hmc_xfm.txt"
        first = read_itk(corrected / name)[0]
        apart = apply_affine(first, points) - apply_affine(between, points)
        assert np.sqrt((apart**2).sum(axis=1).mean()) < 1.0  # mm, voxels of 6 mm; 5 unjoined
    means = [nib.load(corrected / f"sub-01_run-{run}_desc-hmc_dwiref.nii.gz").get_fdata()
             for run in "12"]  # fmt: skip
    mask = nib.load(corrected / "sub-01_run-1_desc-brain_mask.nii.gz").get_fdata() > 0
    assert np.corrcoef(*(mean[mask] for mean in means))[0, 1] > 0.95
    sidecar = json.loads((corrected / "sub-01_run-2_desc-preproc_dwi.json").read_text())
    assert [name.split("/")[-1] for name in sidecar["Runs"]] == [
        "sub-01_run-1_dwi.nii.gz", "sub-01_run-2_dwi.nii.gz"
    ]  # fmt: skip
    assert not sidecar["OffResonanceCorrected"]
    assert not (corrected.parent / "fmap").exists()


def test_merged_series_holds_the_runs_one_after_the_other(corrected):
    image = nib.load(corrected / "sub-01_desc-merged_dwi.nii.gz")
    merged, sidecar = image.get_fdata(), corrected / "sub-01_desc-merged_dwi.json"
    assert image.header.get_zooms()[3] == json.loads(sidecar.read_text())["RepetitionTime"] > 0
    runs = [nib.load(corrected / f"sub-01_run-{run}_desc-preproc_dwi.nii.gz").get_fdata()
            for run in "12"]  # fmt: skip
    np.testing.assert_allclose(merged, np.concatenate(runs, axis=3), rtol=1e-5, atol=1e-3)
    bvals = np.loadtxt(corrected / "sub-01_desc-merged_dwi.bval")
    assert bvals.shape == (merged.shape[3],)


def test_a_second_run_finds_all_finished(dataset, corrected, capsys):
    call = [dataset, corrected.parents[1], "participant", *QUICK, "--resampling", "fast",
            "--distortion-group-merge", "concat"]  # fmt: skip
    assert participant.main([str(part) for part in call]) == 0
    assert capsys.readouterr().err.count("exist; reused") == 2


def test_one_run_that_fails_leaves_the_other(dataset, tmp_path, capsys):
    broken = tmp_path / "bids"
    shutil.copytree(dataset, broken)
    (broken / "sub-01" / "dwi" / "sub-01_run-1_dwi.bval").write_text("0 0 1000\n")
    output = tmp_path / "out"
    assert participant.main([str(broken), str(output), "participant", *QUICK]) == 1
    assert "1 of 2 series failed" in capsys.readouterr().err
    (log,) = (output / "logs").glob("*.log")
    assert "sub-01_run-1_dwi.nii.gz: excluded from the runs of its session" in log.read_text()
    assert (output / "sub-01" / "dwi" / "sub-01_run-2_desc-preproc_dwi.nii.gz").is_file()
    sidecar = json.loads((output / "sub-01/dwi/sub-01_run-2_desc-preproc_dwi.json").read_text())
    (warning,) = (one for one in sidecar["Warnings"] if one["Subject"] == "runs")
    assert "sub-01_run-1_dwi.nii.gz: could not be used" in warning["Text"]


@pytest.mark.slow
def test_runs_of_two_heads_are_doubted_on_log_and_page(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "eddymotion.pipeline.runs.account.AGREE", 0.9999
    )  # as heads of two people would
    call = [dataset, tmp_path, "participant", *QUICK, "--nprocs", "1"]
    assert participant.main([str(part) for part in call]) == 0
    sidecar = tmp_path / "sub-01" / "dwi" / "sub-01_run-1_desc-preproc_dwi.json"
    (warning,) = json.loads(sidecar.read_text())["Warnings"]
    assert "their common frame may be wrong" in warning["Text"]
    assert "their common frame may be wrong" in (tmp_path / "sub-01.html").read_text()


@pytest.mark.slow
def test_separate_runs_keep_frames_of_their_own(dataset, tmp_path):
    earlier = tmp_path / "sub-01"
    stale = [earlier / "dwi" / f"sub-01_desc-merged_dwi{end}" for end in (".nii.gz", ".json")]
    stale += [earlier / "fmap" / f"sub-01_fmapid-auto00000_desc-preproc_fieldmap{end}"
              for end in (".nii.gz", ".json")]  # fmt: skip
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"B0FieldIdentifier": "auto00000"}')
    call = [dataset, tmp_path, "participant", *QUICK, "--separate-all-dwis"]
    assert participant.main([str(part) for part in call]) == 0
    assert not any(path.exists() for path in stale)
    name = "sub-01_run-2_from-orig_to-dwiref_mode-image_desc-hmc_xfm.txt"
    found = read_itk(tmp_path / "sub-01" / "dwi" / name)[0]
    np.testing.assert_allclose(found, np.eye(4), atol=1e-12)


def write_run(folder, name, metadata, bvals="0 1000 1000"):
    """An empty run whose tables and sidecar count."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / name
    shape = (4, 4, 4, len(bvals.split()))
    nib.save(nib.Nifti1Image(np.ones(shape, np.int16), np.eye(4)), f"{stem}.nii.gz")
    if name.endswith("_dwi"):
        (folder / f"{name}.bval").write_text(bvals)
        (folder / f"{name}.bvec").write_text("\n".join([bvals.replace("1000", "1")] * 3))
    (folder / f"{name}.json").write_text(json.dumps(metadata))


def runs_of(root, name):
    (series,) = [one for one in with_runs(Sorted.of(find_series(root), 50.0)).series["01"]
                 if one.dwi.name.startswith(name)]  # fmt: skip
    return [run.dwi.name.split(".")[0] for run in series.runs], series


def test_runs_of_b0_alone_come_last_and_belong_to_the_others(tmp_path):
    folder = tmp_path / "sub-01" / "dwi"
    write_run(folder, "sub-01_dir-PA_dwi", {"PhaseEncodingDirection": "j"})
    write_run(folder, "sub-01_dir-AP_dwi", {"PhaseEncodingDirection": "j-"}, bvals="0 0")
    names, _ = runs_of(tmp_path, "sub-01_dir-PA")
    assert names == ["sub-01_dir-PA_dwi", "sub-01_dir-AP_dwi"]


@pytest.mark.parametrize(
    ("metadata", "belongs"),
    [
        ({}, True),
        ({"IntendedFor": "dwi/sub-01_dwi.nii.gz"}, True),
        ({"IntendedFor": ["bids::sub-01/dwi/sub-01_dwi.nii.gz"]}, True),
        ({"IntendedFor": "func/sub-01_task-rest_bold.nii.gz"}, False),
        ({"B0FieldIdentifier": "a", "IntendedFor": "func/x.nii.gz"}, True),
        ({"B0FieldIdentifier": ["b"]}, False),
        ({"PhaseEncodingDirection": "j"}, False),
    ],
)
def test_field_maps_serve_the_runs_that_their_sidecars_name(tmp_path, metadata, belongs):
    folder = tmp_path / "sub-01"
    run = {"PhaseEncodingDirection": "j", "B0FieldSource": "a"}
    write_run(folder / "dwi", "sub-01_dwi", run)
    opposed = {"PhaseEncodingDirection": "j-"} | metadata
    write_run(folder / "fmap", "sub-01_dir-AP_epi", opposed, bvals="0")
    names, _ = runs_of(tmp_path, "sub-01_dwi")
    assert ("sub-01_dir-AP_epi" in names) == belongs


@pytest.mark.parametrize(
    ("maps", "metadata", "found"),
    [
        (["phasediff", "magnitude1"], {}, {"phasediff", "magnitude"}),
        (["phase1", "phase2", "magnitude1"], {}, {"phase1", "phase2", "magnitude"}),
        (["phase1"], {}, set()),
        (["fieldmap", "magnitude"], {"Units": "Hz"}, {"fieldmap", "magnitude"}),
        (["phasediff"], {"IntendedFor": "func/x.nii.gz"}, set()),
    ],
)
def test_measured_maps_serve_runs_of_one_polarity(tmp_path, maps, metadata, found):
    folder = tmp_path / "sub-01"
    write_run(folder / "dwi", "sub-01_dir-AP_dwi", {"PhaseEncodingDirection": "j-"})
    for kind in maps:
        write_run(folder / "fmap", f"sub-01_{kind}", metadata, bvals="0")
    _, series = runs_of(tmp_path, "sub-01_dir-AP")
    assert set(series.measured.files) == found
    write_run(folder / "dwi", "sub-01_dir-PA_dwi", {"PhaseEncodingDirection": "j"})
    _, series = runs_of(tmp_path, "sub-01_dir-AP")
    assert set(series.measured.files) == found  # compared with what opposite polarities tell


def test_metadata_of_field_maps_are_inherited(tmp_path):
    folder = tmp_path / "sub-01"
    write_run(folder / "dwi", "sub-01_dwi", {"PhaseEncodingDirection": "j"})
    for name in ("dir-AP_epi", "phasediff"):
        write_run(folder / "fmap", f"sub-01_{name}", {}, bvals="0")
    (tmp_path / "dir-AP_epi.json").write_text('{"PhaseEncodingDirection": "j-"}')
    (tmp_path / "phasediff.json").write_text('{"EchoTime1": 0.005, "EchoTime2": 0.00746}')
    names, series = runs_of(tmp_path, "sub-01_dwi")
    assert names == ["sub-01_dwi", "sub-01_dir-AP_epi"]
    assert series.runs[1].metadata["PhaseEncodingDirection"] == "j-"
    assert series.measured.echo_times == (0.005, 0.00746)


def test_of_several_maps_the_one_that_is_meant_is_taken_with_its_own_magnitude(tmp_path, caplog):
    folder = tmp_path / "sub-01"
    write_run(folder / "dwi", "sub-01_dwi", {"PhaseEncodingDirection": "j"})
    for run, intended in ((1, {"IntendedFor": "func/sub-01_task-rest_bold.nii.gz"}), (2, {}),
                          (3, {"IntendedFor": "dwi/sub-01_dwi.nii"}), (4, {})):  # fmt: skip
        for kind in ("phasediff", "magnitude1"):
            write_run(folder / "fmap", f"sub-01_run-{run}_{kind}", intended, bvals="0")
    write_run(folder / "func", "sub-01_task-rest_bold", {})
    _, series = runs_of(tmp_path, "sub-01_dwi")
    assert {kind: path.name for kind, path in series.measured.files.items()} == {
        "phasediff": "sub-01_run-3_phasediff.nii.gz",
        "magnitude": "sub-01_run-3_magnitude1.nii.gz",
    }
    assert not caplog.text
    (folder / "fmap" / "sub-01_run-3_phasediff.json").unlink()
    _, series = runs_of(tmp_path, "sub-01_dwi")
    assert series.measured.files["magnitude"].name == "sub-01_run-2_magnitude1.nii.gz"
    assert "run-2_phasediff.nii.gz is used for the off-resonance field, not" in caplog.text


def test_field_maps_that_cannot_be_used_are_named(tmp_path, caplog):
    folder = tmp_path / "sub-01"
    write_run(folder / "dwi", "sub-01_dwi", {})
    write_run(folder / "fmap", "sub-01_dir-AP_epi", {}, bvals="0")
    write_run(folder / "fmap", "sub-01_phasediff", {"IntendedFor": "dwi/other_dwi.nii.gz"}, "0")
    _, series = runs_of(tmp_path, "sub-01_dwi")
    assert not series.measured
    assert "no run of the session has PhaseEncodingDirection" in caplog.text
    assert (
        "IntendedFor in its sidecar names dwi/other_dwi.nii.gz, which does not exist"
        in caplog.text
    )
    write_run(folder / "dwi", "sub-01_dwi", {"PhaseEncodingDirection": "j"})
    assert runs_of(tmp_path, "sub-01_dwi")[0] == []
    assert "no sidecar has PhaseEncodingDirection" in caplog.text


def test_names_tell_the_polarity_where_sidecars_name_the_axis(tmp_path, caplog):
    folder = tmp_path / "sub-01" / "dwi"
    for label in ("AP", "PA"):
        write_run(folder, f"sub-01_dir-{label}_dwi", {"PhaseEncodingAxis": "j"})
    found = [runs_of(tmp_path, f"sub-01_dir-{label}")[1] for label in ("AP", "PA")]
    assert [one.metadata["PhaseEncodingDirection"] for one in found] == ["j-", "j"]
    assert "polarity is taken from the names" in caplog.text


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("dwi_AP", "b0_PA"), ["j-", "j"]),
        (("pa", "ap"), ["j", "j-"]),
        (("acq-PA_dir-AP_dwi", "acq-AP_dir-PA_dwi"), ["j-", "j"]),
        (("map_dwi", "spa_dwi"), [None, None]),
    ],
)
def test_names_outside_a_dataset_tell_the_polarity_too(names, told):
    runs = [SeriesFiles(Path(f"{name}.nii.gz"), metadata={"PhaseEncodingAxis": "j"})
            for name in names]  # fmt: skip
    found = with_polarity(runs)
    assert [run.metadata.get("PhaseEncodingDirection") for run in found] == told
