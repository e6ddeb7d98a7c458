# SPDX-License-Identifier: Apache-2.0
"""Run a Nipype workflow so that nothing hangs, nothing is left running, and little is said."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eddymotion.workflows.nipype import POLL_S  # sets NO_ET before Nipype is imported

from eddymotion.errors import EddymotionError
from eddymotion.machine.children import end_descendants, end_with_parent, why_alone
from eddymotion.pipeline.limits import Plugin
from eddymotion.pipeline.series_job import reason_of
from eddymotion.wording import shown

from nipype.interfaces.base.support import RuntimeContext  # isort: skip
from nipype.pipeline import plugins  # isort: skip
from nipype.pipeline.plugins import base, linear  # isort: skip
from nipype.pipeline.engine import Workflow  # isort: skip
from nipype.pipeline.plugins.base import SGELikeBatchManagerBase  # isort: skip
from nipype.pipeline.plugins.multiproc import MultiProcPlugin, run_node  # isort: skip

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NIPYPE_LOGGERS = ("nipype", "nipype.workflow", "nipype.interface", "nipype.utils")

DO_NOT_WAIT = ("Graph", "DAGMan")
"""Ends of the names of plugins that hand a graph over and return."""

SLURM_COMMANDS = ("sbatch", "squeue", "scancel")

LOOK_AGAIN_S = 1.0
"""How long to sleep at most while no node ends."""

JOB_FINISHED_TIMEOUT_S = 15
"""How long the result of a job may take to become visible on a shared file system."""

KILLED = (
    "a worker process was killed, perhaps for want of memory; run again with fewer --nprocs or a "
    "smaller --mem-gb"
)


class SturdyMultiProcPlugin(MultiProcPlugin):
    """Nipype's MultiProc, which waits for ever when a worker is killed; this one goes on.

    Series that ran in a killed pool fail; those that follow get a new one. It sleeps until a node
    ends, where Nipype's looks again and again.
    """

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        super().__init__(plugin_args)
        self.pool.shutdown(wait=False)  # has started no process yet
        self.pool = self._new_pool()
        self._ended = threading.Event()

    def _new_pool(self) -> ProcessPoolExecutor:
        # forked workers have all that was imported; macOS forbids it
        method = "fork" if sys.platform.startswith("linux") else None
        return ProcessPoolExecutor(
            self.plugin_args.get("max_workers", self.processors),
            mp_context=multiprocessing.get_context(method),
            initializer=_prepare_worker,
            initargs=(self._cwd,),
        )

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        self._taskid += 1
        taskid = self._taskid
        try:
            future = self.pool.submit(run_node, node, updatehash, taskid)
        except BrokenProcessPool:
            self.pool = self._new_pool()
            future = self.pool.submit(run_node, node, updatehash, taskid)
        self._task_obj[taskid] = future

        def keep(done: Future) -> None:
            try:
                self._taskresult[taskid] = done.result()
            except BaseException as error:
                reason = KILLED if isinstance(error, BrokenProcessPool) else reason_of(error)
                self._taskresult[taskid] = {"result": None, "traceback": [reason]}
            self._ended.set()

        future.add_done_callback(keep)
        return taskid

    def _send_procs_to_workers(self, updatehash: bool = False, graph: Any = None) -> None:
        before = self._state()
        super()._send_procs_to_workers(updatehash=updatehash, graph=graph)
        if self.pending_tasks and self._state() == before:
            self._ended.wait(LOOK_AGAIN_S)
            self._ended.clear()

    def _state(self) -> tuple[int, ...]:
        return (len(self.procs), len(self.pending_tasks), int(self.proc_done.sum()),
                int(self.proc_pending.sum()))  # fmt: skip

    def kill(self) -> None:
        """End all workers now."""
        for process in list((self.pool._processes or {}).values()):
            end_descendants(process.pid)
            process.kill()
        self.pool.shutdown(wait=True, cancel_futures=True)


def _prepare_worker(folder: str) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.chdir(folder)
    end_with_parent()


def check_plugin(plugin: Plugin) -> None:
    """Make sure that Nipype has a plugin of that name, and that it can run here.

    Raises
    ------
    EddymotionError
        If it has none, or one that does not wait for its jobs, or what it needs is missing.
    """
    names = (n.removesuffix("Plugin") for n in dir(plugins) if n.endswith("Plugin"))
    known = sorted(name for name in names if not name.endswith(DO_NOT_WAIT))
    if plugin.name not in known:
        raise EddymotionError(
            f"plugin {shown(plugin.name)}: Nipype has none of that name that waits for its jobs; "
            f"use one of {', '.join(known)}"
        )
    if plugin.name == "LegacyMultiProc" and (reason := why_alone()):
        raise EddymotionError(f"plugin 'LegacyMultiProc': {reason}; leave --use-plugin out")
    if plugin.name == "SLURM" and (missing := [c for c in SLURM_COMMANDS if not shutil.which(c)]):
        raise EddymotionError(
            f"plugin 'SLURM': the command {missing[0]} is not on the PATH; run this on a host "
            "from which jobs can be submitted, or leave --use-plugin out"
        )


def find_plugin(plugin: Plugin, folder: Path) -> Any:
    """Return a Nipype plugin, ready to run in a folder."""
    check_plugin(plugin)
    if plugin.name == "MultiProc":
        return SturdyMultiProcPlugin(plugin.arguments)
    if plugin.name == "SLURM":
        from eddymotion.workflows.slurm import SlurmPlugin

        return SlurmPlugin(plugin.arguments, folder)
    runner = getattr(plugins, f"{plugin.name}Plugin")
    if issubclass(runner, SGELikeBatchManagerBase) and shlex.quote(str(folder)) != str(folder):
        raise EddymotionError(
            f"plugin {plugin.name!r}: Nipype hands jobs over by a shell, and the work folder "
            f"{shown(folder)} has blanks or signs that mean something there; give another one "
            "with --work-dir"
        )
    return runner(plugin_args=plugin.arguments)


def run_workflow(
    workflow: Workflow,
    plugin: Plugin,
    folder: str | Path,
    *,
    stop_on_first_crash: bool = False,
    verbosity: int = 0,
) -> None:
    """Run a workflow to its end, or to an interruption that leaves no process behind.

    Parameters
    ----------
    workflow : Workflow
    plugin : Plugin
    folder : path
        Where nodes work and crashes are described.
    stop_on_first_crash : bool
        End all others when a node fails.
    verbosity : int
        From two on, Nipype says what it does.

    Raises
    ------
    RuntimeError
        If nodes failed.
    """
    folder = Path(folder)
    workflow.base_dir = str(folder)
    workflow.config["execution"] = {
        "poll_sleep_duration": str(POLL_S),
        "stop_on_first_crash": str(stop_on_first_crash).lower(),
        "crashdump_dir": str(folder / "crashes"),
        "crashfile_format": "txt",
        "create_report": "false",
        "check_version": "false",
        "job_finished_timeout": str(JOB_FINISHED_TIMEOUT_S),
    }
    before = Path.cwd()
    runner = find_plugin(plugin, folder)
    gc.collect()
    gc.freeze()  # Nipype collects garbage at each poll: not what is there already
    try:
        with _quiet(verbosity), _interruptions_pass(), _participant_by_participant():
            workflow.run(plugin=runner)
    except BaseException:
        if hasattr(runner, "kill"):
            runner.kill()
        raise
    finally:
        gc.unfreeze()
        os.chdir(before)


@contextmanager
def _interruptions_pass() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM through: Nipype takes them for a failure of the node, and goes on."""
    leave = RuntimeContext.__exit__

    def leave_unless_interrupted(self: Any, kind: Any, error: Any, trace: Any) -> bool:
        return bool(leave(self, kind, error, trace)) and isinstance(error, Exception)

    RuntimeContext.__exit__ = leave_unless_interrupted
    try:
        yield
    finally:
        RuntimeContext.__exit__ = leave


@contextmanager
def _participant_by_participant() -> Iterator[None]:
    """Have plugins take all nodes of a participant before those of the next.

    Nipype's order is stage by stage: all participants would be estimated before the first has a
    report.
    """
    before = base.topological_sort, linear.topological_sort
    base.topological_sort = linear.topological_sort = in_order
    try:
        yield
    finally:
        base.topological_sort, linear.topological_sort = before


def in_order(graph: Any) -> tuple[list[Any], None]:
    """Sort nodes so that each comes after those it waits for, and near to them.

    Parameters
    ----------
    graph : networkx.DiGraph
        Of nodes, in the order of their participants.

    Returns
    -------
    nodes : list
    groups : None
        What Nipype's own function has in this place.
    """
    import networkx as nx

    rank: dict[str, int] = {}
    for node in graph:
        rank.setdefault(node._hierarchy, len(rank))
    key = {node: rank[node._hierarchy] for node in graph}.__getitem__
    return list(nx.lexicographical_topological_sort(graph, key)), None


@contextmanager
def _quiet(verbosity: int) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in NIPYPE_LOGGERS]
    levels = [logger.level for logger in loggers]
    if verbosity < 2:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def draw_graph(workflow: Workflow, picture: Path) -> None:
    """Draw the nodes of a workflow from left to right (SVG), with no program but Matplotlib."""
    from eddymotion.reports import own_style, save_figure

    with own_style():
        save_figure(_graph_figure(workflow), picture)


def _graph_figure(workflow: Workflow) -> Figure:
    import networkx as nx
    from matplotlib.figure import Figure

    graph = workflow._create_flat_graph()
    for depth, nodes in enumerate(nx.topological_generations(graph)):
        for node in nodes:
            graph.nodes[node]["depth"] = depth
    layout = nx.multipartite_layout(graph, subset_key="depth")
    names = {node: node.fullname.partition(".")[2].replace(".", "\n") for node in graph}
    widest = max(len(list(nodes)) for nodes in nx.topological_generations(graph))
    depths = 1 + max(data["depth"] for _, data in graph.nodes(data=True))
    figure = Figure(figsize=(2.6 * depths, 0.9 * widest + 1), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    nx.draw_networkx_edges(
        graph, layout, ax=axes, edge_color="0.6", node_size=2500, connectionstyle="arc3,rad=0.12"
    )
    boxes = {"boxstyle": "round", "facecolor": "#e8f0fa", "edgecolor": "0.4"}
    nx.draw_networkx_labels(graph, layout, names, ax=axes, font_size=8, bbox=boxes)
    axes.margins(0.15)
    return figure
