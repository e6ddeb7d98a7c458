# SPDX-License-Identifier: Apache-2.0
"""Whether a change inside the package leaves its outputs identical, to the last bit.

``python -m benchmarks.equality write FOLDER [--data BIDS_DIR …] [--only NAME …]`` runs the
commands and the public Python API on real and simulated series, keeps their outputs, and a digest
of the *content* of each file: the voxels of an image rather than its compressed bytes, JSON
without versions, dates, times and paths. ``python -m benchmarks.equality compare BEFORE AFTER``
lists what differs and how much, and exits with 1 if anything does beyond the tolerances given.

Nothing internal to the package is imported, so that the same script runs before and after a
restructuring: keep it in a folder of its own if the other commit lacks it.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

N_VOLUMES = 24
"""Volumes of a real series, at most: enough for the motion over time, in a few minutes overall."""

RADIUS_MM = 80.0
LOOP = {"estimator": "lovo", "n_iterations": 2}
COMMANDS = Path(sys.executable).parent

VOLATILE = {
    "EddymotionVersion", "PackageVersions", "StageSeconds", "time", "seconds", "Version",
    "CodeURL", "Fingerprint", "MotionFingerprint", "Digest", "Size", "SHA256",
}  # fmt: skip
"""Keys of JSON and columns of tables that record who wrote them and when, or digests of files."""

VOLATILE_TEXT = (
    (re.compile(r"\d+\.\d+\.\d+\.?(dev|post)\d+(\+\w[\w.]*)?"), "VERSION"),
    (re.compile(r"\d{4}-?\d\d-?\d\d[-T ]\d\d:?\d\d:?\d\d([.,]\d+)?"), "DATE"),
    (re.compile(r"\d{4}-\d\d-\d\d( \d\d:\d\d)?"), "DATE"),
    (re.compile(r"[\d.]+ s \(reading[^)]*\)"), "TIMES"),
    (re.compile(r'<tr><th scope="row">[^<]*</th><td>[\d.]+ s</td></tr>'), ""),  # none for 0.0 s
    (re.compile(r">[\d.]+ s</t([dh])>"), r">TIME</t\1>"),
    (re.compile(r"data:[\w/+;-]+,[^\"')]+"), "PICTURE"),
    (re.compile(r"\b[0-9a-f]{40,}\b"), "DIGEST"),
)
PICTURES = {".png", ".webp", ".jpg"}
RUN_LOGS = "logs/eddymotion_*"
"""Log and record of a run: not compared, as they hold times, and their names do as well."""

NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w])")

Content = dict[str, Any]
"""Content of a file, flat: arrays of numbers, or text, by name."""


@dataclass(frozen=True)
class Case:
    """Calls that write below ``{out}``, and may read the simulated series in ``{sim}``."""

    name: str
    calls: tuple[tuple[str, ...], ...]


def main() -> int:
    options = parse()
    return options.run(options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.equality", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parts = parser.add_subparsers(required=True)
    write = parts.add_parser("write", help="run everything, and keep what it writes")
    write.add_argument("folder", type=Path, metavar="FOLDER", help="new or empty")
    write.add_argument("--data", type=Path, nargs="+", default=[], metavar="BIDS_DIR")
    write.add_argument("--only", nargs="+", metavar="NAME",
                       help="only these cases; sub: all participants of --data")  # fmt: skip
    write.add_argument("--nprocs", type=int, default=2, help="cases at a time (default: 2)")
    write.set_defaults(run=write_all)
    compare = parts.add_parser("compare", help="list what differs between two folders")
    compare.add_argument("before", type=Path, metavar="BEFORE")
    compare.add_argument("after", type=Path, metavar="AFTER")
    compare.add_argument("--poses-mm", type=float, default=0.0, metavar="MM",
                         help="allowed difference of poses, at 80 mm (default: 0)")  # fmt: skip
    compare.add_argument("--images", type=float, default=0.0, metavar="SHARE",
                         help="allowed of images' 99th percentile (default: 0)")  # fmt: skip
    compare.add_argument("--numbers", type=float, default=0.0, metavar="SHARE",
                         help="allowed of a column's largest (default: 0)")  # fmt: skip
    compare.set_defaults(run=compare_all)
    engine = parts.add_parser("python", help="one case of the public Python: used by write")
    engine.add_argument("name", choices=PYTHON)
    engine.add_argument("series", type=Path)
    engine.add_argument("out", type=Path)
    engine.set_defaults(run=lambda options: PYTHON[options.name](options.series, options.out) or 0)
    return parser.parse_args()


# What is run


def cases(data: list[Path]) -> list[Case]:
    """Return all cases, the long ones first."""
    return [*real_cases(data), *SIMULATED]


def real_cases(data: list[Path]) -> Iterator[Case]:
    for place, dataset in enumerate(data):
        for folder in sorted(dataset.glob("sub-*")):
            if any(folder.rglob("*_dwi.nii*")):
                yield Case(
                    folder.name,
                    ((
                        "eddymotion", f"{{data}}/{place}", "{out}", "participant",
                        "--participant-label", folder.name.removeprefix("sub-"),
                        "--skip-bids-validation", "--resampling", "fast", "--nprocs", "1",
                    ),),
                )  # fmt: skip


def correct(series: str, *options: str) -> tuple[str, ...]:
    return ("eddymotion-correct", series, "-o", "{out}", "--nprocs", "1", *options)


def register(backend: str, transform: str, *options: str) -> Case:
    call = ("eddymotion-register", "{sim}/small_dwi.nii.gz", "{sim}/small_dwi.nii.gz",
            "--fixed-volume", "0", "--moving-volume", "0" if transform == "syn" else "8",
            "--transform", transform, "--backend", backend, "--nprocs", "1",
            "-o", "{out}/pair", *options)  # fmt: skip
    return Case("-".join(("register", backend, transform, *options[1:])), (call,))


def in_python(name: str) -> Case:
    call = (
        "python",
        "-m",
        "benchmarks.equality",
        "python",
        name,
        "{sim}/small_dwi.nii.gz",
        "{out}",
    )
    return Case(name, (call,))


SMALL = "{sim}/small_dwi.nii.gz"
SIMULATIONS = (
    ("small", "--scheme", "few", "--voxel-size", "6", "--motion", "moderate"),
    ("eddy", "--scheme", "few", "--voxel-size", "5", "--eddy-currents", "quadratic",
     "--dropout", "0.08", "--motion", "moderate"),
    ("grid", "--scheme", "few", "--voxel-size", "4", "--motion", "none"),
)  # fmt: skip

PYTHON: dict[str, Callable[[Path, Path], None]] = {}


def python_case(function: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    PYTHON[function.__name__.replace("_", "-")] = function
    return function


@python_case
def library(series: Path, out: Path) -> None:
    import eddymotion as em

    dwi = em.load(series)
    motion = em.estimate_motion(dwi)
    quality = em.assess(dwi, motion)
    em.save(em.resample(dwi, motion), motion, out, quality=quality)


@python_case
def library_lovo(series: Path, out: Path) -> None:
    import eddymotion as em

    dwi = em.load(series)
    motion = em.estimate_motion(dwi, **LOOP)
    em.save(em.resample(dwi, motion, engine="fast"), motion, out)


@python_case
def nipype(series: Path, out: Path) -> None:
    run_nipype(series, out)


@python_case
def nipype_lovo(series: Path, out: Path) -> None:
    run_nipype(series, out, spelled_out=True, **LOOP)


def run_nipype(series: Path, out: Path, **settings: Any) -> None:
    from eddymotion.workflows.nipype import init_dwi_hmc_wf
    from nipype.interfaces.io import DataSink
    from nipype.pipeline.engine import Node, Workflow

    part = init_dwi_hmc_wf(**settings)
    part.get_node("inputnode").inputs.dwi_file = str(series.resolve())
    sink = Node(DataSink(base_directory=str(out.resolve())), "sink")
    names = part.get_node("outputnode").inputs.copyable_trait_names()
    whole = Workflow("whole", base_dir=str(out.resolve() / "work"))
    whole.connect([(part, sink, [(f"outputnode.{name}", name) for name in names])])
    whole.run()
    shutil.rmtree(out / "work")


@python_case
def pydra(series: Path, out: Path) -> None:
    run_pydra(series, out)


@python_case
def pydra_lovo(series: Path, out: Path) -> None:
    run_pydra(series, out, spelled_out=True, **LOOP)


def run_pydra(series: Path, out: Path, **settings: Any) -> None:
    from eddymotion.workflows.pydra import DwiHmc

    work = out / "work"
    found = DwiHmc(dwi_file=series, **settings)(worker="debug", cache_root=work)
    for name in ("dwi", "bval", "bvec", "xfm", "confounds", "dwiref", "mask"):
        (out / name).mkdir()
        shutil.copy(getattr(found, f"{name}_file"), out / name)
    shutil.rmtree(work)


SIMULATED = (
    Case("demo", (("eddymotion", "--demo", "{out}", "--nprocs", "1"),)),
    *(in_python(name) for name in PYTHON),
    Case("eddy", (
        ("eddymotion", "{sim}/eddy", "{out}", "participant", "--skip-bids-validation",
         "--nprocs", "1", "--eddy-current", "quadratic", "--replace-outliers", "--fsl-outputs",
         "--cnr-maps", "--residuals", "--eddy-fields", "--resampling", "fast"),
        ("eddymotion", "{sim}/eddy", "{out}", "group", "--nprocs", "1"),
    )),
    Case("fast", (correct(SMALL, "--resampling", "fast"),)),
    Case("nitransforms", (correct(SMALL, "--resampling", "nitransforms"),)),
    Case("lovo", (correct(SMALL, "--estimator", "lovo", "--n-iterations", "2"),)),
    Case("lovo-dti", (correct(SMALL, "--model", "dti", "--n-iterations", "1"),)),
    Case("lovo-dipy", (correct(SMALL, "--registration", "dipy", "--n-iterations", "1"),)),
    Case("space", (correct(SMALL, "--output-space", "{sim}/grid.nii.gz"),)),
    *(register("gauss-newton", transform) for transform in ("rigid", "similarity", "affine")),
    register("gauss-newton", "rigid", "--metric", "nmi"),
    *(register(backend, transform) for backend in ("dipy", "ants", "elastix")
      for transform in ("rigid", "affine", "syn") if (backend, transform) != ("elastix", "syn")),
)  # fmt: skip


def write_all(options: argparse.Namespace) -> int:
    """Run the cases; keep outputs, digests and poses in the folder."""
    folder = options.folder.resolve()
    if folder.exists() and any(folder.iterdir()):
        print(f"{folder}: holds files; name a new folder, or remove it first", file=sys.stderr)
        return 2
    started = time.monotonic()
    chosen = choose(cases(options.data), options.only)
    series = folder.with_name(f"{folder.name}-input")
    prepare(series, options.data, any(case.name.startswith("sub-") for case in chosen))
    with ThreadPoolExecutor(options.nprocs) as pool:
        ended = dict(pool.map(lambda case: run_case(case, folder, series), chosen))
    contents = {
        path.relative_to(folder).as_posix(): read(path, folder)
        for path in sorted(folder.rglob("*")) if path.is_file() and not path.match(RUN_LOGS)
    }  # fmt: skip
    keep(folder, contents, ended)
    shutil.rmtree(series)
    print(f"{len(contents)} files of {len(chosen)} cases in {time.monotonic() - started:.0f} s")
    return int("failed" in ended.values())


def choose(known: list[Case], only: list[str] | None) -> list[Case]:
    if only is None:
        return known
    if strange := set(only) - {case.name for case in known} - {"sub"}:
        names = ", ".join(case.name for case in known)
        sys.exit(f"no case is named {', '.join(sorted(strange))}; there are {names}")
    return [
        case for case in known
        if case.name in only or ("sub" in only and case.name.startswith("sub-"))
    ]  # fmt: skip


def prepare(series: Path, data: list[Path], real: bool) -> None:
    """Copy the beginning of each real series, and simulate others."""
    shutil.rmtree(series, ignore_errors=True)
    for place, dataset in enumerate(data if real else []):
        shorten(dataset, series / "data" / str(place))
    for name, *options in SIMULATIONS:
        call("eddymotion-simulate", str(series / name), "--random-seed", "1", "--nprocs", "1",
             *options)  # fmt: skip
    for ending in (".nii.gz", ".bval", ".bvec", ".json"):
        shutil.copy(series / f"small/sub-01/dwi/sub-01_dwi{ending}", series / f"small_dwi{ending}")
    nib.save(nib.load(series / "grid/sub-01/dwi/sub-01_dwi.nii.gz").slicer[..., 0],
             series / "grid.nii.gz")  # fmt: skip


def shorten(dataset: Path, copy: Path) -> None:
    """Copy a dataset, of each diffusion series the first volumes."""
    for path in sorted(path for path in dataset.rglob("*") if path.is_file()):
        target = copy / path.relative_to(dataset)
        target.parent.mkdir(parents=True, exist_ok=True)
        if re.search(r"_dwi\.nii(\.gz)?$", path.name):
            nib.save(nib.load(path).slicer[..., :N_VOLUMES], target)
        elif path.suffix in (".bval", ".bvec"):
            np.savetxt(target, np.loadtxt(path, ndmin=2)[:, :N_VOLUMES], "%.10g")
        else:
            shutil.copyfile(path, target)


def run_case(case: Case, folder: Path, series: Path) -> tuple[str, str]:
    """Run the calls of a case; return its name and how it ended: done, absent, or failed."""
    started = time.monotonic()
    out = folder / case.name
    out.mkdir(parents=True)
    ended = "done"
    for words in case.calls:
        filled = [word.format(out=out, sim=series, data=series / "data") for word in words]
        done = call(*filled, check=False)
        if done.returncode:
            ended = "absent" if "is not installed" in done.stderr else "failed"
            if ended == "failed":
                print(f"{case.name}: {' '.join(filled)}\n{done.stderr[-2000:]}", file=sys.stderr)
            break
    print(f"{case.name:30} {ended:7} {time.monotonic() - started:6.1f} s", flush=True)
    return case.name, ended


def call(program: str, *words: str, check: bool = True) -> subprocess.CompletedProcess:
    """Run a program of this environment, from the project's root."""
    environment = os.environ | {"NO_ET": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [str(COMMANDS / program), *words], env=environment, cwd=Path(__file__).parents[1],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if check and done.returncode:
        sys.exit(f"{program} {' '.join(words)}\n{done.stderr}")
    return done


# What is kept


def keep(folder: Path, contents: dict[str, Content], ended: dict[str, str]) -> None:
    record = {
        "cases": ended,
        "files": {name: digest(content) for name, content in contents.items()},
    }
    (folder / "digests.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    poses = {name: content["poses"] for name, content in contents.items() if "poses" in content}
    np.savez_compressed(folder / "poses.npz", allow_pickle=False, **poses)


def digest(content: Content) -> str:
    """Return the SHA-256 of arrays (their bytes, shape and type) and texts."""
    found = hashlib.sha256()
    for name, value in sorted(content.items()):
        found.update(f"{name}\0".encode())
        if isinstance(value, np.ndarray):
            found.update(f"{value.dtype.str}{value.shape}".encode())
            found.update(np.ascontiguousarray(value).tobytes())
        else:
            found.update(str(value).encode())
    return found.hexdigest()


def read(path: Path, folder: Path) -> Content:
    """Return what a file holds, without what differs from run to run."""
    name = path.name
    if name.endswith((".nii", ".nii.gz")):
        image = nib.load(path)
        return {"image": np.asanyarray(image.dataobj), "affine": image.affine}
    if path.suffix in PICTURES:
        from PIL import Image

        return {"picture": np.asarray(Image.open(path))}
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {key: recorded(arrays[key], folder) for key in arrays}
    if path.suffix == ".x5":
        return read_hdf5(path, folder)
    text = stripped(path.read_text(encoding="utf-8"), folder)
    if path.suffix == ".json":
        return flat(json.loads(path.read_text(encoding="utf-8")), folder)
    if text.startswith("#Insight Transform File"):
        return {"poses": itk_matrices(text), "text": NUMBER.sub("", text)}
    if path.suffix == ".tsv":
        return read_table(text)
    return {"text": text}


def recorded(array: np.ndarray, folder: Path) -> np.ndarray | str:
    return array if array.dtype.kind in "biufc" else stripped(str(array.tolist()), folder)


def stripped(text: str, folder: Path) -> str:
    """Return a text without versions, dates, times and the paths of this run."""
    for path, word in ((f"{folder}-input", "INPUT"), (str(folder), "FOLDER")):
        text = text.replace(path, word)
    for pattern, word in VOLATILE_TEXT:
        text = pattern.sub(word, text)
    return text


def flat(value: Any, folder: Path, name: str = "") -> Content:
    """Return the leaves of a JSON value by their path."""
    if isinstance(value, dict):
        parts = [(key, part) for key, part in value.items() if key not in VOLATILE]
    elif isinstance(value, list) and not all(isinstance(part, (int, float)) for part in value):
        parts = [(str(place), part) for place, part in enumerate(value)]
    elif isinstance(value, str):
        return {name: stripped(value, folder)}
    elif isinstance(value, (int, float, list)) and not isinstance(value, bool):
        return {name: np.array(value, float)}
    else:
        return {name: str(value)}
    if not parts:
        return {name: "empty"}
    leaves: Content = {}
    for key, part in parts:
        leaves |= flat(part, folder, f"{name}.{key}" if name else key)
    return leaves


def read_table(text: str) -> Content:
    """Return the columns of a table with a head: numbers where all are, else text."""
    head, *rows = [line.split("\t") for line in text.splitlines()]
    columns: Content = {}
    for name, values in zip(head, zip(*rows, strict=True), strict=False):
        if name in VOLATILE:
            continue
        try:
            columns[name] = np.array([np.nan if v == "n/a" else float(v) for v in values])
        except ValueError:
            columns[name] = "\n".join(values)
    return columns or {"text": text}


def read_hdf5(path: Path, folder: Path) -> Content:
    import h5py

    content: Content = {}

    def take(name: str, node: Any) -> None:
        for key, value in node.attrs.items():
            content[f"{name}@{key}"] = recorded(np.asarray(value), folder)
        if isinstance(node, h5py.Dataset):
            content[name] = recorded(np.asarray(node[()]), folder)

    with h5py.File(path) as file:
        take("", file)
        file.visititems(take)
    return content


def itk_matrices(text: str) -> np.ndarray:
    """Return the 4×4 matrices (LPS+) of an ITK text file."""
    matrices = []
    for line, fixed in re.findall(r"^Parameters: (.*)\n(?:FixedParameters: ?(.*))?", text, re.M):
        values = np.array(line.split(), float)
        center = np.array(fixed.split() or [0, 0, 0], float)
        matrix = np.eye(4)
        matrix[:3, :3] = values[:9].reshape(3, 3)
        matrix[:3, 3] = values[9:] + center - matrix[:3, :3] @ center
        matrices.append(matrix)
    return np.array(matrices)


# What differs


def compare_all(options: argparse.Namespace) -> int:
    """Print what differs; return 1 if anything does beyond the tolerances."""
    before, after = (json.loads((folder / "digests.json").read_text(encoding="utf-8"))
                     for folder in (options.before, options.after))  # fmt: skip
    bad = list(different_cases(before["cases"], after["cases"]))
    for line in bad:
        print(line)
    both = set(before["files"]) & set(after["files"])
    shared = {case for case in before["cases"] if case in after["cases"]}
    for name in sorted(set(before["files"]) ^ set(after["files"])):
        if name.split("/")[0] in shared:
            bad.append(f"{name}: only {'before' if name in before['files'] else 'after'}")
            print(bad[-1])
    unequal = sorted(name for name in both if before["files"][name] != after["files"][name])
    for name in unequal:
        found = [
            read(folder / name, folder.resolve()) for folder in (options.before, options.after)
        ]
        for text, beyond in differences(name, *found, options):
            print(f"{name}: {text}{'' if beyond else ' (within the tolerance)'}")
            bad += [name] * beyond
    print(f"{len(both) - len(unequal)} of {len(both)} files equal bit by bit")
    return int(bool(bad))


def different_cases(before: dict[str, str], after: dict[str, str]) -> Iterator[str]:
    for name in sorted(set(before) & set(after)):
        if before[name] != after[name]:
            yield f"{name}: {before[name]} before, {after[name]} after"
    for name in sorted(set(before) ^ set(after)):
        print(f"{name}: run only {'before' if name in before else 'after'}, not compared")


def differences(
    name: str, before: Content, after: Content, options: argparse.Namespace
) -> Iterator[tuple[str, bool]]:
    """Yield what differs in a file, and whether beyond the tolerance."""
    for key in sorted(set(before) ^ set(after)):
        yield f"{key}: only {'before' if key in before else 'after'}", True
    for key in sorted(set(before) & set(after)):
        a, b = before[key], after[key]
        if digest({key: a}) == digest({key: b}):
            continue
        if isinstance(a, str) or isinstance(b, str):
            yield from text_difference(key, str(a), str(b), options.numbers)
        elif a.shape != b.shape or a.dtype != b.dtype:
            yield f"{key}: {a.dtype}{a.shape} → {b.dtype}{b.shape}", True
        elif key == "poses":
            far = pose_distance(a, b)
            place = int(far.argmax())
            yield f"poses up to {far[place]:.3g} mm apart, transform {place}", \
                bool(far[place] > options.poses_mm)  # fmt: skip
        else:
            share, what = relative_difference(a, b, key in ("image", "picture"))
            allowed = options.images if key in ("image", "picture") else options.numbers
            yield f"{key}: up to {share:.3g} of {what}", not share <= allowed


def text_difference(key: str, a: str, b: str, allowed: float) -> Iterator[tuple[str, bool]]:
    """Compare texts, their numbers apart."""
    if NUMBER.sub("0", a) == NUMBER.sub("0", b):
        numbers = [np.array(NUMBER.findall(text), float) for text in (a, b)]
        scale = np.maximum(np.abs(numbers[0]), 1e-3)
        share = float(np.max(np.abs(numbers[1] - numbers[0]) / scale))
        yield f"{key}: numbers up to {share:.3g} of themselves: {first_difference(a, b)}", \
            not share <= allowed  # fmt: skip
    else:
        yield f"{key}: {first_difference(a, b)}", True


def first_difference(a: str, b: str, context: int = 40) -> str:
    """Return what stands around the first place where two texts differ."""
    place = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
    start = max(place - context, 0)
    return f"{a[start : place + context]!r} → {b[start : place + context]!r}"


def pose_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return how far apart (mm) a ball of 80 mm about the origin is moved, the farthest point.

    The bound |A|·r + |t| for each pair of matrices, A the difference of the linear parts.
    """
    turned = np.linalg.norm((b - a)[:, :3, :3], ord=2, axis=(1, 2))
    return turned * RADIUS_MM + np.linalg.norm((b - a)[:, :3, 3], axis=1)


def relative_difference(a: np.ndarray, b: np.ndarray, image: bool) -> tuple[float, str]:
    """Return the largest difference as a share of what an array holds, and of what."""
    a, b = (np.asarray(values, float) for values in (a, b))
    if (np.isnan(a) != np.isnan(b)).any():
        return np.inf, "it: other places are unknown"
    known = np.abs(a[~np.isnan(a)])
    scale = float(np.percentile(known, 99) if image else known.max()) or 1.0
    what = "the 99th percentile" if image else "the largest"
    return float(np.nanmax(np.abs(b - a)) / scale), what


if __name__ == "__main__":
    sys.exit(main())
