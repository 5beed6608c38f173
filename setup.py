"""Builds the C extension.  Everything else about the package is in pyproject.toml."""

from __future__ import annotations

import os
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

# Python.h for machines without python3-dev, relative to this file's directory.
OWN_HEADERS = "build-support/abi3"


def needs_own_headers(include_dirs: list[str]) -> bool:
    """Whether none of these directories has Python.h, or PYKVM_ABI3_HEADERS=1 says to act so."""
    if os.environ.get("PYKVM_ABI3_HEADERS") == "1":
        return True
    return not any(Path(directory, "Python.h").is_file() for directory in include_dirs)


class BuildExtension(build_ext):
    def finalize_options(self) -> None:
        super().finalize_options()
        if needs_own_headers(self.include_dirs):
            self.include_dirs.insert(0, OWN_HEADERS)
        for extension in self.extensions:
            # The directory of the build would stand in the debugging information.
            extension.extra_compile_args.append(f"-ffile-prefix-map={os.getcwd()}=.")


setup(
    cffi_modules=["pykvm/_core/build.py:ffibuilder"],
    cmdclass={"build_ext": BuildExtension},
    # One wheel for every CPython from requires-python on: the module is built for the stable ABI.
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
