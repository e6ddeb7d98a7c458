# SPDX-License-Identifier: Apache-2.0
"""Complete graphs, built from the steps of the package."""
