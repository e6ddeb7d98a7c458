# SPDX-License-Identifier: Apache-2.0
"""Find the diffusion series of a BIDS dataset."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eddymotion.derivatives import Outputs
from eddymotion.derivatives.names import source_name
from eddymotion.errors import EddymotionError
from eddymotion.files import image_stem
from eddymotion.steps import SeriesFiles

log = logging.getLogger(__name__)


def find_series(
    bids_dir: Path,
    *,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    filter_file: Path | None = None,
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

    Returns
    -------
    dict
        Participant label → series, both in order.

    Raises
    ------
    EddymotionError
        If there are none, or labels that do not exist.
    """
    if not bids_dir.is_dir():
        raise EddymotionError(f"{bids_dir}: no such folder; give the root of a BIDS dataset")
    bids_dir = bids_dir.resolve()
    layout = _index(bids_dir)
    wanted = [label.removeprefix("sub-") for label in participants]
    known = layout.get_subjects()
    if missing := sorted(set(wanted) - set(known)):
        raise EddymotionError(
            f"{bids_dir}: no participant {', '.join(missing)}; "
            f"it has {', '.join(known) or 'none at all'}"
        )
    query: dict[str, Any] = {"suffix": "dwi", "extension": [".nii", ".nii.gz"]}
    if wanted:
        query["subject"] = wanted
    if sessions:
        query["session"] = [label.removeprefix("ses-") for label in sessions]
        there = layout.get_sessions(**({"subject": wanted} if wanted else {}))
        if missing := sorted(set(query["session"]) - set(there)):
            raise EddymotionError(
                f"{bids_dir}: no session {', '.join(missing)} of these participants; there are "
                f"{', '.join(there) or 'none at all'}"
            )
    query |= _filters(filter_file)
    try:
        matching = layout.get(**query)
    except (ValueError, TypeError) as error:
        raise EddymotionError(f"{filter_file}: the filter does not work ({error})") from error
    images = [image for image in matching if _is_raw_magnitude(image, bids_dir)]
    if not images:
        raise EddymotionError(
            f"{bids_dir}: no diffusion series (sub-*/[ses-*/]dwi/*_dwi.nii[.gz]) matches; "
            "check the folder, the labels and the filter file"
        )
    _refuse_twins([Path(image.path) for image in images])
    found: dict[str, list[SeriesFiles]] = {}
    for image in sorted(images, key=lambda image: image.path):
        path = Path(image.path)
        series = SeriesFiles(
            dwi=path,
            bval=_nearest(layout, path, ".bval"),
            bvec=_nearest(layout, path, ".bvec"),
            uri=f"bids:raw:{path.relative_to(bids_dir).as_posix()}",
            metadata=layout.get_metadata(image.path),
        )
        found.setdefault(image.entities["subject"], []).append(series)
    return found


def _refuse_twins(images: Sequence[Path]) -> None:
    """Raise if a series is there twice: both would have the same outputs."""
    seen: dict[Path, Path] = {}
    for image in images:
        stem = image.with_name(image_stem(image))
        if stem in seen:
            raise EddymotionError(
                f"{seen[stem]} and {image.name} are one series; remove one of the two, or choose "
                'with --bids-filter-file: {"dwi": {"extension": ".nii.gz"}}'
            )
        seen[stem] = image


def _index(bids_dir: Path) -> Any:
    """Index a dataset; sidecars that cannot be read are told and left aside."""
    from bids import BIDSLayoutIndexer

    try:
        return _layout(bids_dir)
    except EddymotionError:
        broken = [path for path in sorted(bids_dir.rglob("*.json")) if not _is_object(path)]
        if not broken:
            raise
    for path in broken:
        log.warning("%s: cannot be read as JSON; what it says is not known", path)
    names = (re.escape(path.relative_to(bids_dir).as_posix()) for path in broken)
    ignored = [*NO_DATA, *(re.compile(f"^/{name}$") for name in names)]
    return _layout(bids_dir, indexer=BIDSLayoutIndexer(validate=False, ignore=ignored))


def _layout(bids_dir: Path, **options: Any) -> Any:
    from bids import BIDSLayout

    try:
        return BIDSLayout(bids_dir, validate=False, derivatives=False, **options)
    except (OSError, ValueError) as error:
        raise EddymotionError(
            f"{bids_dir}: cannot be indexed as BIDS ({error}); correct that file"
        ) from error


NO_DATA = ["code", "stimuli", "sourcedata", "models", re.compile(r"^/\.")]
"""What is not searched for series: pybids' own list, which another one takes the place of."""


def _is_object(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


def _is_raw_magnitude(image: Any, bids_dir: Path) -> bool:
    """Whether an image belongs to a participant, is not a phase image and not a derivative."""
    inside = Path(image.path).relative_to(bids_dir).parts
    entities = image.entities
    return (
        bool(entities.get("subject"))
        and entities.get("part") != "phase"
        and ("derivatives" not in inside)
    )


def outputs_of(series: SeriesFiles, participant: str, output_dir: Path) -> Outputs:
    """Name the outputs of a series: ``OUTPUT_DIR/sub-X[/ses-Y]/dwi/…``."""
    folder = output_dir / f"sub-{participant}"
    figures = folder / "figures"
    session = next((part for part in series.dwi.parts[-3:-1] if part.startswith("ses-")), None)
    return Outputs(folder / session if session else folder, source_name(series.dwi), figures)


def report_problems(bids_dir: Path) -> None:
    """Run the BIDS validator where it is installed, and log what it finds; never an error."""
    program = shutil.which("bids-validator-deno") or shutil.which(
        "bids-validator-deno", path=str(Path(sys.executable).parent)
    )
    if program is None:
        log.debug("BIDS validation: bids-validator-deno is not installed; skipped")
        return
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
        log.debug("BIDS validation: the validator did not answer (%s)", error)
        return
    for code, where in sorted(places.items()):
        log.warning("BIDS validation: %s (%d×, e.g. %s)", code, len(where), where[0])


def _nearest(layout: Any, path: Path, extension: str) -> Path | None:
    """Find the table that applies by BIDS inheritance."""
    nearest = layout.get_nearest(str(path), extension=extension, suffix="dwi")
    return Path(nearest) if nearest else None


def _filters(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    from bids.layout import Query

    try:
        filters = json.loads(path.read_text(encoding="utf-8"))
        dwi = dict(filters.get("dwi", {}))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise EddymotionError(
            f"{path}: cannot be read as a BIDS filter file ({error}); expected JSON such as "
            '{"dwi": {"session": "01"}}'
        ) from error
    special: dict[Any, Any] = {None: Query.NONE, "*": Query.ANY}

    def meant(entity: str, value: Any) -> Any:
        if isinstance(value, list):
            return [meant(entity, each) for each in value]
        if value is not None and not isinstance(value, str | int | float):
            raise EddymotionError(
                f"{path}: {entity} is {json.dumps(value)}; expected a label, a list of labels, "
                'null (must be absent) or "*" (must be there)'
            )
        return special.get(value, value)

    return {entity: meant(entity, value) for entity, value in dwi.items()}
