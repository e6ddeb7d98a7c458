# SPDX-License-Identifier: Apache-2.0
"""Any engine in the leave-one-out loop, from the command line: results, refusals, crashes."""

import json
import os
import shutil

import numpy as np
import pytest

from eddymotion.cli import correct, participant
from eddymotion.data.gradients import Gradients
from eddymotion.images.image import Image
from eddymotion.io.images import write_image
from eddymotion.io.itk import read_itk
from eddymotion.io.tables import write_gradient_table
from eddymotion.machine.parallel import Compute
from eddymotion.mapping.motion import Motion
from eddymotion.registration.engines import ants, elastix, external
from eddymotion.simulation import Grid, acquire, procedural_head, simulate_motion

ORIGIN = np.zeros(3)


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A file with seven volumes of a head that moves, and the truth."""
    head = procedural_head(6.0)
    angles = np.linspace(0, np.pi, 7)[:-1]
    vectors = [[np.cos(a), np.sin(a), 0.3 * (-1) ** k] for k, a in enumerate(angles)]
    vectors = np.array([[0, 0, 0], *(np.array(v) / np.linalg.norm(v) for v in vectors)])
    gradients = Gradients(np.r_[0.0, np.full(6, 700.0)], vectors)
    truth = simulate_motion("moderate", 7, ORIGIN, seed=2)
    dwi = acquire(head, gradients, truth, Grid.covering(head, 6.0, "LAS"), snr=40)
    folder = tmp_path_factory.mktemp("series")
    write_image(folder / "dwi.nii.gz", dwi.signal, dwi.affine)
    write_gradient_table(folder / "dwi.bval", folder / "dwi.bvec", gradients, dwi.affine)
    return folder / "dwi.nii.gz", dwi, truth.relative_to(0)


def call(path, output, *more):
    common = ["--model", "average", "--n-iterations", "2", "--nprocs", "2"]
    return [str(path), "-o", str(output), *common, *map(str, more)]


ELASTIX = "(MaximumNumberOfIterations 200) // a resolution\n(NumberOfSpatialSamples 3000)\n"

LOOP = [
    pytest.param("gauss-newton", '{"tolerance": 0.002}', id="gauss-newton"),
    pytest.param(
        "dipy", '{"n_points": 4000, "iterations": [20, 15, 15]}', id="dipy",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "ants", '{"preset": "motion", "winsorize_lower_quantile": 0.001}', id="ants",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(not ants.ants_is_here(), reason="needs eddymotion[ants]"),
        ],
    ),
    pytest.param(
        "elastix", ELASTIX, id="elastix",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(not elastix.elastix_is_here(), reason="needs elastix"),
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), LOOP)
def test_each_engine_corrects_a_series(series, tmp_path, motion_rmse, name, settings):
    image, dwi, truth = series
    path = tmp_path / ("settings.txt" if name == "elastix" else "settings.json")
    path.write_text(settings)
    output = tmp_path / "out"
    options = ["--registration", name, "--registration-settings", path]
    assert correct.main(call(image, output, *options)) == 0
    content = json.loads((output / "dwi_desc-preproc_dwi.json").read_text())["Settings"]
    assert content["registration"] == name
    assert content["registration_settings"] == str(path)
    found = Motion(read_itk(output / "dwi_from-orig_to-dwiref_mode-image_desc-hmc_xfm.txt"))
    still = motion_rmse(Motion.identity(len(dwi)), truth, dwi.center)
    moved = motion_rmse(found, truth, dwi.center)
    assert moved[0] < 0.4 * still[0]
    assert moved[1] < 0.4 * still[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--registration", "elastx"], "did you mean 'elastix'"),
        (["--registration", "dipy", "--registration-settings", "FILE"],
         "settings.json: unknown key 'n_bin'; did you mean 'n_bins'"),
        (["--registration", "dipy", "--estimator", "joint"], "use --estimator lovo"),
        (["--registration", "ants"], "pip install 'eddymotion[ants]'"),
        (["--registration", "elastix"], "pip install 'eddymotion[elastix]'"),
    ],
)  # fmt: skip
def test_wrong_registrations_are_one_line_before_anything_is_written(
    series, tmp_path, capsys, monkeypatch, options, words
):
    for module in (ants, elastix):
        monkeypatch.setattr(module.shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(external, "find_spec", lambda _: None)
    path = tmp_path / "settings.json"
    path.write_text('{"n_bin": 16}')
    options = [str(path) if option == "FILE" else option for option in options]
    output = tmp_path / "out"
    assert correct.main(call(series[0], output, *options)) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert words in message
    assert not output.exists()


def test_crashes_of_an_engine_are_reported_and_leave_nothing(
    series, tmp_path, capsys, monkeypatch
):
    program = tmp_path / "bin" / "antsRegistration"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'Exception caught: no memory'; kill -SEGV $$\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    assert shutil.which("antsRegistration") == str(program)
    output = tmp_path / "out"
    assert correct.main(call(series[0], output, "--registration", "ants")) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: volume 1: antsRegistration crashed (SIGSEGV)" in last
    assert "last output: Exception caught: no memory" in last
    assert [path.suffix for path in output.rglob("*") if path.is_file()] == [".log"]


def test_files_given_relative_to_here_hold_in_the_nodes_of_the_app(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text('{"max_iterations": 3}')
    options = participant.build_parser().parse(
        ["bids", "out", "participant", "--registration-settings", "mine.json",
         "--output-space", "mine.json"]
    )  # fmt: skip
    run = participant.run_from(options, tmp_path / "out")
    assert run.settings.registration_settings == tmp_path / "mine.json"
    assert run.settings.output_space == tmp_path / "mine.json"


def test_threads_do_not_change_what_an_engine_finds(series, tmp_path):
    from eddymotion.estimation.lovo import register_volumes
    from eddymotion.registration.engines.dipy import DipyRegistrar

    _, dwi, _ = series
    few = dwi.select(slice(3))
    predicted = np.repeat(few.signal.mean(axis=3, keepdims=True), 3, axis=3)
    brain = Image(few.mask, few.affine)
    engine = DipyRegistrar(n_points=2000, iterations=(8,), sigmas=(1.0,))
    one, two = (
        register_volumes(few, predicted, engine, init=Motion.identity(3), brain=brain,
                         compute=Compute(n))
        for n in (1, 2)
    )  # fmt: skip
    np.testing.assert_array_equal(one.matrices, two.matrices)
    assert not np.allclose(one.matrices, np.eye(4))
