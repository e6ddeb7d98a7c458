# SPDX-License-Identifier: Apache-2.0
"""A request to end is obeyed, wherever it finds the program."""

import signal
import subprocess
import sys
import time

import pytest

from eddymotion.cli.ending import REASONS

COMMANDS = ("participant", "correct", "register", "simulate", "evaluate")

LIVES = """
import signal, subprocess, sys, time, weakref
from eddymotion.cli import console, ending

for number in ending.REASONS:  # who runs the tests in the background may ignore some
    signal.signal(number, signal.SIG_DFL)
ending.GRACE_S = 1.0

class Thing:
    pass

def in_callbacks():
    # where Python drops what a handler raises
    while True:
        kept = [Thing()]
        reference = weakref.ref(kept[0], lambda _: time.sleep(0.3))
        kept.clear()

def swallowing():
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass

def waiting_for_a_program():
    subprocess.run(["sleep", "60"], check=True)

def with_a_child():
    child = subprocess.Popen(["sleep", "61"])
    print(child.pid, file=sys.stderr, flush=True)
    swallowing()

def turning_it_into_something_else():
    try:
        time.sleep(60)
    except BaseException:
        raise ImportError("initialization failed")

def body():
    print("ready", file=sys.stderr, flush=True)
    globals()[sys.argv[1]]()

sys.exit(console.run("program", body))
"""


def started(way):
    run = subprocess.Popen([sys.executable, "-c", LIVES, way], stderr=subprocess.PIPE, text=True)
    assert run.stderr.readline() == "ready\n"
    return run


@pytest.mark.parametrize(
    ("way", "number"),
    [
        ("in_callbacks", signal.SIGTERM),
        ("swallowing", signal.SIGINT),
        ("waiting_for_a_program", signal.SIGHUP),
        ("turning_it_into_something_else", signal.SIGTERM),
    ],
)
def test_it_ends_with_one_line_and_the_code_of_the_signal(way, number):
    run = started(way)
    time.sleep(0.1)
    run.send_signal(number)
    said = run.communicate(timeout=30)[1]
    assert run.returncode == 128 + number
    assert said == f"program: {REASONS[number]}; what is complete is kept\n"


def test_no_child_is_left():
    run = started("with_a_child")
    child = int(run.stderr.readline())
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=30)[1]
    assert (run.returncode, said.count("\n")) == (130, 1)
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(child)], capture_output=True, text=True)
    assert state.stdout.strip()[:1] in ("", "Z"), "it lives"


@pytest.mark.parametrize("command", COMMANDS)
def test_all_commands_heed_it(command, monkeypatch):
    """Each begins with the function that does, and gives it all that takes time."""
    from importlib import import_module

    module = import_module(f"eddymotion.cli.{command}")
    bodies = []
    monkeypatch.setattr(module, "run", lambda program, body: bodies.append(program) or 0)
    assert module.main(["--no-such-option"]) == 0
    assert bodies[0].startswith("eddymotion")
