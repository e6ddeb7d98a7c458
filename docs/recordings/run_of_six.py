# SPDX-License-Identifier: Apache-2.0
"""Record a run over six small participants on a terminal of 80 columns, as a moving picture.

``python docs/recordings/run_of_six.py docs/images/run-of-six.svg`` simulates participants, runs
``eddymotion`` on them in a terminal, and draws what that shows. It needs ``pip install pyte``.
"""

import os
import pty
import re
import subprocess
import sys
import tempfile
import time
from html import escape
from itertools import groupby
from pathlib import Path

import numpy as np
import pyte

from eddymotion.simulation import Grid, acquire, procedural_head, shelled_scheme, write_bids
from eddymotion.simulation.motion import simulate_motion

COLUMNS, LINES = 80, 19
CELL, LINE = 8.4, 18
N_FRAMES, SHOWN_S, LAST_S = 14, 1.2, 6.0
COLORS = {"default": "#d5d9e0", "brightred": "#ff7a93", "red": "#ff7a93", "green": "#7fc98b",
          "brown": "#e0b060", "brightblack": "#4a5263", "brightgreen": "#7fc98b",
          "cyan": "#5fb7c9"}  # fmt: skip


def simulated(root):
    """Write six participants whose heads move, the fourth a lot, the fifth with lost slices."""
    head = procedural_head(6.0)
    grid = Grid.covering(head, 6.0)
    for number in range(6):
        scheme = shelled_scheme({1000.0: 24}, 3, seed=number)
        pattern = "high" if number == 3 else "moderate"
        truth = simulate_motion(pattern, len(scheme), np.zeros(3), seed=number)
        dropout = 0.04 if number == 4 else 0.0
        dwi = acquire(head, scheme, truth, grid, seed=number, dropout=dropout)
        write_bids(root, f"{number + 1:02d}", dwi, truth)


def frames_of(call, folder):
    """Run a command on a terminal; return (seconds, screen) each time that it has changed."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS),
                                "LINES": str(LINES), "OMP_NUM_THREADS": "1"}  # fmt: skip
    run = subprocess.Popen(call, stdout=follower, stderr=follower, stdin=follower, cwd=folder,
                           env=environment)  # fmt: skip
    os.close(follower)
    began, frames = time.monotonic(), []
    while True:
        try:
            stream.feed(os.read(leader, 65536).replace(b"\n", b"\r\n"))
        except OSError:  # it has ended
            break
        frames.append((time.monotonic() - began, drawn(screen)))
    if run.wait():
        sys.exit(f"{call} failed")
    return frames


def drawn(screen):
    """Return the lines of a screen: (column, text, colour) of what stands together."""
    lines = []
    for row in range(LINES):
        cells = [(column, screen.buffer[row][column]) for column in range(COLUMNS)]
        runs = []
        for color, group in groupby(cells, lambda cell: cell[1].fg):
            group = list(group)
            text = "".join(cell.data for _, cell in group).rstrip()
            if text:
                runs.append((group[0][0], text, COLORS.get(color, f"#{color}")))
        lines.append(runs)
    return lines


def chosen(frames):
    """Return some frames, evenly over the time, the last among them."""
    whole = frames[-1][0]
    found = []
    for number in range(N_FRAMES):
        before = [frame for at, frame in frames if at <= whole * (number + 0.5) / N_FRAMES]
        if before and any(before[-1]) and before[-1] not in found:
            found.append(before[-1])
    return [*found, frames[-1][1]]


def picture(command, frames):
    """Return the frames as an SVG that shows one after the other, again and again."""
    width, height = COLUMNS * CELL + 24, (LINES + 1) * LINE + 24
    whole = SHOWN_S * (len(frames) - 1) + LAST_S
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="14">',
        "<title>A run over six participants on a terminal</title>",
        f'<rect width="{width:g}" height="{height:g}" rx="8" fill="#1d222b"/>',
        text_at(0, 0, f"$ {command}", "#8ab4f8"),
    ]
    for number, frame in enumerate(frames):
        begin = number * SHOWN_S / whole
        end = 1.0 if number == len(frames) - 1 else (number + 1) * SHOWN_S / whole
        last = number == len(frames) - 1
        times = f"0;{begin:.4f};{end:.4f}" if not last else f"0;{begin:.4f}"
        values = "none;inline;none" if not last else "none;inline"
        parts.append(
            f'<g display="{"inline" if last else "none"}"><animate attributeName="display" '
            f'calcMode="discrete" dur="{whole:g}s" repeatCount="indefinite" '
            f'keyTimes="{times}" values="{values}"/>'
        )
        parts += [text_at(row + 1, column, text, color)
                  for row, runs in enumerate(frame) for column, text, color in runs]  # fmt: skip
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def plain(text):
    """Return a line of any version."""
    return re.sub(r"^eddymotion [0-9]\S*:", "eddymotion:", text)


def text_at(row, column, text, color):
    """Return an element with a text at a place of the terminal."""
    place = f'x="{12 + column * CELL:.1f}" y="{24 + row * LINE}"'
    length = f'textLength="{len(text) * CELL:.1f}" lengthAdjust="spacingAndGlyphs"'
    spaced = escape(text).replace("  ", "\u00a0 ")
    return f'<text {place} fill="{color}" {length} xml:space="preserve">{spaced}</text>'


if __name__ == "__main__":
    target = Path(sys.argv[1])
    command = "eddymotion bids/ out/ participant --nprocs 2"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        simulated(folder / "bids")
        call = [sys.executable, "-m", *command.split(), "--skip-bids-validation"]
        frames = [
            [[(place, plain(text.replace(str(folder), "/study")), color)
              for place, text, color in runs] for runs in frame]
            for frame in chosen(frames_of(call, folder))
        ]  # fmt: skip
    target.write_text(picture(command, frames), encoding="utf-8")
    print(f"{target}: {len(frames)} frames, {target.stat().st_size / 1e3:.0f} kB")
