# SPDX-License-Identifier: Apache-2.0
"""Compiled kernels are kept for speed: a damaged or full place for them stops nothing."""

import errno

import pytest
from numba.core import caching, config

from eddymotion.compiling import compiled


def double(value):
    return 2.0 * value


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def test_a_damaged_cache_is_passed_by(cache):
    assert compiled(double)(2.0) == 4.0
    kept = list(cache.rglob("*.nb?"))
    assert len(kept) == 2
    for path in kept:
        path.write_bytes(path.read_bytes()[:7])
    assert compiled(double)(3.0) == 6.0


def test_a_full_disk_keeps_nothing(cache, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", refuse)
    assert compiled(double)(2.0) == 4.0
