# SPDX-License-Identifier: Apache-2.0
"""The files of a BIDS dataset: which there are, and which belong to which.

Names are taken apart here: PyBIDS reads labels off the folders above a dataset, too, cuts them at
the first letter that it does not expect, searches every folder, and follows links without end. Its
index is made and read where a user asks for one.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from eddymotion.errors import EddymotionError
from eddymotion.wording import why

log = logging.getLogger(__name__)

IMAGE = (".nii", ".nii.gz")

INDEX = "layout_index.sqlite"
"""How PyBIDS calls its index."""

ROOT = Path()


@dataclass(frozen=True)
class BidsFile:
    """A file of a dataset.

    Parameters
    ----------
    folder : Path
        Relative to the dataset.
    name : str
    """

    folder: Path
    name: str

    @cached_property
    def entities(self) -> frozenset[str]:
        """What its name says, each as ``key-value``."""
        return frozenset(self._stem.split("_")[:-1])

    @property
    def labels(self) -> dict[str, str]:
        """Label of each entity, by its short name; those of the folders, too."""
        folders = [part for part in self.folder.parts if part.startswith(("sub-", "ses-"))]
        pairs = (entity.partition("-") for entity in (*sorted(self.entities), *folders))
        return {key: label for key, dash, label in pairs if dash}

    @property
    def suffix(self) -> str:
        """What it is: ``dwi``."""
        return self._stem.rpartition("_")[2]

    @property
    def extension(self) -> str:
        """From the last dot on, or from that of ``.nii.gz``."""
        return ".nii.gz" if self.name.endswith(".nii.gz") else Path(self.name).suffix

    @property
    def path(self) -> Path:
        """Relative to the dataset."""
        return self.folder / self.name

    @property
    def _stem(self) -> str:
        return self.name.removesuffix(self.extension)

    @property
    def seems_diffusion(self) -> bool:
        """Whether a part of its name begins as the suffix of a diffusion series does."""
        return any(part.casefold().startswith("dwi") for part in self._stem.split("_"))

    def belongs_here(self) -> bool:
        """Whether its name says what its folders say."""
        own = {key: label for key, _, label in (e.partition("-") for e in self.entities)}
        participant, *between = self.folder.parts[:-1]
        session = between[0].removeprefix("ses-") if between else None
        return participant in self.entities and session in (None, own.get("ses", session))


@dataclass(frozen=True)
class Tree:
    """The files of a dataset that matter here: those of ``sub-*/[ses-*/]dwi`` and above.

    Parameters
    ----------
    files : mapping
        Folder, relative to the dataset → its files, in order.
    """

    files: Mapping[Path, Sequence[BidsFile]]

    def participants(self) -> list[str]:
        """Labels of the participants of whom there is a file, in order."""
        labels = {folder.parts[0].removeprefix("sub-") for folder in self.files if folder.parts}
        return sorted(labels)

    def images(self) -> list[BidsFile]:
        """Diffusion series, by their paths; misplaced ones are logged, and left out."""
        found = []
        for file in (file for folder in sorted(self.files) for file in self.files[folder]):
            if file.folder.name != "dwi" or file.extension not in IMAGE:
                continue
            if file.suffix != "dwi":
                if file.seems_diffusion:
                    log.warning(
                        "%s: skipped, since names of diffusion series end in _dwi%s; rename it "
                        "if it is one", file.path, file.extension
                    )  # fmt: skip
            elif file.belongs_here():
                found.append(file)
            else:
                log.warning("%s: its name does not match its folders; skipped: rename or "
                            "move it", file.path)  # fmt: skip
        return found

    def applicable(self, image: BidsFile, extension: str) -> list[list[BidsFile]]:
        """Files of a kind that apply to an image by BIDS' inheritance, the nearest last.

        Such a file has no entity that the image has not, and lies in its folder or above. The
        nearest is that of the nearest folder, and there that with most entities; those of equal
        rank come together.
        """
        found: list[list[BidsFile]] = []
        for folder in (*reversed(image.folder.parents), image.folder):
            here: dict[int, list[BidsFile]] = {}
            for file in self.files.get(folder, ()):
                kin = file.extension == extension and file.suffix == image.suffix
                if kin and file.entities <= image.entities:
                    here.setdefault(len(file.entities), []).append(file)
            found += [here[rank] for rank in sorted(here)]
        return found


def by_number(name: str) -> list[str | int]:
    """Sort names as people count: run-2 before run-10, which was acquired after it."""
    parts: list[str | int] = [*re.split(r"([0-9]+)", name)]
    parts[1::2] = map(int, parts[1::2])
    return parts


def participants_of(bids_dir: Path) -> list[str]:
    """Labels of the participants that have a folder, in order."""
    folders = (path for path in bids_dir.glob("sub-*") if os.path.isdir(path))
    return sorted(path.name.removeprefix("sub-") for path in folders)


def read_tree(bids_dir: Path, participants: Sequence[str]) -> Tree:
    """List the folders of some participants in which there may be something for us.

    A participant's folder may be a link, as a file may be; no link leads out of it, or twice to
    the same folder.
    """
    folders = [ROOT]
    for label in participants:
        folders += _folders_of(bids_dir, Path(f"sub-{label}"))
    return Tree({folder: _files_in(bids_dir, folder) for folder in folders})


def tree_of(bids_dir: Path, folders: Iterable[Path]) -> Tree:
    """List the files of some folders, relative to the dataset; one that is not there is empty."""
    there = {folder: os.path.isdir(bids_dir / folder) for folder in folders}
    return Tree({folder: _files_in(bids_dir, folder) if is_there else []
                 for folder, is_there in there.items()})  # fmt: skip


def _folders_of(bids_dir: Path, owner: Path) -> list[Path]:
    """Folders of a participant: its own, those of sessions, and ``dwi`` in any of them."""
    home = (bids_dir / owner).resolve()
    found = [owner]
    visited = {home}
    sessions = [owner / path.name for path in sorted((bids_dir / owner).glob("ses-*"))]
    folders = (*sessions, owner / "dwi", *(session / "dwi" for session in sessions))
    for folder in sorted(folders, key=lambda folder: _is_by_link(bids_dir, folder)):
        path = bids_dir / folder
        if folder.parent not in found or not os.path.isdir(path):
            continue
        there = path.resolve()
        if there in visited or not there.is_relative_to(home):
            log.warning("%s: leads to %s, %s; not followed: move the files here, or link each",
                        folder, there, "which is already read" if there in visited
                        else "out of the participant's folder")  # fmt: skip
            continue
        visited.add(there)
        found.append(folder)
    return found


def _is_by_link(bids_dir: Path, folder: Path) -> bool:
    """Whether a folder of a participant is reached by a link; such ones come after the others."""
    return any((bids_dir / path).is_symlink() for path in (folder, *folder.parents[:-2]))


def _files_in(bids_dir: Path, folder: Path) -> list[BidsFile]:
    try:
        names = sorted(os.listdir(bids_dir / folder), key=by_number)
    except OSError as error:
        log.warning("%s: cannot be read (%s)", bids_dir / folder, error.strerror)
        return []
    return [BidsFile(folder, name) for name in names if not name.startswith(".")]


def indexed_tree(bids_dir: Path, database_dir: Path) -> Tree:
    """Take the files of a dataset from PyBIDS' index, which is made where there is none.

    Raises
    ------
    EddymotionError
        If the index is of another dataset, or cannot be read or made.
    """
    from bids import BIDSLayout

    if not (database_dir / INDEX).is_file():
        _make_index(bids_dir, database_dir)
    advice = "remove it to have it rebuilt, or give another folder with --bids-database-dir"
    try:
        layout = BIDSLayout(bids_dir, validate=False, database_path=database_dir)
        root, paths = Path(layout.root), layout.get(suffix="dwi", return_type="filename")
    except Exception as error:  # whatever PyBIDS, SQLAlchemy and SQLite raise
        raise EddymotionError(
            f"{database_dir / INDEX}: cannot be read as an index of PyBIDS ({why(error)}); "
            f"{advice}"
        ) from error
    if root.resolve() != bids_dir:
        raise EddymotionError(
            f"{database_dir / INDEX}: the index of {root}, not of {bids_dir}; {advice}"
        )
    files: dict[Path, list[BidsFile]] = {}
    for path in (Path(path).relative_to(root) for path in sorted(paths, key=by_number)):
        if _may_matter(path.parent.parts) and not path.name.startswith("."):
            files.setdefault(path.parent, []).append(BidsFile(path.parent, path.name))
    return Tree(files)


def _may_matter(folders: Sequence[str]) -> bool:
    """Whether a folder is the root, ``sub-*``, ``sub-*/ses-*``, or ``dwi`` in one of them."""
    above = folders[:-1] if folders and folders[-1] == "dwi" else folders
    prefixes = ("sub-", "ses-")[: len(above)]
    return (bool(above) or not folders) and len(above) <= 2 and all(
        name.startswith(prefix) for name, prefix in zip(above, prefixes, strict=True)
    )  # fmt: skip


def _make_index(bids_dir: Path, database_dir: Path) -> None:
    """Index the whole dataset; the index gets its name when it is complete."""
    from bids import BIDSLayout, BIDSLayoutIndexer

    def make(folder: Path, metadata: bool) -> None:
        indexer = BIDSLayoutIndexer(
            ignore=[*NOT_RAW, _LinkedTwice(bids_dir)], index_metadata=metadata
        )
        BIDSLayout(
            bids_dir, validate=False, database_path=folder, reset_database=True, indexer=indexer
        )

    try:
        database_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".index-", dir=database_dir) as temporary:
            try:
                make(Path(temporary), metadata=True)
            except Exception as error:  # a sidecar that PyBIDS cannot stand; not needed here
                log.warning("%s: PyBIDS cannot index the sidecars (%s: %s); the index is built "
                            "without them", bids_dir, type(error).__name__,
                            " ".join(str(error).split())[:200])  # fmt: skip
                make(Path(temporary), metadata=False)
            os.replace(Path(temporary) / INDEX, database_dir / INDEX)
    except Exception as error:
        raise EddymotionError(
            f"{database_dir}: PyBIDS cannot build its index there ({why(error)}); give another "
            "folder, or leave --bids-database-dir out"
        ) from error


NOT_RAW = ("code", "derivatives", "models", "sourcedata", "stimuli")
"""Folders of a dataset that are not indexed."""


class _LinkedTwice:
    """What PyBIDS takes for a pattern of paths to ignore: links, but those to participants."""

    def __init__(self, bids_dir: Path) -> None:
        self.bids_dir = bids_dir
        self.visited: dict[Path, str] = {bids_dir: "/"}

    def search(self, path: str) -> bool:
        there = self.bids_dir / path.lstrip("/")
        if not there.is_dir():
            return False
        resolved = there.resolve()
        if there.is_symlink() and (
            there.parent != self.bids_dir or resolved.is_relative_to(self.bids_dir)
        ):
            return True
        return self.visited.setdefault(resolved, path) != path
