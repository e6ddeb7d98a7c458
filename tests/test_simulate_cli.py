# SPDX-License-Identifier: Apache-2.0
"""``eddymotion-simulate`` from outside: files, bytes, exit codes, messages."""

import hashlib
import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from eddymotion.bids.series import Sorted, find_series
from eddymotion.cli import simulate
from eddymotion.estimation import estimate_motion
from eddymotion.io.itk import read_itk
from eddymotion.io.series import load
from eddymotion.io.tables import write_gradient_table
from eddymotion.mapping.eddy_currents import SCALE_MM
from eddymotion.mapping.rigid import rigid_parameters
from eddymotion.pipeline.runs.b0s import load_b0s
from eddymotion.simulation import Recipe, shelled_scheme

SMALL = ["--scheme", "few", "--voxel-size", "6", "--random-seed", "5", "--nprocs", "1"]
EVERYTHING = [
    *("--motion", "swap30", "--noise", "chi", "--coils", "4", "--dropout", "0.05"),
    *("--eddy-currents", "quadratic", "--pe-axis", "i-", "--oblique", "5", "-10", "8"),
    *("--orientation", "PSL", "--write-ideal", "--session-id", "A"),
]


def run(folder, *arguments):
    return simulate.main([str(folder), *SMALL, *map(str, arguments)])


def checksums(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two participants: an ordinary one, and one with everything that can go wrong."""
    root = tmp_path_factory.mktemp("simulated") / "bids"
    assert run(root) == 0
    assert run(root, "--participant-label", "sub-02", *EVERYTHING) == 0
    return root


def test_dataset_is_valid_bids(dataset, bids_errors):
    assert bids_errors(dataset) == []


def test_truth_lies_beside_the_series(dataset):
    names = {path.name for path in (dataset / "truth").iterdir()}
    always = ("xfm.txt", "motion.tsv", "dropped.tsv", "mask.nii.gz", "settings.json")
    extra = ("eddy.tsv", "ideal_dwi.nii.gz")
    assert names == {f"sub-01_{n}" for n in always} | {f"sub-02_ses-A_{n}" for n in always + extra}
    assert "sub-02_ses-A" in (dataset / "README").read_text()
    stem = dataset / "sub-02" / "ses-A" / "dwi" / "sub-02_ses-A_dwi"
    assert json.loads(stem.with_suffix(".json").read_text())["PhaseEncodingDirection"] == "i-"
    assert "".join(nib.aff2axcodes(nib.load(f"{stem}.nii.gz").affine)) == "PSL"


def test_dropped_table_says_which_slices_are_dark(dataset):
    stem = dataset / "truth" / "sub-02_ses-A"
    dropped = np.loadtxt(f"{stem}_dropped.tsv", skiprows=1)
    image = load(dataset / "sub-02" / "ses-A" / "dwi" / "sub-02_ses-A_dwi.nii.gz")
    assert len(dropped) == round(0.05 * 12 * image.shape[2])
    middle = [row for row in dropped if abs(row[1] - image.shape[2] / 2) < image.shape[2] / 4]
    mask = nib.load(f"{stem}_mask.nii.gz").get_fdata() > 0
    for volume, z in np.array(middle)[:, :2].astype(int):
        slices = [np.asarray(image.signal[..., k, volume][mask[..., k]]) for k in (z - 1, z)]
        assert slices[1].mean() < 0.9 * slices[0].mean()


def test_eddy_table_is_the_field_of_the_convention_in_the_settings(dataset):
    stem = dataset / "truth" / "sub-02_ses-A"
    dwi = load(dataset / "sub-02" / "ses-A" / "dwi" / "sub-02_ses-A_dwi.nii.gz")
    header, *rows = (stem.parent / f"{stem.name}_eddy.tsv").read_text().splitlines()
    assert header.split("\t")[:4] == ["e_x", "e_y", "e_z", "e_xx"]
    table = np.array([row.split("\t") for row in rows], float)
    response = np.linalg.lstsq(dwi.gradients.qvecs, table, rcond=None)[0]
    np.testing.assert_allclose(dwi.gradients.qvecs @ response, table, atol=1e-6)
    field = json.loads((stem.parent / f"{stem.name}_settings.json").read_text())["eddy_currents"]
    axis = -dwi.affine[:3, 0] / dwi.voxel_sizes[0]
    np.testing.assert_allclose(field["pe"], axis, atol=1e-6)
    np.testing.assert_allclose(field["center_mm"], dwi.center, atol=1e-4)
    assert field["scale_mm"] == SCALE_MM


def test_same_options_give_the_same_bytes_whatever_the_processors(dataset, tmp_path):
    assert run(tmp_path) == 0
    assert run(tmp_path, "--participant-label", "02", *EVERYTHING, "--nprocs", "3") == 0
    assert checksums(tmp_path) == checksums(dataset)
    assert run(tmp_path, "--overwrite", "--random-seed", "6") == 0
    image = "sub-01/dwi/sub-01_dwi.nii.gz"
    assert checksums(tmp_path)[image] != checksums(dataset)[image]


@pytest.mark.slow
def test_sessions_are_of_one_head_with_motion_and_noise_of_their_own(tmp_path):
    for session in ("1", "2"):
        assert run(tmp_path, "--session-id", session, "--write-ideal") == 0
    truths = [read_itk(tmp_path / f"truth/sub-01_ses-{session}_xfm.txt") for session in "12"]
    assert np.abs(truths[0][1:] - truths[1][1:]).max(axis=(1, 2)).min() > 0.1  # all but the first
    heads = [nib.load(tmp_path / f"truth/sub-01_ses-{session}_ideal_dwi.nii.gz").get_fdata()
             for session in "12"]  # fmt: skip
    np.testing.assert_allclose(*heads, atol=1)  # rounded to integers


def test_second_run_stops_and_overwriting_leaves_nothing_stale(tmp_path, capsys):
    root = tmp_path / "two words"
    options = ["--scheme", "few", "--voxel-size", "8", "--nprocs", "1"]
    assert simulate.main([str(root), *options, "--eddy-currents", "linear"]) == 0
    capsys.readouterr()
    before = checksums(root)
    assert simulate.main([str(root), *options]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "--overwrite" in message
    assert checksums(root) == before
    assert simulate.main([str(root), *options, "--overwrite"]) == 0
    assert not list(root.rglob("*_eddy.tsv"))
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"eddymotion '{root}' OUTPUT_DIR participant" in last


def test_dataset_of_others_is_left_alone(tmp_path, capsys):
    (tmp_path / "dataset_description.json").write_text('{"Name": "Real people"}')
    assert run(tmp_path) == 2
    assert "not simulated" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["dataset_description.json"]


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["--scheme", "abdc"], "abcd"),
        (["--motion", "wild"], "moderate"),
        (["--motion", "none", "--amplitude", "2"], "--motion none"),
        (["--noise", "none", "--snr", "10"], "leave one out"),
        (["--coils", "8"], "--noise chi"),
        (["--pe-axis", "j"], "--eddy-current linear"),
        (["--bval", __file__], "give both"),
        (["--bval", __file__, "--bvec", __file__, "--scheme", "few"], "give one"),
        (["--phantom", __file__, __file__, "--from", __file__], "give one"),
        (["--voxel-size", "2", "3"], "one number or three"),
        (["--head", "fitted"], "add --from DWI"),
        (["--head", "synthetic", "--from", __file__], "excludes --phantom and --from"),
        (["--contrast", "infant"], "--head synthetic"),
        (
            ["--ghost", "0.1", "--coil-variation", "3"],
            "--coil-variation --ghost apply to k-space only",
        ),
        (["--acquisition", "kspace", "--pe-axis", "k"], "i, i-, j or j-"),
        (["--orientation", "RAR"], "R or L"),
        (["--dropout", "5"], "from 0 to 1"),
        (["--participant-label", "a_b"], "letters and digits"),
        (["--schem", "few"], "--scheme"),
    ],
)
def test_wrong_calls_exit_2_with_one_line(tmp_path, arguments, advice, capsys):
    with pytest.raises(SystemExit) as stopped:
        simulate.main([str(tmp_path / "bids"), *arguments])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert advice in message
    assert not (tmp_path / "bids").exists()


def test_given_tables_come_back_as_they_are(tmp_path):
    gradients = shelled_scheme({1000.0: 4, 2000.0: 3}, 2, seed=8)
    bval, bvec = tmp_path / "t.bval", tmp_path / "t.bvec"
    write_gradient_table(bval, bvec, gradients, np.eye(4))
    root = tmp_path / "bids"
    arguments = ["--bval", bval, "--bvec", bvec, "--voxel-size", 8, "--oblique", 20, 10, -15,
                 "--orientation", "ASR"]  # fmt: skip
    assert simulate.main([str(root), *map(str, arguments)]) == 0
    stem = root / "sub-01" / "dwi" / "sub-01_dwi"
    np.testing.assert_allclose(np.loadtxt(stem.with_suffix(".bvec")), np.loadtxt(bvec), atol=2e-8)
    assert stem.with_suffix(".bval").read_text() == bval.read_text()


@pytest.mark.slow
def test_motion_of_an_oblique_replayed_fit_is_recovered(dataset, tmp_path, public_series):
    series = public_series("ds000114_trunc").source
    truth = read_itk(dataset / "truth" / "sub-01_xfm.txt")
    root = tmp_path / "bids"
    arguments = ["--from", series, "--scheme", "few", "--voxel-size", "4.5", "--oblique", 12, 0, 9,
                 "--motion", dataset / "truth" / "sub-01_motion.tsv", "--snr", 30]  # fmt: skip
    assert simulate.main([str(root), *map(str, arguments), "--nprocs", "1"]) == 0
    dwi = load(root / "sub-01" / "dwi" / "sub-01_dwi.nii.gz")
    true = read_itk(root / "truth" / "sub-01_xfm.txt")
    again, before = (rigid_parameters(m, dwi.center) for m in (true, truth))
    np.testing.assert_allclose(again[:, 3:], before[:, 3:], atol=1e-7)
    found = estimate_motion(dwi).matrices
    errors = np.linalg.inv(true) @ found
    errors = rigid_parameters(errors[1:] @ np.linalg.inv(errors[1]), dwi.center)  # of the DWIs
    assert np.sqrt((errors[:, :3] ** 2).mean()) < 0.25
    assert np.rad2deg(np.sqrt((errors[:, 3:] ** 2).mean())) < 0.25


def test_fitted_head_keeps_grid_and_scheme_and_stands_still(dataset, tmp_path):
    source = dataset / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"
    root = tmp_path / "bids"
    arguments = ["--from", str(source), "--motion", "none", "--noise", "none", "--nprocs", "1"]
    assert simulate.main([str(root), *arguments]) == 0
    dwi, series = load(root / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"), load(source)
    np.testing.assert_allclose(dwi.affine, series.affine, atol=1e-5)
    np.testing.assert_allclose(dwi.gradients.bvecs, series.gradients.bvecs, atol=1e-6)
    first, real = (np.asarray(s.signal[..., 0][series.mask], float) for s in (dwi, series))
    assert np.corrcoef(first, real)[0, 1] > 0.95
    description = json.loads((root / "dataset_description.json").read_text())
    assert "License" not in description  # not ours to give


def test_synthetic_head_is_scanned_in_k_space(tmp_path):
    root = tmp_path / "bids"
    arguments = ["--head", "synthetic", "--contrast", "infant", "--cavity", "fluid", "--coverage",
                 "slab", "--acquisition", "kspace", "--partial-fourier", "0.75", "--pe-axis", "i",
                 "--voxel-size", "7", "--motion", "drift", "--random-seed", "3"]  # fmt: skip
    assert run(root, *arguments) == 0
    dwi = load(root / "sub-01" / "dwi" / "sub-01_dwi.nii.gz")
    assert dwi.shape == (24, 29, 6)  # of 7 mm
    sidecar = json.loads((root / "sub-01" / "dwi" / "sub-01_dwi.json").read_text())
    assert sidecar["PhaseEncodingDirection"] == "i"
    truth = read_itk(root / "truth" / "sub-01_xfm.txt")
    np.testing.assert_array_equal(truth[0], np.eye(4))
    content = json.loads((root / "truth" / "sub-01_settings.json").read_text())
    assert content["summary"].startswith("synthetic infant head with a cavity (fluid); 13 volumes")
    assert content["summary"].endswith("slab of 42 mm, in k-space, coil field 2:1")
    assert content["settings"]["kspace"] == {
        "oversampling": 2, "coil_variation": 2.0, "partial_fourier": 0.75, "ghost": 0.0,
        "pe_axis": "i", "seed": 3,
    }  # fmt: skip
    assert content["settings"]["coil_bias"] == 0
    again = ["--participant-label", "02", "--acquisition", "kspace", "--partial-fourier", "0.1"]
    assert run(root, *again) == 2


def test_options_can_come_from_a_file(tmp_path):
    config = tmp_path / "options.toml"
    config.write_text('scheme = "few"\nvoxel-size = 8\nmotion = "swap50"\nsnr = 15\n')
    root = tmp_path / "bids"
    assert simulate.main([str(root), "--config-file", str(config)]) == 0
    settings = json.loads((root / "truth" / "sub-01_settings.json").read_text())["settings"]
    assert settings["motion"] == "swap50"
    assert settings["voxel_size"] == [8.0, 8.0, 8.0]


def test_what_is_not_given_is_as_in_a_recipe():
    """Help tells the defaults; those of a recipe hold."""
    parser = simulate.build_parser()
    assert simulate.recipe_from(parser.parse(["sim"])) == Recipe()
    told = (simulate.DEFAULT_SNR, simulate.DEFAULT_EDDY_MM, simulate.DEFAULT_PE_AXIS,
            simulate.DEFAULT_READOUT_S, simulate.DEFAULT_REPETITION_S,
            simulate.DEFAULT_MULTIBAND)  # fmt: skip
    timing = Recipe().timing
    assert told == (Recipe.snr, Recipe.eddy_amplitude, Recipe.pe_axis, Recipe.readout_time,
                    timing.repetition_time, timing.multiband)  # fmt: skip


def test_help_lists_schemes_and_motions_and_comes_at_once():
    code = (
        "import sys; from eddymotion.cli import simulate; text = simulate.build_parser()"
        ".format_help(); assert 'compressed-sensing' in text and 'scattered' in text; "
        "sys.exit(' '.join({'scipy', 'nibabel', 'numba', 'dipy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == ""


def test_a_run_of_b0_alone_is_taken_for_one(tmp_path):
    """Even with what needs directions; the BIDS-App finds its polarity."""
    options = ["--scheme", "b0", "--eddy-currents", "linear", "--dropout", "0.1",
               "--direction", "PA", "--pe-axis", "j"]  # fmt: skip
    assert run(tmp_path, *options) == 0
    (found,) = Sorted.of(find_series(tmp_path), 50.0).b0s["01"]
    assert found.is_b0
    assert load_b0s(found).acquisition.common_phase_encoding[1] > 0.9
