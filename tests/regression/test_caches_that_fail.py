# SPDX-License-Identifier: Apache-2.0
"""Places for what is only kept for a while: damaged, full, or not there."""

import errno
import tempfile

import pytest
from numba.core import caching, config

from eddymotion.errors import EddymotionError
from eddymotion.machine.compiling import compiled
from eddymotion.registration.engines.external import work_folder


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


def test_no_place_for_temporary_files_is_reported(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    with pytest.raises(EddymotionError, match="set TMPDIR"), work_folder():
        pass
