# SPDX-License-Identifier: Apache-2.0
"""Options, nodes and tasks follow from one declaration of each setting and one table of steps."""

import pickle
import subprocess
import sys
from dataclasses import replace

import pytest

from eddymotion.cli.correct import build_parser
from eddymotion.cli.options import settings_from
from eddymotion.interfaces import nipype as nodes
from eddymotion.interfaces import pydra as tasks
from eddymotion.pipeline.graphs import correction_graph, lovo_graph, runs_graph
from eddymotion.pipeline.settings import AFTER_MOTION, MOTION, Settings
from eddymotion.pipeline.steps import STEPS

HASH = "from eddymotion.interfaces import pydra; print(pydra.RegisterPair(fixed_file={0!r}, moving_file={0!r})._hash)"  # noqa: E501


def test_options_left_out_are_the_defaults():
    options = build_parser().parse(["dwi.nii.gz"])
    assert settings_from(options) == replace(Settings(), nprocs=options.nprocs)


def test_what_comes_after_the_motion_does_not_change_it():
    assert not AFTER_MOTION & set(MOTION)
    assert set(MOTION) | AFTER_MOTION | {"brain_mask", "nprocs"} == set(vars(Settings()))


@pytest.mark.parametrize("name", STEPS)
def test_interfaces_and_tasks_reach_other_processes(name):
    node = getattr(nodes, name)()
    again = pickle.loads(pickle.dumps(node))
    assert type(again) is type(node)
    assert again.inputs.get() == node.inputs.get()
    function = getattr(tasks, name)().function
    assert pickle.loads(pickle.dumps(function)) is function, "Pydra's workers find it by name"


def test_a_task_keeps_its_hash_in_another_process(tmp_path):
    image = tmp_path / "image.nii"
    image.write_bytes(b"anything")
    here = tasks.RegisterPair(fixed_file=image, moving_file=image)._hash
    call = [sys.executable, "-c", HASH.format(str(image))]
    assert subprocess.run(call, capture_output=True, text=True).stdout.strip() == here


@pytest.mark.parametrize(
    "graph",
    [
        correction_graph(spelled_out=False),
        lovo_graph(Settings(n_iterations=2)),
        runs_graph(Settings()),
    ],
)
def test_a_node_of_a_graph_takes_what_an_earlier_one_gives(graph):
    given = {}
    for node in graph.nodes:
        step = STEPS[node.step]
        inputs = {field.name: field.kind for field in step.inputs}
        for name, (source, output) in node.sources.items():
            kind = given[source][output]
            assert kind == (list[inputs[name]] if name in node.iterfield else inputs[name]), name
        assert set(node.values) <= set(inputs)
        kinds = {field.name: field.kind for field in step.outputs}
        given[node.name] = {k: list[v] for k, v in kinds.items()} if node.iterfield else kinds
    for source, output in graph.outputs.values():
        assert output in given[source]
