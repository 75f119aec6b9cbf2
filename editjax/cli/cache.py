"""Compiled code kept between runs, so that the second edit starts fast.

JAX reads its own environment variables when it is imported, which a command does after this: nothing heavy is
loaded here.
"""

import os
from pathlib import Path

SWITCH = "EDITJAX_CACHE"
JAX_FOLDER, JAX_LEAST_S = "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def keep_compiled_code() -> None:
    """Has JAX keep what it compiles in the user's cache folder, or in the one `EDITJAX_CACHE` names.

    `EDITJAX_CACHE=off` turns it off, and a `JAX_COMPILATION_CACHE_DIR` of the user's own comes first. Without
    a folder that is ours to write, nothing is kept and nothing fails.
    """
    if JAX_FOLDER in os.environ or os.environ.get(SWITCH) == "off":
        return
    try:
        folder = Path(os.environ.get(SWITCH) or _user_cache() / "editjax" / "compiled").absolute()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ours = not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()  # it will be executed
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return
    if ours and os.access(folder, os.W_OK):
        os.environ[JAX_FOLDER] = str(folder)
        os.environ.setdefault(JAX_LEAST_S, "0")


def _user_cache() -> Path:
    """The cache folder of the XDG base directory specification, which ignores relative names."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else Path.home() / ".cache"
