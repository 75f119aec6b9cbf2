"""What is read off the text of a compiled program: bytes by collective, gathers that are no parameter's."""

import functools
import importlib
from pathlib import Path
from types import ModuleType

import pytest

PROGRAM = """
  %a = f32[256,768]{1,0} all-gather(f32[32,768] %p), replica_groups={{0,1}}, dimensions={0}
  %b = (bf16[32,768], bf16[256,3,4,64]{3,2,1,0}) all-gather-start(bf16[32,768] %q), dimensions={1}
  %g = (bf16[2,64], bf16[2,64], u32[], u32[]) collective-permute-start(%r)
  %c = f32[] all-reduce(f32[] %loss), to_apply=%add
  %d = (f32[8,16]{1,0}, s32[4]{0}) all-reduce-start(f32[8,16] %x, s32[4] %y), to_apply=%add
  %e = f32[256,768]{1,0} fusion(%a), calls=%all-gather-free
"""


@pytest.fixture
def ahead_of_time(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module("ahead_of_time")


def test_bytes_are_counted_by_collective(ahead_of_time):
    moved, gathered = ahead_of_time.traffic(PROGRAM, {4 * 256 * 768, 256 * 768}, 4096)
    gathers = (4 + 2) * 256 * 768
    assert moved == {"all-gather": gathers, "all-reduce": 4 * 128 + 16, "collective-permute": 2 * 128}
    assert gathered == 0


def test_a_gather_of_a_sequence_is_told(ahead_of_time):
    """Not what is asked of each example, which XLA gathers rather than the parameter it meets."""
    asked = "%g = bf16[8,67] all-gather(%y)\n"
    sequence = "%f = bf16[2,4096,64] all-gather(%z)"
    _, gathered = ahead_of_time.traffic(PROGRAM + asked + sequence, {4 * 256 * 768, 256 * 768}, 4096)
    assert gathered == 2 * 2 * 4096 * 64


def test_every_chip_has_an_example_or_a_part_of_one(ahead_of_time):
    step = functools.partial(ahead_of_time.on, program=ahead_of_time.STEP)
    assert "--data.batch-multiple=256" in step("v5e:16x16", fsdp=8).overrides
    assert "--data.batch-multiple=64" in step("v5e:16x16", fsdp=8, seq=4).overrides
