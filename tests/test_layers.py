"""Dependencies point one way, and each outside service has one door."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ["sdcore", "tasks", "flows"]  # each may import itself and those before it
DOORS = {"duckdb": "sdcore/store.py", "mlflow": "tasks/tracking.py"}
FILES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, wherever in the file it does."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_and_use_the_doors(path):
    layer, name = path.relative_to(ROOT).parts[0], str(path.relative_to(ROOT))
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    if layer == "sdcore":
        above |= {"prefect", "mlflow"}
    closed = {package for package, door in DOORS.items() if door != name}
    assert not imported(path) & (above | closed)


def test_the_scan_sees_imports(tmp_path):
    source = tmp_path / "x.py"
    source.write_text("import duckdb.x as y\ndef f():\n    from mlflow.z import w\n")
    assert imported(source) == {"duckdb", "mlflow"}
