# SPDX-License-Identifier: Apache-2.0
"""Choose series by what their names and sidecars say: BIDS filter files, as fMRIPrep has them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eddymotion.bids.tree import BidsFile
from eddymotion.errors import EddymotionError, absence
from eddymotion.wording import why

LONG_NAMES = {
    "subject": "sub", "session": "ses", "tracksys": "tracksys", "acquisition": "acq",
    "nucleus": "nuc", "volume": "voi", "ceagent": "ce", "staining": "stain", "tracer": "trc",
    "reconstruction": "rec", "direction": "dir", "modality": "mod", "inversion": "inv",
    "mtransfer": "mt", "processing": "proc", "hemisphere": "hemi", "segmentation": "seg",
    "resolution": "res", "density": "den", "description": "desc",
}  # fmt: skip
"""Entities whose name in a filter is not that in a file's name."""

SAME_NAMES = {
    "sample", "task", "run", "echo", "flip", "inv", "mt", "part", "proc", "space", "split",
    "recording", "chunk", "label", "atlas", "cohort",
}  # fmt: skip

FORMS = 'expected a label, a list of labels, null (must be absent) or "*" (must be there)'


def read_filters(path: Path | None, entry: str = "dwi") -> dict[str, Any]:
    """Read an entry of a BIDS filter file: entity or metadata field → what it may be.

    Raises
    ------
    EddymotionError
        If it cannot be read.
    """
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        filters = dict(content.get(entry, {}))
    except FileNotFoundError as error:
        raise EddymotionError(absence(path)) from error
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise EddymotionError(
            f"{path}: cannot be read as a BIDS filter file ({why(error)}); expected JSON such as "
            '{"dwi": {"session": "01"}}'
        ) from error
    for key, value in filters.items():
        for item in value if isinstance(value, list) else [value]:
            if item is not None and not isinstance(item, str | int | float):
                raise EddymotionError(f"{path}: {key} is {json.dumps(value)[:80]}; {FORMS}")
    return filters


def refuse_unknown(
    filters: Mapping[str, Any],
    images: Sequence[BidsFile],
    metadata: Callable[[BidsFile], Mapping[str, Any]],
    path: Path | None,
) -> None:
    """Raise if a filter has a key that is neither an entity nor in the sidecar of any image."""
    for key in filters:
        if not any(is_entity(key, image) or key in metadata(image) for image in images):
            near = difflib.get_close_matches(key, [*LONG_NAMES, *SAME_NAMES], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise EddymotionError(
                f"{path}: {key} is neither an entity nor in the sidecar of a series{hint}"
            )


def passes(
    image: BidsFile, filters: Mapping[str, Any], metadata: Callable[[BidsFile], Mapping[str, Any]]
) -> bool:
    """Whether an image is what all filters ask for; `metadata` are read only if one names them."""
    labels = {
        "suffix": image.suffix,
        "extension": image.extension,
        "datatype": image.folder.name,
        **image.labels,
    }
    for key, wanted in filters.items():
        found = labels.get(LONG_NAMES.get(key, key))
        if found is None and not is_entity(key, image):
            found = metadata(image).get(key)
        if not any(_meets(found, one, key) for one in _listed(wanted)):
            return False
    return True


def is_entity(key: str, image: BidsFile) -> bool:
    """Whether a filter's key names an entity, and not a field of the sidecar."""
    known = {*LONG_NAMES, *LONG_NAMES.values(), *SAME_NAMES, "suffix", "extension", "datatype"}
    return key in known or key in image.labels


def _listed(wanted: Any) -> list[Any]:
    return wanted if isinstance(wanted, list) else [wanted]


def _meets(found: Any, wanted: Any, key: str) -> bool:
    if wanted is None or found is None:
        return found is wanted
    if wanted == "*":
        return True
    if key == "extension":
        return found == "." + str(wanted).lstrip(".")
    if key == "run":  # an index: 1 is 01
        return str(found).lstrip("0") == str(wanted).lstrip("0")
    return found == wanted or str(found) == str(wanted)
