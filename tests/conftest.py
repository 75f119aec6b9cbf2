"""Strict JAX for every test: no silent rank or dtype promotion, several CPU devices, no accelerator.

Programs are compiled quickly rather than well, for most run once, and none is kept on disk. Hypothesis keeps
no time: a busy machine is no failure.
"""

import os

from hypothesis import settings

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("EDITJAX_CACHE", "off")

settings.register_profile("editjax", deadline=None, print_blob=True)
settings.load_profile("editjax")
