"""Compiled code: made quickly, so that the first edit starts fast, and kept between runs for the second.

JAX reads its own environment variables when it is imported, which a command does after this: nothing heavy is
loaded here.
"""

import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

SWITCH = "EDITJAX_CACHE"
JAX_FOLDER, JAX_LEAST_S = "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"

XLA_FLAGS = "XLA_FLAGS"
QUICKLY = {
    "0.10.": ("--xla_backend_optimization_level=1", "--xla_cpu_use_fusion_emitters=false"),
    "0.12.": ("--xla_backend_optimization_level=1",),
}
"""Flags by the version of jaxlib that was tried: XLA ends the process at a flag that it does not know."""


def compile_quickly() -> None:
    """Has XLA compile for a CPU in about 60 % of the time (0.10.2); what it makes takes about a tenth longer.

    That is worth it but for training. Flags of the user's own stay as they are, and nothing changes where JAX
    has an accelerator.
    """
    if find_spec("jax_plugins") or find_spec("libtpu"):
        return
    here, asked = version("jaxlib"), os.environ.get(XLA_FLAGS, "")
    known = next((flags for tried, flags in QUICKLY.items() if here.startswith(tried)), ())
    missing = [flag for flag in known if flag.split("=")[0] not in asked]
    if missing:
        os.environ[XLA_FLAGS] = " ".join([*missing, asked]).strip()


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
