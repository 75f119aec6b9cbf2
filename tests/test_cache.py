"""Compiled code is kept where the user's caches are, unless they say otherwise, and never gets in the way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from editjax.cli import cache
from editjax.cli.cache import JAX_FOLDER, JAX_LEAST_S, XLA_FLAGS, compile_quickly, keep_compiled_code


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (JAX_FOLDER, JAX_LEAST_S, XLA_FLAGS, "EDITJAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")  # so that what the test sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_it_is_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keep_compiled_code()
    assert os.environ[JAX_FOLDER] == str(tmp_path / ".cache" / "editjax" / "compiled")
    assert os.environ[JAX_LEAST_S] == "0" and Path(os.environ[JAX_FOLDER]).stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv(JAX_FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    keep_compiled_code()
    assert os.environ[JAX_FOLDER] == str(tmp_path / "xdg" / "editjax" / "compiled")


def test_the_user_decides_where_and_whether(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDITJAX_CACHE", "off")
    keep_compiled_code()
    assert JAX_FOLDER not in os.environ
    monkeypatch.setenv("EDITJAX_CACHE", str(tmp_path / "here"))
    keep_compiled_code()
    assert os.environ[JAX_FOLDER] == str(tmp_path / "here")
    monkeypatch.setenv("EDITJAX_CACHE", str(tmp_path / "there"))
    keep_compiled_code()  # JAX's own variable comes first
    assert os.environ[JAX_FOLDER] == str(tmp_path / "here") and not (tmp_path / "there").exists()


def test_a_folder_that_cannot_be_ours_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDITJAX_CACHE", str(tmp_path / "file" / "folder"))
    keep_compiled_code()
    monkeypatch.setenv("EDITJAX_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    keep_compiled_code()
    assert JAX_FOLDER not in os.environ


def test_compiling_is_quick_where_that_is_known_to_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "find_spec", lambda name: None)
    monkeypatch.setattr(cache, "version", lambda name: "0.10.2")
    level, emitters = cache.QUICKLY["0.10."]
    for _ in range(2):
        compile_quickly()
        assert os.environ[XLA_FLAGS] == f"{level} {emitters}"
    monkeypatch.setenv(XLA_FLAGS, "--xla_backend_optimization_level=3 --other")
    compile_quickly()  # the user's own flags stay
    assert os.environ[XLA_FLAGS] == f"{emitters} --xla_backend_optimization_level=3 --other"


def test_this_jaxlib_knows_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA would end a process that gives it others."""
    compile_quickly()
    done = subprocess.run(
        [sys.executable, "-c", "import jax.numpy as jnp; jnp.ones(2) + 1.0"], check=False, env=os.environ
    )
    assert done.returncode == 0


@pytest.mark.parametrize("there", ["jax_plugins", "libtpu", "another jaxlib"])
def test_elsewhere_compiling_is_left_alone(monkeypatch: pytest.MonkeyPatch, there: str) -> None:
    monkeypatch.setattr(cache, "find_spec", lambda name: name == there or None)
    monkeypatch.setattr(cache, "version", lambda name: "0.11.0" if there == "another jaxlib" else "0.10.2")
    compile_quickly()
    assert XLA_FLAGS not in os.environ
