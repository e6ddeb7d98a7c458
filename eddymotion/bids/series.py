# SPDX-License-Identifier: Apache-2.0
"""Find the diffusion series of a BIDS dataset."""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eddymotion.bids.filters import passes, read_filters, refuse_unknown
from eddymotion.bids.tree import BidsFile, Tree, indexed_tree, participants_of, read_tree
from eddymotion.data.gradients import in_thousands
from eddymotion.derivatives import Outputs
from eddymotion.derivatives.names import source_name
from eddymotion.errors import EddymotionError
from eddymotion.io.headers import read_header, shape_of
from eddymotion.io.images import image_stem
from eddymotion.io.sidecars import FIELDS, SeriesFiles, read_sidecar
from eddymotion.io.tables import read_numbers
from eddymotion.io.writing import read_json
from eddymotion.wording import listed

log = logging.getLogger(__name__)

NOT_MAGNITUDE = ("phase", "real", "imag")
"""Values of the entity ``part`` of images that are not corrected."""

URI = "bids:raw:"

LISTED = 20
"""Labels that a message lists at most."""


def find_series(
    bids_dir: Path,
    *,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    filter_file: Path | None = None,
    database_dir: Path | None = None,
) -> dict[str, list[SeriesFiles]]:
    """Find the diffusion series of each participant.

    Parameters
    ----------
    bids_dir : Path
        Root of a raw BIDS dataset.
    participants, sessions : sequences of str
        Labels to keep, with or without ``sub-`` and ``ses-``; all when empty.
    filter_file : Path, optional
        JSON ``{"dwi": {entity: value}}`` as fMRIPrep takes it; ``null`` asks that the entity be
        absent, ``"*"`` that it be present.
    database_dir : Path, optional
        Where PyBIDS keeps its index of the whole dataset; made where there is none. Without it
        the folders are read, those of the participants to keep alone.

    Returns
    -------
    dict
        Participant label → series, both in order. Series that cannot be corrected say why.

    Raises
    ------
    EddymotionError
        If there are none, or labels that do not exist.
    """
    if bids_dir.is_file():
        raise EddymotionError(
            f"{bids_dir}: a file; give the root of a BIDS dataset, or correct it by itself: "
            f"eddymotion-correct {shlex.quote(str(bids_dir))}"
        )
    if not bids_dir.is_dir():
        raise EddymotionError(f"{bids_dir}: no such folder; give the root of a BIDS dataset")
    bids_dir = bids_dir.resolve()
    filters = read_filters(filter_file)
    tree, wanted = _tree_of(bids_dir, participants, database_dir)
    images = [image for image in tree.images() if image.labels["sub"] in wanted]
    if sessions:
        images = _of_sessions(images, sessions, bids_dir)
    metadata = Sidecars(bids_dir, tree)
    refuse_unknown(filters, images, metadata, filter_file)
    images = [
        image
        for image in images
        if image.labels.get("part") not in NOT_MAGNITUDE and passes(image, filters, metadata)
    ]
    if not images:
        raise EddymotionError(
            f"{bids_dir}: no diffusion series (sub-*/[ses-*/]dwi/*_dwi.nii[.gz]) matches; "
            "check the folder, the labels and the filter file"
        )
    twins = _same_names(images)
    found: dict[str, list[SeriesFiles]] = {}
    for image in images:
        series = _series_of(image, bids_dir, tree, metadata)
        if problem := twins.get(image):
            series = replace(series, problem=problem)
        found.setdefault(image.labels["sub"], []).append(series)
    return found


def _tree_of(
    bids_dir: Path, participants: Sequence[str], database_dir: Path | None
) -> tuple[Tree, set[str]]:
    """Return the files of a dataset, and the labels of the requested participants."""
    tree = indexed_tree(bids_dir, database_dir) if database_dir else None
    known = participants_of(bids_dir) if tree is None else tree.participants()
    if not known and tree is not None:
        raise EddymotionError(
            f"{database_dir}: PyBIDS' index there has no diffusion series; give another folder "
            "with --bids-database-dir (fMRIPrep's index leaves dwi/ out)"
        )
    if not known:
        raise EddymotionError(f"{bids_dir}: {_what_instead(bids_dir)}")
    wanted = [label.removeprefix("sub-") for label in participants] or known
    if missing := sorted(set(wanted) - set(known)):
        raise EddymotionError(
            f"{bids_dir}: no participant {labels_listed(missing)}; it has {labels_listed(known)}"
            + "; separate labels by spaces" * any("," in label for label in missing)
        )
    return tree or read_tree(bids_dir, wanted), set(wanted)


def warn_of_description(bids_dir: Path) -> None:
    """Warn of a dataset without description, or of derivatives: once where it is corrected."""
    description = bids_dir / "dataset_description.json"
    if read_json(description).get("DatasetType") == "derivative":
        log.warning(
            "%s: DatasetType is derivative, expected raw: give the series as acquired, since "
            "motion is lost where volumes were resampled or denoised before", description
        )  # fmt: skip
    if not description.exists():
        log.warning(
            "%s: no dataset_description.json, which every BIDS dataset has; it is read "
            'anyway: add one, such as {"Name": "…", "BIDSVersion": "1.10.0"}', bids_dir
        )  # fmt: skip


def _what_instead(folder: Path) -> str:
    """Say what is wrong with a folder without participants, and what to give instead."""
    parts = folder.parts
    of = next((n for n, part in reversed([*enumerate(parts)]) if part.startswith("sub-")), None)
    if of is not None and all(p == "dwi" or p.startswith("ses-") for p in parts[of + 1 :]):
        return (
            f"part of a dataset; give {Path(*parts[:of])} and --participant-label "
            f"{parts[of].removeprefix('sub-')}"
        )
    for path in _first_files(folder):
        if path.suffix.lower() in (".dcm", ".ima") or _is_dicom(path):
            return (
                "DICOM files; convert them to BIDS first (dcm2bids or HeuDiConv, which run "
                "dcm2niix)"
            )
    for inside in sorted(folder.glob("*/dataset_description.json")):
        if participants_of(inside.parent):
            return f"no participants (folders sub-*); did you mean {inside.parent}?"
    return (
        "no participants (folders sub-*), so no diffusion series; give the root of a BIDS "
        "dataset, or correct a single series with eddymotion-correct"
    )


def _first_files(folder: Path) -> list[Path]:
    """Return at most fifty files of a folder and its subfolders, three levels deep."""
    patterns = ("*", "*/*", "*/*/*")
    found = (path for pattern in patterns for path in folder.glob(pattern) if os.path.isfile(path))
    return [path for path, _ in zip(found, range(50), strict=False)]


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def labels_listed(labels: Sequence[str]) -> str:
    """Write labels for a message, not more than one can read."""
    return listed(labels, LISTED) or "none at all"


def _of_sessions(
    images: Sequence[BidsFile], sessions: Sequence[str], bids_dir: Path
) -> list[BidsFile]:
    wanted = {label.removeprefix("ses-") for label in sessions}
    there = {image.labels["ses"] for image in images if "ses" in image.labels}
    if missing := sorted(wanted - there):
        raise EddymotionError(
            f"{bids_dir}: no session {labels_listed(missing)} of these participants; there are "
            f"{labels_listed(sorted(there))}"
        )
    return [image for image in images if image.labels.get("ses") in wanted]


def _same_names(images: Sequence[BidsFile]) -> dict[BidsFile, str]:
    """Find images whose outputs would have the same names, each with what to do."""
    by_name: dict[str, list[BidsFile]] = {}
    for image in images:
        by_name.setdefault(source_name(image.path), []).append(image)
    problems: dict[BidsFile, str] = {}
    for alike in by_name.values():
        if len(alike) == 1:
            continue
        names = " and ".join(str(image.path) for image in alike)
        if len({image.folder for image in alike}) == 1:
            why = (
                f"{names} are the same series; remove one of them, or select with "
                '--bids-filter-file: {"dwi": {"extension": ".nii.gz"}}'
            )
        else:
            why = f"{names} would give outputs of the same name; rename one of them"
        problems |= dict.fromkeys(alike, why)
    return problems


def _series_of(
    image: BidsFile, bids_dir: Path, tree: Tree, metadata: Callable[[BidsFile], Mapping[str, Any]]
) -> SeriesFiles:
    """Put together what belongs to an image by BIDS' inheritance."""
    tables: dict[str, Path | None] = {}
    problems = []
    for extension in (".bval", ".bvec"):
        *_, nearest = tree.applicable(image, extension) or [[]]
        if len(nearest) > 1:
            problems.append(_ambiguous(nearest, image))
        tables[extension] = bids_dir / nearest[0].path if nearest else None
    try:
        fields = metadata(image)
    except EddymotionError as error:
        fields = {}
        problems.append(str(error))
    return SeriesFiles(
        dwi=bids_dir / image.path,
        bval=tables[".bval"],
        bvec=tables[".bvec"],
        uri=f"{URI}{image.path.as_posix()}",
        metadata={key: fields[key] for key in FIELDS if key in fields},
        problem=next(iter(problems), ""),
    )


def _ambiguous(files: Sequence[BidsFile], image: BidsFile, what: str = "") -> str:
    names = " and ".join(str(file.path) for file in files)
    return (
        f"{names} apply equally to {image.name}{what}; remove one of them, or give it the name "
        "of the image"
    )


class Sidecars:
    """Metadata of images; each sidecar is read once."""

    def __init__(self, bids_dir: Path, tree: Tree) -> None:
        self.bids_dir = bids_dir
        self.tree = tree
        self._read: dict[Path, dict[str, Any]] = {}

    def __call__(self, image: BidsFile) -> dict[str, Any]:
        """Merge all sidecars that apply to an image; the nearest has the last word.

        Raises
        ------
        EddymotionError
            If two that apply equally contradict each other.
        """
        merged: dict[str, Any] = {}
        for equals in self.tree.applicable(image, ".json"):
            together: dict[str, Any] = {}
            for file in equals:
                content = self._content(file.path)
                for key in FIELDS:
                    if key in together and key in content and content[key] != together[key]:
                        raise EddymotionError(_ambiguous(equals, image, f", but differ in {key}"))
                together |= content
            merged |= together
        return merged

    def _content(self, path: Path) -> dict[str, Any]:
        if path not in self._read:
            self._read[path] = read_sidecar(self.bids_dir / path)
        return self._read[path]


@dataclass(frozen=True)
class Sorted:
    """What is to be done with the series that were found.

    Parameters
    ----------
    series : mapping
        Participant → what is corrected.
    refused, skipped : mapping
        Participant → series → why it cannot be corrected, or need not be.
    b0s : mapping
        Participant → runs of b=0 volumes alone: skipped, but they may show the distortion of
        others.
    """

    series: Mapping[str, Sequence[SeriesFiles]]
    refused: Mapping[str, Mapping[str, str]]
    skipped: Mapping[str, Mapping[str, str]]
    b0s: Mapping[str, Sequence[SeriesFiles]] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Mapping[str, Sequence[SeriesFiles]], b0_threshold: float) -> Sorted:
        """Set apart what has a problem, and what has b=0 volumes only."""
        series: dict[str, list[SeriesFiles]] = {label: [] for label in found}
        refused: dict[str, dict[str, str]] = {label: {} for label in found}
        skipped: dict[str, dict[str, str]] = {label: {} for label in found}
        b0s: dict[str, list[SeriesFiles]] = {label: [] for label in found}
        for label, of_participant in found.items():
            for one in of_participant:
                if reason := one.problem or _missing_tables(one):
                    refused[label][one.uri.removeprefix(URI)] = reason
                elif reason := _why_b0_alone(one, b0_threshold):
                    b0s[label].append(replace(one, is_b0=True))
                    skipped[label][one.dwi.name] = reason
                else:
                    series[label].append(one)
        return cls(series, refused, skipped, b0s)

    @property
    def n_series(self) -> int:
        """How many there are, skipped ones left out."""
        return sum(map(len, self.series.values())) + len(flattened(self.refused))


def flattened(reasons: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Put the reasons of all participants together: series → why."""
    return {
        name: why for of_participant in reasons.values() for name, why in of_participant.items()
    }


def has_b0_only(series: SeriesFiles, b0_threshold: float) -> bool:
    """Whether a series has b=0 volumes only, such as those of reversed phase encoding."""
    if series.bval is None:
        return False
    try:
        bvals = read_numbers(series.bval)
    except EddymotionError:  # reported when the series is loaded
        return False
    is_b0 = (bvals >= 0) & (bvals <= b0_threshold)
    return bool(is_b0.all()) and not in_thousands(bvals)  # of another unit: reported in its turn


def _why_b0_alone(series: SeriesFiles, b0_threshold: float) -> str:
    """Say why a series counts as b=0 volumes alone, which are not corrected; else empty."""
    if has_b0_only(series, b0_threshold):
        return (
            f"no b-value above {b0_threshold:g} s/mm² (--b0-threshold): b=0 volumes alone are not "
            "corrected"
        )
    if _n_volumes_without_tables(series) == 1:  # converters write no tables where all is b=0
        return (
            "a single volume without b-values, taken for b=0: b=0 volumes alone are not corrected"
        )
    return ""


def _missing_tables(series: SeriesFiles) -> str:
    """Say what to do about several volumes without tables: b=0 alone, or forgotten; else empty."""
    if _n_volumes_without_tables(series) < 2:
        return ""
    return (
        f"neither b-values nor b-vectors; add {image_stem(series.dwi)}.bval and .bvec, or, if all "
        "volumes are b=0, a .bval of zeros: they only show the distortion of other series then"
    )


def _n_volumes_without_tables(series: SeriesFiles) -> int:
    """Count the volumes of a series that has neither b-values nor b-vectors; else 0."""
    if series.bval is not None or series.bvec is not None:
        return 0
    try:
        return math.prod(shape_of(read_header(series.dwi))[3:])
    except EddymotionError:  # reported when the series is loaded
        return 0


def outputs_of(series: SeriesFiles, participant: str, output_dir: Path) -> Outputs:
    """Name the outputs of a series: ``OUTPUT_DIR/sub-X[/ses-Y]/dwi/…``.

    A series that has an anatomy is brought into its space.
    """
    folder = output_dir / f"sub-{participant}"
    figures = folder / "figures"
    session = next((part for part in series.dwi.parts[-3:-1] if part.startswith("ses-")), None)
    own, space = folder / session if session else folder, "T1w" if series.anatomy else ""
    return Outputs(own, source_name(series.dwi), figures, space=space)


def report_problems(bids_dir: Path) -> None:
    """Log what the BIDS validator finds; never an error."""
    for code, where in sorted((problems_of(bids_dir) or {}).items()):
        log.warning("BIDS validation: %s (%d×, e.g. %s)", code, len(where), where[0])


def problems_of(bids_dir: Path) -> dict[str, list[str]] | None:
    """Run the BIDS validator: code of an error → where; None where it does not answer."""
    program = shutil.which("bids-validator-deno") or shutil.which(
        "bids-validator-deno", path=str(Path(sys.executable).parent)
    )
    if program is None:
        log.debug("BIDS validation: bids-validator-deno is not installed; skipped")
        return None
    try:
        finished = subprocess.run(
            [program, "--json", str(bids_dir)], capture_output=True, text=True, timeout=600
        )
        issues = json.loads(finished.stdout)["issues"]["issues"]
        errors = [issue for issue in issues if issue["severity"] == "error"]
        places: dict[str, list[str]] = {}
        for issue in errors:
            places.setdefault(issue["code"], []).append(issue.get("location", ""))
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        log.debug("BIDS validation: the validator did not respond (%s)", error)
        return None
    return places
