# SPDX-License-Identifier: Apache-2.0
"""Eddy-current fields: what they have in common, and whether there are any.

An eddy current is driven by the diffusion gradient, so that the coefficients ``e_i`` of the
fields are mostly a linear function of it, plus what is each volume's own (the second level of FSL
eddy)::

    e_ik = C_k · q_i + η_ik,     η_ik ~ N(0, τ_k²),     q = g √(b / 1000)

- ``C`` is free, ``τ`` is learnt from the data: few directions are shrunk towards the common
  response, many go their own way.
- An eddy current turns round with its gradient. What a signal model gets wrong does not, so that
  fields which follow ``q`` less than they go their own way are not eddy currents: they are left
  out (:attr:`.evidence.FieldEvidence.is_there`).
- A field common to all volumes changes nothing but the frame of the head. Its mean is therefore
  that of the response, ``C · q̄``.
- Neither is a displacement along the phase-encoding axis common to all points known from a
  translation of the head. The part that follows ``q`` from volume to volume is called the fields'
  (:func:`.offsets.with_offsets`).
- A head that pitches and rolls in the main field is magnetised otherwise, and leaves the shims,
  which stay in the scanner: the off-resonance field changes, smoothly and nearly linearly with the
  pose. Where fields follow the poses (:class:`.following.PoseResponse`), so they may: the common
  response is one to ``q`` and to pitch, roll and translation; turning about the main field changes
  nothing.
"""
