# SPDX-License-Identifier: Apache-2.0
"""Whether the outputs of a series are complete and unchanged since they were written.

The sidecar of the image, written last, holds the size and the digest of every other output, and a
digest of itself. All files get its time of modification. A file with another time has been touched
since, and is read to see whether its content is still the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from eddymotion.derivatives.names import Outputs
from eddymotion.derivatives.on_demand import fsl_files
from eddymotion.errors import EddymotionError
from eddymotion.io.tsv import Table
from eddymotion.io.writing import read_json

RECORD = "Outputs"
"""Field of the sidecar: name of a file or folder → size and digest."""

SELF = "Digest"
"""Field of the sidecar: digest of all its others but the seconds."""

SMALL = 1_000_000
"""Bytes up to which a file is read in any case."""

NOT_RECORDED = frozenset({
    "sidecar", "motion_figure", "within_figure", "carpet_figure", "shells_figure", "eddy_figure",
    "report_steps",
})  # fmt: skip
"""The sidecar itself, what every page draws again, and what contains durations."""

FOLDERS = frozenset({"fsl_matrices", "eddy_fields"})
"""Outputs of many files."""


def recorded(
    outputs: Outputs, content: Mapping[str, Any], digests: Mapping[Path, str]
) -> dict[str, Any]:
    """Add to the content of a sidecar what proves that the outputs are whole.

    Parameters
    ----------
    outputs : Outputs
        All written but the sidecar.
    content : mapping
        JSON-ready.
    digests : mapping
        Those of files that are known.
    """
    record = {path.name: _measured(path, digests.get(path)) for path in _written(outputs)}
    whole = {**content, RECORD: record}
    return whole | {SELF: _own_digest(whole)}


def stamp(outputs: Outputs) -> None:
    """Give all recorded outputs the time of the sidecar."""
    time = outputs["sidecar"].stat().st_mtime_ns
    for path in _written(outputs):
        for file in _files(path):
            with suppress(OSError):  # it is read then to be compared
                os.utime(file, ns=(time, time))


def read_sidecar(outputs: Outputs) -> dict[str, Any]:
    """Read the sidecar of a finished series; empty if there is none, or not the one written."""
    content = read_json(outputs["sidecar"])
    digest = content.pop(SELF, None)
    return content if digest is not None and digest == _own_digest(content) else {}


def is_damaged(sidecar: Path) -> bool:
    """Whether a sidecar cannot be read, or is one with a digest that is not its own."""
    content = read_json(sidecar)
    return sidecar.exists() and (not content or SELF in content)


def damage(outputs: Outputs, sidecar: Mapping[str, Any], *, quick: bool = False) -> list[str]:
    """Find outputs that are not what was written, in words; empty if all is well.

    Parameters
    ----------
    outputs : Outputs
    sidecar : mapping
        From :func:`read_sidecar`.
    quick : bool
        Compare sizes only.
    """
    places = {path.name: path for path in _known(outputs)}
    time = outputs["sidecar"].stat().st_mtime_ns
    found = []
    for name, recorded in sidecar[RECORD].items():
        path = places.get(name)
        words = "missing" if path is None else _compared(path, recorded, None if quick else time)
        if words:
            found.append(f"{name} ({words})")
    try:
        Table.read(outputs["report_steps"])
    except EddymotionError:
        found.append(f"{outputs['report_steps'].name} (cannot be read)")
    return found


def intact(path: Path, sidecar: Mapping[str, Any]) -> bool:
    """Whether a recorded file is as it was written, whatever its time."""
    recorded = sidecar[RECORD].get(path.name)
    return recorded is not None and not _compared(path, recorded, -1)


def refuse_changed(outputs: Outputs, kinds: Iterable[str]) -> None:
    """Raise if files are not those that the sidecar records, whatever their time.

    Raises
    ------
    EddymotionError
        Nothing is known of the outputs of a sidecar that is damaged or has no record.
    """
    sidecar = read_sidecar(outputs)
    paths = [outputs[kind] for kind in kinds if outputs[kind].name in sidecar.get(RECORD, {})]
    changed = [path.name for path in paths if not intact(path, sidecar)]
    if changed:
        raise EddymotionError(
            f"{outputs['sidecar'].parent}: {', '.join(changed)} changed since the correction; "
            "run the participant level to recompute it"
        )


def files_of(outputs: Outputs) -> list[Path]:
    """Return all files that may be written."""
    return [*(outputs[kind] for kind in outputs if kind not in FOLDERS), *fsl_files(outputs)]


def _compared(path: Path, recorded: Mapping[str, Any], time: int | None) -> str:
    """Say what is wrong with a file; with a time, its content counts if it has another one."""
    if not path.exists():
        return "missing"
    size = _size(path)
    if path.is_dir() != recorded.get("Folder", False):
        return "a folder" if path.is_dir() else "no folder"
    if size != recorded["Size"]:
        return f"{size} bytes, but {recorded['Size']} were written"
    if time is None:
        return ""
    touched = any(file.stat().st_mtime_ns != time for file in _files(path))
    if (size <= SMALL or touched) and _digest(path) != recorded["SHA256"]:
        return "its content was changed"
    return ""


def _written(outputs: Outputs) -> list[Path]:
    return [path for path in _known(outputs) if path.exists()]


def _known(outputs: Outputs) -> list[Path]:
    """All that a series may have, but what every page draws again."""
    return [outputs[kind] for kind in outputs if kind not in NOT_RECORDED] + fsl_files(outputs)


def _measured(path: Path, digest: str | None) -> dict[str, Any]:
    recorded = {"Size": _size(path), "SHA256": digest or _digest(path)}
    return recorded | ({"Folder": True} if path.is_dir() else {})


def _files(path: Path) -> Iterator[Path]:
    yield from sorted(path.rglob("*")) if path.is_dir() else [path]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in _files(path) if file.is_file())


def _digest(path: Path) -> str:
    """Digest of a file; of a folder, of the names and digests of its files."""
    if path.is_dir():
        of_files = (f"{file.name} {_digest(file)}\n" for file in _files(path) if file.is_file())
        return hashlib.sha256(os.fsencode("".join(of_files))).hexdigest()
    return sha256(path)


def sha256(path: Path) -> str:
    """Digest of the content of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _own_digest(content: Mapping[str, Any]) -> str:
    """Digest of a sidecar, but for the seconds: two equal runs have equal ones."""
    rest = {key: value for key, value in content.items() if key != "StageSeconds"}
    if isinstance(summary := rest.get("Summary"), dict):
        rest["Summary"] = {key: value for key, value in summary.items() if key != "time"}
    text = json.dumps(rest, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
