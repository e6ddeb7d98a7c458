# SPDX-License-Identifier: Apache-2.0
"""What only a look from inside a container tells; run there by ``docker/check``.

``limits``: what may be written, and the processors and memory that the package counts.
``kernels DWI FOLDER``: correct a series and see that no kernel was compiled for it.
"""

import os
import socket
import sys


def check_limits() -> None:
    """Refuse more than /tmp and /out to write to, a network, or more than the limits counted."""
    from eddymotion.machine.cgroups import available_cpus, available_memory_gb

    writable = [path for path in ("/", "/opt/eddymotion/kernels", "/tmp", "/out")
                if os.access(path, os.W_OK)]  # fmt: skip
    assert writable == ["/tmp", "/out"], writable
    assert os.getuid() == 1234, os.getuid()
    assert [name for _, name in socket.if_nameindex()] == ["lo"], socket.if_nameindex()
    cpus, memory = available_cpus(), available_memory_gb()
    assert cpus == min(2, len(os.sched_getaffinity(0))), cpus
    assert memory <= 4 * 1.073741824, memory
    print(f"  {cpus} processors, {memory:.2f} GB, only /tmp and /out writable, no network")


def check_kernels(dwi: str, folder: str) -> None:
    """Refuse a correction for which a kernel had to be compiled."""
    from eddymotion.cli.correct import main
    from eddymotion.images import kernels

    assert main([dwi, "-o", folder]) == 0
    stats = [kernel.stats for kernel in vars(kernels).values() if hasattr(kernel, "stats")]
    used = sum(sum(stat.cache_hits.values()) for stat in stats)
    compiled = sum(sum(stat.cache_misses.values()) for stat in stats)
    assert used > 0, "no kernel was used"
    assert compiled == 0, f"{compiled} kernels compiled"
    print(f"  {used} kernels from the image, {compiled} compiled")


if __name__ == "__main__":
    {"limits": check_limits, "kernels": check_kernels}[sys.argv[1]](*sys.argv[2:])
