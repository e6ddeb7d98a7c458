# SPDX-License-Identifier: Apache-2.0
"""``eddymotion --doctor [BIDS_DIR]``: what the program sees here, to be pasted into a report."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from eddymotion.errors import EddymotionError
from eddymotion.machine.cgroups import available_cpus, available_memory_gb
from eddymotion.machine.children import why_alone
from eddymotion.machine.versions import software_versions
from eddymotion.registration.registry import registrar_names

if TYPE_CHECKING:
    from eddymotion.io.sidecars import SeriesFiles

OPTIONAL = {
    "antspyx": "--registration ants", "itk-elastix": "--registration elastix",
    "scikit-image": "unwrapping of field-map phases", "bids-validator-deno": "BIDS validation",
}  # fmt: skip
"""Distribution that need not be installed → what it is for."""

VARIABLES = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "NUMBA_CACHE_DIR", "NUMBA_DISABLE_JIT",
             "TMPDIR", "PYTHONPATH", "LC_ALL")  # fmt: skip
"""Of the environment, which change what happens."""

FEW = 3
"""Problems of a kind that are named."""


def examine(bids_dir: Path | None = None) -> str:
    """Describe the installation, the machine and a dataset in about a dozen lines.

    Parameters
    ----------
    bids_dir : Path, optional
        Root of a raw dataset.
    """
    found = [*_installation(), *_machine()]
    if bids_dir is not None:
        found += _dataset(bids_dir)
    room = max(len(label) for label, _ in found)
    return "\n".join(f"{label:<{room}}  {text}" for label, text in found)


def _installation() -> Iterator[tuple[str, str]]:
    versions = software_versions()
    yield "eddymotion", f"{versions.pop('eddymotion', 'not installed')} in {_package_folder()}"
    yield "python", f"{versions.pop('python')} ({sys.executable}), {platform.platform()}"
    needed = {name: number for name, number in versions.items() if name not in OPTIONAL}
    yield "libraries", ", ".join(f"{name} {number}" for name, number in needed.items())
    have, lack = [], []
    for name, purpose in OPTIONAL.items():
        try:
            have.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lack.append(f"{name} ({purpose})")
    yield "optional", ", ".join(have) or "none"
    if lack:
        yield "not installed", ", ".join(lack)
    absent = {word for name in lack for word in name.strip(")").split()}
    yield "registration", ", ".join(name for name in registrar_names() if name not in absent)


def _package_folder() -> Path:
    import eddymotion

    return Path(eddymotion.__file__).parent


def _machine() -> Iterator[tuple[str, str]]:
    side = why_alone() or "series run side by side"
    yield "processors", f"{available_cpus()} of {os.cpu_count()}; {side}"
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    yield "memory", f"{available_memory_gb():.1f} of {there:.1f} GB"
    yield "kernels", _kernels()
    temporary = Path(os.environ.get("TMPDIR", "/tmp"))
    free = shutil.disk_usage(temporary).free / 1e9 if temporary.is_dir() else 0.0
    yield "temporary", f"{temporary}: {free:.1f} GB free"
    given = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    yield "environment", " ".join(given) or "none of " + " ".join(VARIABLES)
    terminal = "a terminal" if sys.stderr.isatty() else "no terminal"
    size = shutil.get_terminal_size()
    yield "console", f"{terminal}, {size.columns}×{size.lines}, {sys.stdout.encoding}"


def _kernels() -> str:
    """Say where compiled code is kept, and whether that works."""
    from eddymotion.images.kernels import sample_grid
    from eddymotion.machine.compiling import cache_folder

    folder = cache_folder(sample_grid)
    if folder is None:
        return (
            "compiled anew in every run: no cache folder is writable; set NUMBA_CACHE_DIR to "
            "one that is"
        )
    kept = len(list(folder.glob("*.nbi"))) if folder.is_dir() else 0
    writable = "writable" if os.access(folder, os.W_OK) else "not writable"
    return f"{folder}: {writable}, {kept} kept"


def _dataset(bids_dir: Path) -> Iterator[tuple[str, str]]:
    """Say what would be corrected, and what stands in the way."""
    from eddymotion.bids.series import Sorted, find_series, flattened, problems_of
    from eddymotion.pipeline.settings import Settings

    try:
        found = Sorted.of(find_series(bids_dir), Settings.b0_threshold)
    except EddymotionError as error:
        yield "dataset", str(error)
        return
    refused, skipped = flattened(found.refused), flattened(found.skipped)
    all_series = list(chain.from_iterable(found.series.values()))
    for series in all_series:
        if why := _trouble(series):
            refused[series.dwi.name] = why
    people = len(found.series)
    yield (
        "dataset",
        (
            f"{bids_dir.resolve()}: {people} participant{'s' * (people != 1)}, "
            f"{found.n_series} series, {len(skipped)} skipped, "
            f"{len(refused)} that cannot be corrected"
        ),
    )
    for name, why in list(refused.items())[:FEW]:
        yield "  problem", f"{name}: {why}"
    if len(refused) > FEW:
        yield "  problem", f"and {len(refused) - FEW} more"
    yield "  metadata", _metadata(all_series)
    counts = problems_of(bids_dir)
    if counts is None:
        yield "  validator", "not run: bids-validator-deno is not installed or does not respond"
    else:
        listed = ", ".join(f"{code} ({len(where)}×)" for code, where in sorted(counts.items()))
        yield "  validator", listed or "no errors"


def _trouble(series: SeriesFiles) -> str:
    """Say why a series cannot be corrected, as far as headers and tables show."""
    from eddymotion.io.headers import read_header, shape_of
    from eddymotion.io.tables import read_numbers

    try:
        n_volumes = (*shape_of(read_header(series.dwi))[3:], 1)[0]
        tables = {"b-values": (series.bval, 1), "b-vectors": (series.bvec, 3)}
        for what, (path, each) in tables.items():
            if path is None:
                return f"no {what} beside it"
            if (n := read_numbers(path).size) != each * n_volumes:
                return f"{n_volumes} volumes, {n / each:g} {what} in {path.name}"
    except EddymotionError as error:
        return str(error)
    return ""


def _metadata(series: Sequence[SeriesFiles]) -> str:
    """Count what the sidecars say of what is corrected."""
    known = Counter(field for one in series for field in one.metadata or {})
    wanted = ("PhaseEncodingDirection", "TotalReadoutTime", "SliceTiming")
    return ", ".join(f"{name} of {known[name]}" for name in wanted) + f" among {len(series)}"
