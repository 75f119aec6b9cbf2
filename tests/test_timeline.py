"""Every timeline is read back: the segments, in playing order, with the recording's name."""

import csv
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlparse

import opentimelineio as otio
import pytest
import rpp
from hypothesis import given, settings
from hypothesis import strategies as st

from editjax import timeline
from editjax.edits import EditList, Segment, Source, duration_samples
from editjax.errors import CannotCreateError, DataError, UsageError

NAME = "Größe «Take 2» it's.flac"
RATE_HZ = 44_100
FRAMES = RATE_HZ * 120
LOOPED = ((RATE_HZ, 3 * RATE_HZ + 7), (2 * RATE_HZ, 3 * RATE_HZ + 7), (90 * RATE_HZ, FRAMES), (0, 12_345))
FORWARD = ((RATE_HZ, 3 * RATE_HZ + 7), (20 * RATE_HZ + 5, 40 * RATE_HZ), (90 * RATE_HZ, FRAMES))


def edit_of(
    spans, folder: Path = Path("/music"), rate_hz: int = RATE_HZ, frames: int = FRAMES, channels: int = 2
):
    segments = tuple(Segment(*span, *span, reason="last take") for span in spans)
    return EditList(Source(str(folder / NAME), "", rate_hz, channels, frames), segments, {})


def read_otio(path):
    clips = list(otio.adapters.read_from_file(str(path)).tracks[0])
    assert all(unquote(urlparse(clip.media_reference.target_url).path).endswith(NAME) for clip in clips)
    ranges = [clip.source_range for clip in clips]
    return [(int(r.start_time.value), int(r.end_time_exclusive().value)) for r in ranges], clips


def read_seconds(rows, rate_hz):
    return [(round(float(start) * rate_hz), round(float(stop) * rate_hz)) for start, stop, _ in rows]


def read_labels(path, rate_hz=RATE_HZ):
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return read_seconds(rows, rate_hz), [text for _, _, text in rows]


def read_csv(path, rate_hz=RATE_HZ):
    with path.open(newline="", encoding="utf-8") as file:
        return read_seconds(csv.reader(file), rate_hz)


def read_rpp(path, rate_hz=RATE_HZ):
    """Spans, positions and files of a Reaper project's items, by the parser of the `rpp` package."""
    track = rpp.loads(path.read_text(encoding="utf-8")).find("TRACK")
    rows = []
    for item in track.findall("ITEM"):
        fields = {field[0]: field[1:] for field in item if isinstance(field, list)}
        position, length, start = (float(fields[key][0]) * rate_hz for key in ("POSITION", "LENGTH", "SOFFS"))
        assert all(abs(value - round(value)) < 1e-4 for value in (position, length, start))
        rows.append((round(start), round(start + length), round(position), item.find("SOURCE"), fields))
    return rows


def read_edl(path, fps=30):
    """Source and record spans in frames, and clip names, of a CMX 3600 list."""
    code = r"(\d\d):(\d\d):(\d\d):(\d\d)"
    events, names = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(rf"(\d{{3,}})  AX {{7}}(A|AA) +C {{8}}{' '.join([code] * 4)}", line):
            numbers = list(map(int, match.groups()[2:]))
            times = [
                ((h * 60 + m) * 60 + s) * fps + f
                for h, m, s, f in zip(*[iter(numbers)] * 4, strict=True)  # four numbers a timecode
            ]
            assert int(match[1]) == len(events) + 1
            events.append(tuple(times))
        elif line.startswith("* FROM CLIP NAME: "):
            names.append(line.removeprefix("* FROM CLIP NAME: "))
    return events, names


def seconds(text):
    assert text.endswith("s")
    return Fraction(text[:-1])


def read_fcpxml(path, rate_hz=RATE_HZ):
    root = ElementTree.parse(path).getroot()
    clips = root.findall("library/event/project/sequence/spine/gap/asset-clip")
    asset = root.find("resources/asset")
    assert all(clip.get("ref") == asset.get("id") for clip in clips)
    spans, at = [], Fraction(0)
    for clip in clips:
        start, length = seconds(clip.get("start")) * rate_hz, seconds(clip.get("duration")) * rate_hz
        assert seconds(clip.get("offset")) == at
        at += length / rate_hz
        spans.append((start, start + length))
    return spans, root


def read_v1(path):
    tree = json.loads(path.read_text(encoding="utf-8"))
    assert tree["version"] == "1"
    return tree["chunks"], tree["source"]


@pytest.mark.parametrize("kind", [kind for kind in timeline.SUFFIX_OF_KIND if kind != "auto-editor"])
def test_loops_and_reorders_survive_every_kind_that_can_hold_them(tmp_path, kind):
    path = tmp_path / f"Schnitt{timeline.SUFFIX_OF_KIND[kind]}"
    timeline.export(edit_of(LOOPED), kind, path)
    match kind:
        case "otio":
            found = read_otio(path)[0]
        case "audacity":
            found = read_labels(path)[0]
        case "csv":
            found = read_csv(path)
        case "rpp":
            found = [row[:2] for row in read_rpp(path)]
        case "fcpxml":
            found = read_fcpxml(path)[0]
        case "edl":
            events, names = read_edl(path)
            assert names == [NAME] * len(LOOPED)
            found = [(start * RATE_HZ // 30, stop * RATE_HZ // 30) for start, stop, _, _ in events]
    tolerance = RATE_HZ / 30 if kind == "edl" else 0
    assert len(found) == len(LOOPED)
    for span, expected in zip(found, LOOPED, strict=True):
        assert span == pytest.approx(expected, abs=tolerance)


@st.composite
def random_edits(draw):
    rate_hz = draw(st.sampled_from((8000, 44_100, 48_000, 96_000, 192_000, 768_000)))
    starts = st.integers(0, 10 * rate_hz)
    spans = draw(st.lists(st.tuples(starts, st.integers(1, rate_hz)), min_size=1, max_size=8))
    return edit_of([(start, start + length) for start, length in spans], rate_hz=rate_hz, frames=11 * rate_hz)


@given(random_edits())
@settings(max_examples=40, deadline=None)
def test_exact_kinds_are_exact_to_the_sample(tmp_path_factory, edit_list):
    folder, rate_hz = tmp_path_factory.mktemp("timeline"), edit_list.source.sample_rate
    spans = [(segment.start, segment.stop) for segment in edit_list.segments]
    for kind, suffix in timeline.SUFFIX_OF_KIND.items():
        if kind != "auto-editor":
            timeline.export(edit_list, kind, folder / f"a{suffix}")
    assert read_otio(folder / "a.otio")[0] == spans
    assert read_labels(folder / "a.labels.txt", rate_hz)[0] == spans
    assert read_csv(folder / "a.csv", rate_hz) == spans
    assert [row[:2] for row in read_rpp(folder / "a.rpp", rate_hz)] == spans
    assert read_fcpxml(folder / "a.fcpxml", rate_hz)[0] == spans


@given(random_edits())
@settings(max_examples=60, deadline=None)
def test_edl_rounding_does_not_add_up_and_stays_in_the_recording(tmp_path_factory, edit_list):
    path, rate_hz = tmp_path_factory.mktemp("timeline") / "a.edl", edit_list.source.sample_rate
    fps = timeline.EDL_FRAMES_PER_S
    timeline.write_edl(edit_list, path)
    events, _ = read_edl(path)
    joins, at = [0.0], 0
    for segment in edit_list.segments:
        at += segment.stop - segment.start
        joins.append(at * fps / rate_hz)
    previous = 3600 * fps
    for start, stop, first, last in events:
        assert stop - start == last - first > 0
        assert first == previous
        assert min(abs(last - 3600 * fps - join) for join in joins) <= 0.5
        assert stop <= edit_list.source.frames * fps / rate_hz
        previous = last
    assert abs(previous - 3600 * fps - joins[-1]) <= 0.5


def test_edl_events_end_where_the_recording_ends(tmp_path):
    """Start and length both round up here; together they would ask for a frame that is not there."""
    edit_list = edit_of([(750, 89_690)], frames=89_690)
    timeline.write_edl(edit_list, tmp_path / "a.edl")
    assert read_edl(tmp_path / "a.edl")[0] == [(0, 61, 108_000, 108_061)]


def test_the_edl_says_how_it_rounds_and_what_it_leaves_out(tmp_path):
    timeline.export(edit_of([(0, RATE_HZ), (50, 60), (0, RATE_HZ)]), "edl", tmp_path / "a.edl")
    text = (tmp_path / "a.edl").read_text()
    assert "* TIMES ARE ROUNDED TO 1/30 S; 1 SHORTER SEGMENTS ARE LEFT OUT" in text
    assert text.splitlines()[1] == "FCM: NON-DROP FRAME"
    assert len(read_edl(tmp_path / "a.edl")[0]) == 2


@pytest.mark.parametrize(
    ("channels", "code", "more"),
    [(1, "A ", None), (2, "AA", None), (3, "AA", "AUD  3"), (6, "AA", "AUD  3  4")],
)
def test_edl_channels(tmp_path, channels, code, more):
    timeline.write_edl(edit_of(FORWARD, channels=channels), tmp_path / "a.edl")
    lines = (tmp_path / "a.edl").read_text().splitlines()
    assert lines[3].startswith(f"001  AX       {code}")
    assert (lines[4] == more) if more else lines[4].startswith("* FROM CLIP NAME")


def test_a_missing_opentimelineio_is_said_before_the_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentimelineio", None)
    with pytest.raises(UsageError, match=r"pip install editjax\[timeline\]"):
        timeline.check_kind("otio")
    assert timeline.check_kind("edl") == "edl"


def test_otio_keeps_fades_gain_and_the_recordings_length(tmp_path):
    edit_list = edit_of(FORWARD)
    segment = edit_list.segments[0]._replace(fade_in=100, fade_out=200, gain_db=-3.0, score=0.5)
    timeline.export(edit_list._replace(segments=(segment,)), "otio", tmp_path / "a.otio")
    clip = read_otio(tmp_path / "a.otio")[1][0]
    assert {key: clip.metadata["editjax"][key] for key in ("fade_in", "fade_out", "gain_db", "score")} == {
        "fade_in": 100,
        "fade_out": 200,
        "gain_db": -3.0,
        "score": 0.5,
    }
    assert clip.available_range().duration.value == FRAMES


def test_reaper_finds_the_recording_beside_or_anywhere(tmp_path):
    beside, elsewhere = tmp_path / "a.rpp", tmp_path / "sub"
    timeline.export(edit_of(LOOPED, tmp_path), "rpp", beside)
    elsewhere.mkdir()
    timeline.export(edit_of(LOOPED, tmp_path), "rpp", elsewhere / "a.rpp")
    assert read_rpp(beside)[0][3].find("FILE")[1] == NAME
    assert read_rpp(elsewhere / "a.rpp")[0][3].find("FILE")[1] == str(tmp_path / NAME)
    assert list(read_rpp(beside)[0][3].attrib) == ["FLAC"]


def test_reaper_items_follow_each_other_with_fades_and_gain(tmp_path):
    edit_list = edit_of(LOOPED)
    first = edit_list.segments[0]._replace(fade_in=441, fade_out=882, gain_db=-6.0)
    timeline.export(edit_list._replace(segments=(first, *edit_list.segments[1:])), "rpp", tmp_path / "a.rpp")
    rows = read_rpp(tmp_path / "a.rpp")
    ends = [0]
    for start, stop, position, _, _ in rows:
        assert position == ends[-1]
        ends.append(position + stop - start)
    assert ends[-1] == duration_samples(edit_list)
    fields = rows[0][4]
    assert float(fields["FADEIN"][1]) == pytest.approx(0.01)
    assert float(fields["FADEOUT"][1]) == pytest.approx(0.02)
    assert float(fields["VOLPAN"][0]) == pytest.approx(10 ** (-6 / 20))


@pytest.mark.parametrize("name", ["a b.wav", "it's.wav", 'say "a".wav', '`a\' "b".wav'])
def test_reaper_names_are_quoted(tmp_path, name):
    edit_list = edit_of(FORWARD)._replace(source=Source(str(tmp_path / name), "", RATE_HZ, 2, FRAMES))
    timeline.export(edit_list, "rpp", tmp_path / "x.rpp")
    assert read_rpp(tmp_path / "x.rpp")[0][3].find("FILE")[1].replace("`", "'") == name.replace("`", "'")


def test_fcpxml_holds_what_final_cut_asks_for(tmp_path):
    edit_list = edit_of(FORWARD)
    first = edit_list.segments[0]._replace(fade_in=4410, gain_db=-6.0)
    timeline.export(
        edit_list._replace(segments=(first, *edit_list.segments[1:])), "fcpxml", tmp_path / "a.fcpxml"
    )
    text = (tmp_path / "a.fcpxml").read_text(encoding="utf-8")
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE fcpxml>\n')
    root = read_fcpxml(tmp_path / "a.fcpxml")[1]
    source = root.find("resources/asset/media-rep").get("src")
    assert unquote(urlparse(source).path) == f"/music/{NAME}"
    sequence = root.find("library/event/project/sequence")
    length = seconds(sequence.get("duration"))
    assert (length * 25).denominator == 1
    assert 0 <= length - Fraction(duration_samples(edit_list), RATE_HZ) < Fraction(1, 25)
    volume = sequence.find("spine/gap/asset-clip/adjust-volume")
    assert volume.get("amount") == "-6dB"
    assert seconds(volume.find("param/fadeIn").get("duration")) == Fraction(1, 10)


def test_auto_editor_chunks_cover_the_source_without_gaps(tmp_path):
    timeline.export(edit_of(FORWARD), "auto-editor", tmp_path / "a.json")
    chunks, source = read_v1(tmp_path / "a.json")
    assert source == f"/music/{NAME}"
    assert chunks == [
        [0, 30, 99999.0],
        [30, 90, 1.0],
        [90, 600, 99999.0],
        [600, 1200, 1.0],
        [1200, 2700, 99999.0],
        [2700, 3600, 1.0],
    ]


@given(st.lists(st.integers(0, FRAMES), min_size=2, max_size=20, unique=True).map(sorted))
@settings(max_examples=40, deadline=None)
def test_any_forward_edit_makes_valid_chunks(tmp_path_factory, edges):
    path = tmp_path_factory.mktemp("timeline") / "a.json"
    timeline.export(edit_of(zip(edges[:-1:2], edges[1::2], strict=False)), "auto-editor", path)
    chunks, _ = read_v1(path)
    assert chunks[0][0] == 0 and chunks[-1][1] == 3600
    assert all(left[1] == right[0] and left[2] != right[2] for left, right in pairwise(chunks))
    assert all(start < stop for start, stop, _ in chunks)


def test_auto_editor_refuses_loops_and_names_who_can(tmp_path):
    with pytest.raises(DataError, match=r"twice or out of order.*otio, rpp") as caught:
        timeline.export(edit_of(LOOPED), "auto-editor", tmp_path / "a.json")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def tracks_of(folder: Path) -> EditList:
    """LOOPED on a long stereo and a mono track that ends a second into the third segment."""
    edit_list = edit_of(LOOPED, folder)
    short = edit_list.source._replace(path=str(folder / "short.wav"), channels=1, frames=91 * RATE_HZ)
    whole = edit_list.source._replace(path=str(folder), tracks=(edit_list.source, short))
    return edit_list._replace(source=whole)


def test_otio_has_a_track_a_recording_with_gaps_where_one_has_ended(tmp_path):
    timeline.export(tracks_of(tmp_path), "otio", tmp_path / "t.otio")
    long, short = otio.adapters.read_from_file(str(tmp_path / "t.otio")).tracks
    assert (long.name, short.name) == (Path(NAME).stem, "short")
    assert [clip.media_reference.target_url.rpartition("/")[2] for clip in short.find_clips()] == [
        "short.wav"
    ] * 4
    assert long.duration() == short.duration() and len(long.find_clips()) == len(long) == 4
    (gap,) = (item for item in short if isinstance(item, otio.schema.Gap))
    assert gap.duration().value == 29 * RATE_HZ
    starts = [[clip.range_in_parent().start_time.value for clip in t.find_clips()] for t in (long, short)]
    assert starts[0] == starts[1]
    for clip in short.find_clips():
        assert clip.source_range.end_time_exclusive() <= clip.available_range().end_time_exclusive()


def test_reaper_has_a_track_a_recording_and_groups_what_belongs_together(tmp_path):
    timeline.export(tracks_of(tmp_path), "rpp", tmp_path / "t.rpp")
    project = rpp.loads((tmp_path / "t.rpp").read_text(encoding="utf-8"))
    tracks = project.findall("TRACK")
    files = [{item.find("SOURCE")[0][1] for item in track.findall("ITEM")} for track in tracks]
    assert files == [{NAME}, {"short.wav"}]
    rows = [
        [{field[0]: field[1] for field in item if isinstance(field, list)} for item in track.findall("ITEM")]
        for track in tracks
    ]
    assert [row["GROUP"] for row in rows[0]] == ["1", "2", "3", "4"]
    assert rows[0] == rows[1]
    timeline.export(edit_of(LOOPED, tmp_path), "rpp", tmp_path / "one.rpp")
    assert "GROUP" not in (tmp_path / "one.rpp").read_text(encoding="utf-8")


def test_fcpxml_has_a_lane_a_recording_and_no_clip_beyond_its_end(tmp_path):
    timeline.export(tracks_of(tmp_path), "fcpxml", tmp_path / "t.fcpxml")
    root = ElementTree.parse(tmp_path / "t.fcpxml").getroot()
    assets = {asset.get("id"): asset for asset in root.findall("resources/asset")}
    assert [asset.get("name") for asset in assets.values()] == [Path(NAME).stem, "short"]
    assert [asset.get("audioChannels") for asset in assets.values()] == ["2", "1"]
    clips = root.findall("library/event/project/sequence/spine/gap/asset-clip")
    assert [clip.get("lane") for clip in clips] == ["-1"] * 4 + ["-2"] * 4
    offsets = [clip.get("offset") for clip in clips]
    assert offsets[:4] == offsets[4:]
    for clip in clips:
        end = seconds(clip.get("start")) + seconds(clip.get("duration"))
        assert end <= seconds(assets[clip.get("ref")].get("duration"))


def test_kinds_that_name_one_recording_refuse_tracks(tmp_path):
    for kind in ("edl", "auto-editor"):
        with pytest.raises(UsageError, match="names one recording only"):
            timeline.export(tracks_of(tmp_path), kind, tmp_path / "t")
    for kind in ("audacity", "csv"):
        timeline.export(tracks_of(tmp_path), kind, tmp_path / kind)
        timeline.export(edit_of(LOOPED, tmp_path), kind, tmp_path / f"one.{kind}")
        assert (tmp_path / kind).read_text() == (tmp_path / f"one.{kind}").read_text()


def test_a_track_is_never_written_over(tmp_path):
    (tmp_path / "short.wav").write_bytes(b"mine")
    with pytest.raises(CannotCreateError):
        timeline.export(tracks_of(tmp_path), "rpp", tmp_path / "short.wav", overwrite=True)


def test_labels_carry_the_order_and_no_line_breaks(tmp_path):
    edit_list = edit_of(LOOPED)
    broken = edit_list._replace(
        segments=(edit_list.segments[0]._replace(reason="a\tb\nc"), edit_list.segments[1])
    )
    timeline.export(broken, "audacity", tmp_path / "a.txt")
    assert read_labels(tmp_path / "a.txt")[1] == ["001 a b c", "002 last take"]


@pytest.mark.parametrize(
    ("kind", "remedy"), [("oito", "'otio'"), ("fcpx", "'fcpxml'"), ("zzz", "otio, audacity")]
)
def test_an_unknown_kind_suggests_the_nearest(tmp_path, kind, remedy):
    with pytest.raises(UsageError, match=remedy):
        timeline.export(edit_of(FORWARD), kind, tmp_path / "a")


@pytest.mark.parametrize("kind", timeline.SUFFIX_OF_KIND)
def test_existing_files_empty_edits_and_the_source_are_refused(tmp_path, kind):
    path = tmp_path / NAME
    path.write_text("mine")
    with pytest.raises(CannotCreateError):
        timeline.export(edit_of(FORWARD), kind, path)
    with pytest.raises(CannotCreateError):
        timeline.export(edit_of(FORWARD, tmp_path), kind, path, overwrite=True)
    with pytest.raises(DataError, match="keeps nothing"):
        timeline.export(edit_of([]), kind, tmp_path / "b")
    assert path.read_text() == "mine" and list(tmp_path.iterdir()) == [path]
    timeline.export(edit_of(FORWARD), kind, path, overwrite=True)
    assert path.read_text(encoding="utf-8") != "mine"


def test_otio_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "opentimelineio", None)
    with pytest.raises(UsageError, match=r"pip install editjax\[timeline\]"):
        timeline.export(edit_of(FORWARD), "otio", tmp_path / "a.otio")
