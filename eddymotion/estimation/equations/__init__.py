# SPDX-License-Identifier: Apache-2.0
"""Gauss-Newton on the poses of all volumes at once: unknowns, equations, errors."""
