# SPDX-License-Identifier: Apache-2.0
"""The pages are followed from top to bottom, as a reader would, on a small simulated series.

Pages on SLURM are followed in ``cluster/test_slurm.py``, those on containers in ``docker/check``.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pages import CONTRIBUTING, DOCS, ROOT, as_script, blocks, shown_class

import eddymotion as em
from eddymotion.cli import participant
from eddymotion.io.images import write_image
from eddymotion.io.tables import write_gradient_table
from eddymotion.io.writing import write_json
from eddymotion.mapping.off_resonance import Readout
from eddymotion.registration.engines.ants import ants_is_here
from eddymotion.simulation import (
    Grid,
    acquire,
    procedural_head,
    shelled_scheme,
    simulate_motion,
    write_bids,
)
from eddymotion.simulation.off_resonance import Magnetised, echo_planar_image
from eddymotion.simulation.synthetic import SyntheticHead

EXAMPLES = str(ROOT / "examples")
RUN = (
    ("tutorial/own-scan",),
    ("how-to/bids", "how-to/group", "how-to/report"),
    ("how-to/without-bids",),
    ("how-to/another-model",),
    ("how-to/another-engine",),
    ("how-to/go-on",),
    ("how-to/lost-slices",),
    ("how-to/denoise",),
    ("how-to/bids", "how-to/runs"),
    ("how-to/register",),
    ("how-to/coming-from",),
    ("how-to/compare",),
    ("how-to/coming-from-eddy",),
    ("how-to/coming-from-qsiprep",),
    ("how-to/coming-from-dwifslpreproc",),
    ("how-to/coming-from-tortoise",),
    ("how-to/nipype",),
    ("how-to/pydra",),
    ("../README",),
)
ELSEWHERE = re.compile(
    r"^(make|docker|python3 -m venv|examples/slurm_array.sh|eddy) ", re.MULTILINE
)
"""Run by CI itself, ``docker/check`` and ``cluster/test_slurm.py``, or by whoever has it."""

FILES = {
    ("how-to/bids", "json"): ["filter.json"],
    ("how-to/bids", "toml"): ["study.toml"],
    ("how-to/another-engine", "json"): ["dipy.json", "ants.json"],
    ("how-to/another-engine", "text"): ["elastix.txt"],
    ("how-to/another-engine", "toml"): ["pyproject.toml"],
}
"""What a reader would call the files that a page shows, in their order."""

PYDRA_TASKS = """
from denoise_correct_tensor import denoise, fit_tensor, image_beside
from fileformats.generic import File
from pydra.compose import python


def without_noise(dwi_file: File) -> File:
    return denoise(str(dwi_file), image_beside(dwi_file.fspath, "bval"), "mppca")


def anisotropy(dwi_file: File, bval_file: File, bvec_file: File, mask_file: File) -> File:
    return fit_tensor(str(dwi_file), str(bval_file), str(bvec_file), str(mask_file))[0]


Denoise = python.define(without_noise, outputs=["out_file"])
Tensor = python.define(anisotropy, outputs=["fa"])
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A folder with the files that pages begin with: series, tables, images, a BIDS dataset."""
    folder = tmp_path_factory.mktemp("pages")
    phantom = procedural_head(8.0)
    gradients = shelled_scheme({1000.0: 12}, 2)
    motion = simulate_motion("drift", len(gradients), np.zeros(3))
    dwi = acquire(phantom, gradients, motion, Grid.covering(phantom, 8.0), snr=30)
    for table in ("dwi", "table", "sub-01_dwi", "a_dwi", "b_dwi", "dwi_ap", "dwi_pa"):
        write_gradient_table(
            folder / f"{table}.bval", folder / f"{table}.bvec", gradients, dwi.affine
        )
    for image in ("dwi", "sub-01_dwi", "a_dwi", "b_dwi", "dwi_ap", "dwi_pa", "straight", "turned"):
        write_image(folder / f"{image}.nii.gz", np.asarray(dwi.signal), dwi.affine)
    for image in (
        "b0_pa",
        "T1w",
        "dwiref",
        "template",
        "straight_b0",
        "turned_b0",
        "fixed",
        "moving",
    ):
        write_image(folder / f"{image}.nii.gz", np.asarray(dwi.signal[..., 0]), dwi.affine)
    write_image(folder / "brain.nii.gz", dwi.mask.astype(np.uint8), dwi.affine)
    for label in ("01", "02"):
        image = write_bids(folder / "bids", label, dwi, motion, session="baseline")
        for path in list(image.parent.iterdir()):
            path.rename(path.with_name(path.name.replace("_dwi", "_acq-multishell_dwi")))
    shutil.copytree(folder / "bids", folder / "BIDS_DIR")
    write_opposite_runs(folder, dwi)
    return folder, dwi


def write_opposite_runs(folder, dwi):
    """Images and series of two polarities, with what their sidecars say."""
    head = SyntheticHead()
    grid, field = Grid.covering(head, 6.0), Magnetised(head, voxel_size=4.0).hertz()
    for label, direction in (("AP", "j-"), ("PA", "j")):
        told = {"PhaseEncodingDirection": direction, "TotalReadoutTime": 0.05}
        image = echo_planar_image(head, grid, field, Readout.of(grid.affine, direction, 0.05))
        write_image(folder / f"sub-01_dir-{label}_epi.nii.gz", image.data, image.affine)
        series = folder / f"sub-01_dir-{label}_dwi"
        write_image(series.with_suffix(".nii.gz"), np.asarray(dwi.signal), dwi.affine)
        write_gradient_table(
            series.with_suffix(".bval"), series.with_suffix(".bvec"), dwi.gradients, dwi.affine
        )
        for stem in (f"sub-01_dir-{label}_epi", series.name, f"dwi_{label.lower()}"):
            write_json(folder / f"{stem}.json", told)


def nodes_of_ones_own(folder, dwi):
    """What stands on both sides of the correction in the Nipype page's workflow."""
    import denoise_correct_tensor as example
    from nipype.interfaces.utility import Function, IdentityInterface
    from nipype.pipeline.engine import Node, Workflow

    source = Node(IdentityInterface(["dwi", "bval", "bvec"]), "source")
    source.inputs.trait_set(dwi=str(folder / "dwi.nii.gz"), bval=str(folder / "dwi.bval"),
                            bvec=str(folder / "dwi.bvec"))  # fmt: skip
    denoise = Function(["dwi_file", "bval_file", "method"], ["out_file"], example.denoise)
    denoise.inputs.trait_set(
        dwi_file=str(folder / "dwi.nii.gz"), bval_file=str(folder / "dwi.bval"), method="mppca"
    )
    tensor = Function(
        ["dwi_file", "bval_file", "bvec_file", "mask_file"], ["fa", "md"], example.fit_tensor
    )
    return {
        "workflow": Workflow("mine", base_dir=str(folder / "work")),
        "source": source,
        "denoise": Node(denoise, "denoise"),
        "tensor": Node(tensor, "tensor"),
    }


def tasks_of_ones_own(folder, dwi):
    """What the Pydra page imports from the reader's own module."""
    (folder / "my_tasks.py").write_text(PYDRA_TASKS, encoding="utf-8")
    return {}


def engine_of_ones_own(folder, dwi):
    """An installed package with the engine that CONTRIBUTING.md shows, and images to register."""
    if not ants_is_here():
        pytest.skip("needs antsRegistration or antspyx: eddymotion[ants]")
    package = shown_class(CONTRIBUTING, "PlainRegistrar")
    package += "\n\nclass MyRegistrar(PlainRegistrar):\n"
    package += "    @classmethod\n    def from_settings(cls, path):\n        return cls()\n"
    (folder / "my_package.py").write_text(package, encoding="utf-8")
    installed = folder / "my_package-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1.0\n")
    content = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [f"[{group}]\n{name} = {where}\n"
             for group, entries in content.items() for name, where in entries.items()]  # fmt: skip
    (installed / "entry_points.txt").write_text("".join(lines))
    image = np.asarray(dwi.signal[..., 0], np.float32)
    return {
        "fixed": image, "fixed_affine": dwi.affine, "moving": image, "moving_affine": dwi.affine,
        "points": np.zeros((4, 3)),
    }  # fmt: skip


def engine_that_is_here(folder, dwi):
    """The engine and the settings file of which a page speaks."""
    page = "how-to/another-engine"
    shown = blocks(DOCS / f"{page}.md", "json")
    for file, (_, text) in zip(FILES[page, "json"], shown, strict=True):
        (folder / file).write_text(text, encoding="utf-8")
    name = "ants" if ants_is_here() else "dipy"
    return {"engine": name, "settings": folder / f"{name}.json"}


def output_of_eddy(folder, dwi):
    """What FSL's program leaves behind if it finds no motion in 13 volumes."""
    np.savetxt(folder / "eddy_out.eddy_parameters", np.zeros((13, 16)))
    return {}


def text_files_of_eddy(folder, dwi):
    """Volumes of both polarities in one file, and what eddy and topup are told of them."""
    Path("acqparams.txt").write_text("0 -1 0 0.05\n0 1 0 0.04\n")
    index = np.r_[np.ones(len(dwi)), np.full(len(dwi), 2)]
    np.savetxt("index.txt", index[None], fmt="%d")
    n_slices = dwi.shape[2]
    np.savetxt("slspec.txt", np.r_[0:n_slices:2, 1:n_slices:2], fmt="%d")
    signal = np.concatenate([np.asarray(dwi.signal)] * 2, axis=-1)
    write_image(Path("both.nii.gz"), signal, dwi.affine)
    for kind in ("bval", "bvec"):
        np.savetxt(f"both.{kind}", np.hstack([np.loadtxt(f"dwi.{kind}", ndmin=2)] * 2))
    return {}


PREPARE = {
    "how-to/compare": output_of_eddy,
    "how-to/coming-from-eddy": text_files_of_eddy,
    "how-to/coming-from": engine_that_is_here,
    "../README": nodes_of_ones_own,
    "how-to/nipype": nodes_of_ones_own,
    "how-to/pydra": tasks_of_ones_own,
    "how-to/another-engine": engine_of_ones_own,
}
ALSO = {
    "how-to/another-engine": """
        eddymotion-correct dwi.nii.gz -o mine --registration mine
        eddymotion-register T1w.nii.gz dwiref.nii.gz -o dipy --backend dipy --settings dipy.json
        ! command -v elastix || eddymotion-register T1w.nii.gz dwiref.nii.gz -o elastix \
            --backend elastix --settings elastix.txt
    """,
}
"""What a page says in words."""


def one_volume_as_by_the_library(names):
    """Left out, predicted from the others alone, and resampled as by our own calls."""
    dwi, others, volume = (names[name] for name in ("dwi", "others", "volume"))
    assert len(others) == len(dwi) - 1
    np.testing.assert_array_equal(volume.data, dwi.signal[..., names["left_out"]])
    np.testing.assert_array_equal(
        names["gradient"].bvecs[0], dwi.gradients.bvecs[names["left_out"]]
    )
    changed = np.array(dwi.signal)
    changed[..., names["left_out"]] = 1.0
    again = names["model"].leave_one_out(changed, dwi.gradients)[..., names["left_out"]]
    np.testing.assert_allclose(again[dwi.mask], names["predicted"][dwi.mask], rtol=1e-3)
    motion = em.Motion.identity(len(dwi)).updated(np.array([5]), names["found"].matrix)
    ours = em.resample(dwi, motion).signal[..., 5]
    theirs = np.asarray(names["aligned"].dataobj)
    assert np.abs(ours - theirs)[dwi.mask].max() < 1e-3 * ours.max()


def runs_as_eddy_was_told(names):
    """Encodings and order of slices are those of the text files, and each run has its volumes."""
    dwi = names["dwi"]
    first, second = (em.load(f"runs/polarity-{n}_dwi.nii.gz") for n in (1, 2))
    assert [run.acquisition.common_readout_time for run in (first, second)] == [0.05, 0.04]
    encodings = [run.acquisition.common_phase_encoding for run in (first, second)]
    np.testing.assert_allclose(encodings[0], -encodings[1])
    np.testing.assert_allclose(second.gradients.bvecs, dwi.gradients.bvecs, atol=1e-5)
    np.testing.assert_allclose(second.signal, dwi.signal, rtol=1e-5)
    slicing = em.load("dwi.nii.gz").acquisition.slicing
    np.testing.assert_array_equal(np.ravel(slicing.groups), np.loadtxt("slspec.txt"))
    merged = Path("joined/polarity-1_desc-merged_dwi.nii.gz")
    assert em.load(merged).signal.shape[-1] == 2 * len(dwi)


def table_as_mrtrix_has_it(names):
    """From FSL's table, as MRtrix does it: x is negated where the axes are right-handed."""
    image = nib.load("out/dwi_desc-preproc_dwi.nii.gz")
    along = np.loadtxt("out/dwi_desc-preproc_dwi.bvec").T
    axes = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    along[:, 0] *= -np.sign(np.linalg.det(axes))
    found = np.loadtxt("dwi.b")
    np.testing.assert_allclose(found[:, :3], along @ axes.T, atol=1e-4)
    np.testing.assert_allclose(found[:, 3], np.loadtxt("out/dwi_desc-preproc_dwi.bval"))


HOLDS = {
    "how-to/go-on": table_as_mrtrix_has_it,
    "how-to/coming-from": one_volume_as_by_the_library,
    "how-to/coming-from-eddy": runs_as_eddy_was_told,
}
"""What is true after a page."""


@pytest.mark.slow
@pytest.mark.parametrize("pages", RUN, ids="+".join)
def test_pages_run_from_top_to_bottom(pages, stage, tmp_path, monkeypatch):
    prepared, dwi = stage
    folder = tmp_path / "here"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(EXAMPLES)
    for (page, language), files in FILES.items():
        if page in pages:
            shown = blocks(DOCS / f"{page}.md", language)
            for file, (_, text) in zip(files, shown, strict=True):
                Path(file).write_text(text, encoding="utf-8")
    names = names_of(dwi)
    for page in pages:
        names |= PREPARE.get(page, lambda folder, dwi: {})(folder, dwi)
    paths = (str(folder), EXAMPLES, os.environ.get("PYTHONPATH", ""))
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "NO_ET": "1",
    }
    for page in pages:
        for language, text in blocks(DOCS / f"{page}.md", "bash", "console", "python"):
            if ELSEWHERE.search(text):
                continue
            if language == "python":
                run_python(text, names, environment)
            else:
                run(["bash", "-euo", "pipefail", "-c", as_script(language, text)], environment)
        if page in ALSO:
            run(["bash", "-euo", "pipefail", "-c", ALSO[page]], environment)
        if page in HOLDS:
            HOLDS[page](names)
    if "workflow" in names:
        names["workflow"].run()
    assert list(folder.rglob("*_desc-preproc_dwi.nii.gz"))


def names_of(dwi):
    """What snippets take for given."""
    g = dwi.gradients
    return {"dwi": dwi, "signal": dwi.signal, "affine": dwi.affine, "mask": dwi.mask,
            "bvals": g.bvals, "bvecs": g.bvecs}  # fmt: skip


def run_python(text, names, environment):
    """Run a snippet: as a script, as a test, or as the next lines of a session."""
    if "__main__" in text:
        Path("script.py").write_text(text, encoding="utf-8")
        run([sys.executable, "script.py"], environment)
    elif "import pytest" in text:
        Path("test_snippet.py").write_text(text, encoding="utf-8")
        run([sys.executable, "-m", "pytest", "-q", "test_snippet.py"], environment)
    else:
        exec(compile(text, "snippet", "exec"), names)


def run(call, environment):
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{call[-1]}\n{done.stdout}{done.stderr}"


@pytest.mark.slow
def test_the_demo_of_the_tutorial_comes_out_as_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = DOCS / "tutorial" / "demo.md"
    ((_, command),) = blocks(page, "bash")
    ((_, source),) = blocks(page, "python")
    assert participant.main(shlex.split(command)[1:]) == 0
    names: dict = {}
    exec(compile(source, "demo.md", "exec"), names)
    assert np.abs(names["matrices"] - names["truth"])[:, :3, 3].max() < 0.2  # mm
    for path in re.findall(r"`(demo/[\w./-]+)`", page.read_text(encoding="utf-8")):
        assert (tmp_path / path).exists(), path
