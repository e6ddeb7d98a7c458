# SPDX-License-Identifier: Apache-2.0
"""Series in a BIDS dataset."""
