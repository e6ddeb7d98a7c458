# SPDX-License-Identifier: Apache-2.0
"""The beginning and the end of a command: what is read ahead, when garbage is sought."""

import gc
import gzip
import json
import os
import subprocess
import sys
import threading
import time

import nibabel as nib
import numpy as np
import pytest

from eddymotion.errors import EddymotionError
from eddymotion.io import ahead
from eddymotion.io.ahead import decompressing_ahead
from eddymotion.io.images import read_image
from eddymotion.machine import memory
from eddymotion.machine.importing import importing
from eddymotion.machine.parallel import import_beside


@pytest.fixture
def image(tmp_path):
    """A gzipped image of several blocks, and what it holds."""
    voxels = np.random.default_rng(0).integers(-9, 9, (30, 31, 32, 40)).astype(np.int16)
    path = tmp_path / "a_dwi.nii.gz"
    nib.Nifti1Image(voxels, np.eye(4)).to_filename(path)
    return path, voxels


def n_ahead():
    return sum("_decompress" in thread.name for thread in threading.enumerate())


def test_an_image_that_is_decompressed_ahead_is_the_same(image, monkeypatch):
    """However few blocks nobody has read yet may wait, and however they divide volumes."""
    path, voxels = image
    monkeypatch.setattr(ahead, "BLOCK", 30_011)
    for blocks in (1, 1000):
        monkeypatch.setattr(ahead, "BLOCKS_AHEAD", blocks)
        for keep_integers in (True, False):
            with decompressing_ahead(path):
                read, _, _ = read_image(path, keep_integers=keep_integers)
                again, _, _ = read_image(path)  # begun anew
            assert read.dtype == (np.int16 if keep_integers else np.float32)
            np.testing.assert_array_equal(read, voxels)
            np.testing.assert_array_equal(again, voxels)


def test_a_stream_that_nobody_reads_ends_with_its_context(image, monkeypatch):
    path, _ = image
    monkeypatch.setattr(ahead, "BLOCK", 1000)
    monkeypatch.setattr(ahead, "BLOCKS_AHEAD", 2)
    with decompressing_ahead(path):
        time.sleep(0.05)
        assert n_ahead() == 1  # it waits for room
    assert n_ahead() == 0
    assert ahead.begun(path) is None


def test_what_is_wrong_with_a_file_is_told_to_its_reader(image, tmp_path):
    path, _ = image
    path.write_bytes(path.read_bytes()[:-5000])
    with (
        decompressing_ahead(path, tmp_path / "missing.nii.gz"),
        pytest.raises(EddymotionError, match=r"a_dwi\.nii\.gz: cannot be read .* truncated"),
    ):
        read_image(path)
    assert n_ahead() == 0


def test_images_of_any_byte_order_type_and_offset_are_read_volume_by_volume(tmp_path):
    random = np.random.default_rng(1)
    for stored in ("<i2", ">i2", ">u1", "<f8", ">f4"):
        voxels = random.integers(0, 99, (5, 6, 7, 3)).astype(stored)
        made = nib.Nifti1Image(voxels, np.eye(4), nib.Nifti1Header(endianness=stored[0]))
        made.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 100_000))
        for name in ("a.nii", "a.nii.gz"):
            made.to_filename(tmp_path / name)
            for keep_integers in (True, False):
                read, _, _ = read_image(tmp_path / name, keep_integers=keep_integers)
                assert read.dtype.isnative
                np.testing.assert_array_equal(read, voxels)


def test_an_image_without_its_last_voxel_is_refused(tmp_path):
    whole = nib.Nifti1Image(np.ones((4, 4, 4, 2), np.int16), np.eye(4)).to_bytes()
    (tmp_path / "a.nii").write_bytes(whole[:-1])
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(whole[:-1]))
    for name in ("a.nii", "b.nii.gz"):
        with pytest.raises(EddymotionError, match="127 of the 128 bytes of a volume found"):
            read_image(tmp_path / name)


def test_garbage_is_sought_again_after_the_last_import():
    """Whoever begins and ends when; and not where somebody else has turned it off."""
    begun, may_end = threading.Event(), threading.Event()

    def wait():
        begun.set()
        may_end.wait()

    patience = sys.getswitchinterval()
    with importing:
        import_beside(then=wait)
        begun.wait()
    assert not gc.isenabled()
    assert sys.getswitchinterval() < patience
    may_end.set()
    for _ in range(500):
        if gc.isenabled():
            break
        time.sleep(0.01)
    assert gc.isenabled()
    assert sys.getswitchinterval() == patience
    assert gc.get_freeze_count() > 1000  # what was imported is not looked through either
    gc.unfreeze()
    gc.disable()
    try:
        with importing:
            pass
        assert not gc.isenabled()
        assert gc.get_freeze_count() == 0
    finally:
        gc.enable()


ENDING = """
import gc, sys
from eddymotion.cli.console import run

class Loop:
    def __init__(self):
        self.self = self
    def __del__(self):
        print("found", file=sys.stderr)

gc.disable()
code = run("test", lambda: 3 if Loop() else 0)
sys.exit(code)
"""


def test_a_command_ends_without_a_search_for_garbage():
    done = subprocess.run(
        [sys.executable, "-c", ENDING], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (3, "")


LIMITED = """
import numpy as np
from threadpoolctl import threadpool_info
from eddymotion.machine.parallel import one_blas_thread

def n_threads():
    return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]

with one_blas_thread():
    print(n_threads())
import scipy.linalg  # brings a library of its own
with one_blas_thread():
    with one_blas_thread():
        pass
    print(n_threads())
print(n_threads())
"""


def test_libraries_that_a_module_brings_later_have_one_thread_as_well():
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    first, second, after = map(json.loads, done.stdout.splitlines())
    assert {*first, *second} == {1}
    assert len(second) > len(first)
    assert set(after) == {2}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
@pytest.mark.parametrize("is_little", [True, False])
def test_memory_that_is_free_is_given_back_by_a_process_that_holds_much(is_little, monkeypatch):
    """Small pieces below one that is still held are free, but the process keeps them."""
    monkeypatch.setattr(memory, "LITTLE_BYTES", 10**12 if is_little else 0)
    pieces = [np.ones(8_000) for _ in range(1_000)]
    last = pieces.pop()
    pieces.clear()
    before = memory.resident_bytes()
    memory.give_back_memory()
    given_back = before - memory.resident_bytes()
    assert last.all()
    assert given_back < 1e6 if is_little else given_back > 3e7
