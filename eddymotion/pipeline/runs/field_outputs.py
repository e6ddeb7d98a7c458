# SPDX-License-Identifier: Apache-2.0
"""The off-resonance field of a session, as files and as a picture."""

from __future__ import annotations

from eddymotion.derivatives import Outputs
from eddymotion.derivatives.session import SessionOutputs, write_field
from eddymotion.pipeline.runs import SessionRun


def write_session_field(
    run: SessionRun, outputs: Outputs, *, apart: bool = False, fsl: bool = False
) -> None:
    """Write the field, or remove that of an earlier call; the first run does so for all.

    Parameters
    ----------
    run : SessionRun
    outputs : Outputs
        Of this run.
    apart : bool
        Whether runs of a session are left in frames of their own, without a field.
    fsl : bool
        Whether to write the field as FSL's topup does, too.
    """
    joined, session = run.joined, SessionOutputs.of(outputs)
    if apart or joined is None or (run.number == 0 and joined.field is None):
        session.field.remove()
    elif run.number == 0:
        write_field(session, joined, run.names, fsl=fsl)


def draw_session_field(run: SessionRun, outputs: Outputs) -> None:
    """Draw the field and how it distorted this run; without one, remove an earlier picture."""
    picture, joined = outputs["off_resonance_figure"], run.joined
    picture.unlink(missing_ok=True)
    if joined is None or joined.hertz is None:
        return
    from eddymotion.reports import save_figure
    from eddymotion.reports.fieldmap import field_figure

    stretch = joined.stretch(run.number)
    figure = field_figure(
        joined.mean, joined.hertz, stretch, joined.mask, joined.affine, joined.unit, joined.beside
    )
    save_figure(figure, picture)
