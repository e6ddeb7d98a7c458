# SPDX-License-Identifier: Apache-2.0
"""The commands, from outside: files, exit codes, messages."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from runs import write_two_participants

from eddymotion.bids.series import find_series
from eddymotion.cli import correct, fieldmap, participant
from eddymotion.cli.demo import comparison_table
from eddymotion.errors import EddymotionError
from eddymotion.io.itk import read_itk
from eddymotion.io.sidecars import SeriesFiles, metadata_of
from eddymotion.io.tsv import Table
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rigid_parameters
from eddymotion.reports.group import gather
from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme, write_bids
from eddymotion.simulation.motion import simulate_motion

README = Path(__file__).resolve().parents[1] / "README.md"

CONFOUNDS = [
    *("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"),
    *("framewise_displacement", "rmsd", "rms_abs", "bval", "grad_x", "grad_y", "grad_z"),
    *("hmc_r2", "hmc_xcorr", "outlier_slices", "outlier_percent"),
    *("trans_x_se", "trans_y_se", "trans_z_se", "rot_x_se", "rot_y_se", "rot_z_se"),
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two participants, one with a session: small heads with known motion."""
    root = tmp_path_factory.mktemp("bids")
    phantom = procedural_head(4.0)
    for number, label in enumerate(("01", "02")):
        gradients = shelled_scheme({1000.0: 18}, 3, seed=number)
        truth = simulate_motion("moderate", len(gradients), np.zeros(3), seed=number)
        grid = Grid.covering(phantom, 4.0, orientation="LAS")
        write_bids(root, label, acquire(phantom, gradients, truth, grid, seed=number), truth)
    session = root / "sub-02" / "ses-A" / "dwi"
    session.mkdir(parents=True)
    for path in (root / "sub-02" / "dwi").iterdir():
        path.rename(session / path.name.replace("sub-02_", "sub-02_ses-A_acq-x_"))
    (root / "sub-02" / "dwi").rmdir()
    return root


@pytest.fixture(scope="module")
def derivatives(dataset, tmp_path_factory):
    """What the BIDS-App makes of it."""
    output = tmp_path_factory.mktemp("derivatives")
    before = checksums(dataset)
    assert participant.main([str(dataset), str(output), "participant", "--fsl-outputs"]) == 0
    assert checksums(dataset) == before
    return output


def checksums(folder):
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def data_checksums(folder):
    """All but logs, and the seconds and pictures' summaries that may differ between runs."""
    return {
        str(path.relative_to(folder)): digest
        for path, digest in checksums(folder).items()
        if path.name.endswith((".nii.gz", ".bval", ".bvec", "_xfm.txt", ".tsv"))
        and path.parent.name != "figures"
    }


def test_participant_writes_the_files_of_the_contract(derivatives):
    stem = "sub-02_ses-A_acq-x"
    expected = {
        f"{stem}_{name}"
        for name in (
            "desc-preproc_dwi.nii.gz", "desc-preproc_dwi.bval", "desc-preproc_dwi.bvec",
            "desc-preproc_dwi.json", "desc-hmc_dwiref.nii.gz", "desc-brain_mask.nii.gz",
            "from-orig_to-dwiref_mode-image_desc-hmc_xfm.txt",
            "from-orig_to-dwiref_mode-image_desc-hmc_xfm.x5",
            "desc-confounds_timeseries.tsv", "desc-confounds_timeseries.json",
            "desc-hmc_outliers.tsv", "desc-hmc_qc.json", "desc-exclude_volumes.txt",
        )
    }  # fmt: skip
    written = {path.name for path in (derivatives / "sub-02" / "ses-A" / "dwi").iterdir()}
    assert expected <= written
    assert (derivatives / "sub-02.html").is_file()
    assert (derivatives / "sub-02" / "figures").is_dir()
    description = json.loads((derivatives / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "eddymotion"
    assert description["SourceDatasets"]
    for name in (".bidsignore", "README", "logs/CITATION.md"):
        assert (derivatives / name).is_file()
    assert len(list((derivatives / "logs").glob("*.log"))) == 1
    assert not [path for path in derivatives.rglob(".*") if path.name != ".bidsignore"]


def test_the_figures_of_a_series_are_those_of_the_group(derivatives):
    for row in gather(derivatives).rows:
        folder = derivatives / row.participant / (row.session or "") / "dwi"
        told = json.loads((folder / f"{row.series}_desc-hmc_qc.json").read_text())
        for name, value in row.metrics.items():
            known = None if isinstance(value, float) and np.isnan(value) else value
            assert told[name] == (pytest.approx(known, abs=1e-6) if known is not None else None)
        confounds = Table.read(folder / f"{row.series}_desc-confounds_timeseries.tsv")
        absolute, fd = map(confounds.numbers, ("rms_abs", "framewise_displacement"))
        assert told["qc_mot_abs"] == pytest.approx(absolute.mean(), abs=1e-6)
        assert told["fd_num"] == (fd[1:] > 0.2).sum()
        assert len(told["qc_cnr_avg"]) == 1 + told["data_no_shells"] == 2
        assert set(told) - set(told["Dictionary"]) == {"Dictionary", "EddymotionVersion"}
        listed = (folder / f"{row.series}_desc-exclude_volumes.txt").read_text().split()
        assert listed == list(told["exclude_volumes"])


def test_derivatives_are_valid_bids(derivatives, bids_errors):
    assert bids_errors(derivatives) == []


def test_motion_is_recovered_and_the_tables_agree(dataset, derivatives):
    stem = derivatives / "sub-01" / "dwi" / "sub-01"
    found = read_itk(f"{stem}_from-orig_to-dwiref_mode-image_desc-hmc_xfm.txt")
    truth = read_itk(dataset / "truth" / "sub-01_xfm.txt")
    errors = rigid_parameters(np.linalg.inv(truth) @ found, np.zeros(3))
    assert np.sqrt((errors[:, :3] ** 2).mean()) < 0.4
    assert np.rad2deg(np.sqrt((errors[:, 3:] ** 2).mean())) < 0.35
    header, *rows = (
        line.split("\t")
        for line in (derivatives / "sub-01/dwi/sub-01_desc-confounds_timeseries.tsv")
        .read_text().splitlines()
    )  # fmt: skip
    assert header == CONFOUNDS
    assert len(rows) == len(truth)
    assert rows[0][6:8] == ["n/a", "n/a"]
    image = nib.load(f"{stem}_desc-preproc_dwi.nii.gz")
    center = image.affine[:3] @ [*(np.array(image.shape[:3]) - 1) / 2, 1]
    table = np.array([row[:6] for row in rows], float)
    np.testing.assert_allclose(table, rigid_parameters(found, center), atol=1e-6)
    described = json.loads(
        (derivatives / "sub-01/dwi/sub-01_desc-confounds_timeseries.json").read_text()
    )
    assert set(described) == set(header)
    assert all(entry["Units"] for entry in described.values())
    assert image.get_data_dtype() == np.float32
    assert image.shape[3] == len(truth)


def test_sidecar_names_its_source_and_settings(derivatives):
    path = derivatives / "sub-01" / "dwi" / "sub-01_desc-preproc_dwi.json"
    sidecar = json.loads(path.read_text())
    assert sidecar["Sources"] == ["bids:raw:sub-01/dwi/sub-01_dwi.nii.gz"]
    assert sidecar["SkullStripped"] is False
    assert sidecar["Settings"]["b0_threshold"] == 50
    assert sidecar["RepetitionTime"] == 4.0


def test_the_report_needs_nothing_from_elsewhere(derivatives):
    page = (derivatives / "sub-01.html").read_text()
    assert 'src="data:image/' in page
    assert "default-src 'none'" in page.split("<body>")[0]
    assert 'src="http' not in page


def test_second_run_reuses_and_other_settings_recompute(dataset, derivatives, tmp_path, capsys):
    output = shutil.copytree(derivatives, tmp_path / "derivatives")
    image = output / "sub-01" / "dwi" / "sub-01_desc-preproc_dwi.nii.gz"
    call = [str(dataset), str(output), "participant", "--participant-label", "sub-01"]
    written = image.stat().st_mtime_ns
    assert participant.main([*call, "--fsl-outputs", "--nprocs", "1"]) == 0
    assert image.stat().st_mtime_ns == written
    assert "reused" in capsys.readouterr().err
    assert participant.main([*call, "--n-iterations", "1"]) == 0
    assert image.stat().st_mtime_ns > written


def test_a_broken_sidecar_is_reported_once_and_stops_nothing(tmp_path, caplog):
    series = SeriesFiles(tmp_path / "dwi.nii.gz")
    assert metadata_of(series) == {}
    (tmp_path / "dwi.json").write_text('{"PhaseEncodingDirection": "j",}')
    assert metadata_of(series) == {}
    assert metadata_of(series) == {}
    (message,) = caplog.messages
    assert "dwi.json: cannot be read as JSON" in message
    (tmp_path / "dwi.json").write_text('{"PhaseEncodingDirection": "j"}')
    assert metadata_of(series) == {"PhaseEncodingDirection": "j"}


def test_filter_file_and_session_select(dataset, tmp_path):
    filters = tmp_path / "filter.json"
    filters.write_text(json.dumps({"dwi": {"session": None}}))
    without_session = find_series(dataset, filter_file=filters)
    assert list(without_session) == ["01"]
    filters.write_text(json.dumps({"dwi": {"session": "*", "acquisition": "x"}}))
    assert list(find_series(dataset, filter_file=filters)) == ["02"]
    assert list(find_series(dataset, sessions=["ses-A"])) == ["02"]
    filters.write_text(json.dumps({"dwi": {"session": [None, "A"]}}))
    assert list(find_series(dataset, filter_file=filters)) == ["01", "02"]
    filters.write_text(json.dumps({"dwi": {"session": {"a": 1}}}))
    with pytest.raises(EddymotionError, match=r'session is \{"a": 1\}; expected a label'):
        find_series(dataset, filter_file=filters)
    filters.write_text("{")
    with pytest.raises(EddymotionError, match=r"filter\.json"):
        find_series(dataset, filter_file=filters)


def test_reports_only_writes_the_page_again(dataset, derivatives):
    page = derivatives / "sub-02.html"
    page.unlink()
    image = next((derivatives / "sub-02").rglob("*_desc-preproc_dwi.nii.gz"))
    written = image.stat().st_mtime_ns
    call = [str(dataset), str(derivatives), "participant", "--participant-label", "02"]
    assert participant.main([*call, "--reports-only"]) == 0
    assert page.is_file()
    assert image.stat().st_mtime_ns == written


def test_reports_need_neither_raw_data_nor_images(derivatives, tmp_path, capsys):
    copied = tmp_path / "copied"
    ignored = shutil.ignore_patterns("*.nii.gz", "*.html")
    shutil.copytree(derivatives, copied, ignore=ignored)
    call = [str(tmp_path / "gone"), str(copied), "participant", "--reports-only"]
    assert participant.main(call) == 0
    for name in ("sub-01.html", "sub-02.html"):
        assert (copied / name).read_bytes() == (derivatives / name).read_bytes()
    assert participant.main([*call, "--participant-label", "77"]) == 2
    assert "no sub-77 in" in capsys.readouterr().err


@pytest.mark.slow  # tests/test_participant_run.py::test_side_by_side_is_as_one_by_one is quicker
def test_results_do_not_depend_on_the_number_of_processes(dataset, tmp_path):
    image = next((dataset / "sub-01" / "dwi").glob("*.nii.gz"))
    for n in ("1", "2"):
        call = [str(image), "-o", str(tmp_path / n), "--nprocs", n, "--n-iterations", "2"]
        assert correct.main(call) == 0
    one, two = data_checksums(tmp_path / "1"), data_checksums(tmp_path / "2")
    assert len(one) >= 8
    assert one == two


def test_correct_without_bids(series, tmp_path, capsys):
    shutil.copy(series, tmp_path / "scan.nii.gz")
    shutil.copy(series.with_name("dwi.bval"), tmp_path / "table.bval")
    bvecs = np.loadtxt(series.with_name("dwi.bvec")).T
    np.savetxt(tmp_path / "table.bvec", bvecs)
    call = [str(tmp_path / "scan.nii.gz"), "--bval", str(tmp_path / "table.bval")]
    call += ["--bvec", str(tmp_path / "table.bvec"), "-o", str(tmp_path / "out")]
    assert correct.main([*call, "--n-iterations", "1", "--model", "average"]) == 0
    for name in ("scan_desc-preproc_dwi.nii.gz", "scan_desc-preproc_dwi.bvec", "scan.html"):
        assert (tmp_path / "out" / name).is_file()
    figures = json.loads((tmp_path / "out" / "scan_desc-hmc_qc.json").read_text())
    printed = capsys.readouterr()
    assert f"\nverdict: {figures['verdict']}" in printed.out
    assert "estimating" not in printed.out  # results there, progress and warnings here
    assert printed.err.splitlines()[0].endswith("estimating")
    assert "verdict" not in printed.err


def test_fast_engine_and_output_space(series, tmp_path):
    grid = nib.Nifti1Image(np.zeros((30, 36, 28), np.uint8), np.diag([5.0, 5.0, 5.0, 1]))
    grid.affine[:3, 3] = [-72, -87, -67]
    nib.Nifti1Image(np.zeros((30, 36, 28), np.uint8), grid.affine).to_filename(tmp_path / "g.nii")
    call = [str(series), "-o", str(tmp_path / "out"), "--output-space", str(tmp_path / "g.nii")]
    assert correct.main([*call, "--resampling", "fast", "--n-iterations", "1"]) == 0
    corrected = nib.load(tmp_path / "out" / "dwi_desc-preproc_dwi.nii.gz")
    assert corrected.shape[:3] == (30, 36, 28)
    assert corrected.get_fdata().max() > 0


def test_a_failing_series_is_listed_and_the_others_are_complete(tmp_path, capsys):
    broken = tmp_path / "bids"
    write_two_participants(broken)
    (broken / "sub-01" / "dwi" / "sub-01_dwi.bvec").unlink()
    output = tmp_path / "out"
    call = [str(broken), str(output), "participant", "--n-iterations", "1"]
    assert participant.main(call) == 1
    message = capsys.readouterr().err
    assert "1 of 2 series failed" in message
    assert "sub-01_dwi.bvec" in message.split("series failed")[1]
    assert not list((output / "sub-01").rglob("*_dwi.nii.gz"))
    assert list((output / "sub-02").rglob("*desc-preproc_dwi.nii.gz"))


def test_configuration_file_sets_defaults_and_the_command_line_wins(series, tmp_path):
    config = tmp_path / "settings.toml"
    config.write_text('model = "average"\nn-iterations = 2\n')
    call = [str(series), "-o", str(tmp_path / "out"), "--config-file", str(config)]
    assert correct.main([*call, "--n-iterations", "1"]) == 0
    sidecar = json.loads((tmp_path / "out" / "dwi_desc-preproc_dwi.json").read_text())
    assert sidecar["Settings"]["model"] == "average"
    assert sidecar["Settings"]["n_iterations"] == 1


def wrong_calls(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "config.toml").write_text("modle = 'gp'\n")
    return {
        "unknown option": (["in", "out", "participant", "--n-iteration", "3"], "--n-iterations"),
        "option of eddy": (["in", "out", "participant", "--repol"], "; write --replace-outliers"),
        "option of fMRIPrep": (["in", "out", "participant", "--notrack"], "; leave it out: "),
        "option of eddymotion-correct": (
            ["in", "out", "participant", "--bval", "x"], "eddymotion-correct accepts others"),
        "its folder": (["in", "out", "participant", "-o", "x"], "second word of the call is"),
        "its mask": (["in", "out", "participant", "--mask", "x"], "; write --brain-mask"),
        "dry run": (["in", "out", "participant", "--dry-run"], "; write --doctor BIDS_DIR"),
        "alike by its dashes": (["in", "out", "participant", "--info"], "argument --info (see"),
        "value of a flag": (["in", "out", "participant", "--verbose=1"], "no value, got '1'"),
        "another word for an axis": (["in", "out", "participant", "--pe-axis", "AP"], "AP is j-"),
        "no memory": (["in", "out", "participant", "--mem-gb", "all"], "'all' given, expected an"),
        "an image": ([next(dataset.rglob("*.nii.gz")), tmp_path / "o", "participant"],
                     "eddymotion-correct "),
        "commas": ([dataset, tmp_path / "o", "participant", "--participant-label", "01,02"],
                   "separate labels by spaces"),
        "name of a template": (
            ["in", "out", "participant", "--output-space", "MNI152Lin"], "or write T1w or dwi"),
        "nothing": ([], "BIDS_DIR OUTPUT_DIR participant"),
        "demo and dataset": (["in", "out", "participant", "--demo", "x"], "leave them out"),
        "demo and a choice": (["--demo", "x", "--participant_label", "3"], "it selects from a"),
        "demo and a plugin": (["--demo", "x", f"--use-plugin={README}"], "no use for --use-plu"),
        "no dataset": ([tmp_path / "nowhere", tmp_path / "o", "participant"], "no such folder"),
        "no series": ([tmp_path / "empty", tmp_path / "o", "participant"], "no diffusion series"),
        "no such participant": (
            [dataset, tmp_path / "o", "participant", "--participant-label", "99"], "01, 02"),
        "unwritable": ([dataset, tmp_path / "file" / "o", "participant"], "cannot be written"),
        "output is input": ([dataset, dataset, "participant"], "inside the input"),
        "output inside": ([dataset, dataset / "sub-01" / "o", "participant"], "inside the input"),
        "zero processes": (
            [dataset, tmp_path / "o", "participant", "--nprocs", "0"], "above zero"),
        "bad config": (
            [dataset, tmp_path / "o", "participant", "--config-file", tmp_path / "config.toml"],
            "did you mean model"),
        "one mask for many": (
            [dataset, tmp_path / "o", "participant", "--brain-mask",
             next(dataset.rglob("*.nii.gz"))], "select one series"),
    }  # fmt: skip


def test_wrong_calls_exit_with_2_and_one_line(dataset, tmp_path, capsys):
    for name, (call, hint) in wrong_calls(dataset, tmp_path).items():
        before = checksums(dataset)
        try:
            code = participant.main([str(part) for part in call])
        except SystemExit as exit_:
            code = exit_.code
        message = capsys.readouterr().err
        assert code == 2, name
        assert message.count("\n") == 1, name
        assert hint in message, name
        assert checksums(dataset) == before, name
        assert not (tmp_path / "o").exists(), name


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        ("--participant-label", "; leave it out: it selects from a dataset: eddymotion BIDS_DIR"),
        ("--mem-gb", "; leave it out: it divides memory"),
        ("-w", "; leave it out: intermediate results are in the output"),
        ("-scratch", "; leave it out: intermediate results are in the output"),
        ("--dry-run", "unknown argument --dry-run (see"),
        ("--ol_sqr", "; leave it out: the thresholds for lost slices are fixed"),
        ("--readout-time", "; leave it out: TotalReadoutTime is read from the sidecar"),
        ("--t1w", "; write --output-space FILE"),
        ("--pe_dir", "; write --pe-axis"),
    ],
)
def test_options_of_datasets_are_answered_by_the_command_for_one_series(option, answer, capsys):
    with pytest.raises(SystemExit):
        correct.main(["dwi.nii.gz", option])
    assert answer in capsys.readouterr().err


def test_every_option_of_one_command_is_answered_by_the_other():
    for there, here in permutations([participant.build_parser(), correct.build_parser()]):
        for option in {*there._option_string_actions} - {*here._option_string_actions}:
            answer = here._suggest(option)
            assert "; write " in answer or "; leave it out: " in answer, answer


def test_axes_in_other_words_are_told_where_several_are_taken(capsys):
    with pytest.raises(SystemExit):
        fieldmap.main(["ap.nii.gz", "pa.nii.gz", "-o", "out", "--pe-axis", "AP", "PA"])
    message = capsys.readouterr().err
    assert "AP is j- and PA is j" in message
    assert "put other arguments before it" in message


def test_unknown_model_is_one_line_that_lists_the_known(dataset, tmp_path, capsys):
    image = next((dataset / "sub-01" / "dwi").glob("*.nii.gz"))
    assert correct.main([str(image), "-o", str(tmp_path / "o"), "--model", "tensr"]) == 2
    assert "wls-dti" in capsys.readouterr().err
    call = [str(image), "-o", str(tmp_path / "o"), "--model", "dipy:Tensor"]
    assert correct.main(call) == 2
    assert "TensorModel" in capsys.readouterr().err


def damaged(kind, folder, source):
    """Copy a good series to `folder` and spoil it; return what the message must hold."""
    for path in source.glob("sub-01_dwi.*"):
        shutil.copy(path, folder / path.name.replace("sub-01_dwi", "dwi"))
    image_path = folder / "dwi.nii.gz"
    image = nib.load(image_path)
    data, affine = np.asarray(image.dataobj).copy(), image.affine
    bvals, bvecs = np.loadtxt(folder / "dwi.bval"), np.loadtxt(folder / "dwi.bvec")
    if kind == "bval length":
        np.savetxt(folder / "dwi.bval", bvals[None, :-1])
        return "dwi.bvec"
    if kind == "both tables too short":
        np.savetxt(folder / "dwi.bval", bvals[None, :-1])
        np.savetxt(folder / "dwi.bvec", bvecs[:, :-1])
        return "21 volumes"
    if kind == "no bvec":
        (folder / "dwi.bvec").unlink()
        return "dwi.bvec: no such file"
    if kind == "three dimensions":
        nib.Nifti1Image(data[..., 0], affine).to_filename(image_path)
        return "four dimensions"
    if kind == "truncated":
        content = image_path.read_bytes()
        image_path.write_bytes(content[: len(content) // 2])
        return "truncated"
    if kind == "not an image":
        image_path.write_bytes(b"hello")
        return "dwi.nii.gz"
    if kind == "empty volume":
        data[..., 3] = 0
        nib.Nifti1Image(data, affine).to_filename(image_path)
        return "volume 3"
    if kind == "one volume":
        np.savetxt(folder / "dwi.bval", np.where(np.arange(len(bvals)) == 1, 1000, 0)[None])
        return "at least 2"
    if kind == "affines":
        image = nib.Nifti1Image(data, affine)
        turned = affine @ np.diag([-1, 1, 1, 1])
        image.set_sform(affine, 1)
        image.set_qform(turned, 1)
        image.to_filename(image_path)
        return "--ignore"
    raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind",
    ["bval length", "both tables too short", "no bvec", "three dimensions", "truncated",
     "not an image", "empty volume", "one volume", "affines"],
)  # fmt: skip
def test_bad_series_is_one_message_and_nothing_written(kind, dataset, tmp_path, capsys):
    expected = damaged(kind, tmp_path, dataset / "sub-01" / "dwi")
    output = tmp_path / "out"
    assert correct.main([str(tmp_path / "dwi.nii.gz"), "-o", str(output)]) == 2
    message = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(message) == 1
    assert expected in message[0]
    assert [path for path in output.rglob("*") if path.is_file() and path.suffix != ".log"] == []


def test_mask_of_another_shape(dataset, tmp_path, capsys):
    image = next((dataset / "sub-01" / "dwi").glob("*.nii.gz"))
    nib.Nifti1Image(np.ones((5, 5, 5), np.uint8), np.eye(4)).to_filename(tmp_path / "m.nii.gz")
    call = [str(image), "-o", str(tmp_path / "o"), "--mask", str(tmp_path / "m.nii.gz")]
    assert correct.main(call) == 2
    assert "(5, 5, 5)" in capsys.readouterr().err


def test_series_without_b0_and_with_nan_voxels_works(series, tmp_path, capsys):
    image = nib.load(series)
    bvals, bvecs = (np.loadtxt(series.with_name(f"dwi.{kind}")) for kind in ("bval", "bvec"))
    dwi = bvals > 0
    data = np.asarray(image.dataobj, dtype=np.float32)[..., dwi]
    data[10, 12, 9, 2], data[11, 12, 9, 4] = np.nan, np.inf
    nib.Nifti1Image(data, image.affine).to_filename(tmp_path / "dwi.nii.gz")
    np.savetxt(tmp_path / "dwi.bval", bvals[None, dwi])
    np.savetxt(tmp_path / "dwi.bvec", bvecs[:, dwi])
    call = [str(tmp_path / "dwi.nii.gz"), "-o", str(tmp_path / "o"), "--n-iterations", "1"]
    assert correct.main(call) == 0
    messages = capsys.readouterr().err
    assert "2 voxels are NaN or infinite" in messages
    assert "volume 0" in messages
    corrected = nib.load(tmp_path / "o" / "dwi_desc-preproc_dwi.nii.gz").get_fdata()
    assert np.isfinite(corrected).all()


@pytest.mark.parametrize(
    ("module", "calls"),
    [
        ("participant", [["--help"]]),
        ("correct", [["--help"]]),
        ("evaluate", [["--help"], ["motion", "-h"], ["landmarks", "-h"], ["series", "-h"]]),
        ("register", [["--help"]]),
        ("fieldmap", [["--help"]]),
    ],
)
def test_help_loads_nothing_heavy(module, calls):
    code = (
        f"import sys; from eddymotion.cli.{module} import main\n"
        f"for call in {calls}:\n"
        "    try: main(call)\n    except SystemExit as e: assert e.code == 0\n"
        "heavy = {'numpy', 'scipy', 'numba', 'nibabel', 'dipy', 'bids', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert finished.stdout.count("usage: eddymotion") == len(calls)
    assert finished.stderr.strip() == "[]"


def test_a_run_begins_to_read_without_what_it_computes_and_draws_with():
    code = (
        "import sys, eddymotion.pipeline.correct\n"
        "late = ['matplotlib', 'dipy', 'nitransforms', 'PIL', 'numba', 'llvmlite']\n"
        "late += [f'scipy.{part}' for part in ('ndimage', 'linalg', 'spatial', 'special',\n"
        "         'sparse', 'stats', 'optimize')]\n"
        "print([name for name in late if name in sys.modules])"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert finished.stdout.strip() == "[]"


def numbers_of(table):
    """Return RMS of true motion and of its error, (2, 2) mm and degrees, that the demo prints."""
    lines = re.findall(r"^RMS .* ([\d.]+) mm +([\d.]+)°$", table, re.MULTILINE)
    assert len(lines) == 2
    return np.array(lines, float)


def test_demo(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert participant.main(["--demo", "demo"]) == 0
    printed = numbers_of(capsys.readouterr().out)
    for page in (README, README.parent / "docs" / "tutorial" / "demo.md"):
        stated = numbers_of(page.read_text(encoding="utf-8"))
        np.testing.assert_allclose(printed, stated, atol=0.005, err_msg=str(page))
    assert (tmp_path / "demo" / "motion.png").is_file()
    assert (tmp_path / "demo" / "derivatives" / "sub-demo.html").is_file()


def test_the_table_of_the_demo_fits_a_terminal():
    truth = simulate_motion("high", 33, np.zeros(3), seed=1)
    found = Motion.identity(33).updated(np.arange(33), truth.matrices)
    lines = comparison_table(truth, found, np.zeros(3)).splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("-0.00" in line for line in lines)
    for true, recovered in zip(lines[1:-3:2], lines[2:-3:2], strict=True):
        assert true.partition("true")[2].split() == recovered.partition("recovered")[2].split()
    assert lines[-1].split()[-2:] == ["mm", "0.000°"]
