"""The extension built with our own stable-ABI headers: does it import, and is it what it claims?"""

import re
import runpy
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import setuptools
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

# RTLD_NOW: a function that the interpreter lacks fails the import, not the first call.
IMPORT_NOW = """
import os, sys
sys.setdlopenflags(os.RTLD_NOW)
sys.path.insert(0, sys.argv[1])
from pykvm._core import _native
assert _native.lib.pykvm_cycles() > 0
print(_native.__file__)
"""
AGREES_WITH_CPYTHON = """
#define Py_LIMITED_API 0x030a0000
#include <Python.h>
#include "{headers}/Python.h"
"""


@pytest.fixture
def headers(root: Path) -> Path:
    return root / "build-support" / "abi3"


def undefined_symbols(shared_object: Path) -> set[str]:
    with shared_object.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".dynsym")
        assert isinstance(table, SymbolTableSection)
        return {s.name for s in table.iter_symbols() if s["st_shndx"] == "SHN_UNDEF"}


def test_imports_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_NOW, str(installed)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == ""
    assert Path(result.stdout.strip()) == installed / "pykvm/_core/_native.abi3.so"


def test_uses_only_what_the_headers_declare(installed: Path, headers: Path) -> None:
    used = undefined_symbols(installed / "pykvm/_core/_native.abi3.so")
    python = {name for name in used if re.match("_?Py", name)}
    declared = set(re.findall(r"\b(_?Py\w+)", (headers / "Python.h").read_text()))
    assert "Py_IncRef" in python
    assert python - declared == set()


def test_headers_agree_with_cpython(headers: Path, tmp_path: Path) -> None:
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").is_file():
        pytest.skip(f"no Python.h in {include} to compare with (python3-dev is not installed)")
    source = tmp_path / "agree.c"
    source.write_text(AGREES_WITH_CPYTHON.format(headers=headers))
    # C allows a function to be declared twice only if both declarations have the same type.
    result = subprocess.run(
        ["gcc", "-std=gnu11", "-w", "-fsyntax-only", f"-I{include}", str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == ""


@pytest.fixture
def needs_own_headers(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], bool]:
    """The function of that name in setup.py."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.delenv("PYKVM_ABI3_HEADERS", raising=False)
    names = runpy.run_path(str(root / "setup.py"))
    return cast("Callable[[list[str]], bool]", names["needs_own_headers"])


def test_own_headers_only_where_python_has_none(
    needs_own_headers: Callable[[list[str]], bool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_headers, without = tmp_path / "with", tmp_path / "without"
    with_headers.mkdir()
    (with_headers / "Python.h").touch()
    assert needs_own_headers([str(without)])
    assert not needs_own_headers([str(without), str(with_headers)])
    monkeypatch.setenv("PYKVM_ABI3_HEADERS", "1")
    assert needs_own_headers([str(with_headers)])
