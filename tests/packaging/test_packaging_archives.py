"""What is in the sdist and in the wheel."""

import tarfile
import zipfile
from email.parser import BytesParser
from pathlib import Path, PurePosixPath

TOP_LEVEL = ("LICENSE", "Makefile", "README.md", "pyproject.toml", "setup.py")
SOURCE_DIRECTORIES = ("benchmarks", "build-support", "docs", "examples", "guests", "pykvm", "tests")


def members(archive: Path) -> set[str]:
    """The files of an archive, an sdist's without its top directory."""
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as tar:
        return {name.partition("/")[2] for name in tar.getnames() if "/" in name}


def files_below(directory: Path, base: Path, pattern: str = "*") -> set[str]:
    return {
        path.relative_to(base).as_posix() for path in directory.rglob(pattern) if path.is_file()
    }


def test_sdist_has_every_source(sdist: Path, sources: Path) -> None:
    expected = set(TOP_LEVEL)
    for directory in SOURCE_DIRECTORIES:
        expected |= files_below(sources / directory, sources)
    assert expected - members(sdist) == set()


def test_sdist_has_nothing_built(sdist: Path) -> None:
    built = {".so", ".o", ".pyc", ".elf", ".bin"}
    assert [name for name in members(sdist) if PurePosixPath(name).suffix in built] == []


def test_wheel_serves_every_python_from_3_10(wheel: Path) -> None:
    assert wheel.name.endswith("-cp310-abi3-linux_x86_64.whl")


def test_wheel_has_the_package_and_nothing_else(wheel: Path, sources: Path) -> None:
    package = {name for name in members(wheel) if ".dist-info/" not in name}
    expected = files_below(sources / "pykvm", sources, "*.py")
    assert package == expected | {"pykvm/py.typed", "pykvm/_core/_native.abi3.so"}


def test_wheel_is_the_same_wherever_it_is_built(wheel: Path, wheel_of_sources: Path) -> None:
    """From a checkout or from the sdist, in this directory or in that."""
    one, two = zipfile.ZipFile(wheel), zipfile.ZipFile(wheel_of_sources)
    with one, two:
        assert one.namelist() == two.namelist()
        different = [name for name in one.namelist() if one.read(name) != two.read(name)]
    assert different == []
    assert wheel.read_bytes() == wheel_of_sources.read_bytes()


def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = BytesParser().parsebytes(archive.read(name))
        names = archive.namelist()
    assert metadata["Name"] == "pykvm-vmm"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    required = [
        line.split(">")[0] for line in metadata.get_all("Requires-Dist", []) if "extra" not in line
    ]
    assert sorted(required) == ["cffi", "construct", "pyelftools"]
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
