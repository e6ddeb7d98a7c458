# SPDX-License-Identifier: Apache-2.0
"""Names that stand in files and options alike."""

PARAMETERS = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
"""Columns of the six motion parameters, in the order of fMRIPrep's confounds; mm and rad."""

PE_AXES = ("i", "j", "k", "i-", "j-", "k-")
"""Phase-encoding directions as BIDS writes them."""

ESCAPED = "backslashreplace"
"""How text is written that UTF-8 cannot hold: names of files may hold any bytes."""
