"""Audio in and out: bit-exact copies, honest errors, nothing half-written."""

import contextlib
import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from editjax import audio, formats
from editjax.audio import ArrayReader, Reader, Writer
from editjax.errors import CannotCreateError, DataError, EditjaxError, InputOutputError, NoInputError
from editjax.files import sha256_of
from editjax.formats import AudioLimits

LOSSLESS = [
    (container, subtype)
    for container in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "FLAC", "CAF", "AU")
    for subtype in ("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW")
    if soundfile.check_format(container, subtype)
]  # fmt: skip
LOSSY = [("OGG", "VORBIS", 44_100), ("OGG", "OPUS", 48_000), ("MP3", "MPEG_LAYER_III", 44_100)]
STATEFUL = [*LOSSY, ("WAV", "IMA_ADPCM", 44_100), ("CAF", "ALAC_16", 44_100), ("FLAC", "PCM_16", 44_100)]


def noise(frames: int, channels: int = 2, subtype: str = "PCM_16", seed: int = 0) -> np.ndarray:
    """Random samples that use the whole range of a subtype, extremes included."""
    rng = np.random.default_rng(seed)
    if subtype in ("FLOAT", "DOUBLE"):
        return rng.standard_normal((frames, channels)).astype("float32" if subtype == "FLOAT" else "float64")
    bits = {"ULAW": 8}.get(subtype) or int("".join(filter(str.isdigit, subtype)))
    dtype = np.dtype(np.int16 if bits <= 16 else np.int32)
    values = rng.integers(-(1 << bits - 1), (1 << bits - 1), (frames, channels), dtype=np.int64)
    values.flat[:2] = -(1 << bits - 1), (1 << bits - 1) - 1
    return (values << (8 * dtype.itemsize - bits)).astype(dtype)


def music(seconds: float = 4.0, rate_hz: int = 44_100) -> np.ndarray:
    """A wavering stereo tone in noise: material on which codecs keep state."""
    t_S = np.arange(int(seconds * rate_hz)) / rate_hz
    tone_S = 0.3 * np.sin(2 * np.pi * (440 * t_S + 8 * np.sin(3 * t_S)))
    hiss_SC = 0.05 * np.random.default_rng(0).standard_normal((len(t_S), 2))
    return (tone_S[:, None] + hiss_SC).astype(np.float32)


def write(
    path: Path, samples: np.ndarray, container="WAV", subtype="PCM_16", rate_hz=44_100, **options
) -> Path:
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with Writer(
        path, sample_rate_hz=rate_hz, channels=channels, container=container, subtype=subtype, **options
    ) as writer:
        writer.write(samples)
    return path


def read(path: Path, **options) -> np.ndarray:
    with Reader(path, **options) as reader:
        return np.concatenate(list(reader.blocks()))


def one_line(error: pytest.ExceptionInfo[EditjaxError], *needed: str) -> None:
    """The message is one line, says what to do after a semicolon, and names what it should."""
    text = str(error.value)
    assert "\n" not in text and ";" in text, text
    assert all(word in text for word in needed), text


# Copies


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(LOSSLESS),
    rate_hz=st.sampled_from([8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000]),
    channels=st.integers(1, 8),
    frames=st.integers(1, 3_000),
    block=st.integers(1, 4_000),
    seed=st.integers(0, 1 << 16),
)
def test_a_copy_is_bit_exact(tmp_path, kind, rate_hz, channels, frames, block, seed):
    container, subtype = kind
    samples_SC = noise(frames, channels, subtype, seed)
    first, second = tmp_path / "first", tmp_path / "second"
    with contextlib.suppress(FileNotFoundError):
        second.unlink()
    write(first, samples_SC, container, subtype, rate_hz, overwrite=True)
    with Reader(first) as reader:
        assert (reader.info.container, reader.info.subtype) == kind
        assert reader.frames == reader.info.header_frames == frames
        with Writer(
            second, sample_rate_hz=rate_hz, channels=channels, container=container, subtype=subtype
        ) as out:
            for block_SC in reader.blocks(block):
                assert block_SC.dtype == reader.dtype
                out.write(block_SC)
    copied = read(second)
    assert np.array_equal(copied, read(first))
    if subtype != "ULAW":
        assert copied.dtype == samples_SC.dtype and np.array_equal(copied, samples_SC)


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_U8", "PCM_24"])
@pytest.mark.parametrize("frames", [1, 5, 6])
def test_an_aiff_of_odd_length_counts_no_padding(tmp_path, subtype, frames):
    samples_SC = noise(frames, 1, subtype)
    path = write(
        tmp_path / "a.aiff", samples_SC, "AIFF", subtype, tags={"title": "odd", "comment": "x" * 333}
    )
    assert np.array_equal(read(path), samples_SC)


def test_a_missing_pad_byte_is_no_truncation(tmp_path):
    path = write(tmp_path / "a.wav", noise(5, 1, "PCM_U8"), "WAV", "PCM_U8")
    data = bytearray(path.read_bytes())
    data[40:44] = struct.pack("<I", 6)
    path.write_bytes(data[: 44 + 5])
    assert len(read(path)) == 5


@pytest.mark.parametrize(("container", "subtype", "rate_hz"), STATEFUL)
def test_random_access_equals_reading_in_order(tmp_path, container, subtype, rate_hz):
    path = write(tmp_path / "a", music(3.0, rate_hz), container, subtype, rate_hz)
    with Reader(path) as reader:
        whole_SC = np.concatenate(list(reader.blocks(9_001)))
        assert np.array_equal(whole_SC, np.concatenate(list(reader.blocks())))
        for start in np.random.default_rng(1).integers(0, len(whole_SC), 60):
            stop = min(int(start) + 5_000, len(whole_SC))
            assert np.array_equal(reader.read(int(start), stop), whole_SC[start:stop])
        assert reader.read(7, 7).shape == (0, 2)
        with pytest.raises(ValueError, match="not inside"):
            reader.read(0, len(whole_SC) + 1)


@pytest.mark.parametrize(("container", "subtype", "rate_hz"), LOSSY)
def test_lossy_outputs_keep_length_and_sound(tmp_path, container, subtype, rate_hz):
    samples_SC = music(2.0, rate_hz)
    copied_SC = read(write(tmp_path / "a", samples_SC, container, subtype, rate_hz))
    assert copied_SC.shape == samples_SC.shape and copied_SC.dtype == np.float32
    error = np.sqrt(np.mean((copied_SC - samples_SC) ** 2) / np.mean(samples_SC**2))
    assert error < 0.12


def test_arrays_and_files_have_one_surface(tmp_path):
    samples_SC = noise(1_000, 3)
    with ArrayReader(samples_SC, 44_100) as array, Reader(write(tmp_path / "a.wav", samples_SC)) as file:
        assert array.info[1:] == file.info[1:] and array.frames == file.frames and array.dtype == file.dtype
        assert np.array_equal(array.read(5, 400), file.read(5, 400))
        assert (
            [len(b) for b in array.blocks(300)] == [len(b) for b in file.blocks(300)] == [300, 300, 300, 100]
        )
    assert ArrayReader(samples_SC[:, 0], 8_000).read(0, 10).shape == (10, 1)
    for wrong in (np.zeros(5, np.uint8), np.zeros((2, 2, 2)), np.zeros(0)):
        with pytest.raises(DataError, match="give a non-empty"):
            ArrayReader(wrong, 44_100)


def test_streamed_flac_of_unknown_length_is_read_whole(tmp_path):
    samples_SC = noise(100_000)
    path = write(tmp_path / "a.flac", samples_SC, "FLAC")
    data = bytearray(path.read_bytes())
    counts = int.from_bytes(data[18:26], "big")
    data[18:26] = (counts >> 36 << 36).to_bytes(8, "big")  # the low 36 bits are the number of samples
    path.write_bytes(data)
    with Reader(path) as reader:
        assert reader.info.header_frames == 0
        assert reader.frames == 100_000
        assert np.array_equal(reader.read(60_000, 99_999), samples_SC[60_000:99_999])


@pytest.mark.parametrize("claim", [0xFFFFFFFF, 0xFFFFFFFF - 36, 0x7FFFF000, 0x7FFFFFFF])
def test_wav_streamed_through_a_pipe_is_read_whole(tmp_path, claim):
    path = write(tmp_path / "a.wav", noise(5_000))
    data = bytearray(path.read_bytes())
    data[4:8], data[40:44] = struct.pack("<I", 0xFFFFFFFF), struct.pack("<I", claim)
    path.write_bytes(data)
    assert np.array_equal(read(path), noise(5_000))


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_tags_travel(tmp_path, container):
    subtype = {"OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}.get(container, "PCM_16")
    tags = {"title": "Lied für Ünal", "artist": "A. Nonymous", "comment": "take 3"}
    with Reader(write(tmp_path / "a", noise(100), container, subtype, tags=tags)) as reader:
        assert reader.tags == tags
    with Reader(write(tmp_path / "b.w64", noise(100), "W64", tags=tags)) as reader:
        assert reader.tags == {}


# Number types


@settings(deadline=None)
@given(st.integers(1, 32), st.sampled_from(["int16", "int32"]))
def test_integers_survive_floats(bits, dtype):
    width = np.dtype(dtype).itemsize * 8
    bits = min(bits, width)
    samples = np.random.default_rng(bits).integers(-(1 << bits - 1), 1 << bits - 1, 999) << (width - bits)
    samples = samples.astype(dtype)
    assert np.array_equal(formats.from_float(formats.to_float(samples, np.float64), dtype), samples)
    assert np.array_equal(formats.from_float(formats.to_float(samples, np.float64), dtype, bits), samples)
    if bits <= 24:
        assert np.array_equal(formats.from_float(formats.to_float(samples), dtype), samples)


def test_floats_saturate_and_round_to_the_bits_of_the_file():
    loud = np.array([-9.0, -1.0, 0.99999999999, 1.0, 9.0], np.float32)
    for dtype in (np.int16, np.int32):
        top = np.iinfo(dtype).max
        assert formats.from_float(loud, dtype).tolist() == [-top - 1, -top - 1, top, top, top]
    assert formats.convert(np.array([1000], np.int32), np.int32, 24).tolist() == [1024]
    assert formats.convert(np.array([-3], np.int16), np.int32, 24).tolist() == [-3 << 16]
    assert formats.convert(np.array([3 << 16], np.int32), np.int16, 16).tolist() == [3]


@pytest.mark.parametrize("rate_out_hz", [22_050, 48_000, 44_100])
def test_resampling_in_blocks_equals_resampling_at_once(rate_out_hz):
    samples_SC = (music(1.0) * 20_000).astype(np.int16)
    whole_S, pieces_S = (
        np.concatenate(list(audio.resample_stream(blocks, 44_100, rate_out_hz)))
        for blocks in ([samples_SC], np.array_split(samples_SC, 37))
    )
    assert len(whole_S) == len(pieces_S) == rate_out_hz and whole_S.dtype == np.float32
    np.testing.assert_allclose(whole_S, pieces_S, atol=1e-6)


# What cannot be read


def test_missing_inputs_are_no_input(tmp_path):
    os.mkfifo(tmp_path / "fifo.wav")
    for path in (
        tmp_path / "missing.wav",
        tmp_path,
        tmp_path / "fifo.wav",
        Path("nul\0.wav"),
        Path("x" * 300),
    ):
        with pytest.raises(NoInputError) as error:
            Reader(path)
        one_line(error, str(path))
    with pytest.raises(NoInputError) as error:
        sha256_of(tmp_path / "missing.wav")
    one_line(error, "missing.wav")


@pytest.mark.parametrize("suffix", ["wav", "mp3", "flac", "ogg", "aiff", "raw", "sd2", "xi"])
@pytest.mark.parametrize(
    "content", [b"", b"hello, this is text\n" * 50, bytes(4_000), b"\xff\xfb" + bytes(3_000)]
)
def test_files_that_are_no_audio_are_bad_data(tmp_path, capfd, suffix, content):
    path = tmp_path / f"straße.{suffix}"
    path.write_bytes(content)
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    with pytest.raises(DataError) as error:
        Reader(path)
    one_line(error, "straße")
    assert not before or len(os.listdir("/proc/self/fd")) == before
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("container", ["WAV", "RF64", "W64", "AIFF", "AU", "FLAC", "MP3"])
def test_truncated_files_are_refused_with_both_durations(tmp_path, capfd, container):
    subtype = "MPEG_LAYER_III" if container == "MP3" else "PCM_16"
    path = write(tmp_path / "a", music(10.0), container, subtype)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError) as error:
        read(path)
    one_line(error, "truncated", "0:00:04.", "0:00:10.000")
    held_SC = read(path, allow_truncated=True)
    assert 4.0 < len(held_SC) / 44_100 <= 5.0
    assert capfd.readouterr().err == ""


def test_a_damaged_flac_is_refused_and_names_the_place(tmp_path):
    path = write(tmp_path / "a.flac", noise(400_000), "FLAC")
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4 :][:50] = bytes(50)
    data[len(data) * 3 // 4 : len(data) * 3 // 4 + 50] = bytes(50)
    path.write_bytes(data)
    with pytest.raises(DataError) as error:
        read(path)
    one_line(error, "0:00:06.", "damaged")


@pytest.mark.parametrize("container", ["WAV", "AIFF", "FLAC", "RF64"])
def test_ten_hours_claimed_by_a_small_file_are_one_error_and_no_memory(tmp_path, container):
    path = write(tmp_path / "a", noise(50, 1), container, rate_hz=8_000)
    data, claim = bytearray(path.read_bytes()), 36_000 * 8_000
    if container == "WAV":
        data[40:44] = struct.pack("<I", claim * 2)
    elif container == "AIFF":
        at = data.index(b"SSND") + 4
        data[at : at + 4] = struct.pack(">I", claim * 2 + 8)
    elif container == "FLAC":
        data[18:26] = (int.from_bytes(data[18:26], "big") >> 36 << 36 | claim).to_bytes(8, "big")
    else:
        at = data.index(b"ds64") + 8
        data[at : at + 24] = struct.pack("<QQQ", claim * 2 + 100, claim * 2, claim)
    path.write_bytes(data)
    with pytest.raises(DataError) as error, limited_memory(200_000_000):
        read(path)
    one_line(error, "10:00:00.0", "truncated")


@contextlib.contextmanager
def limited_memory(more_bytes: int):
    """Fails any allocation beyond what is in use now and `more_bytes`."""
    resource = pytest.importorskip("resource")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_an_mp3_whose_header_counts_a_packet_too_many_is_whole(tmp_path):
    path = write(tmp_path / "a.mp3", noise(44_100), "MP3", "MPEG_LAYER_III")
    content, written = bytearray(path.read_bytes()), read(path)
    at = max(content.find(mark) for mark in (b"Xing", b"Info")) + 8
    packets = int.from_bytes(content[at : at + 4], "big")
    for more, readable in ((1, True), (40, False)):
        content[at : at + 4] = (packets + more).to_bytes(4, "big")
        path.write_bytes(content)
        if readable:
            assert len(read(path)) >= len(written)
        else:
            with pytest.raises(DataError, match="truncated"):
                read(path)


def test_arrays_that_lie_on_their_side_are_refused():
    with pytest.raises(DataError, match="transpose"):
        ArrayReader(np.zeros((2, 44_100)), 44_100)
    with pytest.raises(DataError, match="20 Hz"):
        ArrayReader(np.zeros(44_100), 20)


def test_a_file_without_samples_is_refused_and_one_sample_is_read(tmp_path):
    empty = tmp_path / "empty.wav"
    soundfile.write(empty, np.zeros((0, 2), np.int16), 44_100)
    with pytest.raises(DataError, match="holds no samples"):
        Reader(empty)
    for container, subtype, rate_hz in [("WAV", "PCM_16", 44_100), *LOSSY]:
        assert read(write(tmp_path / f"one {subtype}", noise(1), container, subtype, rate_hz)).shape == (1, 2)


@pytest.mark.parametrize(("limits", "words"), [
    (AudioLimits(max_duration_s=0.5), "0:00:01.000 or more; at most 0:00:00.500"),
    (AudioLimits(max_channels=1), "2 channels; at most 1"),
    (AudioLimits(min_sample_rate_hz=48_000), "44100 Hz; 48000 to 768000"),
    (AudioLimits(max_sample_rate_hz=8_000), "44100 Hz; 1000 to 8000"),
])  # fmt: skip
def test_limits_are_named(tmp_path, limits, words):
    path = write(tmp_path / "a.wav", noise(44_100))
    for opened in (formats.probe, Reader):
        with pytest.raises(DataError) as error:
            opened(path, limits)
        one_line(error, words)


def test_the_duration_limit_counts_samples_where_the_header_is_silent(tmp_path):
    path = write(tmp_path / "a.mp3", music(3.0), "MP3", "MPEG_LAYER_III")
    path.write_bytes(path.read_bytes().replace(b"Xing", bytes(4), 1).replace(b"Info", bytes(4), 1))
    with Reader(path, AudioLimits(max_duration_s=3.2)) as reader:
        assert 3.0 <= reader.frames / 44_100 < 3.2
    reader = Reader(path, AudioLimits(max_duration_s=3.01))
    with pytest.raises(DataError, match=r"at most 0:00:03\.010"):
        _ = reader.frames


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_samples_that_are_no_numbers_are_named(tmp_path, bad, subtype):
    samples_SC = noise(50_000, 2, subtype)
    samples_SC[44_100, 1] = bad
    path = tmp_path / "a.wav"
    soundfile.write(path, samples_SC, 44_100, subtype)
    words = ("sample 44100 of channel 2", "0:00:01.000", "NaN" if np.isnan(bad) else "infinite")
    for refuse in (
        lambda: read(path),
        lambda: Reader(path).read(44_000, 44_200),
        lambda: ArrayReader(samples_SC, 44_100).read(44_000, 44_200),
        lambda: write(tmp_path / "b.wav", samples_SC),
    ):
        with pytest.raises(DataError) as error:
            refuse()
        one_line(error, *words)
    assert len(Reader(path).read(0, 44_100)) == 44_100
    assert os.listdir(tmp_path) == ["a.wav"]


# Outputs


def test_outputs_that_may_not_be_written_are_refused(tmp_path):
    source = write(tmp_path / "in.wav", noise(100))
    before = source.read_bytes()
    (tmp_path / "soft.wav").symlink_to(source)
    (tmp_path / "hard.wav").hardlink_to(source)
    for name in ("in.wav", "soft.wav", "hard.wav", "../" + tmp_path.name + "/in.wav"):
        with pytest.raises(CannotCreateError) as error:
            write(tmp_path / name, noise(5), overwrite=True, inputs=[source])
        one_line(error, "is the input")
    other = write(tmp_path / "other.wav", noise(7))
    for path, word in ((other, "exists"), (tmp_path, "folder"), (tmp_path / "no" / "a.wav", "no folder"),
                       (tmp_path / ("x" * 300), "created")):  # fmt: skip
        with pytest.raises(CannotCreateError) as error:
            write(path, noise(5))
        one_line(error, word, str(path))
    write(other, noise(9), overwrite=True, inputs=[source])
    assert len(read(other)) == 9
    assert source.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["hard.wav", "in.wav", "other.wav", "soft.wav"]


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a folder nobody can write to")
def test_an_unwritable_folder_is_refused():
    with pytest.raises(CannotCreateError) as error:
        write(Path("/proc/a.wav"), noise(5))
    one_line(error, "/proc/a.wav")


@pytest.mark.parametrize(("kind", "rate_hz", "channels"), [
    (("OGG", "OPUS"), 44_100, 2), (("MP3", "MPEG_LAYER_III"), 96_000, 2),
    (("MP3", "MPEG_LAYER_III"), 44_100, 3), (("FLAC", "PCM_16"), 44_100, 9), (("FLAC", "FLOAT"), 44_100, 1),
])  # fmt: skip
def test_what_a_format_cannot_hold_is_refused(tmp_path, kind, rate_hz, channels):
    with pytest.raises(CannotCreateError) as error:
        write(tmp_path / "a", np.zeros((100, channels), np.int16), *kind, rate_hz)
    one_line(error, f"{channels} channel", f"{rate_hz} Hz")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_an_interrupted_output(tmp_path, problem):
    kept = write(tmp_path / "old.wav", noise(33))
    for path in (tmp_path / "a.wav", kept):
        with pytest.raises(problem), Writer(
            path, sample_rate_hz=8_000, channels=2, container="WAV", subtype="PCM_16", overwrite=True
        ) as writer:  # fmt: skip
            writer.write(noise(1_000))
            assert len(os.listdir(tmp_path)) == 2
            raise problem
    assert os.listdir(tmp_path) == ["old.wav"] and len(read(kept)) == 33


FULL_DISK = """
    import resource, sys, numpy
    from editjax.audio import Writer
    from editjax.errors import InputOutputError
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
    noise_SC = numpy.random.default_rng(0).integers(-9_000, 9_000, (300_000, 2), numpy.int16)
    for container, subtype, rate_hz in {kinds}:
        try:
            with Writer(sys.argv[1] + "/a", sample_rate_hz=rate_hz, channels=2, container=container,
                        subtype=subtype) as writer:
                writer.write(noise_SC)
        except InputOutputError as error:
            print(container, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as a full disk would")
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    kinds = [("WAV", "PCM_16", 44_100), ("RF64", "PCM_24", 8_000), ("FLAC", "PCM_16", 44_100), *LOSSY]
    program = textwrap.dedent(FULL_DISK).format(kinds=kinds)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(kinds), done.stderr
    assert all("writing failed" in line and "; free space" in line for line in lines)
    assert not os.listdir(tmp_path)


def test_a_full_disk_while_finishing_is_one_line_too(tmp_path, monkeypatch):
    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(InputOutputError) as error:
        write(tmp_path / "a.wav", noise(5))
    one_line(error, "No space left")
    assert not os.listdir(tmp_path)


def test_no_room_for_a_temporary_file_is_one_line_too(tmp_path, monkeypatch):
    def no_space(**_):
        raise OSError(28, "No space left on device")

    path = write(tmp_path / "a.ogg", music(1.0), "OGG", "VORBIS")
    monkeypatch.setattr("tempfile.TemporaryFile", no_space)
    with Reader(path) as reader, pytest.raises(InputOutputError, match="TMPDIR"):
        reader.read(0, 10)


def test_an_encoder_that_loses_samples_is_found_out(tmp_path, monkeypatch):
    class Shorter:
        frames = 4

    monkeypatch.setattr(soundfile, "info", lambda _: Shorter)
    with pytest.raises(InputOutputError, match="less arrived than was written"):
        write(tmp_path / "a.wav", noise(5))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("known_before", [True, False])
def test_a_wav_beyond_four_gib_becomes_rf64(tmp_path, monkeypatch, known_before):
    monkeypatch.setattr(audio, "WAV_LIMIT_BYTES", 10_000)
    samples_SC, path = noise(9_000), tmp_path / "a.wav"
    tags = {"title": "long"}
    with Writer(
        path, sample_rate_hz=8_000, channels=2, container="WAV", subtype="PCM_16", tags=tags,
        expected_frames=9_000 if known_before else 0,
    ) as writer:  # fmt: skip
        for block_SC in np.array_split(samples_SC, 7):
            writer.write(block_SC)
    with Reader(path) as reader:
        assert reader.info.container == "RF64" and reader.tags == tags
    assert np.array_equal(read(path), samples_SC)
    assert os.listdir(tmp_path) == ["a.wav"]


@pytest.mark.parametrize(("source", "name", "asked", "wanted"), [
    (("WAV", "PCM_24", "a.wav"), "b.wav", None, ("WAV", "PCM_24")),
    (("RF64", "PCM_24", "a.wav"), "b.wav", None, ("RF64", "PCM_24")),
    (("WAVEX", "FLOAT", "a.wav"), "b.wav", None, ("WAVEX", "FLOAT")),
    (("WAV", "PCM_16", "a.wav"), "b.rf64", None, ("RF64", "PCM_16")),
    (("RF64", "PCM_16", "a.rf64"), "b.rf64", None, ("RF64", "PCM_16")),
    (("WAV", "PCM_16", "a.mp3"), "a_edited.mp3", None, ("WAV", "PCM_16")),
    (("WAV", "FLOAT", "a.wav"), "b.flac", None, ("FLAC", "PCM_24")),
    (("WAV", "PCM_32", "a.wav"), "b.flac", None, ("FLAC", "PCM_24")),
    (("WAV", "PCM_U8", "a.wav"), "b.flac", None, ("FLAC", "PCM_S8")),
    (("AIFF", "PCM_S8", "a.aif"), "b.wav", None, ("WAV", "PCM_U8")),
    (("MP3", "MPEG_LAYER_III", "a.mp3"), "b.wav", None, ("WAV", "PCM_16")),
    (("MP3", "MPEG_LAYER_III", "a.mp3"), "b.MP3", None, ("MP3", "MPEG_LAYER_III")),
    (("OGG", "OPUS", "a.ogg"), "b.ogg", None, ("OGG", "OPUS")),
    (("WAV", "PCM_16", "a.wav"), "b.opus", None, ("OGG", "OPUS")),
    (("WAV", "PCM_16", "a.wav"), "b.ogg", None, ("OGG", "VORBIS")),
    (("WAV", "PCM_16", "a.wav"), "b.wav", "FLOAT", ("WAV", "FLOAT")),
    (("CAF", "ALAC_24", "a.caf"), "b.caf", None, ("CAF", "PCM_24")),
])  # fmt: skip
def test_outputs_keep_the_inputs_format_unless_named_otherwise(source, name, asked, wanted):
    info = formats.AudioInfo(Path(source[2]), source[0], source[1], 44_100, 2, 100)
    assert formats.output_format(info, name, asked) == wanted


@pytest.mark.parametrize(
    ("name", "asked"), [("b.xyz", None), ("b", None), ("b.flac", "FLOAT"), ("b.wav", "PCM_99")]
)
def test_outputs_that_have_no_format_are_refused(name, asked):
    info = formats.AudioInfo(Path("a.wav"), "WAV", "PCM_16", 44_100, 2, 100)
    with pytest.raises(CannotCreateError) as error:
        formats.output_format(info, name, asked)
    one_line(error, name, "PCM_16" if asked else ".wav")
