# SPDX-License-Identifier: Apache-2.0
"""Engines that are other programs: each call in a process and a temporary folder of its own.

What crashes there is an error with its last words here, and never a result: the folder is new, and
an output is only read after the process has ended well and has written it.
"""

from __future__ import annotations

import atexit
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import apply_affine, from_matvec, voxel_sizes

from eddymotion.errors import EddymotionError, EngineError
from eddymotion.images.image import Image
from eddymotion.io.images import write_image
from eddymotion.machine.children import NOT_FOR_CHILDREN, PYTHON
from eddymotion.machine.temporaries import remove_stale_temporaries, temporary_name
from eddymotion.registration.request import Request
from eddymotion.wording import one_line, why

N_LAST_LINES = 6

OUTPUT = "output.txt"
"""What a process printed, in its folder."""

MAX_SHEAR = 1e-3
"""Cosine between voxel axes up to which ITK takes them for perpendicular."""

THREAD_VARIABLES = (
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class PairFiles:
    """A pair in files, for a program that reads NIfTI.

    In the files the middle of the fixed mask is the origin of the world, in the moving image the
    point that the start sends it to: programs turn about the origin, and rotations and
    translations decouple where that lies within the head.

    Parameters
    ----------
    folder, fixed, moving : path
    fixed_mask, moving_mask : path or None
    start : (4, 4) array
        Fixed → moving, RAS+ mm, in the coordinates of the files.
    origins : (2, 3) array
        Where the origins of the files are in the worlds of the fixed and of the moving image.
    """

    folder: Path
    fixed: Path
    moving: Path
    fixed_mask: Path | None
    moving_mask: Path | None
    start: np.ndarray
    origins: np.ndarray

    @classmethod
    def write(cls, folder: Path, request: Request) -> PairFiles:
        """Write the images as float32 and the masks as uint8, each with its affine."""
        origins = np.stack([request.middle, apply_affine(request.start, request.middle)])
        fixed, fixed_mask = _write_image_and_mask(
            folder, "fixed", request.fixed, request.fixed_mask, origins[0]
        )
        moving, moving_mask = _write_image_and_mask(
            folder, "moving", request.moving, request.moving_mask, origins[1]
        )
        start = from_matvec(request.start[:3, :3])
        return cls(folder, fixed, moving, fixed_mask, moving_mask, start, origins)

    def to_world(self, matrix: np.ndarray) -> np.ndarray:
        """Turn fixed → moving in the coordinates of the files into that of the images."""
        to_file, from_file = -self.origins[0], self.origins[1]
        return from_matvec(np.eye(3), from_file) @ matrix @ from_matvec(np.eye(3), to_file)


def _write_image_and_mask(
    folder: Path, name: str, image: Image, mask: np.ndarray | None, origin: np.ndarray
) -> tuple[Path, Path | None]:
    refuse_shear(name, image)
    affine = from_matvec(np.eye(3), -origin) @ image.affine
    image_file, mask_file = folder / f"{name}.nii", folder / f"{name}-mask.nii"
    write_image(image_file, np.asarray(image.data, np.float32), affine)
    if mask is None:
        return image_file, None
    write_image(mask_file, mask.astype(np.uint8), affine)
    return image_file, mask_file


def refuse_shear(name: str, image: Image) -> None:
    """Refuse an affine whose axes are not perpendicular: ITK would read another one."""
    axes = image.affine[:3, :3] / voxel_sizes(image.affine)
    shear = np.abs(axes.T @ axes - np.eye(3)).max()
    if shear > MAX_SHEAR:
        raise EddymotionError(
            f"registration: the voxel axes of the {name} image are not perpendicular (cosine "
            f"{shear:.2g}), which ITK files cannot represent; resample it to a regular grid, or "
            "use the engine gauss-newton"
        )


@contextmanager
def work_folder() -> Iterator[Path]:
    """Give a new folder that is removed afterwards, and remove those of killed runs.

    Raises
    ------
    EddymotionError
        If there is no place for temporary files.
    """
    try:
        remove_stale_temporaries(Path(tempfile.gettempdir()), folders=True)
        made = tempfile.TemporaryDirectory(prefix=temporary_name("."))
    except (FileNotFoundError, PermissionError) as error:
        raise EddymotionError(
            f"registration: no folder for temporary files is writable ({why(error)}); set TMPDIR "
            "to one"
        ) from error
    with made as folder:
        yield Path(folder)


def find_in_package(package: str, *patterns: str) -> Path | None:
    """Find a file of an installed package, which is not imported: that may take seconds."""
    spec = find_spec(package)
    for place in (spec.submodule_search_locations if spec else None) or ():
        for pattern in patterns:
            for path in sorted(Path(place).glob(pattern)):
                return path
    return None


def nipype_interface(program: str) -> Any:
    """Return Nipype's interface to the registration of a program."""
    os.environ.setdefault("NO_ET", "1")  # Nipype would ask a server for its newest version
    return import_module(f"nipype.interfaces.{program}").Registration()


def relative_command(line: str, folder: Path) -> list[str]:
    """Split a command line; paths become relative to a folder."""
    return shlex.split(line.replace(f"{folder}{os.sep}", "").replace(str(folder), "."))


def environment(n_threads: int, programs: Path | None = None) -> dict[str, str]:
    """Return the environment of a process: its threads, and where it finds programs first."""
    found = os.environ | dict.fromkeys(THREAD_VARIABLES, str(n_threads)) | {"NO_ET": "1"}
    for name in NOT_FOR_CHILDREN:
        found.pop(name, None)
    if programs is not None:
        found["PATH"] = f"{programs}{os.pathsep}{found.get('PATH', os.defpath)}"
    return found


def run_program(
    command: Sequence[str],
    *,
    folder: Path,
    outputs: Sequence[Path] = (),
    n_threads: int = 1,
    programs: Path | None = None,
) -> str:
    """Run a program in a folder and return what it printed.

    Parameters
    ----------
    command : sequence of str
        The program, found as a shell would, and its arguments.
    folder : path
        Where it runs.
    outputs : sequence of path
        What it has to write. Files of these names are removed before.
    n_threads : int
    programs : path, optional
        A folder that is searched for the program first.

    Raises
    ------
    EddymotionError
        If the program is not there.
    EngineError
        If it ends badly, or leaves an output out.
    """
    variables = environment(n_threads, programs)
    program = shutil.which(command[0], path=variables["PATH"])
    if program is None:
        raise EddymotionError(f"{command[0]}: no such program on PATH; install it")
    for path in outputs:
        path.unlink(missing_ok=True)
    name = Path(command[0]).name
    with (folder / OUTPUT).open("wb") as output:
        done = subprocess.run(
            [program, *command[1:]], cwd=folder, env=variables, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    printed = _printed(folder)
    if done.returncode != 0:
        raise EngineError(f"{name} {describe_exit(done.returncode)}; {last_lines(printed)}")
    _require(name, outputs, printed)
    return printed


def describe_exit(returncode: int) -> str:
    """Say in words how a process ended."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        return f"crashed ({signal.Signals(-returncode).name})"
    except ValueError:
        return f"crashed (signal {-returncode})"


def last_lines(printed: str) -> str:
    """Return the last lines that a program printed, as one line."""
    lines = [" ".join(line.split()) for line in printed.splitlines() if line.strip()]
    return "last output: " + " | ".join(lines[-N_LAST_LINES:]) if lines else "no output"


def _printed(folder: Path) -> str:
    path = folder / OUTPUT
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _require(name: str, outputs: Sequence[Path], printed: str) -> None:
    missing = [path.name for path in outputs if not path.is_file() or not path.stat().st_size]
    if missing:
        raise EngineError(
            f"{name} ended without writing {', '.join(missing)}; {last_lines(printed)}"
        )


def run_function(
    function: Callable[[Path], None], folder: Path, outputs: Sequence[Path] = ()
) -> str:
    """Call ``function(folder)`` in a process of its own and return what it printed.

    The process stays for the next call, since importing what such functions need can take many
    seconds; as many as there are calls at a time. They end with this one.

    Parameters
    ----------
    function : callable
        A function of a module.
    folder : path
        What it reads and writes.
    outputs : sequence of path
        As in :func:`run_program`.

    Raises
    ------
    EngineError
        If the function raises, its process crashes, or it leaves an output out.
    """
    for path in outputs:
        path.unlink(missing_ok=True)
    name = f"{function.__module__}:{function.__qualname__}"
    worker = _take(name)
    try:
        answer = worker.call(folder)
    except BaseException:
        worker.end()
        raise
    printed = _printed(folder)
    if answer is None:
        raise EngineError(
            f"{function.__name__} {describe_exit(worker.process.wait())}; {last_lines(printed)}"
        )
    _give_back(worker)
    if answer:
        raise EngineError(f"{function.__name__} failed: {answer}; {last_lines(printed)}")
    _require(function.__name__, outputs, printed)
    return printed


class _Worker:
    """A process that calls one function again and again."""

    def __init__(self, name: str) -> None:
        self.name, self.owner = name, os.getpid()
        code = f"from {__name__} import serve; serve({name!r})"
        paths = os.pathsep.join(path for path in sys.path if path)
        self.process = subprocess.Popen(
            [*PYTHON, "-c", code], text=True, env=environment(1) | {"PYTHONPATH": paths},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def call(self, folder: Path) -> str | None:
        """Return what went wrong, an empty text if nothing did, None if the process is gone."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(str(folder)) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except (BrokenPipeError, OSError):
            return None
        return json.loads(answer) if answer else None

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


_idle: list[_Worker] = []
_lock = threading.Lock()


def _take(name: str) -> _Worker:
    with _lock:
        for worker in _idle:
            usable = worker.owner == os.getpid() and worker.process.poll() is None
            if worker.name == name and usable:
                _idle.remove(worker)
                return worker
    return _Worker(name)


def _give_back(worker: _Worker) -> None:
    with _lock:
        _idle.append(worker)


@atexit.register
def end_workers() -> None:
    """End the processes that wait for another call of :func:`run_function`."""
    with _lock:
        for worker in _idle:
            if worker.owner == os.getpid():
                worker.end()
        _idle.clear()


def serve(name: str) -> None:
    """Call a function for each folder that standard input names: the other end of a worker."""
    module, _, attribute = name.partition(":")
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        folder = Path(json.loads(line))
        output = os.open(folder / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        try:
            getattr(import_module(module), attribute)(folder)
            answer = ""
        except Exception as error:
            answer = one_line(f"{type(error).__name__}: {error}")
        sys.stdout.flush()
        sys.stderr.flush()
        print(json.dumps(answer), file=answers, flush=True)
