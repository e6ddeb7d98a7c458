# SPDX-License-Identifier: Apache-2.0
"""Runs of the BIDS-App as processes of their own, and what they leave."""

import hashlib
import json
import subprocess
import sys
import time

import numpy as np

from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme, write_bids
from eddymotion.simulation.motion import simulate_motion

QUICK = ("--model", "average", "--n-iterations", "1", "--skip-bids-validation")
LABELS = ("01", "02")


def write_two_participants(root):
    """Write a dataset with two very small heads."""
    head = procedural_head(8.0)
    for number, label in enumerate(LABELS):
        scheme = shelled_scheme({1000.0: 8}, 2, seed=number)
        truth = simulate_motion("moderate", len(scheme), np.zeros(3), seed=number)
        dwi = acquire(head, scheme, truth, Grid.covering(head, 8.0), seed=number)
        write_bids(root, label, dwi, truth)


def start(dataset, output, *options):
    """Start the command as a process of its own."""
    call = [sys.executable, "-c", "import sys; from eddymotion.cli.participant import main; "
            "sys.exit(main())", dataset, output, "participant", *QUICK, *options]  # fmt: skip
    return subprocess.Popen([str(part) for part in call], stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=60):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.02)


def contents(folder):
    """Digest of each output; times are taken out of the sidecars, pages and logs left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if not path.is_file() or inside.parts[0] == "logs":
            continue
        if path.suffix == ".html" or path.name.endswith("_steps.tsv"):
            continue
        content = path.read_bytes()
        if path.name.endswith("_desc-preproc_dwi.json"):
            sidecar = json.loads(content)
            del sidecar["StageSeconds"], sidecar["Summary"]["time"]
            content = json.dumps(sidecar).encode()
        found[str(inside)] = hashlib.sha256(content).hexdigest()
    return found
