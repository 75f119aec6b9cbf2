"""What is committed and quoted: results that keep the promises, and a README that quotes them."""

import importlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program that makes the tables; benchmarks are programs beside the package, not a part of it."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("tables")


def result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_result_has_the_common_form(path: Path) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    assert set(found) == {"bench", "device", "versions", "rows", "ratios"} and found["rows"]
    assert found["bench"] == path.name.split(".")[0]
    assert (ROOT / "benchmarks" / f"{found['bench'].partition('-')[0]}.py").exists()


def test_the_tables_are_those_of_the_results(tables: ModuleType) -> None:
    committed = tables.README.read_text(encoding="utf-8")
    assert committed == tables.readme(), "run python benchmarks/tables.py"
    plots = {tables.plot_path(path) for path in RESULTS if tables.bench_of(path) in tables.PLOTS}
    assert plots == set(tables.README.parent.glob("plots/*"))


def test_a_second_machine_gets_its_own_table(tables: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [ROOT / "benchmarks" / "results" / name for name in ("mel.json", "mel.other.json")]
    monkeypatch.setattr(tables, "result_paths", lambda: paths)
    rows = [{"case": "a | b", "audio_s": 10, "cpu_ms": 1234.0}, {"case": "c", "other": 0.12345}]
    found = {"device": "abacus", "versions": {"wood": "1"}, "rows": rows, "ratios": {}}
    monkeypatch.setattr(tables, "read", lambda path: found)
    lines = tables.readme().splitlines()
    assert lines.count("## mel") == 1 and lines.count("abacus; wood 1.") == 2
    assert "| a \\| b | 10 | 1,234 |  |" in lines and "| c |  |  | 0.1235 |" in lines
    assert any("plots/mel.other.svg" in line for line in lines)


def test_the_bundled_model_keeps_its_promises() -> None:
    rows = {row["figure"]: row for row in result("quality")["rows"]}
    model = {name: row["pointer network"] for name, row in rows.items()}
    assert rows["kept_iou"]["edits"] >= 100
    assert model["kept_iou"] >= 0.95 and model["boundary_f1_half_second"] >= 0.93
    assert model["boundary_f1_3_frames"] >= 0.8
    assert model["order_agreement"] >= 0.95 and model["length_error"] <= 0.03
    for other in ("keep everything", "silence cutter"):
        assert model["kept_iou"] >= rows["kept_iou"][other] + 0.25
    assert rows["kept_iou"]["keep everything"] <= 0.6
    assert rows["spoiled_takes_found"]["silence cutter"] <= 0.1
    assert all(model[f"length_{times}_met"] == 1.0 for times in ("0.5", "0.75", "1.25", "1.5"))


def test_chance_is_chance() -> None:
    """A random edit that keeps the share r has an IoU of about r / (2 − r) with any other that does."""
    found = result("detection")["ratios"]
    kept = found["keep ratio: true"]
    assert found["keep ratio: random"] == pytest.approx(kept, abs=0.01)
    assert found["edit of random at the true ratio, IoU"] == pytest.approx(kept / (2 - kept), abs=0.04)


def test_the_readme_quotes_what_was_measured() -> None:
    rows = {row["figure"]: row for row in result("quality")["rows"]}
    for editor, shown in (
        ("pointer network", "pointer network `final`"),
        ("silence cutter", "silence cutter"),
        ("keep everything", "keep everything"),
    ):
        line = next(line for line in README.splitlines() if line.startswith(f"| {shown} | 0."))
        iou, f1, order, length, spoiled = (cell.strip() for cell in line.split("|")[2:-1])
        for cell, figure in ((iou, "kept_iou"), (f1, "boundary_f1_half_second"), (order, "order_agreement")):
            assert cell == f"{rows[figure][editor]:.2f}"
        assert float(length.removesuffix(" %")) == pytest.approx(100 * rows["length_error"][editor], abs=0.5)
        assert spoiled == f"{rows['spoiled_takes_found'][editor]:.0%}".replace("%", " %")


def test_speed_and_cost_keep_their_promises() -> None:
    edit, encode = result("edit")["ratios"], result("encode")["ratios"]
    assert edit["pointer, 10 min, warm"] >= 20 and encode["match / encode, 10 min"] <= 0.1
    quoted = re.search(r"(\d+) × real time\)", README)
    assert quoted and int(quoted[1]) == round(edit["pointer, 10 min, warm"])
