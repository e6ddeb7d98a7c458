# SPDX-License-Identifier: Apache-2.0
"""One name for one thing: at the command line, in Python, in Nipype and in Pydra."""

import inspect
import re

import pytest
from eddymotion.workflows import pydra as flows
from pages import DOCS

import eddymotion as em
from eddymotion.cli import correct, participant
from eddymotion.interfaces import nipype as nodes
from eddymotion.interfaces import pydra as tasks
from eddymotion.models import get_model
from eddymotion.pipeline.settings import SETTINGS
from eddymotion.pipeline.steps import STEPS

FOR_THE_COMMAND = {"separate_all_dwis"}
"""What no workflow has: one of a series keeps its frame, one of runs joins them."""

PAGE = (DOCS / "reference" / "names.md").read_text(encoding="utf-8")
ROWS = [
    [re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[2:5]]
    for line in PAGE.partition("## Former")[0].splitlines()[6:]
    if line.startswith("| ")
]
OPTIONS = {
    option: action
    for command in (correct, participant)
    for action in command.build_parser()._actions
    for option in action.option_strings
}


def inputs(step):
    """Inputs of a step in Nipype and in Pydra."""
    return (
        set(getattr(nodes, step)().inputs.copyable_trait_names()),
        set(inspect.signature(getattr(tasks, step)).parameters),
    )


@pytest.fixture(scope="module")
def of_steps():
    return [inputs(step) for step in STEPS]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_has_its_name_everywhere(name, of_steps):
    option = f"--{name.replace('_', '-')}"
    assert OPTIONS[option].dest == name
    (row,) = [row for row in ROWS if option in row[0]]
    there = SETTINGS[name].node_input or name
    assert (there in row[2]) != (name in FOR_THE_COMMAND)
    for of_engine in zip(*of_steps, strict=True):
        assert any(there in of_step for of_step in of_engine) != (name in FOR_THE_COMMAND)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][0])
def test_what_the_table_of_names_says_is_there(row):
    commands, python, engines = row
    assert not [option for option in commands if option not in OPTIONS]
    calls = {"Joint": em.Joint, "LeaveOneOut": em.LeaveOneOut, "get_model": get_model}
    known = {
        name
        for function in (em.load, em.estimate_motion, em.resample, em.assess)
        for name in inspect.signature(function).parameters
    }
    for word in python:
        called = re.match(r"(\w+)\((?:…, )?(\w+)=", word)
        if called:
            assert called[2] in inspect.signature(calls[called[1]]).parameters
        else:
            given = word.partition("=")[0]
            assert given in known | {"resample", "dwi.acquisition"}, word
    everywhere = {f for step in ("Correct", "Join", "Merge") for f in inputs(step)[0]}
    known_there = everywhere | {"n_procs", "mem_gb"}
    assert set(engines) <= known_there | set(inspect.signature(flows.DwiRuns).parameters)
