# SPDX-License-Identifier: Apache-2.0
"""Nipype's SLURM plugin, which asks for what nodes take and leaves no job behind."""

from __future__ import annotations

import getpass
import logging
import math
import os
import re
import shlex
import subprocess
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from eddymotion.workflows.nipype import POLL_S  # sets NO_ET before Nipype is imported

from eddymotion.errors import EddymotionError
from eddymotion.machine.children import PYTHON
from eddymotion.pipeline.series_job import Job
from eddymotion.wording import one_line, shown, why

from nipype.pipeline.plugins import SLURMPlugin  # isort: skip
from nipype.pipeline.plugins.tools import create_pyscript  # isort: skip

log = logging.getLogger("eddymotion")

JOBS = "slurm-jobs.txt"
"""In the folder of a run: the numbers of its jobs."""

LOOK_EVERY_S = 1.0
"""The queue is the same for all users of a cluster: it is not asked at each poll."""

LEAST_GB = 1.0
"""For a node: nobody gains by asking for less."""

ENDS_WITHIN_S = 60.0
"""SLURM sends SIGKILL half a minute after a job is cancelled."""

ADVICE = {
    "TIMEOUT": "give it more time with --time in sbatch_args of the plugin file",
    "OUT_OF_MEMORY": "give it more memory with --mem in sbatch_args of the plugin file",
}


class SlurmPlugin(SLURMPlugin):
    """Nipype's SLURM plugin, with the resources of the nodes, one look at the queue for all jobs.

    Parameters
    ----------
    plugin_args : dict
        As Nipype takes them. What ``sbatch_args`` says goes before what the nodes say.
    folder : Path
        Of the run; the jobs are noted there, for :func:`cancel_jobs_of`.
    """

    def __init__(self, plugin_args: dict[str, Any], folder: Path) -> None:
        os.environ.setdefault("LOGNAME", _user())  # jobs are named by it
        super().__init__(plugin_args=plugin_args)
        self._folder = folder
        self._nodes: dict[int, Any] = {}
        self._outputs: dict[int, Path] = {}
        self._queued: set[int] | None = set()
        self._looked = -math.inf

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        pyscript = Path(create_pyscript(node, updatehash=updatehash))
        quote_paths(pyscript)
        script = pyscript.with_suffix(".sh")
        # nothing is imported or configured from where the run was started
        lines = (f"cd {shlex.quote(str(script.parent))} || exit",
                 shlex.join([*PYTHON, str(pyscript)]))  # fmt: skip
        script.write_text("\n".join((self._template.rstrip("\n"), *lines, "")), encoding="utf-8")
        return self._submit_batchtask(str(script), node)

    def _submit_batchtask(self, scriptfile: str, node: Any) -> int:
        folder = Path(scriptfile).parent
        texts = filter(None, (self._sbatch_args, node.plugin_args.get("sbatch_args")))
        given = [word for text in texts for word in words_of(text)]
        output = str(folder).replace("%", "%%") + "/slurm-%j.out"
        asked = [f"--output={output}", *resources(node.n_procs, node.mem_gb, given)]
        above = reversed((node._hierarchy or "").split("."))
        name = ".".join(filter(None, (node._id, *above, os.environ["LOGNAME"])))
        call = ["sbatch", *asked, *given, f"--job-name={name}", scriptfile]
        taskid = self._submit(call)
        self._pending[taskid] = node.output_dir()
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / JOBS).open("a", encoding="utf-8") as stream:
            stream.write(f"{taskid}\n")
        self._nodes[taskid] = node
        self._outputs[taskid] = folder / f"slurm-{taskid}.out"
        self._looked = -math.inf
        return taskid

    def _submit(self, call: list[str]) -> int:
        """Hand a job over, with no shell between, and return its number.

        Raises
        ------
        EddymotionError
            If ``sbatch`` tells no number.
        RuntimeError
            If it refuses the job again and again.
        """
        for attempt in range(self._max_tries + 1):
            if attempt:
                time.sleep(self._retry_timeout)
            done = subprocess.run(call, capture_output=True, text=True, errors="replace")
            if done.returncode == 0:
                break
        else:
            raise RuntimeError(f"sbatch refused a job: {one_line(done.stderr or done.stdout)}")
        lines = [line for line in done.stdout.splitlines() if line]
        found = re.match(self._jobid_re, lines[-1]) if lines else None
        if not (found and found.group(1)):
            raise EddymotionError(
                "plugin 'SLURM': sbatch takes no jobs here; see that sinfo answers on this host, "
                "or leave --use-plugin out"
            )
        return int(found.group(1))

    def _is_pending(self, taskid: int) -> bool:
        if time.monotonic() - self._looked > LOOK_EVERY_S - POLL_S:
            self._queued, self._looked = queued_jobs(), time.monotonic()
        return self._queued is None or taskid in self._queued

    def _get_result(self, taskid: int) -> Any:
        found = super()._get_result(taskid)
        if found is None or "results file does not exist" not in str(found["traceback"]):
            return found
        node, state = self._nodes[taskid], state_of(taskid)
        advice = ADVICE.get(state, "run again: what is finished is kept")
        reason = f"SLURM job {taskid} ended as {state} before it was done; {advice}"
        if (output := self._outputs[taskid]).is_file():
            reason += f". Its output: {output}"
        if isinstance(job := getattr(node.inputs, "of", None), Job):
            job.record_lost(reason)
        return found | {"traceback": [reason]}

    def kill(self) -> None:
        """Cancel all jobs that have not ended."""
        _cancel(self._pending)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # one that the system does not know
        return str(os.getuid())


def words_of(sbatch_args: str) -> list[str]:
    """Return the options in ``sbatch_args``, as a shell would take them apart.

    Raises
    ------
    EddymotionError
        If a quotation mark in it is not closed.
    """
    try:
        return shlex.split(sbatch_args)
    except ValueError as error:
        raise EddymotionError(
            f"plugin 'SLURM': sbatch_args is {shown(sbatch_args)} ({why(error)}); close each "
            "quotation mark"
        ) from error


def quote_paths(pyscript: Path) -> None:
    """Quote the paths in a script that Nipype wrote: it puts them between quotation marks."""
    text, folder = pyscript.read_text(encoding="utf-8"), str(pyscript.parent)
    suffix = pyscript.stem.removeprefix("pyscript_")
    for name, value in {"pklfile": f"{folder}/node_{suffix}.pklz", "batchdir": folder}.items():
        text = text.replace(f"{name} = '{value}'\n", f"{name} = {value!r}\n")
    pyscript.write_text(text, encoding="utf-8")


def resources(n_procs: int, mem_gb: float, given: Sequence[str]) -> list[str]:
    """Return what to ask ``sbatch`` for, besides the options `given` by the user."""
    asked = []
    if not any(word.startswith(("-c", "--cpus-per-task")) for word in given):
        asked.append(f"--cpus-per-task={n_procs}")
    if not any(word.startswith("--mem") for word in given):
        asked.append(f"--mem={math.ceil(1e3 * max(mem_gb, LEAST_GB))}M")
    return asked


def queued_jobs() -> set[int] | None:
    """Return the numbers of our jobs that have not ended; None if SLURM does not answer."""
    try:
        call = ["squeue", "--me", "--noheader", "--format=%A"]
        done = subprocess.run(call, capture_output=True, text=True, check=True, timeout=120)
        return {int(word) for word in done.stdout.split()}
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.debug("squeue: %s %s", error, getattr(error, "stderr", ""))
        return None


def state_of(taskid: int) -> str:
    """Return how a job ended, in SLURM's word."""
    call = ["scontrol", "--oneliner", "show", "job", str(taskid)]
    try:
        done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=120)
    except (OSError, subprocess.SubprocessError):
        return "UNKNOWN"
    found = re.search(r"JobState=(\w+)", done.stdout)
    return found.group(1) if found else "UNKNOWN"


def cancel_jobs_of(folder: Path) -> None:
    """Cancel the jobs that a killed run has left in the queue, and wait until they have ended.

    Raises
    ------
    EddymotionError
        If SLURM cannot be asked from here, or does not end them.
    """
    try:
        taskids = {int(line) for line in (folder / JOBS).read_text(encoding="utf-8").split()}
    except (FileNotFoundError, ValueError):
        return
    _cancel(taskids)
    ends = time.monotonic() + ENDS_WITHIN_S
    while (queued := queued_jobs()) is None or queued & taskids:
        if time.monotonic() > ends or queued is None:
            numbers = " ".join(map(str, sorted(taskids & queued if queued else taskids)))
            raise EddymotionError(
                f"{folder}: jobs of a killed run may still be working on these outputs; cancel "
                f"them (scancel {numbers}), remove the folder, and run again"
            )
        time.sleep(0.2)


def _cancel(taskids: Collection[int]) -> None:
    if not taskids:
        return
    try:
        call = ["scancel", *map(str, taskids)]
        subprocess.run(call, capture_output=True, check=False, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("scancel: %s", error)
