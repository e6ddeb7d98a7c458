# SPDX-License-Identifier: Apache-2.0
"""Whole graphs: documented ends, equal results, nothing that hangs."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from eddymotion.workflows import nipype as graphs
from eddymotion.workflows import pydra as flows
from eddymotion.workflows.execution import KILLED, draw_graph, run_workflow
from runs import wait_for
from scipy.spatial.transform import Rotation

import eddymotion as em
from eddymotion.errors import EddymotionError
from eddymotion.estimation.lovo.prediction_grid import prediction_grid
from eddymotion.estimation.outlier_volumes import recover_outlier_volumes
from eddymotion.interfaces import nipype as interfaces
from eddymotion.interfaces import pydra as tasks
from eddymotion.io.images import read_image
from eddymotion.io.itk import read_itk, write_itk
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.pipeline import lovo_steps
from eddymotion.pipeline.limits import Plugin
from eddymotion.pipeline.settings import Settings
from eddymotion.pipeline.stages import load_series

from nipype.interfaces.utility import Function  # isort: skip
from nipype.pipeline.engine import Node, Workflow  # isort: skip

LOOP = {"estimator": "lovo", "n_iterations": 2}
OUTPUTS = {
    "dwi_file", "bval_file", "bvec_file", "xfm_file", "confounds_file", "dwiref_file", "mask_file",
}  # fmt: skip


@pytest.fixture(scope="module")
def motion(series):
    return em.estimate_motion(em.load(series), **LOOP)


def checksum(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def found_in(folder, pattern):
    (path,) = {p for p in Path(folder).rglob(pattern) if p.is_file() and not p.is_symlink()}
    return path


def test_the_ends_of_the_graph_are_those_documented():
    workflow = graphs.init_dwi_hmc_wf()
    ends = {name: workflow.get_node(name) for name in ("inputnode", "outputnode")}
    inputs = ends["inputnode"].inputs.copyable_trait_names()
    assert set(inputs) == {"dwi_file", "bval_file", "bvec_file", "mask_file"}
    assert set(ends["outputnode"].inputs.copyable_trait_names()) == OUTPUTS
    for word in (*inputs, *OUTPUTS):
        assert word in graphs.init_dwi_hmc_wf.__doc__
    names = {field.name for field in flows.DwiHmc.Outputs.__attrs_attrs__}
    assert names >= OUTPUTS


def test_nodes_ask_for_what_they_take():
    workflow = graphs.init_dwi_hmc_wf(n_threads=3, mem_gb=5.5)
    for name in ("estimate", "apply", "measure"):
        node = workflow.get_node(name)
        assert (node.n_procs, node.mem_gb, node.inputs.n_threads) == (3, 5.5, 3)


def test_unknown_settings_are_refused_with_the_nearest():
    with pytest.raises(EddymotionError, match="Did you mean n_iterations"):
        graphs.init_dwi_hmc_wf(n_iteration=3)
    with pytest.raises(EddymotionError, match="'fsl_outputs': no node of this workflow heeds it"):
        graphs.init_dwi_hmc_wf(fsl_outputs=True)


@pytest.mark.parametrize(("given", "expected"), [
    ({"model": "abc"}, "use one of .*dti"),
    ({"estimator": "abc"}, "estimator 'abc' given, expected one of joint, lovo"),
    ({"ignore": ["sform", "abc"]}, "'abc' given, expected one of sform"),
    ({"n_iterations": 0}, "expected a number of at least 1"),
    ({"registration": "antz"}, "did you mean 'ants'"),
    ({"within_volume": "1"}, "'1' given, expected one of auto, none, or a number of at least 2"),
    ({"estimator": "joint", "model": "dti"}, "^--estimator joint needs a model that is linear"),
    ({"estimator": "joint", "registration": "ants"}, "uses no registration backend, but ants"),
    ({"estimator": "lovo", "eddy_current": "linear"}, "but --estimator lovo asks for the leave"),
    ({"model": "dipy:FreeWaterTensorModel", "within_volume": "4"}, "^--within-volume 4: motion"),
    ({"registration": "ants", "within_volume": "4"}, "but --registration ants asks for the leave"),
    ({"ignore": ["sform", "qform"]}, "^--ignore sform qform leaves no affine"),
    ({"output_resolution": 2.0}, "^--output-resolution has no effect without --output-space"),
    ({"output_space": __file__, "output_space_transform": "none", "output_space_contrast": "fa"},
     "none does not register; leave --output-space-contrast out"),
])  # fmt: skip
def test_settings_are_checked_when_graph_node_or_task_is_made(given, expected):
    doors = (graphs.init_dwi_hmc_wf, graphs.init_dwi_runs_wf, graphs.init_lovo_wf, flows.DwiHmc,
             flows.DwiRuns, interfaces.Correct, tasks.Correct)  # fmt: skip
    for door in doors:
        with pytest.raises(EddymotionError, match=expected):
            door(**given)


def test_what_can_be_together_makes_a_graph():
    graphs.init_dwi_hmc_wf(model="dipy:FreeWaterTensorModel", ignore=("qform",))
    graphs.init_dwi_hmc_wf(registration="ants")  # whose nodes may run elsewhere
    flows.DwiHmc(model="gp", within_volume="4", eddy_current="linear")


def test_there_is_no_t1w_where_there_is_no_participant():
    with pytest.raises(EddymotionError, match="T1w: a workflow knows no participant"):
        graphs.init_dwi_hmc_wf(output_space="T1w")
    for door in (interfaces.Apply, interfaces.Merge, tasks.Correct, flows.DwiHmc):
        with pytest.raises(EddymotionError, match="T1w: a node knows no participant"):
            door(output_space="T1w")
    node = interfaces.Correct()
    with pytest.raises(EddymotionError, match="T1w: a node knows no participant"):
        node.inputs.output_space = "T1w"


def test_settings_that_are_split_are_checked_when_their_turn_comes(series, tmp_path):
    each = flows.DwiHmc(dwi_file=series, estimator="joint").split(model=["dti"])
    with pytest.raises((RuntimeError, EddymotionError), match="needs a model that is linear"):
        each(worker="debug", cache_root=tmp_path)


@pytest.mark.parametrize("settings", [{"estimator": "joint"}, {"eddy_current": "linear"}])
def test_the_loop_refuses_what_it_does_not_do(settings, series, tmp_path):
    with pytest.raises(EddymotionError, match="leave-one-out loop"):
        graphs.init_dwi_hmc_wf(spelled_out=True, **settings)
    with pytest.raises((RuntimeError, EddymotionError), match="leave-one-out loop"):
        flows.Lovo(dwi_file=series, **settings)(worker="debug", cache_root=tmp_path)


@pytest.mark.slow
def test_spelled_out_loop_finds_the_transforms_of_the_library(series, motion, tmp_path):
    workflow = graphs.init_dwi_hmc_wf(spelled_out=True, **LOOP)
    workflow.inputs.inputnode.dwi_file = series
    run_workflow(workflow, Plugin("MultiProc", {"n_procs": 2}), tmp_path / "graph")
    found = found_in(tmp_path / "graph", "*desc-hmc_xfm.txt")
    np.testing.assert_array_equal(read_itk(found), motion.matrices)
    corrected = nib.load(found_in(tmp_path / "graph", "*_desc-preproc_dwi.nii.gz"))
    expected = em.resample(em.load(series), motion).signal
    np.testing.assert_array_equal(np.asarray(corrected.dataobj), expected)


def test_a_pass_begins_with_outlier_volumes_recovered_as_in_the_library(series, tmp_path):
    files, settings = SeriesFiles(series), Settings(estimator="lovo")
    split = lovo_steps.split(files, settings, tmp_path)
    settings = replace(settings, brain_mask=split["mask_file"])
    outlier = np.eye(4)
    outlier[:3, :3] = Rotation.from_rotvec([1.2, 0.4, 0]).as_matrix()
    write_itk(split["matrix_files"][5], outlier[None])
    astray = em.Motion(np.concatenate([read_itk(path) for path in split["matrix_files"]]))
    aligned = [
        lovo_steps.resample_volume(
            volume, matrix, tmp_path, nonnegative=split["nonnegative"], to_predict=True
        )
        for volume, matrix in zip(split["volume_files"], split["matrix_files"], strict=True)
    ]
    planned = lovo_steps.plan([each["out_file"] for each in aligned], split["matrix_files"], files,
                              settings, tmp_path, pass_number=2)  # fmt: skip
    dwi = load_series(files, settings)
    called = recover_outlier_volumes(dwi, astray)
    np.testing.assert_array_equal(called[5], np.eye(4))
    starts = np.concatenate([read_itk(path) for path in planned["init_files"]])
    np.testing.assert_array_equal(starts, called.matrices)
    grid = prediction_grid(dwi)
    expected = em.resample(dwi, called, engine="fast", grid=(grid.shape, grid.affine)).signal
    np.testing.assert_array_equal(read_image(planned["aligned_file"])[0], expected)


@pytest.mark.slow
def test_pydra_finds_them_too_and_several_series_run_side_by_side(series, motion, tmp_path):
    how = {"worker": "cf", "n_procs": 2, "cache_root": tmp_path / "cache"}
    whole = flows.DwiHmc(dwi_file=series, **LOOP)(**how)
    np.testing.assert_array_equal(read_itk(whole.xfm_file), motion.matrices)
    once = {"estimator": "lovo", "n_iterations": 1}
    graph = flows.Lovo(dwi_file=series, **once)(**how)
    expected = em.estimate_motion(em.load(series), **once)
    np.testing.assert_array_equal(read_itk(graph.xfm_file), expected.matrices)
    other = tmp_path / "other_dwi.nii.gz"
    image = nib.load(series)
    nib.Nifti1Image(np.asarray(image.dataobj) * 2, image.affine).to_filename(other)
    for kind in ("bval", "bvec"):
        (tmp_path / f"other_dwi.{kind}").write_bytes((series.parent / f"dwi.{kind}").read_bytes())
    both = flows.DwiHmc(**LOOP).split(dwi_file=[str(series), str(other)])(**how)
    assert len(both.dwi_file) == 2
    assert checksum(both.dwi_file[0]) == checksum(whole.dwi_file)
    assert [Path(path).name[:5] for path in both.dwi_file] == ["dwi_d", "other"]


def test_a_failed_pydra_job_can_be_run_again_after_it_is_mended(series, tmp_path):
    for path in series.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    bvec, how = tmp_path / "dwi.bvec", {"worker": "debug", "cache_root": tmp_path / "cache"}
    kept = bvec.read_text()
    bvec.unlink()
    task = {"dwi_file": tmp_path / "dwi.nii.gz", "n_iterations": 1}
    with pytest.raises((RuntimeError, EddymotionError), match=r"dwi\.bvec: no such file"):
        flows.DwiHmc(**task)(**how)
    bvec.write_text(kept)
    flows.forget_failures(tmp_path / "cache")
    assert Path(flows.DwiHmc(**task)(**how).dwi_file).is_file()


def seven():
    return 7


def kill_this_process():
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_fails_its_node_and_hangs_nothing(tmp_path):
    workflow = Workflow("killed")
    first = Node(Function([], ["out"], kill_this_process), "first")
    workflow.add_nodes([first, Node(Function([], ["out"], seven), "second")])
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=KILLED.split(";")[0]):
        run_workflow(workflow, Plugin("MultiProc", {"n_procs": 1}), tmp_path)
    assert time.monotonic() - started < 20
    assert (tmp_path / "killed" / "second" / "result_second.pklz").is_file()


def interrupt():
    raise KeyboardInterrupt


def test_an_interruption_is_no_failure_of_a_node(tmp_path):
    workflow = Workflow("interrupted")
    workflow.add_nodes(
        [
            Node(Function([], ["out"], interrupt), "first"),
            Node(Function([], ["out"], seven), "next"),
        ]
    )
    with pytest.raises(KeyboardInterrupt):
        run_workflow(workflow, Plugin("Linear"), tmp_path)
    assert not list(tmp_path.rglob("result_next.pklz"))


def test_workers_end_with_a_killed_parent(tmp_path):
    """SIGKILL leaves nobody who could write on."""
    script = tmp_path / "parent.py"
    script.write_text(
        "from nipype.pipeline.engine import Node, Workflow\n"
        "from nipype.interfaces.utility import Function\n"
        "from eddymotion.pipeline.limits import Plugin\n"
        "from eddymotion.workflows.execution import run_workflow\n"
        "from pathlib import Path\n"
        "def work(folder):\n"
        "    import os, time, pathlib\n"
        "    pathlib.Path(folder, f'pid-{os.getpid()}').touch()\n"
        "    time.sleep(60)\n"
        "    return 1\n"
        "if __name__ == '__main__':\n"
        f"    folder = Path({str(tmp_path)!r})\n"
        "    workflow = Workflow('long')\n"
        "    nodes = [Node(Function(['folder'], ['out'], work), f'n{i}') for i in (1, 2)]\n"
        "    for node in nodes: node.inputs.folder = str(folder)\n"
        "    workflow.add_nodes(nodes)\n"
        "    run_workflow(workflow, Plugin('MultiProc', {'n_procs': 2}), folder)\n"
    )
    parent = subprocess.Popen([sys.executable, script], stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
    pids = [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")]
    assert all(map(is_running, pids))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not any(map(is_running, pids)))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_graph_is_drawn_without_other_programs(tmp_path):
    draw_graph(graphs.init_dwi_hmc_wf(), tmp_path / "graph.svg")
    picture = (tmp_path / "graph.svg").read_text()
    assert all(f"<!-- {name} -->" in picture for name in ("estimate", "apply", "measure"))


@pytest.mark.slow
def test_the_example_runs(tmp_path):
    example = Path(__file__).resolve().parents[1] / "examples" / "denoise_correct_tensor.py"
    call = [sys.executable, example, "--simulate", "-o", tmp_path]
    subprocess.run([str(part) for part in call], check=True, capture_output=True)
    fa = nib.load(tmp_path / "fa.nii.gz").get_fdata()
    assert 0.1 < fa[fa > 0].mean() < 0.6
    assert (tmp_path / "confounds.tsv").is_file()


def test_small_nodes_do_not_wait(tmp_path):
    """Nipype looks every two seconds whether a node has ended: twenty for these ten."""
    workflow = Workflow("many")
    nodes = [Node(Function([], ["out"], seven), f"n{i}") for i in range(10)]
    workflow.add_nodes(nodes)
    workflow.connect([(a, b, []) for a, b in pairwise(nodes)])
    started = time.monotonic()
    run_workflow(workflow, Plugin("MultiProc", {"n_procs": 2}), tmp_path)
    assert time.monotonic() - started < 10


def test_threads_have_one_name_and_others_are_heeded(series, tmp_path):
    with pytest.warns(DeprecationWarning, match="num_threads is now n_threads"):
        workflow = graphs.init_dwi_hmc_wf(num_threads=3)
    assert workflow.get_node("apply").inputs.n_threads == 3
    with pytest.raises(TypeError, match="give only one of them"):
        graphs.init_dwi_hmc_wf(num_threads=3, n_threads=2)
    seen = []
    node = interfaces.Measure(num_threads=5)
    node.step = SimpleNamespace(run=lambda given, folder: seen.append(given), output_names=())
    node._run_interface(SimpleNamespace(cwd=tmp_path))
    assert seen[0]["n_threads"] == 5
    with pytest.warns(DeprecationWarning, match="Split: num_threads is now n_threads"):
        tasks.Split(dwi_file=series, num_threads=2)(cache_root=tmp_path, worker="debug")
