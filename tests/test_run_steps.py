# SPDX-License-Identifier: Apache-2.0
"""Several runs by four ways: command, library, Nipype, Pydra."""

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from eddymotion.workflows import nipype as graphs
from eddymotion.workflows import pydra as flows
from eddymotion.workflows.execution import run_workflow
from runs import QUICK

import eddymotion as em
from eddymotion.cli import correct, fieldmap, participant
from eddymotion.errors import EddymotionError
from eddymotion.images.grid import Grid
from eddymotion.interfaces import nipype as nodes
from eddymotion.interfaces import pydra as tasks
from eddymotion.io.images import read_image, write_image
from eddymotion.io.itk import write_itk
from eddymotion.io.other_programs import eddy_poses
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.io.tables import write_gradient_table
from eddymotion.io.topup import topup_field
from eddymotion.io.writing import read_json
from eddymotion.pipeline.limits import Plugin
from eddymotion.pipeline.runs.mergeable import refuse_unmergeable
from eddymotion.pipeline.settings import Settings
from eddymotion.pipeline.steps import STEPS
from eddymotion.simulation import Recipe, shelled_scheme, simulate, write_simulation

ONCE = {"model": "average", "n_iterations": 1, "distortion_group_merge": "average"}
COMPARED = {
    "dwi_files": "desc-preproc_dwi.nii.gz",
    "bvec_files": "desc-preproc_dwi.bvec",
    "xfm_files": "from-orig_to-dwiref_mode-image_desc-hmc_xfm.txt",
    "confounds_files": "desc-confounds_timeseries.tsv",
    "dwiref_files": "desc-hmc_dwiref.nii.gz",
    "mask_files": "desc-brain_mask.nii.gz",
}
"""Output of the workflows → how the file of the command ends."""

OF_ALL = {
    "field_file": "fmap/sub-01_fmapid-auto00000_desc-preproc_fieldmap.nii.gz",
    "merged_file": "dwi/sub-01_desc-merged_dwi.nii.gz",
    "merged_bval_file": "dwi/sub-01_desc-merged_dwi.bval",
    "merged_bvec_file": "dwi/sub-01_desc-merged_dwi.bvec",
}
"""The same of what there is once for all runs."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two small runs of opposite polarity."""
    folder = tmp_path_factory.mktemp("opposed")
    tables = folder / "scheme.bval", folder / "scheme.bvec"
    write_gradient_table(*tables, shelled_scheme({1000.0: 8}, 2, seed=1), np.eye(4))
    recipe = Recipe(bval=tables[0], bvec=tables[1], head="synthetic", susceptibility=0.7,
                    rigid_field=True, voxel_size=(6.0, 6.0, 6.0))  # fmt: skip
    for direction, axis in (("AP", "j-"), ("PA", "j")):
        run = simulate(replace(recipe, direction=direction, pe_axis=axis), n_threads=2)
        write_simulation(folder / "bids", "01", run)
    return folder / "bids"


@pytest.fixture(scope="module")
def files(dataset):
    return [str(dataset / f"sub-01/dwi/sub-01_dir-{d}_dwi.nii.gz") for d in ("AP", "PA")]


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    """What the command writes of the participant."""
    output = tmp_path_factory.mktemp("by-command")
    assert participant.main([str(dataset), str(output), "participant", *QUICK, "--fsl-outputs",
                             "--distortion-group-merge", "average"]) == 0  # fmt: skip
    return output / "sub-01"


@pytest.fixture(scope="module")
def by_command(folder):
    """Output → its content, a run each; and what there is once."""
    contents = {
        name: [(folder / f"dwi/sub-01_dir-{d}_{ending}").read_bytes() for d in ("AP", "PA")]
        for name, ending in COMPARED.items()
    }
    return contents | {name: (folder / path).read_bytes() for name, path in OF_ALL.items()}


def contents_of(outputs):
    """What files hold, in the shape of `by_command`."""
    found = {name: [Path(path).read_bytes() for path in outputs[name]] for name in COMPARED}
    return found | {name: Path(outputs[name]).read_bytes() for name in OF_ALL}


@pytest.mark.slow
def test_pydra_gives_what_the_command_gives(files, by_command, tmp_path):
    found = flows.DwiRuns(dwi_files=files, **ONCE)(worker="debug", cache_root=tmp_path)
    outputs = {name: getattr(found, name) for name in (*COMPARED, *OF_ALL)}
    assert contents_of(outputs) == by_command


@pytest.mark.slow
def test_nipype_gives_what_the_command_gives(files, by_command, tmp_path):
    workflow = graphs.init_dwi_runs_wf(**ONCE)
    workflow.inputs.inputnode.dwi_files = files
    run_workflow(workflow, Plugin("MultiProc", {"n_procs": 2}), tmp_path)
    sources = {"xfm_files": "join", "field_file": "join", "confounds_files": "measure"}
    sources |= dict.fromkeys(("merged_file", "merged_bval_file", "merged_bvec_file"), "merge")
    outputs = {}
    for name in (*COMPARED, *OF_ALL):
        pattern = Path(OF_ALL[name]).name if name in OF_ALL else f"*_{COMPARED[name]}"
        step = tmp_path / workflow.name / sources.get(name, "apply")
        found = sorted({path for path in step.rglob(pattern) if not path.is_symlink()})
        outputs[name] = found[0] if name in OF_ALL else found
    assert contents_of(outputs) == by_command


@pytest.mark.slow
def test_the_library_gives_what_the_command_gives(files, by_command, tmp_path):
    runs = em.load(files)
    motions = em.estimate_motion(runs, estimator=em.Joint(model="average", max_steps=1))
    for number, motion in enumerate(motions):
        write_itk(tmp_path / "xfm.txt", motion.matrices)
        assert (tmp_path / "xfm.txt").read_bytes() == by_command["xfm_files"][number]
    write_image(tmp_path / "field.nii.gz", motions[0].off_resonance.field.on_grid(
        runs[0].shape, runs[0].affine), runs[0].affine)  # fmt: skip
    ours, theirs = (tmp_path / name for name in ("field.nii.gz", "theirs.nii.gz"))
    theirs.write_bytes(by_command["field_file"])
    np.testing.assert_array_equal(read_image(ours)[0], read_image(theirs)[0])


@pytest.mark.slow
def test_images_outside_a_dataset_give_what_the_dataset_gives(files, by_command, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in Path(files[0]).parent.iterdir():
        shutil.copy(path, folder)
    images = [str(folder / Path(path).name) for path in files]
    options = [*QUICK[:-1], "--distortion-group-merge", "average"]
    assert correct.main([*images, "-o", str(tmp_path), *options]) == 0
    for name, ending in COMPARED.items():
        for run, content in zip(("AP", "PA"), by_command[name], strict=True):
            assert (tmp_path / f"sub-01_dir-{run}_{ending}").read_bytes() == content, name
    for name, path in OF_ALL.items():
        found = tmp_path / path.removeprefix("dwi/")
        assert found.read_bytes() == by_command[name]
    assert not (tmp_path / "work").exists()
    assert {page.name for page in tmp_path.glob("*.html")} == {"sub-01.html"}


@pytest.mark.slow
def test_fsl_outputs_hold_the_field_as_topup_writes_it(folder):
    hertz, affine, _ = read_image(folder / OF_ALL["field_file"])
    base = folder / "fmap/sub-01_fmapid-auto00000_topup"
    found = topup_field(Path(f"{base}_fieldcoef.nii.gz"), hertz.shape, affine)
    np.testing.assert_allclose(found.on_grid(hertz.shape, affine), hertz, atol=1e-2)
    sidecar = read_json(folder / "dwi/sub-01_dir-PA_desc-preproc_dwi.json")
    rows = np.loadtxt(f"{base}_movpar.txt")
    poses = eddy_poses(rows, Grid(hertz.shape, affine))
    np.testing.assert_allclose(poses[0], np.eye(4), atol=1e-9)
    np.testing.assert_allclose(poses[1], np.linalg.inv(sidecar["RunPose"]), atol=1e-6)
    readouts = np.loadtxt(f"{base}_acqparams.txt")
    np.testing.assert_allclose(readouts, [[0, -1, 0, 0.05], [0, 1, 0, 0.05]], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["nipype", "pydra"])
def test_the_field_alone_is_that_of_its_command(engine, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "by-command"
    assert fieldmap.main([*files, "-o", str(folder)]) == 0
    given = {"image_files": files}
    if engine == "nipype":
        found = nodes.Fieldmap(**given).run().outputs
    else:
        found = tasks.Fieldmap(**given)(worker="debug", cache_root=tmp_path / "cache")
    for path in (
        found.field_file,
        found.coefficients_file,
        found.epi_file,
        *found.corrected_files,
    ):
        assert Path(path).read_bytes() == (folder / Path(path).name).read_bytes()
    assert Path(found.report_file).is_file()


@pytest.mark.parametrize("axes", [[], ["j"]])
def test_inputs_of_the_field_that_have_names_of_settings_are_none(axes, tmp_path):
    """Its phase-encoding axes are a list, one an image: they were refused as no axis."""
    image = tmp_path / "b0.nii.gz"
    write_image(image, np.ones((4, 4, 4)), np.eye(4))
    given = {"image_files": [str(image)], "pe_axis": axes, "ignore": ["sform"]}
    with pytest.raises(EddymotionError, match="one image alone does not show its distortion"):
        nodes.Fieldmap(**given).run(cwd=tmp_path)
    with pytest.raises((RuntimeError, EddymotionError), match="one image alone"):
        tasks.Fieldmap(**given)(worker="debug", cache_root=tmp_path / "cache")


def test_ends_of_the_graph_of_runs_are_those_documented():
    workflow = graphs.init_dwi_runs_wf()
    inputs = workflow.get_node("inputnode").inputs.copyable_trait_names()
    outputs = workflow.get_node("outputnode").inputs.copyable_trait_names()
    for word in (*inputs, *outputs):
        assert word in graphs.init_dwi_runs_wf.__doc__
    assert set(outputs) == {*COMPARED, *OF_ALL, "bval_files"}
    assert {field.name for field in flows.DwiRuns.Outputs.__attrs_attrs__} >= set(outputs)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"bval_files": ["a.bval"]}, "bval_files: 1 given for 2 runs"),
        ({"dwi_files": []}, "dwi_files: none given"),
        ({"xfm_files": ["a.txt"]}, "2 runs, but transforms of 1"),
    ],
)
def test_files_of_another_number_of_runs_are_refused(given, told, tmp_path):
    files = {"dwi_files": ["a.nii.gz", "b.nii.gz"], "xfm_files": ["a.txt", "b.txt"],
             "details_files": ["a.json", "b.json"]}  # fmt: skip
    with pytest.raises(EddymotionError, match=told):
        STEPS["Join"].run(files | given, tmp_path)


def test_a_merged_series_that_nobody_can_make_is_refused_or_none(tmp_path):
    lists = ("corrected_files", "corrected_bval_files", "corrected_bvec_files", "mask_files",
             "xfm_files", "details_files")  # fmt: skip
    given = {name: ["a", "b"] for name in lists} | {"dwi_files": ["a.nii.gz", "b.nii.gz"]}
    assert not any(STEPS["Merge"].run(given, tmp_path).values())
    image = tmp_path / "t1w.nii.gz"
    image.write_bytes(b"anything")
    elsewhere = {"distortion_group_merge": "average", "output_space": image}
    with pytest.raises(EddymotionError, match="average beside an output space"):
        STEPS["Merge"].run(given | elsewhere, tmp_path)
    with pytest.raises(EddymotionError, match="average beside an output space"):
        graphs.init_dwi_runs_wf(**elsewhere)
    with pytest.raises(EddymotionError, match="average beside an output space"):
        flows.DwiRuns(dwi_files=[image], **elsewhere)(worker="debug", cache_root=tmp_path)
    alone = given | {"dwi_files": ["a.nii.gz"], "distortion_group_merge": "concat"}
    assert not any(STEPS["Merge"].run(alone, tmp_path).values())


@pytest.fixture(scope="module")
def unlike(tmp_path_factory):
    """A dataset whose two runs have voxels of other sizes, and an image to put them into."""
    root = tmp_path_factory.mktemp("unlike")
    for name, size in (("1", 3.0), ("2", 4.0)):
        stem = root / f"sub-01/dwi/sub-01_run-{name}_dwi"
        write_image(Path(f"{stem}.nii.gz"), np.ones((8, 8, 8, 4)), np.diag([size, size, size, 1]))
        Path(f"{stem}.bval").write_text("0 1000 1000 1000\n")
        Path(f"{stem}.bvec").write_text("0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    write_image(root / "grid.nii.gz", np.ones((9, 9, 9)), np.diag([3.0, 3, 3, 1]))
    return root


@pytest.mark.parametrize(
    ("space", "resolution", "alike"),
    [(None, None, False), ("grid.nii.gz", None, True), ("grid.nii.gz", "native", False)],
)
def test_runs_that_will_lie_on_other_grids_are_known_at_once(unlike, space, resolution, alike):
    runs = [SeriesFiles(path) for path in sorted(unlike.glob("sub-01/dwi/*.nii.gz"))]
    settings = Settings(distortion_group_merge="concat", output_resolution=resolution,
                        output_space=None if space is None else unlike / space)  # fmt: skip
    with nullcontext() if alike else pytest.raises(EddymotionError, match="not on the grid of"):
        refuse_unmergeable(runs, settings)
    refuse_unmergeable(runs, replace(settings, distortion_group_merge="none"))


def test_a_session_that_cannot_be_merged_fails_before_it_is_corrected(unlike, tmp_path, capsys):
    call = [str(unlike), str(tmp_path), "participant", "--distortion-group-merge", "concat"]
    assert participant.main([*call, "--skip-bids-validation"]) == 1
    said = capsys.readouterr().err
    assert "2 of 2 series failed" in said
    assert "not on the grid of" in said
    assert "estimating" not in said
    with pytest.raises(EddymotionError, match="not on the grid of"):
        STEPS["ListRuns"].run({"dwi_files": sorted(unlike.glob("sub-01/dwi/*.nii.gz")),
                               "distortion_group_merge": "concat"}, tmp_path)  # fmt: skip


def test_what_lies_beside_any_of_the_runs_counts_as_given(tmp_path):
    files = [tmp_path / f"{name}_dwi.nii.gz" for name in ("a", "b")]
    for path in files:
        path.write_bytes(b"anything")

    def identities():
        node = nodes.ListRuns(dwi_files=[str(path) for path in files])
        return node.inputs.get_hashval("content")[1], tasks.ListRuns(dwi_files=files)._hash

    before = identities()
    assert identities() == before
    (tmp_path / "b_dwi.bval").write_text("0 1000")
    with_table = identities()
    (tmp_path / "b_dwi.json").write_text("{}")
    for now, then in ((with_table, before), (identities(), with_table)):
        assert all(one != other for one, other in zip(now, then, strict=True))
