# SPDX-License-Identifier: Apache-2.0
"""Machine code that a container ships."""

import os
import subprocess
import sys

import numba
import pytest

from eddymotion.machine.compiling import Kernel, cache_folder, compiled

KERNELS = """
import os, sys
refused = sys.argv[1]
access = os.access
os.access = lambda path, mode: str(path) != refused and access(path, mode)
import numpy as np
from eddymotion.images import kernels
coefficients = kernels.spline_coefficients(np.ones((8, 8, 8), np.dtype(sys.argv[2])))
values = np.empty(1, np.dtype(sys.argv[3]))
kernels.sample_points(coefficients, np.eye(4)[:3] + 0.0, np.full((1, 3), 4.0), values)
print(float(values[0]), sum(kernels._prefilter.made.stats.cache_hits.values()),
      sum(kernels.sample_points.made.stats.cache_hits.values()),
      int("numba.np.npyimpl" in sys.modules))
"""


@pytest.mark.slow
def test_kernels_of_a_read_only_folder_are_used_and_none_is_added(tmp_path):
    def run(refused, *types):
        call = [sys.executable, "-c", KERNELS, str(refused), *types]
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
        return [float(word) for word in done.stdout.split()]

    def names():
        return sorted(path.name for path in tmp_path.rglob("*") if path.is_file())

    assert run("-", "f4", "f4") == [1, 0, 0, 1]  # fills the folder, as the build of a container
    before = names()
    assert before
    assert run("-", "f4", "f4") == [1, 1, 1, 0]  # without what only compiling needs
    assert run(tmp_path, "f4", "f4") == [1, 1, 1, 0]
    assert run(tmp_path, "f4", "f8") == [1, 1, 0, 1]  # not among them: compiled for this run alone
    assert names() == before


AT_ONCE = """
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
import sys
import numpy as np
from eddymotion.images import kernels
assert 'numba' not in sys.modules
coefficients, barrier = np.ones((8, 8, 8), np.float32), Barrier(8)

def sample(_):
    values = np.empty(1, np.float32)
    barrier.wait()
    kernels.sample_points(coefficients, np.eye(4)[:3] + 0.0, np.full((1, 3), 2.5), values)
    return id(kernels.sample_points.made), float(values[0])

with ThreadPoolExecutor(8) as pool:
    (found,) = set(pool.map(sample, range(8)))
print(round(found[1], 5))
"""


@pytest.mark.slow
def test_threads_that_call_a_kernel_first_share_what_is_compiled(tmp_path):
    """It names others, and an intrinsic, that nobody has called either."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "1.0"


def test_where_code_is_kept_is_known_and_whether_it_is():
    kept = compiled(lambda x: x + 1)
    assert kept(1) == 2
    assert list(cache_folder(kept).glob("test_compiling*.nbi"))
    assert cache_folder(Kernel(lambda x: x, numba.njit)) is None
