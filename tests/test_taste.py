"""Two mixes compared blind; what is liked, learned from the votes; a mix that moves towards it."""

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyloudnorm
import pytest
import soundfile
from test_mixing import RATE_HZ, heard_of, stems, true_peak_db

from editjax import listening, taste
from editjax import sheet as sheets
from editjax.cli import main
from editjax.errors import DataError
from editjax.mixing import MixingSettings, centres_hz, decide, plain

VOID = {"meta"}
HIGH = slice(6, 9)  # the octaves from 2 kHz on


def coloured(rng: np.random.Generator, trials: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of mixes whose bands differ at random: features of A less those of B, and how much brighter A is;
    (N, K) and (N,)."""
    shape_F = -5.0 * np.log2(centres_hz() / 100.0)

    def one() -> tuple[np.ndarray, float]:
        tilt, wide = rng.normal(0.0, 1.0), rng.uniform(0.0, 0.3)
        level_F = shape_F + tilt * np.log2(centres_hz() / 1000.0) + rng.normal(0.0, 1.0, len(shape_F))
        power_F = 10 ** (level_F / 10)
        return taste.features(power_F * (1 - wide), power_F * wide, rng.uniform(8.0, 14.0)), tilt

    pairs = [(one(), one()) for _ in range(trials)]
    return np.array([a[0] - b[0] for a, b in pairs]), np.array([a[1] - b[1] for a, b in pairs])


def test_a_listener_who_likes_bright_mixes_is_understood():
    rng = np.random.default_rng(0)
    apart_NK, brighter_N = coloured(rng, 120)
    wins_N = (rng.random(120) < 1 / (1 + np.exp(-2.0 * brighter_N))).astype(float)
    found = taste.fit(apart_NK[:60], wins_N[:60], ["page"] * 60)
    assert found.weights_K[HIGH].sum() > 0.3 and found.weights_K[:3].sum() < found.weights_K[HIGH].sum()
    best = ((brighter_N[60:] > 0) == (wins_N[60:] > 0.5)).mean()  # nobody can know more
    assert ((apart_NK[60:] @ found.weights_K > 0) == (wins_N[60:] > 0.5)).mean() > max(0.7, best - 0.1)
    assert found.figures["left_out_accuracy"] > 0.7 and found.figures["left_out_log_loss"] < 0.6
    assert "left_out_page_accuracy" not in found.figures


def test_votes_at_random_say_nothing():
    rng = np.random.default_rng(1)
    apart_NK, brighter_N = coloured(rng, 200)
    liked = taste.fit(apart_NK, (brighter_N > 0).astype(float), ["page"] * 200)
    random = taste.fit(apart_NK, rng.integers(0, 2, 200).astype(float), ["page"] * 200)
    same = taste.fit(apart_NK, np.full(200, 0.5), ["page"] * 200)
    spread = apart_NK.std(0)
    assert np.abs(random.weights_K * spread).max() < 0.1 * np.abs(liked.weights_K * spread).max()
    assert random.figures["left_out_log_loss"] > 0.65 and random.figures["left_out_accuracy"] < 0.6
    assert not same.weights_K.any() and "accuracy" not in same.figures and same.figures["ties"] == 200


def test_weights_are_the_most_probable_and_no_difference_is_half_a_win_each():
    rng = np.random.default_rng(2)
    apart_NK = rng.normal(size=(30, len(taste.NAMES))) * 3
    wins_N = rng.choice([0.0, 0.5, 1.0], 30)

    def cost(weights_K):
        odds_N = apart_NK.astype(np.float32) @ weights_K
        fits_N = wins_N.astype(np.float32) * jax.nn.log_sigmoid(odds_N)
        fits_N += (1 - wins_N).astype(np.float32) * jax.nn.log_sigmoid(-odds_N)
        return -fits_N.sum() + 0.5 * (weights_K**2).sum() / 0.3**2

    found_K, _ = taste._under(apart_NK, wins_N, 0.3**-2)
    np.testing.assert_allclose(jax.grad(cost)(jnp.float32(found_K)), 0.0, atol=1e-4)
    tie_N = wins_N == 0.5
    each = np.concatenate([apart_NK[~tie_N]] * 2 + [apart_NK[tie_N]] * 2)
    halves = np.concatenate([wins_N[~tie_N]] * 2 + [np.zeros(tie_N.sum()), np.ones(tie_N.sum())])
    twice_K, _ = taste._under(each, halves, 2 * 0.3**-2)  # every vote twice, under a prior twice as strong
    np.testing.assert_allclose(twice_K, found_K, atol=1e-7)
    found = taste.fit(apart_NK, wins_N, list(range(30)))
    mirrored = taste.fit(-apart_NK, 1 - wins_N, list(range(30)))
    np.testing.assert_allclose(mirrored.weights_K, found.weights_K, atol=1e-6)
    one_by_one, by_page = found.figures["left_out_log_loss"], found.figures["left_out_page_log_loss"]
    assert one_by_one == pytest.approx(by_page, rel=1e-6)  # a page a vote


def test_votes_are_left_out_of_what_foretells_them():
    apart_NK = np.zeros((4, len(taste.NAMES)))
    apart_NK[:, 0] = 1.0
    found = taste.fit(apart_NK, np.array([1.0, 0.0, 1.0, 0.0]), [0, 0, 1, 1]).figures
    assert found["left_out_accuracy"] == 0.0 < found["accuracy"]  # the rest always says the contrary
    assert found["left_out_page_accuracy"] == found["accuracy"] == 0.5
    assert found["left_out_log_loss"] > found["log_loss"] == pytest.approx(np.log(2))


def test_features_are_levels_sides_and_crest():
    bands = len(centres_hz())
    power_F = np.full(bands, 1.0)
    found = taste.features(power_F, np.zeros(bands), 12.0)
    assert found[-1] == 4.0 and found[len(taste.MOVED) - 1] == 0.0 and len(found) == len(taste.NAMES)
    np.testing.assert_allclose(found[:8], 10 * np.log10(3 / bands) / 3.0, rtol=1e-4)
    loud = taste.features(100 * power_F, 100 * power_F, 12.0)
    np.testing.assert_allclose(loud[:9], found[:9], rtol=1e-5)
    assert loud[9] == pytest.approx(5.0, rel=1e-3)  # half of it is side
    assert np.isfinite(taste.features(np.zeros(bands), np.zeros(bands), 0.0)).all()


def bright(weight: float = 1.5) -> taste.Taste:
    weights_K = np.zeros(len(taste.NAMES))
    weights_K[HIGH] = weight
    return taste.Taste(weights_K, {})


def test_a_mix_moves_towards_what_is_liked_within_its_bounds():
    names, sounds = zip(*stems().items(), strict=True)
    heard = [heard_of(x) for x in sounds]
    without, liked, hated, much = (
        decide(names, heard, RATE_HZ, MixingSettings(), None, one)
        for one in (None, bright(0.3), bright(-0.3), bright(100.0))
    )
    again = decide(names, heard, RATE_HZ)
    assert without == again
    nothing = decide(names, heard, RATE_HZ, MixingSettings(), None, bright(0.0))
    for strip, same in zip(without.strips, nothing.strips, strict=True):
        np.testing.assert_allclose(strip, same, atol=1e-4)

    def brightness(sheet) -> float:
        gains = dict(zip(sheet.names, (s.gain_db for s in sheet.strips), strict=True))
        return gains["shimmer"] - gains["bass"] + sum(strip.high_db for strip in sheet.strips)

    assert brightness(liked) > brightness(without) + 1.0 > brightness(hated) + 2.0
    for strip in much.strips:
        assert abs(strip.gain_db) <= 6.0 and max(abs(strip.high_db), abs(strip.low_db)) <= 4.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stems, the sheet of their plain sum and that of a brighter one."""
    path = tmp_path_factory.mktemp("taste")
    (path / "stems").mkdir()
    for name, sound_SC in stems().items():
        soundfile.write(path / "stems" / f"{name}.wav", sound_SC, RATE_HZ, "PCM_24")
    names = [f"{name}.wav" for name in sorted(stems())]
    dull = plain(names, RATE_HZ, -14.0)
    more = {"shimmer.wav": {"gain_db": 6.0}, "drums.wav": {"high_db": 9.0, "high_mid_db": 4.0}}
    strips = [strip._replace(**more.get(name, {})) for name, strip in zip(names, dull.strips, strict=True)]
    sheets.write(dull, path / "dull.mix.json", {})
    sheets.write(dull._replace(strips=tuple(strips), loudness_lufs=-10.0), path / "bright.mix.json", {})
    return path


def compare(folder: Path, out: Path, *words: str) -> int:
    named = [str(folder / "stems"), str(folder / "dull.mix.json"), str(folder / "bright.mix.json")]
    return main(["compare", *named, "-o", str(out), "--count", "2", "--seconds", "1.5", *words])


@pytest.fixture(scope="module")
def page(folder):
    assert compare(folder, folder / "page") == 0
    return folder / "page"


@pytest.fixture
def copied(page, tmp_path):
    return shutil.copytree(page, tmp_path / "page")


def vote(page: Path, choose, where: Path | None = None) -> Path:
    """Votes of a listener who is told which mix was which."""
    tree = json.loads((page / "trials.json").read_text())
    rows = [{"trial": k, "choice": choose(row)} for k, row in enumerate(tree["trials"], 1)]
    path = where or page / "votes.json"
    path.write_text(
        json.dumps({"format": "editjax.votes", "version": 1, "page": tree["page"], "votes": rows})
    )
    return path


def likes_bright(row) -> str:
    return "a" if row["a"] == 1 else "b"


def test_a_page_has_excerpts_of_both_mixes_equally_loud(page):
    tree = json.loads((page / "trials.json").read_text())
    assert tree["mixes"] == ["dull.mix.json", "bright.mix.json"]
    assert sorted(path.name for path in page.iterdir()) == [
        "index.html",
        *(f"trial_{k:02d}_{letter}.flac" for k in (1, 2) for letter in "ab"),
        "trials.json",
    ]
    starts = sorted(row["start_s"] for row in tree["trials"])
    assert starts[1] - starts[0] >= 1.5 and starts[1] + 1.5 <= 4.0
    meter = pyloudnorm.Meter(RATE_HZ)
    for number, row in enumerate(tree["trials"], 1):
        pair = [soundfile.read(page / f"trial_{number:02d}_{letter}.flac")[0] for letter in "ab"]
        levels = [meter.integrated_loudness(x_SC) for x_SC in pair]
        assert levels[0] == pytest.approx(levels[1], abs=0.1)
        assert max(map(true_peak_db, pair)) <= -1.0
        assert all(len(x_SC) == round(1.5 * RATE_HZ) for x_SC in pair)
        power = [np.square(np.diff(x_SC, axis=0)).sum() / np.square(x_SC).sum() for x_SC in pair]
        assert (power[0] > power[1]) == (row["a"] == 1)  # the bright mix is where it is said to be
        bright_K, dull_K = (row[f"features_{letter}"] for letter in ("ab" if row["a"] else "ba"))
        assert bright_K["octave_9"] > dull_K["octave_9"] + 1.0
    assert {row["a"] for row in tree["trials"]} == {0, 1}


class Checked(HTMLParser):
    """Every element is closed in its turn; what is fetched lies beside the page."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.script = [], [], ""

    def handle_starttag(self, tag, attrs):
        facts = dict(attrs)
        assert not {"href", "action", "srcset"} & set(facts)
        self.sources += [facts["src"]] if "src" in facts else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.script += data


def test_the_page_is_well_formed_tells_nothing_and_needs_no_network(page):
    text, parser = (page / "index.html").read_text(), Checked()
    parser.feed(text)
    parser.close()
    assert not parser.open and text.startswith("<!DOCTYPE html>")
    assert sorted(parser.sources) == sorted(path.name for path in page.glob("*.flac"))
    for word in ("http", "//", "import ", "fetch(", "dull", "bright", "url("):
        assert word not in text.replace("application/json", "")
    assert json.loads((page / "trials.json").read_text())["page"] in parser.script
    escaped = listening.page_of("id", 1, "<b>&")
    assert "&lt;b&gt;&amp;" in escaped and "<b>" not in escaped


DOM = """
const clicked = [], made = {};
const element = (facts) => ({ textContent: "", dataset: facts, muted: false, paused: true, currentTime: 0,
  classList: { toggle() {} }, play() { this.paused = false; }, pause() { this.paused = true; },
  click() { if (this.onclick) this.onclick(); else clicked.push(this); } });
const shown = [1, 2].map((trial) => {
  const parts = { audio: [element(), element()], "[data-play]": [element()],
    "[data-hear]": [element(), element()],
    "[data-vote]": ["a", "same", "b"].map((vote) => element({ vote })) };
  return { ...element({ trial: String(trial) }), parts,
    querySelectorAll: (name) => parts[name], querySelector: (name) => parts[name][0] };
});
const document = { querySelectorAll: () => shown, createElement: () => element(),
  getElementById: (id) => made[id] ??= element() };
const URL = { createObjectURL: (blob) => blob };
class Blob { constructor(parts) { this.text = parts.join(""); } }
"""
USED = """
const [first, second] = shown.map((section) => section.parts);
first["[data-play]"][0].click();
first.audio[0].currentTime = 4;
first["[data-hear]"][1].click();
const heard = [first.audio[1].currentTime, ...first.audio.map((sound) => sound.muted)];
second["[data-play]"][0].click();
const playing = [...first.audio, ...second.audio].map((sound) => !sound.paused);
second["[data-vote]"][1].click();
first["[data-vote]"][2].click();
first["[data-vote]"][0].click();
made.save.click();
console.log(JSON.stringify({ heard, playing, name: clicked[0].download, text: clicked[0].href.text,
  count: made.count.textContent }));
"""


@pytest.mark.skipif(not shutil.which("node"), reason="no node here")
def test_the_page_switches_in_time_and_saves_votes_that_are_read(page, copied):
    parser = Checked()
    parser.feed((page / "index.html").read_text())
    done = subprocess.run(
        ["node", "-"], input=DOM + parser.script + USED, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["heard"] == [4, True, False]  # the other goes on where the one was, alone
    assert found["playing"] == [False, False, True, True]
    assert found["name"] == "votes.json" and found["count"] == "2 of 2 voted"
    (copied / "votes.json").write_text(found["text"])
    assert listening.read_votes(copied / "votes.json") == (
        listening.read_trials(copied)[0],
        {1: "a", 2: "same"},
    )


def test_the_same_seed_makes_the_same_page_and_another_another(folder, page, tmp_path):
    assert compare(folder, tmp_path / "same") == compare(folder, tmp_path / "other", "--seed", "1") == 0
    read = [(path / "trials.json").read_text() for path in (page, tmp_path / "same", tmp_path / "other")]
    assert read[0] == read[1] != read[2]


def test_votes_become_a_taste_that_makes_mixes_brighter(folder, copied, tmp_path, capsys):
    vote(copied, likes_bright)
    more = [vote(copied, likes_bright, tmp_path / f"listener_{k}.json") for k in range(2)]
    words = [word for path in more for word in ("--votes", str(path))]
    assert main(["taste", str(copied), "-o", str(tmp_path / "taste.json"), *words]) == 0
    told = capsys.readouterr().out
    assert "6 votes, 0 of them no difference" in told and "chance" in told and "left out" in told
    found = taste.read(tmp_path / "taste.json")
    assert found.weights_K[8] > 0.1
    for name, extra in (("plain", []), ("liked", ["--taste", str(tmp_path / "taste.json")])):
        assert main(["mix", str(folder / "stems"), "-o", str(tmp_path / f"{name}.wav"), *extra]) == 0
    power = [soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("plain", "liked")]
    high = [np.square(np.diff(x_SC, axis=0)).sum() / np.square(x_SC).sum() for x_SC in power]
    assert high[1] > 1.1 * high[0]


def test_what_cannot_be_compared_is_said_in_one_line(folder, copied, tmp_path, capsys):
    def fails(code, said, *words):
        before = sorted(tmp_path.rglob("*"))
        assert main([*map(str, words)]) == code
        line = capsys.readouterr().err
        assert said in line and line.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before

    dull, bright, out = folder / "dull.mix.json", folder / "bright.mix.json", tmp_path / "out"
    named = ("compare", folder / "stems", dull)
    fails(73, "exists; choose another name", *named, bright, "-o", copied)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("mine")
    fails(73, "is no page", *named, bright, "-o", tmp_path / "thesis", "--overwrite")
    fails(65, "is the same mix as", *named, dull, "-o", out)
    fails(
        65,
        "has room for 2 excerpts of 1.5 s that sound, not 6",
        *named,
        bright,
        "-o",
        out,
        "--seconds",
        "1.5",
    )
    fails(65, "too short for excerpts of 10 s", *named, bright, "-o", out)
    fails(2, "--count", *named, bright, "-o", out, "--count", "0")
    (tmp_path / "loop.mix.json").symlink_to(tmp_path / "loop.mix.json")
    fails(66, "loop.mix.json: cannot read it", *named, tmp_path / "loop.mix.json", "-o", out)
    fails(66, "nothing.mix.json", *named, tmp_path / "nothing.mix.json", "-o", out)
    others = json.loads(bright.read_text())
    others["stems"][0]["file"] = "cello.wav"
    (tmp_path / "others.mix.json").write_text(json.dumps(others))
    fails(65, "is a sheet of other stems", *named, tmp_path / "others.mix.json", "-o", out)
    new = tmp_path / "taste.json"
    fails(65, "no votes; save votes.json there", "taste", copied, "-o", new)
    fails(2, "name a page", "taste", "-o", new)
    fails(66, "trials.json", "taste", tmp_path / "thesis", "-o", new)
    vote(copied, likes_bright)
    fails(73, "was voted on", *named, bright, "-o", copied, "--overwrite")
    fails(2, "is named twice", "taste", copied, copied, "-o", new)
    fails(
        65, "not a taste", "mix", folder / "stems", "-o", tmp_path / "x.wav", "--taste", copied / "votes.json"
    )
    sheet = ("mix", folder / "stems", "-o", tmp_path / "x.wav", "--params", dull)
    fails(2, "leave --reference and --taste out", *sheet, "--taste", new)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda tree: tree.update(format="x"), "not votes that a page saved"),
        (lambda tree: tree.update(version=2), "version 2"),
        (lambda tree: tree.update(page="another"), "votes on another page"),
        (lambda tree: tree.update(votes=[]), "holds no votes"),
        (lambda tree: tree.update(votes={}), "page and votes are missing"),
        (lambda tree: tree["votes"][0].update(choice="c"), "is no vote"),
        (lambda tree: tree["votes"][0].update(choice=["a"]), "is no vote"),
        (lambda tree: tree["votes"][0].update(trial=True), "is no vote"),
        (lambda tree: tree["votes"][0].update(trial=3), "trial 3, but the page has 2"),
        (lambda tree: tree["votes"].append(tree["votes"][0]), "voted on twice"),
        (lambda tree: tree["votes"].append(7), "7 is no vote"),
    ],
)
def test_malformed_votes_are_refused_by_name(copied, tmp_path, capsys, change, said):
    path = vote(copied, likes_bright)
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    assert main(["taste", str(copied), "-o", str(tmp_path / "taste.json")]) == 65
    line = capsys.readouterr().err
    assert said in line and "votes.json" in line and line.count("\n") == 1
    assert not (tmp_path / "taste.json").exists()


@pytest.mark.parametrize("value", ["1e9", "1" + "0" * 400, "NaN", '"1"', "null"])
def test_pages_and_tastes_with_odd_numbers_are_refused(copied, tmp_path, value):
    odd = '"octave_9": ' + value
    text = (copied / "trials.json").read_text()
    at = text.index('"octave_9"')
    (copied / "trials.json").write_text(text[:at] + odd + text[text.index(",", at) :])
    with pytest.raises(DataError, match=r"trials\.json"):
        listening.read_trials(copied)
    taste.write(bright(), tmp_path / "taste.json", ["page"])
    np.testing.assert_allclose(taste.read(tmp_path / "taste.json").weights_K, bright().weights_K)
    text = (tmp_path / "taste.json").read_text()
    at = text.index('"octave_9"')
    (tmp_path / "taste.json").write_text(text[:at] + odd + text[text.index(",", at) :])
    with pytest.raises(DataError, match=r"taste\.json"):
        taste.read(tmp_path / "taste.json")


def test_excerpts_have_the_level_of_the_quietest_and_peaks_below_the_ceiling():
    rng = np.random.default_rng(0)
    steady = 0.3 * rng.standard_normal((RATE_HZ, 2)).astype(np.float32)
    peaked = 0.01 * steady
    peaked[::4000] = 0.999
    for mixes in (
        (steady, 0.1 * steady),
        (0.1 * steady, steady),
        (steady, peaked),
        (20 * steady, 20 * peaked),
    ):
        before = [listening._measured(x_S2, RATE_HZ)[0] for x_S2 in mixes]
        found = [listening._measured(x_S2, RATE_HZ) for x_S2 in listening.excerpts(mixes, RATE_HZ, 0, 1.0)]
        assert found[0][0] == pytest.approx(found[1][0], abs=0.01)
        assert found[0][0] < min(before) + 0.5 and max(peak for _, peak in found) <= -1.19


def test_excerpts_lie_where_both_mixes_sound_and_do_not_overlap():
    rate_hz, rng = 1000, np.random.default_rng(0)
    first, second = (rng.standard_normal((60_000, 2)).astype(np.float32) for _ in range(2))
    first[:20_000] *= 1e-3
    second[50_000:] = 0.0
    for seed in range(20):
        found = listening.starts((first, second), rate_hz, 4, 5.0, np.random.default_rng(seed))
        assert min(found) >= 15_500 and max(found) <= 49_500 and min(np.diff(found)) >= 5000
    with pytest.raises(DataError, match=r"has room for \d excerpts"):
        listening.starts((first, second), rate_hz, 9, 5.0, rng)
