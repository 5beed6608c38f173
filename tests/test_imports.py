"""Imports point down: each room of pykvm knows the rooms below it and no other."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
from docs.markdown import prose

from pykvm.kvm import constants, uapi

PACKAGE = "pykvm"

# From the top: a room may import what is in a later row.  Rooms in one row do not know each other.
# "" is pykvm/__init__.py, through which users reach what lies below it.
ROWS = (
    ("__main__",),
    ("cli",),
    ("",),
    ("machine",),
    ("quirks",),
    ("emulate", "host", "irqchip"),
    ("vcpu",),
    ("boot", "interrupts"),
    ("devices", "result"),
    ("bus", "clock", "memory", "tables"),
    ("exits", "layout"),
    ("kvm", "savefile", "x86"),
    ("descriptor",),
    ("_core",),
    ("values",),
    ("errors",),
    ("printable",),
    ("typed",),
)
LEVEL = {room: level for level, row in enumerate(ROWS) for room in row}


#: Folders of tests for what is no part of the package.
BESIDE_THE_PACKAGE = {"docs", "examples", "guests", "linux", "packaging", "tooling"}


def room_of(module: str) -> str:
    """The room of a module: 'pykvm.x86.paging.walker' is in x86."""
    return f"{module}.".split(".")[1]


def allowed(importer: str, imported: str) -> bool:
    upper, lower = room_of(importer), room_of(imported)
    if upper not in LEVEL or lower not in LEVEL:
        return False
    return upper == lower or LEVEL[upper] < LEVEL[lower]


def imports(package: str) -> list[tuple[str, str]]:
    """Every import inside the package: lazy ones in functions and those for types included."""
    graph = grimp.build_graph(package, cache_dir=None)
    return [
        (importer, imported)
        for importer in sorted(graph.modules)
        for imported in sorted(graph.find_modules_directly_imported_by(importer))
    ]


def circles(edges: dict[str, set[str]]) -> set[frozenset[str]]:
    """The groups of modules in which each leads to every other."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            for name in edges.get(waiting.pop(), set()) - found:
                found.add(name)
                waiting.append(name)
        return found

    below = {name: reached(name) for name in edges}
    return {
        frozenset(other for other in below[name] if name in below.get(other, set()))
        for name in below
        if name in below[name]
    }


def needed_to_load(path: Path) -> set[str]:
    """The modules that a file imports when it is loaded: not in functions, nor for types."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_every_module_has_a_room(root: Path) -> None:
    paths = (root / PACKAGE).rglob("*.py")
    modules = {
        path.relative_to(root).with_suffix("").as_posix().replace("/", ".") for path in paths
    }
    rooms = {room_of(module) for module in modules if module != f"{PACKAGE}.__init__"}
    assert rooms - LEVEL.keys() == set(), "give each new room its row in ROWS"


def test_the_architecture_page_has_the_same_rows() -> None:
    rows: dict[int, list[str]] = {}
    table = re.findall(r"^\| (\d+) \| `(\w+)` \|", prose("docs/architecture.md"), re.MULTILINE)
    for number, room in table:
        rows.setdefault(int(number), []).append("" if room == "__init__" else room)
    assert rows == {number: list(row) for number, row in enumerate(ROWS, 1)}


def test_imports_point_down() -> None:
    upward = [f"{a} imports {b}" for a, b in imports(PACKAGE) if not allowed(a, b)]
    assert upward == []


def test_circles_are_those_of_the_architecture_page() -> None:
    text = prose("docs/architecture.md")
    table = text[text.index("### Circles") :].partition("\n##")[0]
    rows = re.findall(r"^\| (`.*`) \| (`.*`) \|$", table, re.MULTILINE)
    edges: dict[str, set[str]] = {}
    for importer, imported in imports(PACKAGE):
        edges.setdefault(importer, set()).add(imported)
    assert rows
    assert circles(edges) == {
        frozenset(f"{PACKAGE}.{name}" for name in re.findall(r"`([\w.]+)`", "".join(row)))
        for row in rows
    }


def test_no_circle_is_needed_to_load(root: Path) -> None:
    paths = {
        path.relative_to(root).with_suffix("").as_posix().replace("/", "."): path
        for path in (root / PACKAGE).rglob("*.py")
    }
    edges = {
        name.removesuffix(".__init__"): needed_to_load(path) & paths.keys()
        for name, path in paths.items()
    }
    assert circles(edges) == set()


def test_circles_are_seen() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}
    assert circles(edges) == {frozenset("bc"), frozenset("e")}


def test_kernel_numbers_are_kvms_alone(root: Path) -> None:
    """What <linux/kvm.h> defines comes from `pykvm.kvm`, which tests compare with the header."""
    known = {name for name in (*vars(uapi), *vars(constants)) if name.isupper()}
    paths = [
        path
        for path in (root / PACKAGE).rglob("*.py")
        if path.parent.relative_to(root).parts[1:2] != ("kvm",)
    ]
    assert [
        f"{path.relative_to(root)} assigns {node.id}"
        for path in sorted(paths)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in known
    ] == []


def test_tests_stand_where_their_room_stands(root: Path) -> None:
    folders = {path.parent.name for path in (root / "tests").glob("*/test_*.py")}
    assert folders - LEVEL.keys() == BESIDE_THE_PACKAGE


def test_no_test_imports_from_another(root: Path) -> None:
    """What several share is a module of helpers."""
    pattern = re.compile(r"^ *(?:from|import) +(?:\w+\.)*test_\w+", re.MULTILINE)
    files = sorted((root / "tests").rglob("*.py"))
    assert files
    assert {
        path.name: found for path in files if (found := pattern.findall(path.read_text()))
    } == {}


@pytest.mark.parametrize("room", [room for room in LEVEL if room not in ("", "__main__")])
def test_nothing_above_is_loaded(room: str, root: Path) -> None:
    """Not through importlib, and not through pykvm/__init__.py either."""
    program = f"import sys, {PACKAGE}.{room}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=root
    )
    assert result.stderr == ""
    modules = [name for name in result.stdout.split() if name.startswith(f"{PACKAGE}.")]
    assert f"{PACKAGE}.{room}" in modules
    assert [name for name in modules if not allowed(f"{PACKAGE}.{room}", name)] == []


def test_a_run_loads_neither_typing_nor_re(root: Path) -> None:
    """They take a tenth of a short run: see pykvm/typed.py."""
    rooms = "pykvm.cli.run, pykvm.boot.pvh, pykvm.machine, pykvm.quirks.signs, pykvm.irqchip.user"
    program = f"import sys; before = set(sys.modules); import {rooms}; "
    program += "print(*sorted({'typing', 're', 'dataclasses'} & sys.modules.keys() - before))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=root
    )
    assert (result.stdout.split(), result.stderr) == ([], "")


def test_a_file_is_loaded_without_what_takes_longer_than_that(root: Path) -> None:
    """OpenSSL, which `hashlib` loads, and what only writing a file needs."""
    program = "import sys; before = set(sys.modules); "
    program += "import pykvm.machine.snapshot_file, pykvm.savefile.reading, pykvm.machine.until; "
    heavy = "'typing', 'dataclasses', 'inspect', 'hashlib', 'secrets', 'zlib', 'pathlib'"
    program += f"print(*sorted({{{heavy}}} & sys.modules.keys() - before))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=root
    )
    assert (result.stdout.split(), result.stderr) == ([], "")


def test_upward_imports_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself: at the top of a module, inside a function, for types, from a sibling."""
    package = tmp_path / "sample"
    package.mkdir()
    files = {
        "__init__": "",
        "machine": "from sample import errors",
        "kvm": "from sample.x86 import nothing",
        "x86": "",
        "bus": "def f():\n    from sample.machine import nothing",
        "errors": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import sample.bus",
    }
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [pair for pair in imports("sample") if not allowed(*pair)] == [
        ("sample.bus", "sample.machine"),
        ("sample.errors", "sample.bus"),
        ("sample.kvm", "sample.x86"),
    ]
