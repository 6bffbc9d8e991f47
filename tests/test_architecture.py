"""Imports follow the layers of docs/architecture.md: downwards only, and never in a circle.

Every import counts, also one inside a function. Imports for type checkers alone do not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Lowest first. A module may import from the layers below it and from its own room (a name here).
LAYERS = (
    ("mmsa.errors",),
    ("mmsa.foundation",),
    (
        "mmsa.extensions",
        "mmsa.labels",
        "mmsa.preprocessing",
        "mmsa.calibration",
        "mmsa.hub",
        "mmsa.checkpoint_folders",
        "mmsa.lineage",
        "mmsa.predicted",
        "mmsa.raw_files",
    ),
    ("mmsa.config_types",),
    ("mmsa.data_config", "mmsa.model_config"),
    ("mmsa.config",),
    ("mmsa.process",),
    ("mmsa.data.decoding", "mmsa.data.loading", "mmsa.data.storage"),
    ("mmsa.data",),
    ("mmsa.models",),
    ("mmsa.engines", "mmsa.export"),
    ("mmsa.export_target", "mmsa.row_model"),
    ("mmsa.evaluation.scores",),
    ("mmsa.evaluation.inputs",),
    ("mmsa.evaluation.floors", "mmsa.evaluation.modality_audit"),
    ("mmsa.evaluation.report",),
    ("mmsa.evaluation", "mmsa.predictor"),
    ("mmsa.evaluation.compare", "mmsa"),
    ("mmsa.training.checkpoints",),
    ("mmsa.training",),
    ("mmsa.verify", "mmsa.soup", "mmsa.prediction", "mmsa.serve", "mmsa.exporting"),
    ("train", "evaluate", "mmsa.__main__"),
    ("shards.example",),
    ("shards.duplicates", "shards.label_rules", "shards.class_names"),
    ("shards.splits", "shards.tar_extents"),
    ("shards.sources", "shards.reports", "shards.tar_scan"),
    ("shards.packing", "shards.push", "shards.manifest_faults"),
    (
        "shards.index",
        "shards.verify",
        "shards.synthetic",
        "shards.pack_cli",
        "shards.protocols_cli",
    ),
    ("shards.__main__",),
    ("launch",),
)

SHARDS_MAY_IMPORT = {
    "mmsa.extensions",
    "mmsa.foundation.atomic_write",
    "mmsa.foundation.closed_stdout",
    "mmsa.foundation.command_line",
    "mmsa.data.decoding.file_kinds",
    "mmsa.data.decoding.limits",
    "mmsa.data.decoding.packed_form",
    "mmsa.data.decoding.posted_images",
    "mmsa.data.index_file",
    "mmsa.data.manifest",
    "mmsa.data.members",
    "mmsa.data.reader",
    "mmsa.data.storage.files",
    "mmsa.data.storage.cache",
    "mmsa.data.storage.settings",
    "mmsa.data.storage.sources",
    "mmsa.data.storage.store",
    "mmsa.errors",
    "mmsa.foundation.file_lock",
    "mmsa.foundation.near_names",
    "mmsa.foundation.parsing",
    "mmsa.foundation.regular_file",
    "mmsa.labels",
    "mmsa.process.progress",
    "mmsa.raw_files.columns",
    "mmsa.raw_files.delimited",
    "mmsa.raw_files.file_names",
    "mmsa.raw_files.folders",
    "mmsa.raw_files.image_paths",
    "mmsa.raw_files.keys",
    "mmsa.raw_files.missing_values",
    "mmsa.raw_files.unique_names",
    "mmsa.raw_files.numbers",
    "mmsa.raw_files.rows",
    "mmsa.raw_files.text_files",
    "mmsa.foundation.registry",
    "mmsa.foundation.settings_yaml",
    "mmsa.foundation.settings_model",
    "mmsa.foundation.sizes",
    "mmsa.foundation.urls",
}

_LAYER_OF_ROOM = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms}


def _module_files() -> dict[str, Path]:
    files = [ROOT / "train.py", ROOT / "evaluate.py"]
    for package in ("mmsa", "shards", "launch"):
        files += (ROOT / package).rglob("*.py")
    modules = {}
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return modules


MODULES = _module_files()


def _import_statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All import statements in a node, but for the body of `if TYPE_CHECKING:`."""
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        children = node.orelse
    for child in children:
        yield from _import_statements(child)


def _imports(source: str) -> set[str]:
    """The modules of this project that a source imports."""
    found = set()
    for statement in _import_statements(ast.parse(source)):
        if isinstance(statement, ast.Import):
            found |= {name.name for name in statement.names}
        else:
            assert statement.level == 0, "imports are written from the root"
            for name in statement.names:
                submodule = f"{statement.module}.{name.name}"
                found.add(submodule if submodule in MODULES else str(statement.module))
    return found & MODULES.keys()


IMPORTS = {module: _imports(file.read_text("utf-8")) for module, file in MODULES.items()}


def _room(module: str) -> str:
    """The longest name in LAYERS that is the module or a package around it."""
    around = [module[:end] for end, letter in enumerate(f"{module}.") if letter == "."]
    named = [name for name in around if name in _LAYER_OF_ROOM and name != "mmsa"]
    if module == "mmsa":
        named = ["mmsa"]
    assert named, f"{module} has no layer: add it to LAYERS and to docs/architecture.md"
    return named[-1]


def _folder(module: str) -> str:
    """The folder of a module. A file directly in a package's root is counted as its own folder."""
    folder = MODULES[module].parent.relative_to(ROOT).as_posix()
    return module if folder in (".", "mmsa", "shards", "launch") else folder


def _circle(arrows: dict[str, set[str]]) -> list[str]:
    """The nodes on the first circle that is found, in order; empty if there is none."""
    finished: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in finished:
            return []
        for target in sorted(arrows.get(node, ())):
            if circle := visit(target, [*path, node]):
                return circle
        finished.add(node)
        return []

    for node in sorted(arrows):
        if circle := visit(node, []):
            return circle
    return []


def test_no_module_imports_from_a_higher_layer() -> None:
    upwards = [
        f"{module} imports {imported}"
        for module, targets in IMPORTS.items()
        for imported in targets
        if (room := _room(module)) != (other := _room(imported))
        and _LAYER_OF_ROOM[room] <= _LAYER_OF_ROOM[other]
    ]
    assert sorted(upwards) == []


def test_files_do_not_import_in_a_circle() -> None:
    assert _circle(IMPORTS) == []


def test_folders_do_not_import_in_a_circle() -> None:
    arrows: dict[str, set[str]] = {}
    for module, targets in IMPORTS.items():
        folders = {_folder(imported) for imported in targets}
        arrows.setdefault(_folder(module), set()).update(folders - {_folder(module)})
    assert _circle(arrows) == []


def test_mmsa_imports_neither_shards_nor_launch() -> None:
    found = {
        (module, imported)
        for module, targets in IMPORTS.items()
        if module.split(".")[0] == "mmsa"
        for imported in targets
        if imported.split(".")[0] in ("shards", "launch")
    }
    assert found == set()


def test_shards_imports_no_other_modules_of_mmsa() -> None:
    found = {
        imported
        for module, targets in IMPORTS.items()
        if module.split(".")[0] == "shards"
        for imported in targets
        if imported.split(".")[0] != "shards"
    }
    assert found - SHARDS_MAY_IMPORT == set()


def test_rooms_are_in_the_architecture_page() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    folders = {file.parent.name for file in MODULES.values() if file.parent != ROOT}
    assert sorted(folder for folder in folders if f"{folder}/" not in page) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import mmsa.config", {"mmsa.config"}),
        ("from mmsa import config, errors", {"mmsa.config", "mmsa.errors"}),
        ("from mmsa.errors import UserError", {"mmsa.errors"}),
        ("def late():\n    from mmsa.hub import fetch", {"mmsa.hub"}),
        ("if TYPE_CHECKING:\n    import mmsa.config\nelse:\n    import mmsa.hub", {"mmsa.hub"}),
        ("import torch\nfrom torch import nn", set()),
    ],
)
def test_imports_are_found_wherever_they_are(source: str, expected: set[str]) -> None:
    assert _imports(source) == expected


def test_a_circle_is_found() -> None:
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert _circle({"a": {"b", "c"}, "b": {"c"}}) == []
