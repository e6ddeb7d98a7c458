# SPDX-License-Identifier: Apache-2.0
"""Volumes: grids, interpolation, levels of resolution, masks."""
