# SPDX-License-Identifier: Apache-2.0
"""Processes, processors, locks, logs and disks."""
