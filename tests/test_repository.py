"""What must not be in the repository: built files, and paths and addresses of one machine."""

import re
import subprocess
from pathlib import Path

import pytest

LARGEST = 512 * 1024

# An absolute path into somebody's files, a package index, or an option that names one.
LOCAL = re.compile(
    r"""(?<![\w.$}~-])/(?:work|root|home/\w+|Users|opt/\w+|tmp/plan)/
      | \b(?:pypi|pythonhosted)\.org\b
      | \b(?:extra-index-url|index-url|find-links|trusted-host)\b
    """,
    re.VERBOSE,
)


@pytest.fixture(scope="module")
def files(root: Path) -> list[Path]:
    """What git tracks here, and what it would if all were added."""
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    paths = [root / name for name in names.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def test_no_binaries(files: list[Path], root: Path) -> None:
    assert files
    binaries = [path.relative_to(root) for path in files if b"\0" in path.read_bytes()]
    assert binaries == []


def test_no_large_files(files: list[Path], root: Path) -> None:
    large = [path.relative_to(root) for path in files if path.stat().st_size > LARGEST]
    assert large == []


def test_nothing_of_one_machine(files: list[Path], root: Path) -> None:
    found = [
        f"{path.relative_to(root)}:{number}: {match[0]}"
        for path in files
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for match in LOCAL.finditer(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    ["cd /work/main", "'/root/.cache/x'", "https://pypi.org/simple", "pip install --index-url x"],
)
def test_local_text_is_seen(text: str) -> None:
    assert LOCAL.search(text)


@pytest.mark.parametrize("text", ["docs/work/x", "/dev/kvm", "/tmp/serial.sock", "$HOME/opt/a/"])
def test_ordinary_text_passes(text: str) -> None:
    assert not LOCAL.search(text)
