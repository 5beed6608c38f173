"""What the documentation names is there: files, modules, tests, versions."""

from __future__ import annotations

import ast
import re
import subprocess
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from docs.markdown import ROOT, pages, prose

import pykvm
from pykvm import Outcome

PAGES = [page.relative_to(ROOT).as_posix() for page in pages()]
PROMISES = "docs/promises.md"
PYPROJECT = (ROOT / "pyproject.toml").read_text()

_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
_PATH = re.compile(r"`((?:pykvm|tests|examples|guests|benchmarks|docs)/[\w./-]*\w/?)(?:::\w+)*`")
_NAME = re.compile(r"`(pykvm(?:\.\w+)+)`")
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+(?:::\w+)?)`")


def broken_links(page: str) -> list[str]:
    targets = [target for target in _LINK.findall(prose(page)) if "://" not in target]
    return [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()]


def missing_paths(page: str) -> list[str]:
    built = "guests/build/"
    paths = [path for path in _PATH.findall(prose(page)) if not path.startswith(built)]
    return [path for path in paths if not (ROOT / path).exists()]


def resolves(name: str) -> bool:
    """Whether a dotted name is a module of pykvm, or something in one."""
    value: object = pykvm
    for part in name.split(".")[1:]:
        if isinstance(value, ModuleType):
            with suppress(ModuleNotFoundError):
                import_module(f"{value.__name__}.{part}")
        value = getattr(value, part, None)
    return value is not None


@cache
def names_of_tests(file: str) -> set[str]:
    """The tests of a file: `name`, or `class::name`."""
    if not (ROOT / file).is_file():
        return set()
    found = set()
    for node in ast.parse((ROOT / file).read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
    return found


def missing_tests(text: str) -> list[str]:
    return [
        f"{file}::{name}" for file, name in _TEST.findall(text) if name not in names_of_tests(file)
    ]


@cache
def all_tests() -> set[str]:
    """The names of all tests and of their files."""
    files = sorted(ROOT.glob("tests/*/test_*.py"))
    names = {name for file in files for name in names_of_tests(str(file.relative_to(ROOT)))}
    return names | {file.stem for file in files}


def promises() -> list[str]:
    """The items of the page, each in one piece."""
    return re.findall(r"^- .*(?:\n  .*)*", (ROOT / PROMISES).read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page: str) -> None:
    assert missing_paths(page) == []


@pytest.mark.parametrize("page", PAGES)
def test_names_resolve(page: str) -> None:
    assert [name for name in _NAME.findall(prose(page)) if not resolves(name)] == []


def test_every_promise_names_the_tests_that_keep_it() -> None:
    assert len(promises()) > 20
    assert [promise for promise in promises() if not _TEST.search(promise)] == []


def test_every_test_that_a_promise_names_exists() -> None:
    assert missing_tests("".join(promises())) == []


def test_every_test_that_the_page_on_snapshots_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", prose("docs/snapshots.md")))
    assert len(named) > 10
    assert named <= all_tests()


def test_every_outcome_is_promised_and_explained() -> None:
    named = re.findall(r"`([A-Z]+)`", "".join(promises()))
    assert {outcome.name for outcome in Outcome} <= set(named)
    table = re.findall(r"^\| `([A-Z]+)` \|", prose("docs/embedding.md"), re.MULTILINE)
    assert sorted(table) == sorted(outcome.name for outcome in Outcome)


def test_the_changelog_has_the_version() -> None:
    versions = re.findall(r"^## \[(\S+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert next(name for name in versions if name != "Unreleased") == pykvm.__version__


def test_the_pythons_are_those_of_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    supported = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)
    assert supported
    for page in ("README.md", PROMISES):
        assert f"{supported[0]} to {supported[-1]}" in prose(page)


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (broken_links, "[x](nowhere.md)"),
        (missing_paths, "`tests/nowhere.py`"),
        (missing_tests, "`tests/docs/test_docs_facts.py::test_that_is_not_there`"),
        (missing_tests, "`tests/nowhere.py::test_x`"),
    ],
)
def test_what_is_not_there_is_seen(check: object, text: str, tmp_path: Path) -> None:
    assert callable(check)
    if check is missing_tests:
        assert check(text)
    else:
        page = tmp_path / "page.md"
        page.write_text(text)
        assert check(str(page))


def test_a_name_that_is_not_there_is_seen() -> None:
    assert resolves("pykvm.kvm.System.create_vm")
    assert not resolves("pykvm.kvm.System.create_world")
    assert not resolves("pykvm.nowhere")


_INSTALL = re.compile(r"pip install ([^`\n\")#;]*)")


def test_what_is_to_be_installed_can_be() -> None:
    """There is no release on an index: pykvm comes from a checkout, with extras that it has."""
    extras = re.search(r"optional-dependencies\]\n(.*?)\n\[", PYPROJECT, re.DOTALL)
    assert extras
    known = re.findall(r"^(\w+) = \[", extras[1], re.MULTILINE)
    paths = [*pages(), *ROOT.glob("pykvm/**/*.py"), *ROOT.glob("examples/*.py")]
    asked = [(path, words) for path in paths for words in _INSTALL.findall(path.read_text())]
    assert asked
    for path, words in asked:
        assert "pykvm" not in words, (path, words)
        for named in re.findall(r"\.\[([\w,]+)\]", words):
            assert set(named.split(",")) <= set(known), (path, words)


def test_hooks_before_a_commit_are_local_make_targets() -> None:
    config = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"repo: (.*)", config) == ["local"]
    targets = re.findall(r"entry: make --silent (\S+)$", config, re.MULTILINE)
    assert len(targets) == config.count("- id:") > 0
    makefile = (ROOT / "Makefile").read_text()
    assert [t for t in targets if not re.search(rf"^{t}:", makefile, re.MULTILINE)] == []


def test_make_help_lists_all_that_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    explained = re.findall(r"^([^#\s:][^:]*):[^#\n]*## (.*)$", makefile, re.MULTILINE)
    told = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    listed = re.findall(r"^  make (.*)$", told.stdout, re.MULTILINE)
    assert {"guest-linux", "test-linux", "kvm-unit-tests"} <= {name for name, _ in explained}
    assert [line.split() for line in listed] == [
        f"{name} {text}".split() for name, text in explained
    ]
