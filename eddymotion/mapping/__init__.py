# SPDX-License-Identifier: Apache-2.0
"""Where a point of the head was recorded, and what multiplied its signal there."""
