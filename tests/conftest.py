"""Strict JAX for every test: no silent rank or dtype promotion, several CPU devices, no accelerator.

Programs are compiled quickly rather than well, for most run once; what is compiled is kept for this run,
for all its processes, and let go after every module: a process has room for so many pieces of code only.
Hypothesis keeps no time: a busy machine is no failure.
"""

import os
import shutil
import tempfile

import pytest
from hypothesis import settings

from editjax.cli.cache import compile_quickly

CACHE = "JAX_COMPILATION_CACHE_DIR"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Level 1, for at 0 XLA for CPUs (jax 0.10.2) gives gradients that are not numbers.
compile_quickly()
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("EDITJAX_CACHE", "off")

settings.register_profile("editjax", deadline=None, print_blob=True)
settings.load_profile("editjax")


def pytest_configure(config: pytest.Config) -> None:
    """A folder for compiled code, unless there is one: workers of the same run inherit it."""
    if CACHE not in os.environ:
        os.environ[CACHE] = tempfile.mkdtemp(prefix="editjax-tests-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(CACHE), ignore_errors=True))


@pytest.fixture(scope="module", autouse=True)
def _let_go_of_compiled_code():
    yield
    import jax

    jax.clear_caches()
