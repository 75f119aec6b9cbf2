"""Two mixes of the same stems, to be compared blind: excerpts of equal loudness, a page, what it was voted.

A page is a folder: `index.html` plays excerpts of both mixes, under the letters A and B that change places at
random, switches between them in time, and saves `votes.json`; `trials.json` says which was which, with the
features that `taste` learns from; the sound is FLAC. Nothing in it needs a network.
"""

import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from editjax import taste
from editjax.console.dynamics import decibel, gain_of
from editjax.console.stream import Meter
from editjax.errors import DataError, shown
from editjax.mixing import CEILING_DB, listen
from editjax.sheet import object_of

FORMAT, VOTES = "editjax.compare", "editjax.votes"
VERSION = 1
TRIALS, VOTES_FILE, INDEX = "trials.json", "votes.json", "index.html"
CHOICES = {"a": 1.0, "b": 0.0, "same": 0.5}
"""What is voted, and how much of a win for A it is."""
HOP_S, SOUNDING_DB, FADE_S = 0.5, -15.0, 0.02
MOST_TRIALS, LARGEST_FEATURE = 1000, 1e6


class Trial(NamedTuple):
    """An excerpt from `start_s` on; `first_is_a`: A is the first mix; features (K,) of A and of B."""

    start_s: float
    first_is_a: bool
    a_K: np.ndarray
    b_K: np.ndarray


def starts(
    mixes: Sequence[np.ndarray], rate_hz: int, count: int, seconds: float, rng: np.random.Generator
) -> list[int]:
    """The first samples of excerpts that do not overlap, where both mixes (S, 2) sound, spread over the song.

    Raises DataError where there is no room for so many.
    """
    hop, length = round(HOP_S * rate_hz), round(seconds * rate_hz)
    n_samples = min(len(mix_S2) for mix_S2 in mixes)
    cells = n_samples // hop
    power_C = np.min([_powers(mix_S2[: cells * hop], hop) for mix_S2 in mixes], axis=0)
    width = -(-length // hop)
    if cells < width:
        raise DataError(f"{n_samples / rate_hz:.1f} s long: too short for excerpts of {seconds:g} s")
    sums_C = np.convolve(power_C, np.ones(width), "valid")
    level_C = 10.0 * np.log10(sums_C / max(sums_C.max(), 1e-30) + 1e-12)
    free_C = level_C > SOUNDING_DB
    found: list[int] = []
    for remaining in range(count, 0, -1):
        places = np.flatnonzero(free_C)
        if not len(places):
            raise DataError(f"has room for {len(found)} excerpts of {seconds:g} s that sound, not {count}")
        # The first of as many parts as excerpts are still wanted: the others find room behind it.
        at = int(rng.choice(places[: max(1, (len(places) - (remaining - 1) * width) // remaining)]))
        found.append(at * hop)
        free_C[: at + width] = False
    return found


def _powers(mix_S2: np.ndarray, hop: int) -> np.ndarray:
    rows = range(0, len(mix_S2), hop)
    return np.array([np.square(mix_S2[at : at + hop], dtype=np.float64).mean() for at in rows])


def excerpts(mixes: Sequence[np.ndarray], rate_hz: int, start: int, seconds: float) -> list[np.ndarray]:
    """The same stretch of each mix, (S, 2), all of one loudness: that of the quietest, or less where a true
    peak would pass the ceiling. Nothing but a gain is changed, and the ends are faded."""
    length, fade = round(seconds * rate_hz), round(FADE_S * rate_hz)
    window_S = np.ones(length, np.float32)
    window_S[:fade] = np.linspace(0.0, 1.0, fade)
    window_S[-fade:] = window_S[:fade][::-1]
    cut = [np.asarray(mix_S2[start : start + length]) * window_S[:, None] for mix_S2 in mixes]
    heard = [_measured(part_S2, rate_hz) for part_S2 in cut]
    level = min(min(lufs, CEILING_DB - peak_db + lufs) for lufs, peak_db in heard)
    gains = [np.float32(gain_of(level - lufs)) for lufs, _ in heard]
    return [part_S2 * gain for part_S2, gain in zip(cut, gains, strict=True)]


def _measured(sound_S2: np.ndarray, rate_hz: int) -> tuple[float, float]:
    """Loudness in LUFS and true peak in dB. Raises DataError for silence."""
    meter = Meter(rate_hz)
    meter.add(np.ascontiguousarray(sound_S2.T))
    if not np.isfinite(lufs := meter.loudness()) or lufs < -70.0:
        raise DataError("an excerpt is silent; give longer ones")
    return lufs, float(decibel(meter.true_peak()))


def heard(sound_S2: np.ndarray, rate_hz: int) -> np.ndarray:
    """The features (K,) of an excerpt."""
    found = listen([np.ascontiguousarray(sound_S2.T)], rate_hz)
    return taste.features(found.middle_F, found.side_F, found.peak_db - found.loudness)


def identity(trials: Sequence[Trial], names: Sequence[str]) -> str:
    """What tells a page from others; votes name it."""
    told = [[t.start_s, t.first_is_a, *t.a_K.round(4).tolist(), *t.b_K.round(4).tolist()] for t in trials]
    return hashlib.sha256(json.dumps([*names, told]).encode()).hexdigest()[:16]


def to_json(trials: Sequence[Trial], names: Sequence[str], seconds: float) -> dict[str, Any]:
    """`trials.json`."""

    def row(trial: Trial) -> dict[str, Any]:
        order = [0, 1] if trial.first_is_a else [1, 0]
        told = {"start_s": trial.start_s, "a": order[0], "b": order[1]}
        both = (("features_a", trial.a_K), ("features_b", trial.b_K))
        return told | {
            key: dict(zip(taste.NAMES, map(float, x_K.round(4)), strict=True)) for key, x_K in both
        }

    facts = {"format": FORMAT, "version": VERSION, "page": identity(trials, names), "mixes": [*names]}
    return facts | {"seconds": seconds, "trials": [row(trial) for trial in trials]}


def read_trials(page: Path) -> tuple[str, list[np.ndarray]]:
    """A page's identity, and of each trial the features of A less those of B (K,). Raises DataError."""
    path = page / TRIALS
    tree = object_of(path, FORMAT, VERSION, "a page of mixes; editjax compare makes one")
    rows, name = tree.get("trials"), tree.get("page")
    if not isinstance(name, str) or not isinstance(rows, list) or not 0 < len(rows) <= MOST_TRIALS:
        raise DataError(f"{path}: page and trials are missing")
    apart = []
    for number, row in enumerate(rows, 1):
        pair: list[Any] = [row.get(f"features_{x}") if isinstance(row, dict) else None for x in "ab"]
        for one in pair:
            if not isinstance(one, dict) or set(one) != set(taste.NAMES):
                raise DataError(f"{path}: trial {number} has not the features {', '.join(taste.NAMES)}")
            if not all(taste.is_number(value, LARGEST_FEATURE) for value in one.values()):
                raise DataError(f"{path}: trial {number} has features that are no numbers")
        a, b = pair
        apart.append(np.array([a[key] - b[key] for key in taste.NAMES], np.float64))
    return name, apart


def read_votes(path: Path) -> tuple[str, dict[int, str]]:
    """The page that was voted on, and the choice by the number of the trial, from 1 on. Raises DataError."""
    tree = object_of(path, VOTES, VERSION, "votes that a page saved")
    rows, page = tree.get("votes"), tree.get("page")
    if not isinstance(page, str) or not isinstance(rows, list) or len(rows) > MOST_TRIALS:
        raise DataError(f"{path}: page and votes are missing")
    found: dict[int, str] = {}
    for row in rows:
        trial, choice = (row.get("trial"), row.get("choice")) if isinstance(row, dict) else (None, None)
        if type(trial) is not int or not isinstance(choice, str) or choice not in CHOICES:
            raise DataError(f"{path}: {shown(row)} is no vote; give a trial and one of {', '.join(CHOICES)}")
        if trial in found:
            raise DataError(f"{path}: trial {trial} is voted on twice")
        found[trial] = choice
    return page, found


def sound_name(number: int, letter: str) -> str:
    """The file of an excerpt."""
    return f"trial_{number:02d}_{letter}.flac"


def page_of(identity: str, count: int, title: str) -> str:
    """`index.html`."""
    trials = "\n".join(_section(number) for number in range(1, count + 1))
    return _PAGE.format(
        title=html.escape(title), trials=trials, style=_STYLE, script=_SCRIPT % json.dumps(identity)
    )


def _section(number: int) -> str:
    sounds = "".join(
        f'<audio preload="auto" loop="loop" src="{sound_name(number, letter)}"></audio>' for letter in "ab"
    )
    hear = "".join(f'<button type="button" data-hear="{k}">{x}</button>' for k, x in enumerate("AB"))
    labels = (("a", "A is better"), ("same", "no difference"), ("b", "B is better"))
    votes = "".join(f'<button type="button" data-vote="{key}">{text}</button>' for key, text in labels)
    return (
        f'<section data-trial="{number}"><h2>{number}</h2>{sounds}'
        f'<p><button type="button" data-play="1">play</button>{hear}</p><p>{votes}</p></section>'
    )


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p>Each part is heard in two mixes, equally loud. Play it, change between A and B as often as you like, and
vote. Which mix is A is drawn anew for every part. Save the votes in the end, beside this page.</p>
{trials}
<p><button type="button" id="save">save votes.json</button> <span id="count"></span></p>
<script>
{script}
</script>
</body>
</html>
"""
_STYLE = """
body { font: 1rem/1.5 sans-serif; max-width: 40rem; margin: 2rem auto; padding: 0 1rem; }
section { border-top: 1px solid #bbb; }
h2 { margin: 0.5rem 0 0; font-size: 1rem; }
button { font: inherit; padding: 0.3rem 0.9rem; margin: 0 0.4rem 0.4rem 0; }
button.on { background: #1b5e8c; color: #fff; }
"""
_SCRIPT = """
"use strict";
const page = %s;
const votes = new Map();
const sections = [...document.querySelectorAll("section")];
const mark = (buttons, chosen) => {
  buttons.forEach((button) => button.classList.toggle("on", button === chosen));
};
const stop = (section) => {
  section.querySelectorAll("audio").forEach((sound) => sound.pause());
  section.querySelector("[data-play]").textContent = "play";
};
const count = () => {
  document.getElementById("count").textContent = votes.size + " of " + sections.length + " voted";
};
sections.forEach((section) => {
  const sounds = [...section.querySelectorAll("audio")];
  const hears = [...section.querySelectorAll("[data-hear]")];
  const choices = [...section.querySelectorAll("[data-vote]")];
  const play = section.querySelector("[data-play]");
  let heard = 0;
  const hear = (which) => {
    const now = sounds[heard].currentTime;
    if (which !== heard && Math.abs(sounds[which].currentTime - now) > 0.02) {
      sounds[which].currentTime = now;
    }
    heard = which;
    sounds.forEach((sound, k) => { sound.muted = k !== which; });
    mark(hears, hears[which]);
  };
  play.onclick = () => {
    const starting = sounds[heard].paused;
    sections.forEach(stop);
    if (starting) {
      sounds[1 - heard].currentTime = sounds[heard].currentTime;
      sounds.forEach((sound) => sound.play());
      play.textContent = "stop";
    }
  };
  hears.forEach((button, which) => { button.onclick = () => hear(which); });
  choices.forEach((button) => {
    button.onclick = () => {
      votes.set(Number(section.dataset.trial), button.dataset.vote);
      mark(choices, button);
      count();
    };
  });
  hear(0);
});
document.getElementById("save").onclick = () => {
  const rows = [...votes].sort((x, y) => x[0] - y[0]).map(([trial, choice]) => ({ trial, choice }));
  const tree = { format: "editjax.votes", version: 1, page, votes: rows };
  const link = document.createElement("a");
  const text = JSON.stringify(tree, null, 1) + "\\n";
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "votes.json";
  link.click();
};
count();
"""
