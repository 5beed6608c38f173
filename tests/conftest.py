"""Fixtures and settings for every test.

What needs KVM is decided in support/needs.py, which pyproject.toml loads as a plugin so that it
serves the doctests in pykvm/ too.
"""

from __future__ import annotations

import faulthandler
import gc
import random
import shutil
import signal
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from hypothesis import HealthCheck, settings

from support.guest import guest
from support.pc import pc
from support.slowness import SLOWNESS, longer

__all__ = ["guest", "guests", "pc", "root"]

ROOT = Path(__file__).parent.parent
BUILD_TOOLS = ("make", "gcc", "ld")
#: Seconds that a test may take to end after its deadline, before it is taken to be stuck in C.
BACKSTOP = 60

# --doctest-modules would import these once more, and find another folder's `conftest` instead.
collect_ignore_glob = ["conftest.py", "*/conftest.py"]

# Every run tries new examples, in CI too, where Hypothesis by itself would repeat the same ones for
# ever.  A failure prints the example (print_blob), and a run with failures its seed.  Machines that
# run tests are busy: no example fails for being slow.
settings.register_profile(
    "pykvm",
    derandomize=False,
    print_blob=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("pykvm")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the seed of this run's examples, so that it can be told; let signals end processes."""
    # nohup, and shells that start something in the background, have them ignored, and so would be
    # every child of the tests.  A handler keeps this process, and children begin without it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    if config.getoption("hypothesis_seed", None) is None:
        config.option.hypothesis_seed = str(random.SystemRandom().getrandbits(32))


def pytest_collection_finish() -> None:
    """Spare collections of garbage the tests themselves, which live as long as the session."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    if exitstatus:
        terminalreporter.write_line(
            f"--hypothesis-seed={config.option.hypothesis_seed} tries the same examples again"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell why a test failed at once where the run's end is far, and may never come."""
    report = yield
    terminal = item.config.pluginmanager.get_plugin("terminalreporter")
    if report.failed and SLOWNESS != 1 and terminal is not None:
        terminal.write_line(f"\n{report.nodeid}\n{report.longreprtext}")
    return report


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give each test more time on a host that is known to be slow, such as an emulated one."""
    if SLOWNESS != 1:
        item.add_marker(pytest.mark.timeout(longer(deadline_of(item))), append=False)


def deadline_of(item: pytest.Item) -> float:
    """The seconds after which pytest-timeout ends a test; 0 for never."""
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0] if marker and marker.args else item.config.getini("timeout") or 0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let faulthandler, which ends the whole session, wait for the test's own deadline first."""
    deadline = deadline_of(item)
    if deadline and float(item.config.getini("faulthandler_timeout") or 0):
        stderr = item.config.stash[fault_handler_stderr_fd_key]
        faulthandler.dump_traceback_later(deadline + BACKSTOP, exit=True, file=stderr)


@pytest.fixture(scope="session")
def root() -> Path:
    """The top directory of the source tree."""
    return ROOT


@pytest.fixture(scope="session")
def guests() -> Path:
    """The directory of built guests (hello.elf and its siblings), brought up to date first."""
    missing = [tool for tool in BUILD_TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(
            f"guests are built from source, and {', '.join(missing)} is missing: "
            "install gcc, binutils and make"
        )
    make = subprocess.run(
        ["make", "--no-print-directory", "-C", str(ROOT / "guests")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if make.returncode != 0:
        pytest.fail(f"the guests do not build:\n{make.stdout}", pytrace=False)
    return ROOT / "guests" / "build"
