"""editjax: learn to edit audio from (raw recording, edited track) pairs, and edit new recordings.

    recording → audio → mel → model → pointers → EditList → render → edited file (+ timeline, picture, report)
    pairs → align → pointers, labels → shards → Grain → train → checkpoint → export → model bundle

Array names end in their axes:
B batch · T raw frame · N edit step · L landmark · F mel bin · D width · H heads · K head width · C channel ·
S sample · W window · G global token · J jump · Z latent · I stem · M step of eight frames.
Scalar names end in their unit: `_hz _s _db _frames _samples`.
"""

import importlib

__version__ = "0.1.0"

_LAZY = {
    "edit": "editor",
    "EditResult": "editor",
    "EditSettings": "decision",
    "edit_tracks": "multitrack",
    "TracksResult": "multitrack",
}


def __getattr__(name: str) -> object:
    """`edit`, `edit_tracks`, their types: imported on first use, so that importing editjax costs nothing."""
    if name in _LAZY:
        return getattr(importlib.import_module(f"editjax.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'editjax' has no attribute {name!r}")
