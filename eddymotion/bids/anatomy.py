# SPDX-License-Identifier: Apache-2.0
"""Which T1w image of a participant gives the output space of a series.

That of the session, else one of no session, else one of another session: the head is the same. In
each place the image whose name says least comes first, then the alphabet decides. A folder of
derivatives has the layout of fMRIPrep and sMRIPrep, where the images in the participant's own
space have no entity ``space``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eddymotion.bids.filters import passes, read_filters
from eddymotion.bids.series import NOT_MAGNITUDE, URI, Sorted, labels_listed
from eddymotion.bids.tree import IMAGE, BidsFile
from eddymotion.errors import EddymotionError
from eddymotion.io.sidecars import Anatomy, SeriesFiles, metadata_beside

log = logging.getLogger(__name__)

PREPROCESSED = "desc-preproc"
"""Entity of an image of derivatives."""

DERIVED_URI = "bids:anat:"

WHITE_MATTER = ("label-WM_probseg", "dseg")
"""Derivatives that show white matter, the best first."""


@dataclass(frozen=True)
class AnatomyFinder:
    """Finds the T1w image of a participant.

    Parameters
    ----------
    bids_dir : Path
        The raw dataset.
    derivatives : Path, optional
        Where preprocessed images are, instead of those of the dataset.
    filters : mapping
        Entity or metadata field → what it may be.
    """

    bids_dir: Path
    derivatives: Path | None
    filters: dict[str, Any]

    @classmethod
    def of(
        cls, bids_dir: Path, derivatives: Path | None = None, filter_file: Path | None = None
    ) -> AnatomyFinder:
        """Read the ``t1w`` entry of a filter file.

        Raises
        ------
        EddymotionError
            If it cannot be read, or there is no such folder.
        """
        if derivatives is not None and not derivatives.is_dir():
            raise EddymotionError(
                f"--anat-derivatives {derivatives}: no such folder; give the output folder of "
                "fMRIPrep or sMRIPrep"
            )
        return cls(bids_dir.resolve(), derivatives, read_filters(filter_file, "t1w"))

    @property
    def root(self) -> Path:
        """Where images are sought."""
        return self.derivatives or self.bids_dir

    def find(self, participant: str, session: str | None) -> Anatomy | None:
        """Find the image for a session (without ``ses-``; None where there are no sessions)."""
        for folder in self._folders(f"sub-{participant}", session):
            found = sorted(self._images(folder), key=lambda one: (len(one.entities), one.name))
            if found:
                return self._chosen(found, session)
        return None

    def _folders(self, owner: str, session: str | None) -> Iterator[Path]:
        """List where to look, the nearest first."""
        others = sorted(path.name for path in (self.root / owner).glob("ses-*"))
        own = [] if session is None else [f"ses-{session}"]
        for between in (*own, "", *(other for other in others if other not in own)):
            yield Path(owner, between, "anat")

    def _images(self, folder: Path) -> Iterator[BidsFile]:
        for path in (self.root / folder).glob("*_T1w.nii*"):
            image = BidsFile(folder, path.name)
            if self._is_usable(image) and passes(image, self.filters, self._metadata):
                yield image

    def _is_usable(self, image: BidsFile) -> bool:
        """Whether it is a magnitude image or, among derivatives, one in the space of its own."""
        if image.extension not in IMAGE or not (self.root / image.path).is_file():
            return False
        if self.derivatives is not None:
            return PREPROCESSED in image.entities and "space" not in image.labels
        return image.labels.get("part") not in NOT_MAGNITUDE

    def _metadata(self, image: BidsFile) -> dict[str, Any]:
        return metadata_beside(self.root / image.path)

    def _chosen(self, found: Sequence[BidsFile], session: str | None) -> Anatomy:
        image = found[0]
        if len(found) > 1:
            log.warning(
                "%s is used for the T1w space, not %s; select with --bids-filter-file, such as "
                '{"t1w": {"run": 2}}', image.path, labels_listed([one.name for one in found[1:]])
            )  # fmt: skip
        elif session != image.labels.get("ses"):
            log.info("ses-%s: no T1w of its own; %s is used", session, image.path)
        path = self.root / image.path
        uri = f"{DERIVED_URI if self.derivatives else URI}{image.path.as_posix()}"
        if self.derivatives is None:
            return Anatomy(path, uri=uri)
        mask, white = (
            self._beside(path, *kinds) for kinds in (("desc-brain_mask",), WHITE_MATTER)
        )
        return Anatomy(path, mask, white, uri)

    def _beside(self, image: Path, *kinds: str) -> Path | None:
        stem = image.name.partition(f"_{PREPROCESSED}_")[0]
        paths = (image.with_name(f"{stem}_{kind}{end}") for kind in kinds for end in IMAGE)
        return next((path for path in paths if path.is_file()), None)


def with_anatomy(found: Sorted, finder: AnatomyFinder) -> Sorted:
    """Give each series the T1w image of its participant; without one it is refused.

    Raises
    ------
    EddymotionError
        If there is none for any series.
    """
    series: dict[str, list[SeriesFiles]] = {}
    refused = {label: dict(reasons) for label, reasons in found.refused.items()}
    for label, of_participant in found.series.items():
        series[label] = []
        known: dict[str | None, Anatomy | None] = {}
        for one in of_participant:
            session = session_of(one.dwi)
            if session not in known:
                known[session] = finder.find(label, session)
            if (anatomy := known[session]) is None:
                refused[label][one.uri.removeprefix(URI)] = _none(finder, label)
            else:
                series[label].append(replace(one, anatomy=anatomy))
    if any(found.series.values()) and not any(series.values()):
        left = sorted(label for label, of_participant in found.series.items() if of_participant)
        without = labels_listed([f"sub-{label}" for label in left])
        raise EddymotionError(
            f"--output-space T1w: no T1w image of {without} "
            f"in {finder.root} ({_expected(finder)}); give the folder that has them with "
            "--anat-derivatives, or one image for all with --output-space FILE"
        )
    return replace(found, series=series, refused=refused)


def session_of(image: Path) -> str | None:
    """Return the label of the session in whose folder an image lies."""
    part = image.parent.parent.name
    return part.removeprefix("ses-") if part.startswith("ses-") else None


def _none(finder: AnatomyFinder, label: str) -> str:
    return (
        f"--output-space T1w: no T1w image of sub-{label} in {finder.root} "
        f"({_expected(finder)}); add one, or correct this participant with --output-space dwi"
    )


def _expected(finder: AnatomyFinder) -> str:
    name = f"*_{PREPROCESSED}_T1w" if finder.derivatives else "*_T1w"
    return f"sub-*/[ses-*/]anat/{name}.nii[.gz]"
