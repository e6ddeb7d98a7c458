# SPDX-License-Identifier: Apache-2.0
"""Measurements: accuracy on simulated series, speed and memory."""
