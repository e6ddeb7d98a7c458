# SPDX-License-Identifier: Apache-2.0
"""Nipype workflows.

:func:`init_dwi_hmc_wf` stands between two nodes of somebody's own workflow. :func:`init_lovo_wf`
is the leave-one-out loop with every volume a node. :func:`init_participant_wf` is what the
BIDS-App runs.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eddymotion.errors import EddymotionError, renamed
from eddymotion.interfaces import nipype as interfaces  # sets NO_ET before Nipype is imported
from eddymotion.pipeline.contradictions import refuse_t1w
from eddymotion.pipeline.graphs import (
    Graph,
    GraphNode,
    correction_graph,
    lovo_graph,
    runs_graph,
)
from eddymotion.pipeline.settings import APPLYING, JUDGING, MOTION, SETTINGS, Settings
from eddymotion.pipeline.steps import FORMER_NAMES
from eddymotion.wording import shown

from nipype.interfaces.utility import IdentityInterface  # isort: skip
from nipype.pipeline.engine import MapNode, Node, Workflow  # isort: skip

if TYPE_CHECKING:
    from eddymotion.pipeline.series_job import Job, Page

__all__ = [
    "init_dwi_hmc_wf",
    "init_dwi_runs_wf",
    "init_lovo_wf",
    "init_participant_wf",
    "init_run_wf",
]

POLL_S = 0.02
"""Seconds between two looks at what has finished. Nipype's default keeps small nodes waiting."""

VOLUME_GB = 0.5
"""What a node of the loop takes for one volume: mostly libraries."""


@renamed(**FORMER_NAMES)
def init_dwi_hmc_wf(
    *,
    n_threads: int = 1,
    mem_gb: float = 2.0,
    spelled_out: bool = False,
    name: str = "dwi_hmc_wf",
    **settings: Any,
) -> Workflow:
    """Correct the head motion of a diffusion series.

    Parameters
    ----------
    n_threads : int
        Of the nodes that work on all volumes; the result does not depend on it.
    mem_gb : float
        What such a node takes; see :func:`eddymotion.pipeline.limits.memory_gb`.
    spelled_out : bool
        Estimate with the graph of :func:`init_lovo_wf`, every volume a node.
    name : str
    **settings
        Fields of :class:`eddymotion.pipeline.settings.Settings`: ``model``, ``estimator``,
        ``n_iterations``, ``random_seed``, …

    Inputs
    ------
    dwi_file
        4-D NIfTI, raw: denoising removes motion at low SNR.
    bval_file, bvec_file
        FSL tables; those beside `dwi_file` when not given.
    mask_file
        Brain mask on its grid; computed when not given.

    Outputs
    -------
    dwi_file, bval_file, bvec_file
        The corrected series: one interpolation, all volumes in their order, rotated b-vectors.
    xfm_file
        ITK text, a transform a volume, reference → volume.
    confounds_file
        TSV, a row a volume.
    dwiref_file
        Mean of the corrected b=0 volumes.
    mask_file
        The mask used, on the grid of the corrected series.
    """
    chosen, graph = checked_settings(settings), correction_graph(spelled_out=spelled_out)
    return _drawn(graph, name, chosen, n_threads, mem_gb)


def init_dwi_runs_wf(
    *,
    n_threads: int = 1,
    mem_gb: float = 2.0,
    name: str = "dwi_runs_wf",
    **settings: Any,
) -> Workflow:
    """Correct the runs of a session in one frame, with the off-resonance field between them.

    Each run's motion is found in its own frame; the mean b=0 images tell how the runs lie to each
    other and, where their phase encodings differ, the field that distorts them.

    Parameters
    ----------
    n_threads, mem_gb, name
        As in :func:`init_dwi_hmc_wf`.
    **settings
        As in :func:`init_dwi_hmc_wf`, ``fieldmap``: a known field (Hz) in the frame of the first
        run, and ``distortion_group_merge``: how the corrected runs are made one series, too.

    Inputs
    ------
    dwi_files
        4-D NIfTI, in the order of their acquisition; the frame is that of the first b=0 of the
        first. Phase encoding and readout time are read from the sidecars beside them.
    bval_files, bvec_files
        FSL tables, one a run; those beside the images when not given.
    mask_file
        Brain mask on the grid of all runs; computed when not given.
    epi_files
        Images without diffusion weighting of other phase encodings, such as ``fmap/*_epi``.
    phasediff_file, phase1_file, phase2_file, map_file, magnitude_file
        A measured map.

    Outputs
    -------
    dwi_files, bval_files, bvec_files, xfm_files, confounds_files, dwiref_files, mask_files
        As of :func:`init_dwi_hmc_wf`, lists with one file a run.
    field_file
        The off-resonance field, Hz, where one was found.
    merged_file, merged_bval_file, merged_bvec_file
        The runs as one series, with ``distortion_group_merge``.
    """
    chosen = checked_settings(settings, ACCEPTED | {"fieldmap", "distortion_group_merge"})
    return _drawn(runs_graph(chosen), name, chosen, n_threads, mem_gb)


@renamed(**FORMER_NAMES)
def init_lovo_wf(
    *,
    n_threads: int = 1,
    mem_gb: float = 2.0,
    name: str = "lovo_wf",
    **settings: Any,
) -> Workflow:
    """Estimate motion by the leave-one-out loop, every volume a node.

    In each pass the volumes are resampled by the transforms so far, each is predicted from all
    the others, and the original volume is registered to its prediction. Same transforms as
    ``estimator="lovo"`` of :func:`eddymotion.estimate_motion`, and slower, since everything goes
    through files: for those who want to exchange a node, or to see what happens.

    Parameters
    ----------
    n_threads, mem_gb
        Of the nodes that hold all volumes.
    name : str
    **settings
        As in :func:`init_dwi_hmc_wf`; ``n_iterations`` is the number of passes (5).

    Inputs
    ------
    dwi_file, bval_file, bvec_file, mask_file
        As in :func:`init_dwi_hmc_wf`.

    Outputs
    -------
    xfm_file, x5_file
        Transforms, reference → volume.
    details_file
        What goes with them.
    mask_file
        The mask used.
    """
    chosen = checked_settings(settings)
    return _drawn(lovo_graph(chosen), name, chosen, n_threads, mem_gb)


def _drawn(graph: Graph, name: str, settings: Settings, n_threads: int, mem_gb: float) -> Workflow:
    """Make a workflow of a graph, with an ``inputnode`` and an ``outputnode``."""
    workflow = _workflow(name)
    fields = [field.name for field in graph.inputs]
    inputs = Node(IdentityInterface(fields=fields, mandatory_inputs=False), "inputnode")
    outputs = Node(IdentityInterface(fields=list(graph.outputs)), "outputnode")
    sources: dict[str, tuple[Any, str]] = {"series": (inputs, "")}

    def connect(source: str, output: str, target: Any, field: str) -> None:
        made, prefix = sources[source]
        workflow.connect(made, prefix + output, target, field)

    for node in graph.nodes:
        if node.step == "Lovo":
            made = _drawn(lovo_graph(settings), "lovo", settings, n_threads, mem_gb)
            known, into, out_of = set(fields), "inputnode.", "outputnode."
        else:
            made = _node(node, settings, n_threads, mem_gb)
            known, into, out_of = set(made.inputs.copyable_trait_names()), "", ""
        of_series = {field: ("series", field) for field in fields if field in known}
        for field, source in (of_series | dict(node.sources)).items():
            connect(*source, made, into + field)
        sources[node.name] = made, out_of
    for field, source in graph.outputs.items():
        connect(*source, outputs, field)
    return workflow


def init_participant_wf(
    participant: str,
    jobs: Sequence[Job],
    *,
    mem_gb: Sequence[float],
    name: str | None = None,
    page: Page | None = None,
) -> Workflow:
    """Correct all series of a participant and write the page that shows them.

    A series is a node. Of runs that belong together the outputs wait for the motion of all.

    Parameters
    ----------
    participant : str
        Label without ``sub-``.
    jobs : sequence of Job
        A series each.
    mem_gb : sequence of float
        What each takes.
    name : str, optional
        ``sub_<label>_wf`` when not given.
    page : Page, optional
        What else there is on it; nothing when not given.
    """
    from eddymotion.pipeline.series_job import Page, Session

    workflow = _workflow(name or f"sub_{_word(participant)}_wf")
    names = _words(job.outputs.src.removeprefix(f"sub-{participant}") for job in jobs)
    known = {job.series.dwi: (word, gigabytes)
             for job, word, gigabytes in zip(jobs, names, mem_gb, strict=True)}  # fmt: skip

    def add(step: str, job: Job, after: Sequence[Node]) -> Node:
        word, gigabytes = known[job.series.dwi]
        resources = {"n_procs": job.settings.nprocs, "mem_gb": gigabytes}
        return _part(workflow, f"{step}_{word}", job, step, after, **resources)

    ends: list[Node] = []
    for number, together in enumerate(_sessions(jobs)):
        motions: list[Node] = []
        if len(together) > 1:
            estimates = [add("estimate", job, ()) for job in together]
            motions = [add("join", together[-1], estimates)]
        corrected = [add("correct", job, motions) for job in together]
        ends += corrected
        if len(together) > 1 and together[0].settings.distortion_group_merge != "none":
            session = Session(tuple(together))
            ends.append(_part(workflow, f"merge_runs_{number}", session, "merge", corrected))
    root = jobs[0].outputs.figures.parents[1]
    page = page or Page(root, participant, tuple(jobs), locks=jobs[0].locks)
    report = _part(workflow, "report", page, "write", ends)
    report.run_without_submitting = True  # at once, not behind the series that wait
    return workflow


def _sessions(jobs: Iterable[Job]) -> list[list[Job]]:
    """Put runs that belong together into one list each; any other series is alone in its own."""
    found: dict[Path, list[Job]] = {}
    for job in jobs:
        first = job.series.runs[0] if job.series.runs else job.series
        found.setdefault(first.dwi, []).append(job)
    return list(found.values())


def _part(
    workflow: Workflow, name: str, of: Any, step: str, after: Sequence[Node], **resources: Any
) -> Node:
    """Add a node to the workflow of a participant, to be run after others."""
    from eddymotion.interfaces.series import RunPart

    node = Node(RunPart(len(after), of=of, step=step), name, **resources)
    workflow.add_nodes([node])
    for number, before in enumerate(after, start=1):
        workflow.connect(before, "done", node, f"after{number}")
    return node


def init_run_wf(
    participants: Mapping[str, Sequence[Job]],
    mem_gb: Mapping[str, Sequence[float]],
    *,
    name: str = "eddymotion_wf",
    pages: Mapping[str, Page] | None = None,
) -> Workflow:
    """Put the participants of a run side by side.

    Parameters
    ----------
    participants : mapping
        Label → jobs.
    mem_gb : mapping
        Label → what each job takes.
    name : str
    pages : mapping, optional
        Label → what else there is on the participant's page.
    """
    workflow, given = _workflow(name), pages or {}
    words = _words(participants)
    workflow.add_nodes(
        [
            init_participant_wf(
                label, jobs, mem_gb=mem_gb[label], name=f"sub_{word}_wf", page=given.get(label)
            )
            for (label, jobs), word in zip(participants.items(), words, strict=True)
        ]
    )
    return workflow


ACCEPTED = frozenset({*MOTION, *APPLYING, *JUDGING})
"""Settings that a node of :func:`init_dwi_hmc_wf` takes."""


def checked_settings(given: Mapping[str, Any], accepted: Collection[str] = ACCEPTED) -> Settings:
    """Turn keywords into settings, of which a workflow accepts some.

    Raises
    ------
    EddymotionError
        If a name is unknown, with the nearest known one, no node of the graph would heed it, or
        the settings cannot be (:class:`~eddymotion.pipeline.settings.Settings`).
    """
    if unused := sorted((set(SETTINGS) - set(accepted)) & set(given)):
        raise EddymotionError(
            f"setting {unused[0]!r}: no node of this workflow heeds it; give n_threads or a "
            "mask_file where that is meant, or take the interface Correct, which writes all files"
        )
    if unknown := sorted(set(given) - set(accepted)):
        near = difflib.get_close_matches(unknown[0], accepted, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise EddymotionError(
            f"unknown setting {shown(unknown[0])}.{hint} Known are {', '.join(sorted(accepted))}"
        )
    settings = Settings(**given)
    refuse_t1w(settings.given, "a workflow knows no participant")
    return settings


def _workflow(name: str) -> Workflow:
    workflow = Workflow(name)
    workflow.config["execution"] = {"poll_sleep_duration": str(POLL_S)}
    return workflow


def _node(node: GraphNode, settings: Settings, n_threads: int, mem_gb: float) -> Node:
    """Make a node, with the settings that its interface has; a MapNode if it has iterfields."""
    interface = getattr(interfaces, node.step)()
    known = set(interface.inputs.copyable_trait_names())
    whole = not known.isdisjoint(("dwi_file", "xfm_files", "aligned_file"))
    resources: dict[str, Any] = {"mem_gb": mem_gb if whole else VOLUME_GB}
    given = settings_as_inputs(settings) | {"n_threads": n_threads} | dict(node.values)
    if "n_threads" in known:
        resources["n_procs"] = n_threads
    made = (
        MapNode(interface, list(node.iterfield), name=node.name, **resources)
        if node.iterfield
        else Node(interface, node.name, **resources)
    )
    for field in known & given.keys():
        setattr(made.inputs, field, given[field])
    return made


def settings_as_inputs(settings: Settings) -> dict[str, Any]:
    """Return what is set, as Nipype takes it."""
    values = {about.node_input or name: getattr(settings, name)
              for name, about in SETTINGS.items()}  # fmt: skip
    values["ignore"] = list(values["ignore"])
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in values.items()
        if value is not None
    }


def _word(text: str) -> str:
    """Turn a BIDS name into a valid name of a node."""
    return "".join(letter if letter.isalnum() else "_" for letter in text).strip("_")


def _words(texts: Iterable[str]) -> list[str]:
    """Turn BIDS names into valid names of nodes, all different, since each has its own folder."""
    taken: set[str] = set()
    words = []
    for text in texts:
        word = _word(text) or "dwi"
        candidates = itertools.chain([word], (f"{word}_{n}" for n in itertools.count(2)))
        words.append(next(name for name in candidates if name.casefold() not in taken))
        taken.add(words[-1].casefold())
    return words
