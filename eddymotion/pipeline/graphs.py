# SPDX-License-Identifier: Apache-2.0
"""Graphs of the steps of :mod:`eddymotion.pipeline.steps`, from which engines make workflows.

A step gets its inputs from the steps named, and all others from the inputs of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eddymotion.pipeline.lovo_steps import n_passes, refuse_settings_beyond_loop
from eddymotion.pipeline.runs.mergeable import refuse_averaging_elsewhere
from eddymotion.pipeline.settings import Settings
from eddymotion.pipeline.steps import FOUND, LISTED, MERGED, SERIES, STEPS, Field

Source = tuple[str, str]
"""Name of a node and of its output."""


@dataclass(frozen=True)
class GraphNode:
    """A step in its place.

    Parameters
    ----------
    name : str
    step : str
        Name of the step, or "Lovo" for that graph.
    sources : mapping
        Input → the node and the output that it comes from.
    values : mapping
        Input → a constant.
    iterfield : tuple of str
        Inputs that are lists, one item per volume or run: the step runs once for each.
    """

    name: str
    step: str
    sources: Mapping[str, Source] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    iterfield: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """Steps in an order in which they can be done.

    Parameters
    ----------
    nodes : tuple of GraphNode
    outputs : mapping
        Output → the node and the output that it comes from.
    inputs : tuple of Field
        Inputs of the graph: a step with an input of the same name gets it, unless another step
        provides that.
    """

    nodes: tuple[GraphNode, ...]
    outputs: Mapping[str, Source]
    inputs: tuple[Field, ...] = SERIES[:4]


def correction_graph(*, spelled_out: bool) -> Graph:
    """Estimate, apply, measure; with `spelled_out` the graph of the loop estimates the motion."""
    moved = {name: ("estimate", name) for name in ("xfm_file", "details_file", "mask_file")}
    nodes = (
        GraphNode("estimate", "Lovo" if spelled_out else "Estimate"),
        GraphNode("apply", "Apply", moved),
        GraphNode("measure", "Measure", moved),
    )
    order = ("dwi_file", "bval_file", "bvec_file", "xfm_file", "confounds_file", "dwiref_file",
             "mask_file")  # fmt: skip
    others = {"xfm_file": "estimate", "confounds_file": "measure"}
    return Graph(nodes, {name: (others.get(name, "apply"), name) for name in order})


RUNS_INPUTS = tuple(
    field
    for field in STEPS["Join"].inputs
    if field.name not in ("xfm_files", "details_files", "n_threads")
)
"""Inputs of :func:`runs_graph`."""


def runs_graph(settings: Settings) -> Graph:
    """Estimate each run, bring all into one frame, apply and measure each, merge them.

    Raises
    ------
    EddymotionError
        If the settings ask for a merged series that no step can make.
    """
    refuse_averaging_elsewhere(settings)
    tables = ("dwi", "bval", "bvec")
    each = {f"{name}_file": ("list", f"{name}_files") for name in tables}
    runs = {name: ("list", name) for name in LISTED}
    found = {f"{name}_files": ("estimate", f"{name}_file") for name in ("xfm", "details")}
    moved = {f"{name}_file": ("join", f"{name}_files") for name in ("xfm", "details", "mask")}
    corrected = {"corrected_files": "dwi_file", "corrected_bval_files": "bval_file",
                 "corrected_bvec_files": "bvec_file", "mask_files": "mask_file"}  # fmt: skip
    merged = {name: ("apply", of_each) for name, of_each in corrected.items()}
    merged |= {name: ("join", name) for name in ("xfm_files", "details_files")}
    merged["dwi_files"] = ("list", "dwi_files")
    nodes = (
        GraphNode("list", "ListRuns"),
        GraphNode("estimate", "Estimate", each, iterfield=tuple(each)),
        GraphNode("join", "Join", runs | found),
        GraphNode("apply", "Apply", each | moved, iterfield=(*each, *moved)),
        GraphNode("measure", "Measure", each | moved, iterfield=(*each, *moved)),
        GraphNode("merge", "Merge", merged),
    )
    outputs = {f"{name}_files": ("apply", f"{name}_file") for name in (*tables, "dwiref", "mask")}
    outputs |= {"xfm_files": ("join", "xfm_files"), "field_file": ("join", "field_file"),
              "confounds_files": ("measure", "confounds_file")}  # fmt: skip
    outputs |= {name: ("merge", name) for name in MERGED}
    return Graph(nodes, outputs, RUNS_INPUTS)


def lovo_graph(settings: Settings) -> Graph:
    """In each pass: resample all, plan, predict each from the others, register each, move all.

    Raises
    ------
    EddymotionError
        If the settings ask for what the leave-one-out loop does not do.
    """
    refuse_settings_beyond_loop(settings)
    nodes, matrices = [GraphNode("split", "Split")], ("split", "matrix_files")
    mask = {"mask_file": ("split", "mask_file")}
    predicted = matrices  # there is a pass
    for number in range(1, n_passes(settings) + 1):
        resample, plan, predict, register, move = (
            f"{what}_{number}" for what in ("resample", "plan", "predict", "register", "move")
        )
        this = {"pass_number": number}
        to_resample = {"volume_file": ("split", "volume_files"), "matrix_file": matrices}
        to_plan = {"aligned_files": (resample, "out_file"), "matrix_files": matrices}
        to_predict = {
            "aligned_file": (plan, "aligned_file"), "xfm_file": (plan, "xfm_file"),
            "volume": (plan, "volumes"), "bval_file": ("split", "bval_file"),
            "bvec_file": ("split", "bvec_file"),
        }  # fmt: skip
        paired = {
            "fixed_file": (predict, "predicted_file"), "moving_file": ("split", "volume_files"),
            "lost_file": (plan, "lost_files"), "init_file": (plan, "init_files"),
        }  # fmt: skip
        shared = {"fixed_mask_file": (plan, "mask_file")}
        to_move = shared | {
            "aligned_file": (plan, "aligned_file"), "xfm_file": (plan, "xfm_file"),
            "predicted_files": (predict, "predicted_file"),
            "matrix_files": (register, "matrix_file"),
        }  # fmt: skip
        nonnegative = {"nonnegative": ("split", "nonnegative")}
        seed = {"seed": settings.random_seed + number}
        nodes += [
            GraphNode(resample, "ResampleVolume", to_resample | nonnegative,
                      {"to_predict": True}, tuple(to_resample)),
            GraphNode(plan, "Plan", to_plan | mask, this),
            GraphNode(predict, "PredictVolume", to_predict, this, ("volume",)),
            GraphNode(register, "RegisterPair", paired | shared, this | seed, tuple(paired)),
            GraphNode(move, "MoveAll", to_move | mask, this),
        ]  # fmt: skip
        matrices, predicted = (move, "matrix_files"), (predict, "predicted_file")
    last = mask | {"matrix_files": matrices, "predicted_files": predicted}
    nodes.append(GraphNode("unite", "Unite", last))
    return Graph(tuple(nodes), {name: ("unite", name) for name in FOUND})
