# SPDX-License-Identifier: Apache-2.0
"""What a container or batch job may use, as the kernel tells it."""

import os

import pytest

from eddymotion.machine import cgroups
from eddymotion.machine.cgroups import cpu_limits, memory_limits

UNLIMITED = 9223372036854771712  # what version 1 says


def tree(folder, own, **files):
    groups = folder / "groups"
    groups.write_text(own)
    for path, content in files.items():
        file = folder / "root" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return folder / "root", groups


def test_a_container_of_version_2_sees_its_own_group_as_the_root(tmp_path):
    files = {"cpu.max": "150000 100000\n", "memory.max": "4000000000\n"}
    root, groups = tree(tmp_path, "0::/\n", **files)
    assert set(cpu_limits(root, groups)) == {1.5}
    assert set(memory_limits(root, groups)) == {4_000_000_000}


def test_a_batch_job_of_version_2_obeys_every_group_above(tmp_path):
    files = {
        "slurm/job_7/step_0/cpu.max": "max 100000\n",
        "slurm/job_7/cpu.max": "300000 100000\n",
        "slurm/job_7/memory.max": "8000000000\n",
        "slurm/memory.max": "max\n",
        "other/cpu.max": "100000 100000\n",
    }
    root, groups = tree(tmp_path, "0::/slurm/job_7/step_0\n", **files)
    assert cpu_limits(root, groups) == [3.0]
    assert memory_limits(root, groups) == [8_000_000_000]


def test_version_1_has_a_tree_for_each_resource(tmp_path):
    files = {
        "cpu/box/cpu.cfs_quota_us": "50000\n",
        "cpu/box/cpu.cfs_period_us": "100000\n",
        "cpu/cpu.cfs_quota_us": "-1\n",
        "cpu/cpu.cfs_period_us": "100000\n",
        "memory/box/memory.limit_in_bytes": "2000000000\n",
        "memory/memory.limit_in_bytes": f"{UNLIMITED}\n",
    }
    root, groups = tree(tmp_path, "4:memory:/box\n2:cpu,cpuacct:/box\n", **files)
    assert cpu_limits(root, groups) == [0.5]
    assert min(memory_limits(root, groups)) == 2_000_000_000


def test_a_machine_without_groups_has_no_limits(tmp_path):
    assert cpu_limits(tmp_path, tmp_path / "none") == []
    assert memory_limits(tmp_path, tmp_path / "none") == []


@pytest.mark.parametrize(("quota", "expected"), [(0.5, 1), (1.5, 2), (1e4, None)])
def test_the_smallest_limit_counts(monkeypatch, quota, expected):
    monkeypatch.setattr(cgroups, "cpu_limits", lambda: [quota, 2e4])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cgroups, "memory_limits", lambda: [UNLIMITED, 3_000_000_000])
    assert cgroups.available_cpus() == (expected or 8)
    assert cgroups.available_memory_gb() == 3.0
