# SPDX-License-Identifier: Apache-2.0
"""Leave one out: predict, register."""

import numpy as np
from head import BLUE, GREY, INK, ORANGE, head, panels

(axis,) = panels(1, [""], height=3.2)
where = np.arange(6) * 200.0
degrees, shifts = [0, 8, -18, 4, -6, 12], [(0, 0), (4, -3), (22, 10), (-6, 4), (5, 6), (-4, -6)]
for volume, (x, turn, shift) in enumerate(zip(where, degrees, shifts, strict=True)):
    chosen = volume == 2
    lifted = 170 if chosen else 0
    head(axis, np.add((x, lifted), shift), turn, ORANGE if chosen else INK)
    if not chosen:
        axis.text(x, -135, str(volume), ha="center", color=INK, fontsize=9)
axis.text(where[2] - 110, 215, "2, left out", ha="right", color=ORANGE, fontsize=10)


def flow(start, end, color=GREY, bend=0.0):
    """Draw an arrow between two places."""
    axis.annotate("", end, start, arrowprops={
        "arrowstyle": "-|>", "color": color, "lw": 1.8, "mutation_scale": 14,
        "connectionstyle": f"arc3,rad={bend}",
    })  # fmt: skip


box = {"boxstyle": "round,pad=0.5", "fc": "white"}
flow((1100, 0), (1240, 0))
axis.text(1350, 0, "model of\ndiffusion", ha="center", va="center", color=INK,
          bbox={**box, "ec": GREY})  # fmt: skip
flow((1350, 60), (1350, 110))
head(axis, (1350, 225), 0, BLUE)
axis.text(1450, 225, "2, as the others\npredict it", color=BLUE, va="center", fontsize=10)
flow((1255, 225), (930, 225))
flow((530, 225), (670, 225))
axis.text(800, 225, "register", ha="center", va="center", color=INK, bbox={**box, "ec": GREY})
flow((800, 270), (800, 340), ORANGE)
axis.text(800, 352, "pose of 2", ha="center", color=ORANGE)
axis.set(xlim=(-110, 1760), ylim=(-150, 390))
