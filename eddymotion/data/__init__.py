# SPDX-License-Identifier: Apache-2.0
"""The diffusion series, how it was acquired, and whether its parts fit together."""
