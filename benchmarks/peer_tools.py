# SPDX-License-Identifier: Apache-2.0
"""One function per tool: a series on disk → (N, 4, 4) matrices, reference → volume, RAS+ mm.

``python benchmarks/peer_tools.py TOOL FOLDER OUT.npy`` runs one of them on ``dwi.nii.gz``,
``dwi.bval``, ``dwi.bvec`` and ``mask.nii.gz`` in FOLDER. It runs as a process of its own, in
the environment of the tool: a function imports what it needs, and nothing else is imported here.

b=0 volumes that a tool drops keep the identity.
"""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

B0_THRESHOLD = 50.0

SEED = 0

SHELL_WIDTH = 100.0


def nothing(folder: Path) -> np.ndarray:
    """Leave all volumes where they are."""
    return identity(len(np.loadtxt(folder / "dwi.bval")))


def identity(n: int) -> np.ndarray:
    return np.tile(np.eye(4), (n, 1, 1))


def joint(folder: Path, n_threads: int) -> np.ndarray:
    """Our default: all volumes at once."""
    import eddymotion as em

    return em.estimate_motion(em.load(folder / "dwi.nii.gz"), n_threads=n_threads).matrices


def loop(folder: Path, backend: str, n_threads: int) -> np.ndarray:
    """Our leave-one-out loop with a registration backend."""
    import eddymotion as em

    dwi = em.load(folder / "dwi.nii.gz")
    return em.estimate_motion(
        dwi, estimator="lovo", registrar=backend, n_threads=n_threads
    ).matrices


def dipy(folder: Path) -> np.ndarray:
    """DIPY's motion_correction without its affine stage: static → moving in world coordinates."""
    from dipy.align import motion_correction
    from dipy.core.gradients import gradient_table

    bvals, bvecs = np.loadtxt(folder / "dwi.bval"), np.loadtxt(folder / "dwi.bvec").T
    gradients = gradient_table(bvals, bvecs=bvecs, b0_threshold=B0_THRESHOLD)
    image = nib.load(folder / "dwi.nii.gz")
    stages = ["center_of_mass", "translation", "rigid"]
    _, affines = motion_correction(
        image.get_fdata(dtype=np.float32), gradients, affine=image.affine, pipeline=stages
    )
    return np.moveaxis(affines, -1, 0)


def ants_rigid(folder: Path) -> np.ndarray:
    """Register each volume to the mean of its shell, or of the b=0 volumes, with ANTs' Rigid."""
    import ants

    image = nib.load(folder / "dwi.nii.gz")
    signal, bvals = image.get_fdata(dtype=np.float32), np.loadtxt(folder / "dwi.bval")
    shells = np.round(bvals / SHELL_WIDTH)
    matrices = identity(len(bvals))
    with tempfile.TemporaryDirectory() as scratch:

        def as_ants(volume: np.ndarray):
            path = Path(scratch) / "volume.nii.gz"
            nib.Nifti1Image(volume, image.affine).to_filename(path)
            return ants.image_read(str(path))

        for shell in np.unique(shells):
            members = np.flatnonzero(shells == shell)
            fixed = as_ants(signal[..., members].mean(axis=3))
            for index in members:
                found = ants.registration(
                    fixed, as_ants(signal[..., index]), type_of_transform="Rigid",
                    random_seed=SEED, outprefix=f"{scratch}/found-",
                )  # fmt: skip
                matrices[index] = from_itk(ants.read_transform(found["fwdtransforms"][0]))
    return matrices


def from_itk(transform) -> np.ndarray:
    """Turn ITK's fixed → moving matrix about a centre, LPS+, into RAS+."""
    parameters, center = np.array(transform.parameters), np.array(transform.fixed_parameters)
    matrix = np.eye(4)
    matrix[:3, :3] = parameters[:9].reshape(3, 3)
    matrix[:3, 3] = parameters[9:] + center - matrix[:3, :3] @ center
    return LPS @ matrix @ LPS


def nifreeze(folder: Path, model: str, ants_settings: str | None, n_threads: int) -> np.ndarray:
    """NiFreeze's estimator: one pass, each volume to its prediction; b=0 volumes are dropped."""
    from nifreeze.data.dmri.io import from_nii
    from nifreeze.estimator import Estimator
    from nifreeze.model.dmri import GPModel

    dataset = from_nii(
        folder / "dwi.nii.gz",
        brainmask_file=folder / "mask.nii.gz",
        bvec_file=folder / "dwi.bvec",
        bval_file=folder / "dwi.bval",
    )
    dataset.dataobj = dataset.dataobj.astype(np.float32)  # the clipping divides in place
    with tempfile.TemporaryDirectory() as programs:
        put_ants_on_path(Path(programs))
        chosen = GPModel(dataset) if model == "gp" else model  # the factory does not know it
        more = {"ants_config": ants_settings} if ants_settings else {}
        Estimator(chosen).run(dataset, n_jobs=n_threads, omp_nthreads=n_threads, seed=SEED, **more)
    matrices = identity(len(np.loadtxt(folder / "dwi.bval")))
    matrices[np.loadtxt(folder / "dwi.bval") > B0_THRESHOLD] = dataset.motion_affines
    return matrices


def put_ants_on_path(folder: Path) -> None:
    """Make antspyx's antsRegistration a program that Nipype finds.

    It loads only the compiled library: importing the whole package would cost NiFreeze two
    seconds per volume that the program of an ANTs installation does not need.
    """
    package = importlib.util.find_spec("ants")
    library = next(Path(package.submodule_search_locations[0]).glob("lib.*.so"))
    program = folder / "antsRegistration"
    program.write_text(
        f"#!{sys.executable}\n"
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('lib', {str(library)!r})\n"
        "library = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(library)\n"
        "sys.exit(library.antsRegistration(sys.argv[1:]))\n"
    )
    program.chmod(0o755)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


def run(tool: str, folder: Path, n_threads: int) -> np.ndarray:
    """Run a tool by its name in ``benchmarks.peers``."""
    kind, _, detail = tool.partition(":")
    if kind == "loop":
        return loop(folder, detail, n_threads)
    if kind == "nifreeze":
        model, _, settings = detail.partition("+")
        return nifreeze(folder, model, settings or None, n_threads)
    if kind == "joint":
        return joint(folder, n_threads)
    return {"nothing": nothing, "dipy": dipy, "ants": ants_rigid}[kind](folder)


if __name__ == "__main__":
    name, series, output = sys.argv[1:]
    np.save(output, run(name, Path(series), int(os.environ["OMP_NUM_THREADS"])))
