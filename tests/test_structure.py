"""The shape of the package: imports point down the module list, and the command line starts light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import editjax

ROOT = Path(__file__).parents[1]
PACKAGE = Path(editjax.__file__).parent
LISTED = re.findall(r"^\| `(\w+)` (○?)", (ROOT / "docs/modules.md").read_text(encoding="utf-8"), re.MULTILINE)
MODULES = [name for name, _ in LISTED]
HOST = {name for name, mark in LISTED if mark}
DEVICE = {"jax", "flax", "optax", "orbax", "grain", "librosa"}
HEAVY = (*sorted(DEVICE), "matplotlib", "scipy", "opentimelineio", "numba", "soundfile")


def module_of(path: Path) -> str:
    """The name in the module list that a file belongs to: its own, or its folder's."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def source_files() -> list[Path]:
    outside = (PACKAGE / "__init__.py", PACKAGE / "__main__.py")
    return sorted(path for path in PACKAGE.rglob("*.py") if path not in outside)


def imported_names(path: Path) -> list[str]:
    """Every dotted name a file imports, at the top or inside a function."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def test_every_module_is_in_the_list() -> None:
    assert {module_of(path) for path in source_files()} == set(MODULES)


def test_imports_point_down_the_list() -> None:
    upward = []
    for path in source_files():
        own = module_of(path)
        for name in imported_names(path):
            parts = name.split(".")
            if parts[0] != "editjax" or len(parts) < 2 or parts[1] == "__version__" or parts[1] == own:
                continue
            if MODULES.index(parts[1]) > MODULES.index(own):
                upward.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not upward


def test_host_modules_never_import_jax() -> None:
    tainted = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in source_files()
        if module_of(path) in HOST
        for name in imported_names(path)
        if name.split(".")[0] in DEVICE
    ]
    assert not tainted


@pytest.mark.parametrize(
    "arguments", [["--help"], ["edit", "--help"], ["render", "--help"], ["--version"], ["edti"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from editjax.cli import main\n"
        f"code = main({arguments!r})\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'loaded {loaded}' if loaded else f'ended with {code}' if code not in (0, 2) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = f"import sys, editjax; print([name for name in {(*HEAVY, 'numpy')!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
