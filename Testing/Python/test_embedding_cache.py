"""The cache of image embeddings: bit-equal values, its limit, faults of the disk, and nothing that stays behind."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from MedCLIPSAMLib.sam.embedding_cache import BLOCK, EmbeddingCache, content_digest

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (256, 16, 16)  # of SAM-Med2D: one block
posix = pytest.mark.skipif(os.name != "posix", reason="an open file without a name is POSIX")


def array(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def on_disk(number: int, **settings) -> EmbeddingCache:
    """A cache with arrays 0 to number - 1, of which only the last is also in memory."""
    cache = EmbeddingCache(remembered=1, **settings)
    for seed in range(number):
        cache.put(str(seed), array(seed))
    return cache


def test_values_come_back_bit_equal_from_memory_and_disk():
    cache = on_disk(5)
    for seed in (4, 0, 3, 1, 2):
        found = cache.get(str(seed))
        assert found.dtype == np.float32 and np.array_equal(found, array(seed))
        assert not found.flags.writeable
    odd = np.arange(7, dtype=np.float16)[::2]
    cache.put("odd", odd)
    cache.put("other", array(9))
    assert cache.get("odd").dtype == np.float16 and np.array_equal(cache.get("odd"), odd)
    assert cache.get("nothing") is None and "nothing" not in cache and "odd" in cache


def test_what_was_put_is_a_copy():
    cache = EmbeddingCache(limit=0)
    mine = array(0)
    cache.put("a", mine)
    mine[:] = 0
    assert np.array_equal(cache.get("a"), array(0))


def test_a_new_value_replaces_the_old_one():
    cache = on_disk(2)
    cache.put("0", array(7, (256, 64, 64)))
    cache.put("1", array(8))
    assert np.array_equal(cache.get("0"), array(7, (256, 64, 64)))
    assert np.array_equal(cache.get("1"), array(8))


def test_the_file_keeps_to_its_limit_and_the_least_used_goes_first():
    cache = on_disk(4, limit=4 * BLOCK)
    assert cache.file_bytes == 4 * BLOCK
    cache.get("0")
    cache.put("4", array(4))
    assert "1" not in cache and cache.get("1") is None
    assert all(np.array_equal(cache.get(str(seed)), array(seed)) for seed in (0, 2, 3, 4))
    assert cache.file_bytes == os.fstat(cache._file.fileno()).st_size == 4 * BLOCK


def test_large_and_small_arrays_share_the_file():
    """As when another segmenter is chosen: sixteen blocks for SAM, one for SAM-Med2D."""
    cache = on_disk(20, limit=20 * BLOCK)
    cache.put("large", array(100, (256, 64, 64)))
    assert [seed for seed in range(20) if str(seed) in cache] == [16, 17, 18, 19]
    cache.put("20", array(20))
    assert np.array_equal(cache.get("19"), array(19)) and "16" not in cache
    cache.put("21", array(21))
    cache.get("21")
    assert np.array_equal(cache.get("large"), array(100, (256, 64, 64)))


def test_an_array_beyond_the_limit_is_kept_in_memory_alone():
    cache = EmbeddingCache(limit=3 * BLOCK, remembered=1)
    cache.put("large", array(0, (256, 64, 64)))
    assert np.array_equal(cache.get("large"), array(0, (256, 64, 64))) and cache.file_bytes == 0
    cache.put("small", array(1))
    assert cache.get("large") is None


@pytest.mark.parametrize(("free", "limit"), [(10 << 30, 1 << 30), (100 << 30, 4 << 30), (1 << 20, 0)])
def test_the_default_limit(monkeypatch, free, limit):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(free, 0, free))
    assert EmbeddingCache().capacity(4 << 20) == max(limit // (4 << 20), 4)


def test_a_damaged_array_is_not_given_out(caplog):
    cache = on_disk(3)
    cache._file.seek(1000)
    byte = cache._file.read(1)[0]
    cache._file.seek(1000)
    cache._file.write(bytes([byte ^ 4]))
    assert cache.get("0") is None and "0" not in cache
    assert "damaged" in caplog.text
    assert np.array_equal(cache.get("1"), array(1))
    cache.put("0", array(0))
    cache.put("3", array(3))
    assert np.array_equal(cache.get("0"), array(0)), "its place is used again"
    assert cache.file_bytes == 4 * BLOCK


def test_a_file_that_has_shrunk_or_gone_is_survived(caplog):
    cache = on_disk(3)
    cache._file.truncate(BLOCK)
    assert cache.get("1") is None
    assert np.array_equal(cache.get("0"), array(0))
    cache = on_disk(3)
    descriptor = cache._file.fileno()
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), descriptor)
    assert cache.get("0") is None, "nothing can be read"
    cache.put("4", array(4))
    assert np.array_equal(cache.get("4"), array(4)), "nothing can be written"
    assert "no longer kept on the disk" in caplog.text


@posix
def test_a_full_disk_only_means_that_less_is_kept(caplog):
    """The system itself refuses to let the file grow."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    cache = EmbeddingCache(remembered=2)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * BLOCK + 10, before[1]))
        for seed in range(4):
            cache.put(str(seed), array(seed))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "no longer kept on the disk" in caplog.text
    assert [cache.get(str(seed)) is not None for seed in range(4)] == [False, False, True, True]
    assert cache.file_bytes == 0
    cache.put("5", array(5))
    assert cache.file_bytes == 0, "it is not tried again"


def test_without_a_temporary_folder(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    cache = EmbeddingCache()
    cache.put("0", array(0))
    assert np.array_equal(cache.get("0"), array(0))
    assert cache.capacity(BLOCK) == 4 and "no longer kept on the disk" in caplog.text


def test_close_forgets_everything():
    cache = on_disk(3)
    file = cache._file
    cache.close()
    assert file.closed and cache.get("0") is None and cache.get("2") is None
    cache.put("0", array(0))
    assert np.array_equal(cache.get("0"), array(0))


@posix
def test_nobody_else_can_open_the_file(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache = on_disk(3)
    assert cache.file_bytes == 3 * BLOCK and list(tmp_path.iterdir()) == []
    state = os.fstat(cache._file.fileno())
    assert state.st_nlink == 0 and stat.S_IMODE(state.st_mode) & 0o077 == 0


PROGRAM = """
import sys, numpy as np
from MedCLIPSAMLib.sam.embedding_cache import shared_cache
for number in range(6):
    shared_cache().put(str(number), np.ones((256, 64, 64), np.float32))
print(shared_cache().file_bytes, 'torch' in sys.modules, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("ending", ["killed", "in order"])
def test_a_process_leaves_nothing_behind(tmp_path, ending):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "TEMP": str(tmp_path), "TMP": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().split() == [str(6 * (4 << 20)), "False"]
        if ending == "killed" and os.name == "posix":
            process.send_signal(signal.SIGKILL)
        elif ending == "killed":
            process.kill()
        process.stdin.close()
        process.wait(30)
    assert list(tmp_path.iterdir()) == []


@posix
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_copy_leaves_the_file_alone(tmp_path):
    program = """
import os, numpy as np
from MedCLIPSAMLib.sam.embedding_cache import EmbeddingCache
cache = EmbeddingCache(remembered=1)
for number in range(3):
    cache.put(str(number), np.full((256, 16, 16), number, np.float32))
child = os.fork()
if child == 0:
    missing = cache.get("0") is None and "0" not in cache
    cache.put("9", np.zeros((256, 16, 16), np.float32))
    os._exit(0 if missing and cache.get("9") is not None else 1)
print(os.waitpid(child, 0)[1], all((cache.get(str(number)) == number).all() for number in range(3)))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "True"]


def test_the_digest_is_of_shape_type_and_pixels():
    image = np.arange(512, dtype=np.uint8).reshape(16, 32)
    others = [image.reshape(32, 16), image[:, ::-1], image.view(np.int8), image.T]
    digests = {content_digest(other) for other in (image, *others)}
    assert len(digests) == 5
    assert content_digest(np.asfortranarray(image)) == content_digest(image.copy()) == content_digest(image)
