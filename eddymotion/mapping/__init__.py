# SPDX-License-Identifier: Apache-2.0
"""Where a point of the head was recorded, and by what factor the signal changed there."""
