# SPDX-License-Identifier: Apache-2.0
"""Which runs and field maps of a session belong together.

A field map is for the runs that its sidecar names, by ``B0FieldIdentifier`` before
``IntendedFor``; where it names none, for all of the session. Metadata are inherited as those of a
series are.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eddymotion.bids.series import NOT_MAGNITUDE, URI, Sidecars, Sorted, labels_listed
from eddymotion.bids.tree import IMAGE, BidsFile, tree_of
from eddymotion.errors import EddymotionError
from eddymotion.io.images import image_stem
from eddymotion.io.sidecars import MeasuredFiles, SeriesFiles, usable
from eddymotion.wording import PE_AXES

log = logging.getLogger(__name__)

POLARITIES = dict.fromkeys(("AP", "LR", "SI", "HF"), "-") | dict.fromkeys(
    ("PA", "RL", "IS", "FH"), ""
)
"""What names say → the sign along an axis of an image."""

AS_A_WORD = re.compile(rf"(?:^|[_-])({'|'.join(POLARITIES)})(?=[_-]|$)", re.IGNORECASE)
"""A polarity in a name that has no entity for it, such as ``dwi_AP``."""

MAPS = ("phasediff",), ("phase1", "phase2"), ("fieldmap",)
"""Images that make up a measured map, the best first."""

MAGNITUDES = ("magnitude1", "magnitude", "magnitude2")


@dataclass(frozen=True)
class FieldMap:
    """An image of ``fmap/``.

    Parameters
    ----------
    file : BidsFile
    path : Path
    metadata : mapping
        All that its sidecars say.
    """

    file: BidsFile
    path: Path
    metadata: Mapping[str, Any]

    def names(self, runs: Sequence[SeriesFiles]) -> bool | None:
        """Whether it says that it is for some of the runs; None where it does not say."""
        identifiers = _texts(self.metadata.get("B0FieldIdentifier"))
        sources = {text for r in runs for text in _texts((r.metadata or {}).get("B0FieldSource"))}
        if identifiers and sources:
            return bool(identifiers & sources)
        intended = _texts(self.metadata.get("IntendedFor"))
        stems = {image_stem(run.dwi) for run in runs}
        if not intended:
            return None
        return any(image_stem(Path(text.split(":")[-1])) in stems for text in intended)

    def goes_with(self, other: FieldMap) -> bool:
        """Whether the names of two images differ in no entity that both have, but ``echo``."""
        one, two = self.file.labels, other.file.labels
        return all(one[key] == two[key] for key in one.keys() & two.keys() if key != "echo")


def with_runs(found: Sorted) -> Sorted:
    """Tell each series which runs of its session it belongs with: the first is the frame's.

    Runs of b=0 alone come last. Where no two runs have opposite polarity, ``fmap/*_epi`` of the
    session may.
    """
    series: dict[str, list[SeriesFiles]] = {}
    for label, of_participant in found.series.items():
        sessions: dict[Path, list[SeriesFiles]] = {}
        for one in (*of_participant, *found.b0s.get(label, ())):
            sessions.setdefault(one.dwi.parent, []).append(one)
        series[label] = []
        for runs in sessions.values():
            series[label] += _together(runs)
    return replace(found, series=series)


def _together(found: Sequence[SeriesFiles]) -> Iterator[SeriesFiles]:
    """Give the series of a session, each with its runs and their measured map."""
    if all(run.is_b0 for run in found):
        return
    maps = _for_some(field_maps(found[0]), found)
    runs = with_epi(with_polarity(found), maps)
    group, measured = (tuple(runs) if len(runs) > 1 else ()), measured_map(runs, maps)
    yield from (replace(run, runs=group, measured=measured) for run in runs if not run.is_b0)


def field_maps(run: SeriesFiles) -> list[FieldMap]:
    """Find the images of ``fmap/`` next to the folder of a run, in the order of their names."""
    inside = Path(run.uri.removeprefix(URI))
    root, session = run.dwi.parents[len(inside.parts) - 1], inside.parent.parent
    tree = tree_of(root, [*session.parents, session, session / "fmap"])
    sidecars, found = Sidecars(root, tree), []
    for file in tree.files[session / "fmap"]:
        if file.extension not in IMAGE or file.labels.get("part") in NOT_MAGNITUDE:
            continue
        try:
            found.append(FieldMap(file, root / file.path, sidecars(file)))
        except EddymotionError as error:
            log.warning("%s: not used (%s)", file.path, error)
    return found


def _for_some(maps: Sequence[FieldMap], runs: Sequence[SeriesFiles]) -> list[FieldMap]:
    """Leave out maps intended for others; report those intended for files that do not exist."""
    for one in maps:
        intended = sorted(_texts(one.metadata.get("IntendedFor")))
        if one.names(runs) is False and intended and not any(_exists(t, runs) for t in intended):
            log.warning("%s: not used, since IntendedFor in its sidecar names %s, which does "
                        "not exist; "
                        "correct it", one.file.path, labels_listed(intended))  # fmt: skip
    return [one for one in maps if one.names(runs) is not False]


def _exists(intended: str, runs: Sequence[SeriesFiles]) -> bool:
    """Whether a file of ``IntendedFor`` exists: as a URI, or below the participant's folder."""
    dataset, _, path = intended.rpartition(":")
    if dataset not in ("", "bids:"):  # another dataset
        return True
    inside = Path(runs[0].uri.removeprefix(URI))
    root = runs[0].dwi.parents[len(inside.parts) - 1]
    owners = (root, root / inside.parts[0], root / inside.parent.parent)
    return any((owner / path.lstrip("/")).is_file() for owner in owners)


def with_polarity(runs: Sequence[SeriesFiles]) -> list[SeriesFiles]:
    """Take the polarity of runs whose sidecars name the axis alone from their names, ``dir-``.

    Of opposite runs it counts which of two is which, not which of two is the right way round: both
    wrong correct the same, with a field of the other sign.
    """
    polarities = {run.dwi: _polarity_by_name(run) for run in runs}
    if len(set(polarities.values()) - {None}) < 2 or any(_polarity(r.metadata) for r in runs):
        return list(runs)
    listed = ", ".join(f"{run.dwi.name}: {polarities[run.dwi]}" for run in runs)
    log.warning("PhaseEncodingDirection is in none of these sidecars; polarity is taken from "
                "the names: %s; the sign of the off-resonance field may be wrong, the "
                "correction is not affected", listed)  # fmt: skip
    return [
        replace(run, metadata=(run.metadata or {}) | {"PhaseEncodingDirection": polarity})
        if (polarity := polarities[run.dwi])
        else run
        for run in runs
    ]


def _polarity_by_name(run: SeriesFiles) -> str | None:
    axis, name = (run.metadata or {}).get("PhaseEncodingAxis"), image_stem(run.dwi)
    found = re.search(r"_dir-([A-Za-z]+)", name) or AS_A_WORD.search(name)
    if axis not in ("i", "j", "k") or found is None:
        return None
    sign = POLARITIES.get(found.group(1).upper())
    return None if sign is None else f"{axis}{sign}"


def with_epi(runs: Sequence[SeriesFiles], maps: Sequence[FieldMap]) -> list[SeriesFiles]:
    """Add echo-planar field maps of the session to runs that have one polarity alone."""
    known = {_polarity(run.metadata) for run in runs} - {None}
    images = [one for one in maps if one.file.suffix == "epi"]
    if len(known) > 1 or not images:
        return list(runs)
    if not known:
        log.warning("%s: not used, since no run of the session has PhaseEncodingDirection; add "
                    "it to the sidecars",
                    labels_listed([i.file.name for i in images]))  # fmt: skip
        return list(runs)
    for one in images:
        if _polarity(one.metadata) is None:
            log.warning("%s: not used, since no sidecar has PhaseEncodingDirection; add it",
                        one.file.path)  # fmt: skip
    opposed = [one for one in images if _polarity(one.metadata) not in (None, *known)]
    return [*runs, *(_as_run(one) for one in opposed)]


def _as_run(image: FieldMap) -> SeriesFiles:
    return SeriesFiles(
        image.path,
        metadata=dict(image.metadata),
        is_b0=True,
        uri=f"{URI}{image.file.path.as_posix()}",
    )


def measured_map(runs: Sequence[SeriesFiles], maps: Sequence[FieldMap]) -> MeasuredFiles:
    """Choose a measured map of the session: one that names its runs before one that names none.

    If runs of opposite polarity determine the field, it is only compared with theirs.
    """
    found = [
        (first, second)
        for first_kind, *second_kind in MAPS
        for first in maps
        if first.file.suffix == first_kind
        if (second := _partners(first, second_kind, maps)) is not None
    ]
    if not found:
        return MeasuredFiles()
    found.sort(key=lambda images: not images[0].names(runs))
    images, *others = found
    rivals = [one for one, _ in others if one.names(runs) == images[0].names(runs)
              and one.file.suffix == images[0].file.suffix]  # fmt: skip
    if rivals:
        log.warning("%s is used for the off-resonance field, not %s; state in the sidecars "
                    "which to use, with IntendedFor or B0FieldIdentifier",
                    images[0].file.path,
                    labels_listed([one.file.name for one in rivals]))  # fmt: skip
    return _measured([images[0], *images[1]], maps)


def _partners(
    first: FieldMap, kinds: Sequence[str], maps: Sequence[FieldMap]
) -> tuple[FieldMap, ...] | None:
    """Find the other images of a map; None where one is not there."""
    found = [_beside(first, (kind,), maps) for kind in kinds]
    return None if None in found else tuple(one for one in found if one is not None)


def _beside(image: FieldMap, suffixes: Sequence[str], maps: Sequence[FieldMap]) -> FieldMap | None:
    """Find the image that lies nearest by its name: the same entities before contained ones."""
    alike = [one for one in maps if one.file.suffix in suffixes and one.goes_with(image)]
    alike.sort(key=lambda one: (len(one.file.entities ^ image.file.entities),
                                suffixes.index(one.file.suffix)))  # fmt: skip
    return alike[0] if alike else None


def _measured(images: Sequence[FieldMap], maps: Sequence[FieldMap]) -> MeasuredFiles:
    files = {image.file.suffix: image.path for image in images}
    if (magnitude := _beside(images[0], MAGNITUDES, maps)) is not None:
        files["magnitude"] = magnitude.path
    names = ("EchoTime",) if len(images) == 2 else ("EchoTime1", "EchoTime2")
    sidecars = [usable(image.metadata, *names, "Units") for image in images]
    times = tuple(one[name] for one in sidecars for name in names if name in one)
    is_pair = len(times) == 2 and all(isinstance(time, int | float) for time in times)
    return MeasuredFiles(files, times if is_pair else (), sidecars[0].get("Units"))


def _polarity(metadata: Mapping[str, Any] | None) -> str | None:
    """Return the phase-encoding direction that a sidecar says, if it does."""
    direction = (metadata or {}).get("PhaseEncodingDirection")
    return direction if direction in PE_AXES else None


def _texts(value: Any) -> set[str]:
    values = [value] if isinstance(value, str) else value or ()
    return {each for each in values if isinstance(each, str)}
