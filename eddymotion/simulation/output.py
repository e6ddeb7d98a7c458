# SPDX-License-Identifier: Apache-2.0
"""A simulated dataset on disk: BIDS, with the truth under ``truth/``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eddymotion import __version__
from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.io.images import new_header, write_volumes
from eddymotion.io.itk import write_itk
from eddymotion.io.tables import write_gradient_table
from eddymotion.io.tsv import table_text
from eddymotion.io.writing import write_json, write_text
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import PARAMETERS, rigid_parameters

DATASET_NAME = "Simulated head with known motion"

DESCRIPTION = {
    "Name": DATASET_NAME,
    "BIDSVersion": "1.10.0",
    "DatasetType": "raw",
    "License": "CC0",
    "Authors": ["eddymotion"],
}

METADATA: dict[str, Any] = {"Manufacturer": "simulated", "RepetitionTime": 4.0}
"""What the sidecar of a simulated series says."""

LARGEST = np.iinfo(np.int16).max
"""Images are stored as 16-bit integers."""

README = """\
Simulated by eddymotion: a procedural head with known motion. The true motion lies in
truth/, as ITK transforms (reference to volume) and as parameters (mm, rad).
"""

DETAILED_README = """\
# Simulated diffusion MRI with known motion

Made by eddymotion-simulate (eddymotion {version}). Nobody was scanned with this motion.

{participants}

What is true lies in `truth/`, which is not part of BIDS:

- `*_xfm.txt`: ITK transforms, one a volume, from the head at rest (the reference) to the volume.
- `*_motion.tsv`: the same as translations of the centre of the image grid (mm) and extrinsic
  x, y, z angles (rad), RAS+, a row a volume.
- `*_trajectory.tsv`, with slice timing: the same for each excitation of a volume, with its slices
  (counted from 0) and its time (s); the two above are the mean of a volume over its excitations.
- `*_dropped.tsv`: slices that lost signal; volume and slice counted from 0, and the share of the
  signal that was kept.
- `*_eddy.tsv`, with eddy currents: coefficients of the displacement field, a row a volume, mm.
  The settings say which axis and centre they refer to.
- `*_fieldmap.nii.gz`, with susceptibility: the off-resonance field of the head at rest, Hz.
- `*_mask.nii.gz`: the brain at rest.
- `*_ideal_dwi.nii.gz`, if asked for: the same scan of the head at rest, with no noise and nothing
  else that goes wrong.
- `*_settings.json`: how it was made. The same settings give the same bytes.
"""


def write_bids(
    folder: str | Path,
    name: str,
    dwi: DWI,
    motion: Motion,
    *,
    session: str | None = None,
    direction: str | None = None,
    metadata: Mapping[str, Any] = METADATA,
    gain: float = 1.0,
) -> Path:
    """Write a series as a BIDS dataset, with the truth.

    Parameters
    ----------
    folder : path
        Becomes the dataset's root; what describes an earlier dataset there stays as it is.
    name : str
        Participant label.
    dwi : DWI
    motion : Motion
        The truth, reference → volume.
    session : str, optional
        Session label.
    direction : str, optional
        Label of the entity ``dir``.
    metadata : mapping
        Content of the sidecar.
    gain : float
        The signal is multiplied by this, then rounded to 16-bit integers; see
        :func:`integer_gain`.

    Returns
    -------
    Path
        The image.

    Raises
    ------
    EddymotionError
        If the signal does not fit 16-bit integers.
    """
    folder = Path(folder)
    image = image_path(folder, name, session, direction)
    stem = image.with_name(image.name.removesuffix(".nii.gz"))
    peak = gain * float(np.max(dwi.signal))
    if peak > LARGEST:
        raise EddymotionError(
            f"{image}: a signal of {peak:.0f} does not fit 16-bit integers; give a smaller gain"
        )
    truth = truth_stem(folder, name, session, direction)
    write_itk(truth.with_name(f"{truth.name}_xfm.txt"), motion.matrices)
    write_motion_table(truth.with_name(f"{truth.name}_motion.tsv"), motion, dwi.center)
    write_dataset_files(folder)
    write_gradient_table(
        stem.with_suffix(".bval"), stem.with_suffix(".bvec"), dwi.gradients, dwi.affine
    )
    write_json(stem.with_suffix(".json"), dict(metadata))
    header = new_header(dwi.signal.shape, np.dtype(np.int16), dwi.affine, dwi.repetition_time)
    write_volumes(image, header, (np.round(volume * np.float32(gain)) for volume in dwi.volumes()))
    return image


def write_dataset_files(folder: Path, description: Mapping[str, Any] = DESCRIPTION) -> None:
    """Write the top-level files of a BIDS dataset, unless they exist."""
    if not (folder / "dataset_description.json").exists():
        write_json(folder / "dataset_description.json", dict(description))
    if not (folder / "README").exists():
        write_text(folder / "README", README)
    if not (folder / ".bidsignore").exists():
        write_text(folder / ".bidsignore", "truth\n")  # with a slash, the validator still sees it


def write_detailed_readme(folder: Path) -> None:
    """Describe all participants, from their settings under ``truth/``."""
    lines = []
    for path in sorted((folder / "truth").glob("*_settings.json")):
        summary = json.loads(path.read_text(encoding="utf-8")).get("summary", "see its settings")
        lines.append(f"- {path.name.removesuffix('_settings.json')}: {summary}")
    text = DETAILED_README.format(version=__version__, participants="\n".join(lines))
    write_text(folder / "README", text)


def image_path(folder: Path, name: str, session: str | None, direction: str | None) -> Path:
    """Return where the image of a participant lies."""
    entities = [f"sub-{name}", *([f"ses-{session}"] if session else [])]
    of_series = [*entities, *([f"dir-{direction}"] if direction else []), "dwi.nii.gz"]
    return folder.joinpath(*entities, "dwi", "_".join(of_series))


def truth_stem(folder: Path, name: str, session: str | None, direction: str | None) -> Path:
    """Return what the paths of the truth of a participant begin with."""
    image = image_path(folder, name, session, direction)
    return folder / "truth" / image.name.removesuffix("_dwi.nii.gz")


def integer_gain(signal: np.ndarray) -> float:
    """Return the largest power of two that keeps a signal within 16-bit integers."""
    peak = max(float(np.max(signal)), 1e-12)
    return float(2.0 ** np.floor(np.log2(LARGEST / peak)))


def write_motion_table(path: Path, motion: Motion, center: np.ndarray) -> None:
    """Write six parameters a volume: translations of the grid centre (mm), angles (rad)."""
    values = rigid_parameters(motion.matrices, center).T
    write_text(path, table_text(dict(zip(PARAMETERS, values, strict=True))))


def write_dropped_table(path: Path, kept: np.ndarray) -> None:
    """Write the slices that lost signal; `kept` (N, Z) as of ``dropped_slices``."""
    volumes, slices = np.nonzero(kept < 1)
    shares = [f"{share:.6f}" for share in kept[volumes, slices]]
    write_text(path, table_text({"volume": volumes, "slice": slices, "kept": shares}))
