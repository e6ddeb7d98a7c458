# SPDX-License-Identifier: Apache-2.0
"""What cannot be done is said in one line, by name, before anything is written."""

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from runs import QUICK, write_two_participants

import eddymotion as em
from eddymotion.cli import correct, participant, register
from eddymotion.errors import EddymotionError
from eddymotion.io.images import write_image
from eddymotion.io.tables import write_gradient_table


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    write_two_participants(root)
    return root


@pytest.fixture
def dataset(raw, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(raw, tmp_path / "bids")


@pytest.fixture(scope="module")
def finished(raw, tmp_path_factory):
    output = tmp_path_factory.mktemp("out")
    assert participant.main([str(raw), str(output), "participant", *QUICK, "--nprocs", "1"]) == 0
    return output


@pytest.fixture
def scan(tiny, tmp_path):
    """A function that writes a series outside a dataset, and gives its path."""

    def write(name="dwi", signal=tiny.signal):
        write_image(tmp_path / f"{name}.nii.gz", np.asarray(signal), tiny.affine)
        tables = tmp_path / f"{name}.bval", tmp_path / f"{name}.bvec"
        write_gradient_table(*tables, tiny.gradients, tiny.affine)
        return tmp_path / f"{name}.nii.gz"

    return write


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ("--model bogus", "model 'bogus' is unknown"),
        ("--model dipy:bogus", "DIPY has no such model"),
        ("--estimator joint --model dti", "use --estimator lovo"),
        ("--estimator lovo --eddy-current quadratic", "--estimator joint"),
        ("--model dti --eddy-current linear", "--estimator joint"),
        ("--eddy-current none --eddy-fields", "no fields are estimated"),
        ("--estimator lovo --eddy-fields", "no fields are estimated"),
        ("--ignore sform qform", "leaves no affine"),
        ("--separate-all-dwis --distortion-group-merge concat", "leave one of them out"),
        (f"--fieldmap {__file__}", "2 sessions match, but one field is given"),
        ("--b0-threshold inf", "expected a number"),
        ("--session-id zz", "no session zz"),
    ],
)
def test_contradictions_end_a_run_before_it_begins(options, hint, raw, tmp_path, capsys):
    output = tmp_path / "out"
    call = [str(raw), str(output), "participant", "--skip-bids-validation", *options.split()]
    try:
        code = participant.main(call)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert hint in line
    assert not output.exists()


def test_a_series_that_is_there_twice_is_refused_and_stops_no_other(dataset, tmp_path, capsys):
    image = dataset / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"
    nib.load(image).to_filename(image.with_suffix(""))
    call = [str(dataset), str(tmp_path / "out"), "participant", *QUICK]
    assert participant.main(call) == 1
    assert "are the same series; remove one of them" in capsys.readouterr().err
    assert (tmp_path / "out" / "sub-02" / "dwi" / "sub-02_desc-preproc_dwi.json").is_file()
    (tmp_path / "filter.json").write_text('{"dwi": {"extension": ".nii.gz"}}')
    assert participant.main([*call, "--bids-filter-file", str(tmp_path / "filter.json")]) == 0


@pytest.mark.parametrize(
    "content", [pytest.param("{broken", marks=pytest.mark.slow), '["a", "list"]']
)
def test_a_broken_sidecar_is_named_and_stops_no_other(content, dataset, tmp_path, capsys):
    sidecar = dataset / "sub-02" / "dwi" / "sub-02_dwi.json"
    stored = json.loads((dataset / "sub-01" / "dwi" / "sub-01_dwi.json").read_text())
    (dataset / "sub-01" / "dwi" / "sub-01_dwi.json").write_text(
        json.dumps(stored | {"EchoTime": 0.08, "FlipAngle": float("nan")})
    )
    sidecar.write_text(content)
    output = tmp_path / "out"
    call = [str(dataset), str(output), "participant", *QUICK, "--nprocs", "1"]
    assert participant.main(call) == 0
    assert "sub-02_dwi.json: cannot be read as JSON" in capsys.readouterr().err
    whole = output / "sub-01" / "dwi" / "sub-01_desc-preproc_dwi.json"

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    sidecar = json.loads(whole.read_text(), parse_constant=refuse)
    assert sidecar["EchoTime"] == 0.08
    assert "FlipAngle" not in sidecar
    assert (output / "sub-02" / "dwi" / "sub-02_desc-preproc_dwi.json").is_file()


def test_reports_tell_which_series_cannot_be_read(raw, finished, tmp_path, capsys):
    output = shutil.copytree(finished, tmp_path / "out")
    (data,) = output.glob("sub-02/figures/*_report.npz")
    data.write_text("garbage")
    call = [str(raw), str(output)]
    assert participant.main([*call, "participant", "--reports-only"]) == 1
    assert "1 of 2 series failed" in capsys.readouterr().err
    assert participant.main([*call, "group"]) == 1
    assert participant.main([*call, "group", "--participant-label", "02"]) == 1
    assert "sub-02: " in capsys.readouterr().err.split("series failed")[-1]


@pytest.mark.parametrize(
    "call", [("group",), ("participant", "--reports-only"), ("participant", *QUICK)]
)
def test_labels_that_are_nowhere_are_refused(call, raw, finished, capsys):
    options = ["--participant-label", "02", "99"]
    assert participant.main([str(raw), str(finished), *call, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "99" in line
    assert "01, 02" in line


def test_blank_volumes_are_named(scan, tiny, tmp_path, capsys):
    signal = np.array(tiny.signal)
    signal[..., 3] = 777
    assert correct.main([str(scan(signal=signal)), "-o", str(tmp_path / "out")]) == 2
    assert "all voxels of volume 3 (counted from 0) have the same value" in capsys.readouterr().err


def test_what_cannot_be_used_is_named(scan, tiny, tmp_path):
    image = scan()
    with pytest.raises(EddymotionError, match=r"none\.nii\.gz: no such file; give a 4-D"):
        em.load(tmp_path / "none.nii.gz")
    (tmp_path / "bad.bval").write_text("0 " * 9 + "-5")
    with pytest.raises(EddymotionError, match=r"bad\.bval, dwi\.bvec: .* of at least 0"):
        em.load(image, bval=tmp_path / "bad.bval")
    write_image(tmp_path / "empty.nii.gz", np.zeros(tiny.shape), tiny.affine)
    with pytest.raises(EddymotionError, match=r"empty\.nii\.gz: no voxel is above zero"):
        em.load(image, mask=tmp_path / "empty.nii.gz")
    nib.Nifti1Image(np.zeros(tiny.signal.shape, np.complex64), tiny.affine).to_filename(
        tmp_path / "complex.nii.gz"
    )
    shutil.copy(tmp_path / "dwi.bval", tmp_path / "complex.bval")
    shutil.copy(tmp_path / "dwi.bvec", tmp_path / "complex.bvec")
    for half in ("pair.hdr", "pair.img"):
        (tmp_path / half).write_bytes(b"x" * 400)
        with pytest.raises(EddymotionError, match="one file of a pair"):
            em.load(tmp_path / half, bval=tmp_path / "dwi.bval", bvec=tmp_path / "dwi.bvec")
    with pytest.raises(EddymotionError, match="complex64, expected real numbers; give the magni"):
        em.load(tmp_path / "complex.nii.gz")


@pytest.mark.filterwarnings("error")
def test_an_empty_table_is_one_message(scan, tmp_path):
    image = scan()
    (tmp_path / "dwi.bval").write_text("")
    with pytest.raises(EddymotionError, match=r"dwi\.bval: empty"):
        em.load(image)


def test_a_distance_that_leaves_nothing_is_refused(scan, tmp_path, capsys):
    call = [str(scan()), "-o", str(tmp_path / "out"), "--min-q-distance", "100"]
    assert correct.main(call) == 2
    assert "use a smaller value" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


@pytest.mark.slow
def test_models_of_dipy_that_cannot_predict_say_so(scan, tmp_path, capsys):
    call = [str(scan()), "-o", str(tmp_path / "out"), "--model", "dipy:DiffusionSpectrumModel"]
    assert correct.main(call) == 2
    assert "DIPY cannot predict with it" in capsys.readouterr().err


def test_any_long_name_may_stand_in_a_configuration_file(scan, tiny, tmp_path):
    image = scan()
    write_image(tmp_path / "mask.nii.gz", tiny.mask.astype(np.uint8), tiny.affine)
    config = tmp_path / "study.toml"
    config.write_text(f'mask = "{tmp_path}/mask.nii.gz"\nnthreads = 1\n')
    parsed = correct.build_parser().parse([str(image), "--config-file", str(config)])
    assert (parsed.brain_mask, parsed.nprocs) == (tmp_path / "mask.nii.gz", 1)
    config.write_text('output = "pair/x"\n')
    parsed = register.build_parser().parse(["a", "b", "--config-file", str(config)])
    assert str(parsed.output) == "pair/x"


def test_a_mask_with_hardly_a_voxel_registers_nothing(scan, tiny, tmp_path, capsys):
    image, mask = str(scan()), np.zeros(tiny.shape, np.uint8)
    mask[10:13, 10:13, 8:11] = 1
    write_image(tmp_path / "few.nii.gz", mask, tiny.affine)
    call = [image, image, "--fixed-volume", "0", "--moving-volume", "1", "-o",
            str(tmp_path / "pair"), "--fixed-mask", str(tmp_path / "few.nii.gz")]  # fmt: skip
    assert register.main(call) == 2
    assert "27 voxels" in capsys.readouterr().err
    assert not list(tmp_path.glob("pair*"))


def test_datasets_of_other_programs_are_left_alone(raw, tmp_path, capsys):
    for folder in (tmp_path / "out", tmp_path / "demo" / "derivatives"):
        folder.mkdir(parents=True)
        (folder / "README").write_text("mine")
        (folder / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "other"}]}')
    calls = [str(raw), str(tmp_path / "out"), "participant"], ["--demo", str(tmp_path / "demo")]
    for call in calls:
        assert participant.main(call) == 2
        assert "holds a dataset made by other" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "demo").iterdir()} <= {"derivatives"}
    assert (tmp_path / "out" / "README").read_text() == "mine"
    (tmp_path / "out" / "dataset_description.json").unlink()
    assert participant.main([*calls[0], *QUICK, "--participant-label", "01"]) == 0
    assert (tmp_path / "out" / "README").read_text() == "mine"


def test_motions_of_another_length_are_refused_before_anything_is_written(tiny, tmp_path):
    short = em.Motion.identity(4)
    for call in (em.assess, em.resample, lambda dwi, motion: em.save(dwi, motion, tmp_path / "o")):
        with pytest.raises(EddymotionError, match=f"4 transforms for {len(tiny)} volumes"):
            call(tiny, short)
    assert not (tmp_path / "o").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(EddymotionError, match="cannot be written"):
        em.save(tiny, em.Motion.identity(len(tiny)), tmp_path / "file")


def test_values_that_single_precision_cannot_hold_are_refused(tiny):
    signal = np.array(tiny.signal, float)
    signal[3, 3, 3, 2] = 1e300
    with pytest.raises(EddymotionError, match="too large for single precision"):
        replace(tiny, signal=signal)
    with pytest.raises(EddymotionError, match="complex64, expected real numbers"):
        replace(tiny, signal=tiny.signal + 1j)
    with pytest.raises(EddymotionError, match="divide it by a constant"):
        em.estimate_motion(replace(tiny, signal=np.asarray(tiny.signal, np.float32) * 1e30))


@pytest.mark.parametrize("key", ["config-file = 'x.toml'", "version = true", "help = true"])
def test_what_only_the_command_line_can_say(key, tmp_path, capsys):
    (tmp_path / "study.toml").write_text(key)
    with pytest.raises(SystemExit) as stop:
        correct.build_parser().parse(["dwi.nii", "--config-file", str(tmp_path / "study.toml")])
    assert stop.value.code == 2
    assert "unknown option" in capsys.readouterr().err


def test_a_blank_target_is_refused_before_the_motion_is_sought(scan, tiny, tmp_path, capsys):
    write_image(tmp_path / "blank.nii.gz", np.zeros(tiny.shape), tiny.affine)
    call = [str(scan()), "-o", str(tmp_path / "out"), "--output-space",
            str(tmp_path / "blank.nii.gz"), "--output-space-transform", "rigid"]  # fmt: skip
    assert correct.main(call) == 2
    message = capsys.readouterr().err
    assert "blank.nii.gz: all voxels have the same value" in message
    assert "filtering" not in message


@pytest.mark.filterwarnings("error")
def test_large_grids_give_no_foreign_warnings():
    b0 = np.zeros((90, 96, 40), np.float32)
    b0[20:70, 20:76, 8:32] = 900
    assert 0.2 < em.brain_mask(b0).mean() < 0.5


@pytest.mark.parametrize(
    ("options", "words"),
    [([], "estimated together"), (["--model", "dti"], "leave-one-volume-out")],
)
def test_the_text_to_cite_names_what_was_done(options, words, scan, tmp_path):
    call = [str(scan()), "-o", str(tmp_path / "out"), "--n-iterations", "1", *options]
    assert correct.main(call) == 0
    assert words in (tmp_path / "out" / "dwi.html").read_text()
