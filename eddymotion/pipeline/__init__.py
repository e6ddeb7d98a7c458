# SPDX-License-Identifier: Apache-2.0
"""Files in, files out: what commands and workflow engines run."""
