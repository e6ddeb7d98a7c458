# SPDX-License-Identifier: Apache-2.0
"""What a thread imports beside the work, the work may need at that moment."""

import subprocess
import sys

RACE = """
import sys, threading, time
import scipy, scipy.linalg, scipy.ndimage
from eddymotion.pipeline.stages import get_ready_to_estimate

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "scipy.spatial._kdtree":  # soon after scipy.spatial has begun
            time.sleep(1.0)

assert "scipy.spatial" not in sys.modules
sys.meta_path.insert(0, Slow())
threading.Timer(0.3, get_ready_to_estimate).start()
print(scipy.spatial.transform.Rotation.identity().magnitude())
"""


def test_work_and_thread_import_scipy_spatial_in_one_order():
    """Else they wait for each other, and Python lets one see half of a module."""
    finished = subprocess.run([sys.executable, "-c", RACE], capture_output=True, text=True)
    assert finished.stdout.strip() == "0.0", finished.stderr
