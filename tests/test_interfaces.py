# SPDX-License-Identifier: Apache-2.0
"""The same functions by three ways: library, Nipype, Pydra."""

import contextlib
import hashlib
import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from eddymotion.workflows.nipype import init_dwi_hmc_wf
from nipype.interfaces.base import isdefined
from nipype.interfaces.utility import Merge
from nipype.pipeline.engine import MapNode, Node, Workflow

import eddymotion as em
from eddymotion.errors import EddymotionError
from eddymotion.estimation.held_out import predict
from eddymotion.interfaces import nipype as nodes
from eddymotion.interfaces import pydra as tasks
from eddymotion.io.images import read_image, write_image
from eddymotion.io.itk import read_itk, write_itk
from eddymotion.io.motion import read_written_motion, write_motion
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.off_resonance import OffResonance, SeriesField
from eddymotion.mapping.rigid import rigid_matrix
from eddymotion.models import get_model
from eddymotion.pipeline import lovo_steps, series_steps
from eddymotion.pipeline.settings import MOTION, SETTINGS, Settings, settings_of
from eddymotion.pipeline.steps import STEPS
from eddymotion.registration import GaussNewton

QUICK = {"n_iterations": 1, "random_seed": 3}
CORRECTED = ("dwi_file", "bval_file", "bvec_file", "dwiref_file", "mask_file")


@pytest.fixture(scope="module")
def in_library(series, tmp_path_factory):
    """What the four lines of the README make of it: name of an output → digest."""
    dwi = em.load(series)
    motion = em.estimate_motion(dwi, estimator=em.Joint(max_steps=1), random_seed=3)
    corrected = em.resample(dwi, motion)
    folder = tmp_path_factory.mktemp("library")
    outputs = em.save(corrected, motion, folder, quality=em.assess(dwi, motion, random_seed=3))
    kinds = ("dwi", "bval", "bvec", "dwiref", "mask", "xfm", "confounds")
    return {f"{kind}_file": digest(outputs[kind]) for kind in kinds}


def digest(path):
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digests(outputs, names):
    return {name: digest(getattr(outputs, name)) for name in names}


def test_nipype_gives_what_the_library_gives(series, in_library, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = nodes.Estimate(dwi_file=series, **QUICK).run().outputs
    moved = {"dwi_file": series, "xfm_file": found.xfm_file, "mask_file": found.mask_file,
             "details_file": found.details_file}  # fmt: skip
    table = nodes.Measure(**moved, random_seed=3).run().outputs
    applied = nodes.Apply(**moved, n_threads=2).run().outputs
    assert (
        digests(found, ["xfm_file"])
        | digests(applied, CORRECTED)
        | digests(table, ["confounds_file"])
        == in_library
    )


def test_pydra_gives_what_the_library_gives(series, in_library, tmp_path):
    how = {"worker": "debug", "cache_root": tmp_path}
    found = tasks.Estimate(dwi_file=series, **QUICK)(**how)
    moved = {"dwi_file": series, "xfm_file": found.xfm_file, "mask_file": found.mask_file,
             "details_file": found.details_file}  # fmt: skip
    table = tasks.Measure(**moved, random_seed=3)(**how)
    applied = tasks.Apply(**moved, n_threads=2)(**how)
    assert (
        digests(found, ["xfm_file"])
        | digests(applied, CORRECTED)
        | digests(table, ["confounds_file"])
        == in_library
    )


@pytest.fixture(scope="module")
def corrected(series, tmp_path_factory):
    with contextlib.chdir(tmp_path_factory.mktemp("corrected")):
        return nodes.Correct(dwi_file=series, **QUICK).run().outputs


def test_correct_is_all_of_them_and_report_needs_no_network(
    series, in_library, corrected, tmp_path, monkeypatch
):
    assert digests(corrected, in_library) == in_library
    sidecar = json.loads(Path(corrected.sidecar_file).read_text())
    assert sidecar["Settings"]["random_seed"] == 3
    assert {"python", "numpy", "nitransforms"} <= set(sidecar["PackageVersions"])
    assert set(sidecar["StageSeconds"]) >= {"reading", "motion", "resampling and writing"}
    monkeypatch.chdir(tmp_path)
    given = {"dwi_file": series, "xfm_file": corrected.xfm_file, "mask_file": corrected.mask_file}
    drawn = nodes.Report(**given, corrected_file=corrected.dwi_file, **QUICK).run().outputs
    assert digest(drawn.before_after_figure_file) == digest(corrected.before_after_figure_file)
    page = Path(drawn.report_file).read_text()
    assert "mean correlation with the prediction" in page
    assert "://" not in page.replace("http://www.w3.org", "")


ASKED_FOR = {
    "cnr_file": "dwi_desc-cnr_dwimap.nii.gz",
    "residuals_file": "dwi_desc-residuals_dwi.nii.gz",
    "eddy_currents_file": "dwi_desc-eddy_timeseries.tsv",
    "eddy_field_files": "dwi_desc-eddy_xfm/*",
    "fsl_files": "dwi_desc-preproc_dwi.eddy_*",
    "fsl_matrix_files": "dwi_desc-hmc_xfm.mat/MAT_*",
}


def test_what_is_asked_for_is_an_output_that_nipype_keeps(
    series, corrected, tmp_path, monkeypatch
):
    """Nipype removes from a node's folder what is no output that another node takes."""
    monkeypatch.chdir(tmp_path)
    assert not any(isdefined(getattr(corrected, name)) for name in ASKED_FOR)
    assert digest(corrected.details_file) == digest(Path(corrected.xfm_file).with_suffix(".json"))
    wanted = nodes.Correct(dwi_file=series, fsl_outputs=True, cnr_maps=True, residuals=True,
                           eddy_fields=True, eddy_current="linear", **QUICK)  # fmt: skip
    node, taker = Node(wanted, "correct"), Node(Merge(len(ASKED_FOR)), "taker")
    workflow = Workflow("kept", base_dir=tmp_path)
    workflow.connect([(node, taker, [(name, f"in{n + 1}") for n, name in enumerate(ASKED_FOR)])])
    ran = {node.name: node.result for node in workflow.run().nodes}
    kept, folder = ran["correct"].outputs.trait_get(), tmp_path / "kept" / "correct"
    for name, pattern in ASKED_FOR.items():
        expected = sorted(str(path) for path in folder.glob(pattern))
        assert expected == np.ravel(kept[name]).tolist(), name
        assert expected, name


@pytest.mark.parametrize("how", ["node", "nodes of a list", "workflow"])
def test_paths_are_those_of_whoever_builds_the_graph(how, series, tmp_path, monkeypatch):
    """Nodes run elsewhere; a link, as of git-annex, keeps the name beside which tables lie."""
    for path in series.parent.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    if how == "workflow":
        workflow = init_dwi_hmc_wf(n_iterations=1)
        workflow.base_dir = "work"
        workflow.inputs.inputnode.dwi_file = series.name
        workflow.run()
    elif how == "node":
        Node(nodes.Estimate(dwi_file=series.name, **QUICK), "each", base_dir="work").run()
    else:
        node = MapNode(nodes.Estimate(**QUICK), "dwi_file", "each", base_dir="work")
        node.inputs.dwi_file = [series.name]
        node.run()
    assert list(Path("work").rglob("*_desc-hmc_xfm.txt"))


def test_the_report_of_a_series_in_another_space_has_a_mask_of_its_own(
    series, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    dwi = em.load(series)
    coarse = tmp_path / "coarse.nii.gz"
    write_image(
        coarse, np.zeros([n // 2 for n in dwi.shape]), dwi.affine @ np.diag([2, 2, 2, 1.0])
    )
    write_itk(tmp_path / "xfm.txt", np.tile(np.eye(4), (len(dwi), 1, 1)))
    write_image(tmp_path / "mask.nii.gz", dwi.mask.astype(np.uint8), dwi.affine)
    given = {"dwi_file": series, "xfm_file": tmp_path / "xfm.txt",
             "mask_file": tmp_path / "mask.nii.gz"}  # fmt: skip
    moved = nodes.Apply(**given, output_space=coarse, output_space_transform="none").run().outputs
    (tmp_path / "report").mkdir()
    monkeypatch.chdir(tmp_path / "report")
    drawn = nodes.Report(**given, corrected_file=moved.dwi_file, **QUICK).run().outputs
    assert Path(drawn.report_file).is_file()


def test_a_node_takes_the_word_native_for_the_voxel_size(series, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dwi = em.load(series)
    coarse = tmp_path / "coarse.nii.gz"
    write_image(coarse, np.zeros([n // 2 for n in dwi.shape]), dwi.affine @ np.diag([2, 2, 2, 1]))
    write_itk(tmp_path / "xfm.txt", np.tile(np.eye(4), (len(dwi), 1, 1)))
    given = {"dwi_file": series, "xfm_file": tmp_path / "xfm.txt", "output_space": coarse,
             "output_space_transform": "none", "output_resolution": "native"}  # fmt: skip
    by_node = nodes.Apply(**given).run().outputs.dwi_file
    by_task = tasks.Apply(**given)(worker="debug", cache_root=tmp_path / "cache").dwi_file
    for path in (by_node, by_task):
        np.testing.assert_allclose(em.load(path).affine[:3, :3], dwi.affine[:3, :3])
    with pytest.raises(EddymotionError, match="'nativ' given, expected a float or native"):
        tasks.Apply(**(given | {"output_resolution": "nativ"}))


@pytest.mark.parametrize("model", ["auto", "dti", "average", "dipy:TensorModel"])
def test_a_predicted_volume_is_that_of_the_series(model, series, tmp_path):
    dwi = em.load(series)
    settings = Settings(model=model)
    expected = predict(
        np.asarray(dwi.signal, np.float32), dwi.gradients, get_model(model, dwi.gradients)
    )
    tables = series.parent / "dwi.bval", series.parent / "dwi.bvec"
    for volume in (int(dwi.gradients.b0s[0]), int(dwi.gradients.dwis[2])):
        found = lovo_steps.predict_volume(series, *tables, volume, settings, tmp_path)
        predicted = read_image(found["predicted_file"])[0]
        np.testing.assert_array_equal(predicted, expected[..., volume])


def test_a_registered_pair_is_that_of_the_engine(b0_pair, grid, tmp_path):
    truth = rigid_matrix(np.array([2.0, -1.0, 0.5]), np.deg2rad([1.0, 0.5, -2.0]), np.zeros(3))
    fixed, moving, mask = b0_pair(truth, grid, grid)
    for name, image in (("fixed", fixed.data), ("moving", moving.data), ("mask", mask)):
        write_image(tmp_path / f"{name}.nii", np.asarray(image, np.float32), fixed.affine)
    (tmp_path / "half").mkdir()
    pair = tmp_path / "fixed.nii", tmp_path / "moving.nii"
    given = {"fixed_mask_file": tmp_path / "mask.nii", "seed": 5}
    found = lovo_steps.register_pair(*pair, Settings(), tmp_path, **given)
    expected = GaussNewton().register(fixed, moving, fixed_mask=mask, seed=5)
    np.testing.assert_array_equal(read_itk(found["matrix_file"])[0], expected.matrix)
    assert found["converged"]
    assert "cost" in found["message"]
    half = lovo_steps.register_pair(
        *pair, Settings(), tmp_path / "half", relaxation=0.5, center=[0, 0, 0], **given
    )
    way = read_itk(half["matrix_file"])[0]
    np.testing.assert_allclose((way @ way)[:3, :3], expected.matrix[:3, :3], atol=1e-9)
    np.testing.assert_allclose(2 * way[:3, 3], expected.matrix[:3, 3], atol=1e-9)


def test_a_volume_that_nothing_predicts_stays_where_it_was(tmp_path):
    nothing = np.full((20, 20, 20), np.nan, np.float32)
    start = rigid_matrix(np.array([1.0, 2.0, 3.0]), np.zeros(3), np.zeros(3))
    write_image(tmp_path / "fixed.nii", nothing, np.eye(4))
    write_image(tmp_path / "moving.nii", np.ones_like(nothing), np.eye(4))
    write_itk(tmp_path / "start.txt", start[None])
    pair = tmp_path / "fixed.nii", tmp_path / "moving.nii"
    found = lovo_steps.register_pair(*pair, Settings(), tmp_path, init_file=tmp_path / "start.txt")
    np.testing.assert_array_equal(read_itk(found["matrix_file"])[0], start)
    assert not found["converged"]


def test_a_motion_on_disk_is_the_motion(tmp_path):
    random = np.random.default_rng(0)
    eddy = EddyCurrents(
        random.normal(size=(4, 9)), np.array([0, 1.0, 0]), random.normal(size=3),
        random.normal(size=4), random.uniform(size=4),
    )  # fmt: skip
    errors = random.uniform(size=(4, 6))
    errors[2] = np.nan
    poses = rigid_matrix(random.normal(size=(4, 3)), random.normal(size=(4, 3)), np.zeros(3))
    field = OffResonance(random.normal(size=(4, 5, 6)), random.normal(size=(4, 4)))
    distortion = SeriesField(field, random.normal(size=(4, 3)), modulated=False)
    motion = Motion(poses, errors, 0.123456789012345, eddy, off_resonance=distortion)
    files = tmp_path / "xfm.txt", tmp_path / "details.json"
    write_motion(*files, motion)
    assert read_written_motion(*files).off_resonance is None
    write_motion(*files, motion, whole=True)
    again = read_written_motion(*files)
    for name in ("coefficients", "affine"):
        found = getattr(again.off_resonance.field, name)
        np.testing.assert_array_equal(found, getattr(field, name))
    np.testing.assert_array_equal(again.off_resonance.shifts, distortion.shifts)
    assert again.off_resonance.modulated is False
    for entry in fields(Motion):
        if entry.name not in ("eddy_currents", "off_resonance"):
            np.testing.assert_array_equal(getattr(again, entry.name), getattr(motion, entry.name))
    for entry in fields(EddyCurrents):
        expected = getattr(eddy, entry.name)
        assert expected is not None, "give this field a value above"
        np.testing.assert_array_equal(getattr(again.eddy_currents, entry.name), expected)
    write_itk(tmp_path / "other.txt", poses[:3])
    with pytest.raises(EddymotionError, match="4 volumes"):
        read_written_motion(tmp_path / "other.txt", files[1])


def test_each_setting_is_an_input_with_a_description():
    assert set(MOTION) <= set(SETTINGS)
    assert all(about.help for about in SETTINGS.values())
    known = set(nodes.Correct().inputs.copyable_trait_names())
    of_sessions = {name for name, about in SETTINGS.items() if about.stage == "joining"}
    assert known >= set(SETTINGS) - {"brain_mask", "nprocs"} - of_sessions
    assert not known & of_sessions
    given = {"mask_file": "m.nii", "n_threads": 3, "ignore": ["qform"], "model": None}
    settings = settings_of(given)
    assert (settings.nprocs, settings.ignore, settings.model) == (3, ("qform",), "auto")


def test_the_values_of_a_setting_are_told_where_no_command_line_shows_them():
    described = {field.name: field.help for field in STEPS["Correct"].settings}
    for name, help_ in described.items():
        told = set(re.split(r"[\s,;:()]+", help_))
        assert told >= set(SETTINGS[name].choices), name
    assert described["eddy_current"].endswith("; one of auto, none, linear, quadratic, cubic")
    assert described["estimator"] == SETTINGS["estimator"].help
    assert described["within_volume"].endswith("; one of auto, none, N")


def test_every_field_is_explained_by_both_engines(capsys):
    from pydra.utils.general import print_help

    assert set(nodes.__all__) == set(tasks.__all__)
    for name in nodes.__all__:
        node, task = getattr(nodes, name), getattr(tasks, name)
        print_help(task)
        printed = " ".join(capsys.readouterr().out.split())
        for spec in (node.input_spec(), node.output_spec()):
            for field in spec.copyable_trait_names():
                desc = spec.trait(field).desc
                assert desc, f"{name}.{field}"
                assert f"- {field}: " in printed, f"{name}.{field}"
                assert desc.partition(" (default")[0] in printed, f"{name}.{field}"


def test_what_is_found_beside_counts_as_given(series, tmp_path, monkeypatch):
    """Who corrects a table and runs again must not get the old result."""
    copies = [tmp_path / path.name for path in series.parent.iterdir()]
    for copy in copies:
        copy.write_bytes((series.parent / copy.name).read_bytes())
    image, bvec = tmp_path / "dwi.nii.gz", tmp_path / "dwi.bvec"

    def identities():
        node = nodes.Estimate(dwi_file=image, n_threads=1)
        other = nodes.Estimate(dwi_file=image, n_threads=4)
        in_nipype = node.inputs.get_hashval("content")[1]
        assert in_nipype == other.inputs.get_hashval("content")[1], "threads do not count"
        in_pydra = tasks.Estimate(dwi_file=image, n_threads=1)._hash
        assert in_pydra == tasks.Estimate(dwi_file=image, n_threads=4)._hash, "nor here"
        return in_nipype, in_pydra

    before = identities()
    assert identities() == before
    turned = np.loadtxt(bvec)
    turned[0] *= -1
    np.savetxt(bvec, turned)
    turned_ones = identities()
    assert all(now != then for now, then in zip(turned_ones, before, strict=True))
    (tmp_path / "dwi.json").write_text('{"PhaseEncodingDirection": "j-"}')
    assert all(now != then for now, then in zip(identities(), turned_ones, strict=True))


def test_transforms_of_another_series(series, tmp_path):
    write_itk(tmp_path / "xfm.txt", np.eye(4)[None])
    with pytest.raises(EddymotionError, match="1 transforms for the 10 volumes"):
        series_steps.apply(SeriesFiles(series), tmp_path / "xfm.txt", Settings(), tmp_path)
