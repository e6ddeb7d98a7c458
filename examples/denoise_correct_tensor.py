# SPDX-License-Identifier: Apache-2.0
"""Head-motion correction beside two nodes of your own: denoise, correct → tensor.

    python examples/denoise_correct_tensor.py dwi.nii.gz -o out/
    python examples/denoise_correct_tensor.py --simulate -o out/

takes the b-values and b-vectors beside the image (or simulates a small moving head), removes noise
with DIPY (MP-PCA or Patch2Self), estimates the motion *on the raw series*, since denoising removes
motion at low SNR, applies it to the denoised one, fits a tensor with DIPY, and leaves
``fa.nii.gz``, ``md.nii.gz`` and ``confounds.tsv`` in the output folder.
"""

import argparse
import shutil
from pathlib import Path

from eddymotion.interfaces.nipype import Apply, Estimate, Measure

from nipype.interfaces.utility import Function  # isort: skip
from nipype.pipeline.engine import Node, Workflow  # isort: skip


def denoise(dwi_file, bval_file, method):
    """Remove noise; the volumes stay where they are."""
    from pathlib import Path

    import nibabel as nib
    import numpy as np

    image = nib.load(dwi_file)
    data = image.get_fdata(dtype=np.float32)
    if method == "mppca":
        from dipy.denoise.localpca import mppca

        clean = mppca(data, patch_radius=2)
    else:
        from dipy.denoise.patch2self import patch2self

        clean = patch2self(data, np.loadtxt(bval_file), clip_negative_vals=True)
    out_file = Path("denoised_dwi.nii.gz").absolute()
    nib.Nifti1Image(clean.astype(np.float32), image.affine, image.header).to_filename(out_file)
    return str(out_file)


def fit_tensor(dwi_file, bval_file, bvec_file, mask_file):
    """Fit a tensor; return maps of fractional anisotropy and mean diffusivity."""
    from pathlib import Path

    import nibabel as nib
    import numpy as np
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dti import TensorModel

    image = nib.load(dwi_file)
    mask = np.asarray(nib.load(mask_file).dataobj) > 0
    table = gradient_table(np.loadtxt(bval_file), bvecs=np.loadtxt(bvec_file).T)
    fit = TensorModel(table).fit(image.get_fdata(dtype=np.float32), mask=mask)
    paths = []
    for name, values in (("fa", fit.fa), ("md", fit.md)):
        paths.append(str(Path(f"{name}.nii.gz").absolute()))
        volume = np.nan_to_num(values).astype(np.float32)
        nib.Nifti1Image(volume, image.affine).to_filename(paths[-1])
    return tuple(paths)


def build(dwi_file: Path, out_dir: Path, method: str = "mppca", n_threads: int = 1) -> Workflow:
    """Put the three together."""
    tables = {kind: image_beside(dwi_file, kind) for kind in ("bval", "bvec")}
    clean = Node(Function(["dwi_file", "bval_file", "method"], ["dwi_file"], denoise), "denoise")
    clean.inputs.trait_set(dwi_file=str(dwi_file), bval_file=tables["bval"], method=method)

    given = {"bval_file": tables["bval"], "bvec_file": tables["bvec"], "n_threads": n_threads}
    estimate = Node(Estimate(dwi_file=str(dwi_file), **given), "estimate")
    measure = Node(Measure(dwi_file=str(dwi_file), **given), "measure")
    apply = Node(Apply(**given), "apply")

    tensor = Node(
        Function(["dwi_file", "bval_file", "bvec_file", "mask_file"], ["fa", "md"], fit_tensor),
        "tensor",
    )
    workflow = Workflow("denoise_correct_tensor", base_dir=str(out_dir / "work"))
    workflow.config["execution"] = {"poll_sleep_duration": "0.05"}  # Nipype's own is 2 s
    workflow.connect(
        [
            (clean, apply, [("dwi_file", "dwi_file")]),
            *((estimate, node, [(x, x) for x in ("xfm_file", "details_file", "mask_file")])
              for node in (apply, measure)),
            (apply, tensor, [(x, x) for x in ("dwi_file", "bval_file", "bvec_file", "mask_file")]),
        ]
    )  # fmt: skip
    for name, node, field in (
        ("fa.nii.gz", tensor, "fa"),
        ("md.nii.gz", tensor, "md"),
        ("confounds.tsv", measure, "confounds_file"),
    ):
        copy = Function(["path", "out_file"], ["out_file"], copy_file)
        last = Node(copy, f"keep_{Path(name).name.partition('.')[0]}")
        last.inputs.out_file = str(out_dir / name)
        workflow.connect(node, field, last, "path")
    return workflow


def copy_file(path, out_file):
    """Copy a result out of the work folder."""
    import shutil

    return shutil.copy(path, out_file)


def image_beside(dwi_file: Path, kind: str) -> str:
    """Return the path of a table beside the image."""
    stem = dwi_file.name.removesuffix(".gz").removesuffix(".nii")
    return str(dwi_file.with_name(f"{stem}.{kind}"))


def simulate(folder: Path) -> Path:
    """Write a small moving head."""
    import numpy as np

    from eddymotion.simulation import (
        Grid,
        acquire,
        procedural_head,
        shelled_scheme,
        simulate_motion,
        write_bids,
    )

    head, scheme = procedural_head(5.0), shelled_scheme({1000.0: 16}, 2)
    motion = simulate_motion("moderate", len(scheme), np.zeros(3))
    dwi = acquire(head, scheme, motion, Grid.covering(head, 5.0), snr=20)
    return write_bids(folder, "example", dwi, motion)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dwi", type=Path, nargs="?", help="4-D series, tables beside it")
    parser.add_argument("--simulate", action="store_true", help="make a small series")
    parser.add_argument("--method", choices=("mppca", "patch2self"), default="mppca",
                        help="patch2self needs scikit-learn (default: mppca)")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, default=Path("example"))
    options = parser.parse_args()
    if (options.dwi is None) == (not options.simulate):
        parser.error("give a series or --simulate")
    out_dir = options.output.resolve()
    out_dir.mkdir(parents=True, exist_ok=True)
    dwi = simulate(out_dir / "bids") if options.simulate else options.dwi.resolve()
    build(dwi, out_dir, options.method).run("MultiProc", {"n_procs": 2})
    shutil.rmtree(out_dir / "work")
    print("\n".join(str(path) for path in sorted(out_dir.glob("*.*"))))


if __name__ == "__main__":
    main()
