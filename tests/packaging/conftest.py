"""The sdist of this tree and the wheel built from it, once per session."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

# What a working tree holds beside its sources.
NOT_SOURCES = shutil.ignore_patterns(
    ".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "build", "dist", "*.egg-info",
    "*.so", "*.o", "_native.c",
)  # fmt: skip
BUILD_SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


def run(*command: str, cwd: Path, **environment: str) -> str:
    """What the command prints; the test fails with all of it if the command does."""
    result = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        pytest.fail(f"{' '.join(command)}\n{result.stdout}", pytrace=False)
    return result.stdout


def the_only(directory: Path, pattern: str) -> Path:
    (path,) = directory.glob(pattern)
    return path


@pytest.fixture(scope="session")
def sources(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree as a fresh clone would have it."""
    copy = tmp_path_factory.mktemp("clone") / "pykvm"
    shutil.copytree(root, copy, ignore=NOT_SOURCES)
    return copy


@pytest.fixture(scope="session")
def sdist(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("setuptools", minversion="77.0.3")
    directory = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-c", BUILD_SDIST, str(directory), cwd=sources)
    return the_only(directory, "*.tar.gz")


def build_wheel(sources: Path, directory: Path) -> Path:
    """Built by pip, with our headers in the place of Python's and one date for every file."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", str(directory))
    environment = {"PYKVM_ABI3_HEADERS": "1", "SOURCE_DATE_EPOCH": "1700000000"}
    run(*pip, "wheel", *options, str(sources), cwd=sources, **environment)
    return the_only(directory, "*.whl")


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        # The default from 3.14 on, a warning before that, and unknown to the oldest.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(unpacked)
    return build_wheel(the_only(unpacked, "*"), tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def wheel_of_sources(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the tree itself."""
    return build_wheel(sources, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for sys.path that has the wheel in it and nothing else."""
    directory = tmp_path_factory.mktemp("installed")
    shutil.unpack_archive(wheel, directory, "zip")
    return directory
