"""The pytest plugin for the markers `kvm`, `linux` and `needs_host`.

Where the environment says PYKVM_REQUIRE_KVM=1, as .ci/run does, a test that needs KVM may not be
skipped for any reason but the verdict of a host probe, or that the Linux it would boot is not
built: any other skip of it is a failure, and under PYKVM_REQUIRE_LINUX=1 the latter is one too.

A doctest needs KVM if one of its lines has the comment ``# needs /dev/kvm``.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Generator

import pytest

from support import host, linux

REQUIRE = "PYKVM_REQUIRE_KVM"
REQUIRE_LINUX = "PYKVM_REQUIRE_LINUX"
DOCTEST_COMMENT = "# needs /dev/kvm"
PROPERTY = "host_probe"

MARKERS = (
    "kvm: needs a working /dev/kvm",
    "linux: boots the Linux of guests/linux, which the fixture of this name finds",
    "needs_host(probe, ...): needs KVM and a host of which each of these probes says that it can",
)


def kvm_required() -> bool:
    return os.environ.get(REQUIRE) == "1"


def linux_required() -> bool:
    return os.environ.get(REQUIRE_LINUX) == "1"


def needs_kvm(item: pytest.Item) -> bool:
    if isinstance(item, pytest.DoctestItem):
        return any(DOCTEST_COMMENT in example.source for example in item.dtest.examples)
    return (
        item.get_closest_marker("kvm") is not None
        or item.get_closest_marker("needs_host") is not None
        or "kvm" in getattr(item, "fixturenames", ())
    )


def probes_of(item: pytest.Item) -> list[str]:
    return [name for marker in item.iter_markers("needs_host") for name in marker.args]


@pytest.fixture(scope="session")
def kvm() -> None:
    """Needs KVM: a test that uses this fixture, itself or through another, is marked `kvm`."""
    host.require_kvm()


@pytest.fixture(scope="session", name="linux")
def linux_paths(kvm: None) -> linux.Linux:
    """The kernel and its initramfs: a test that uses this is marked `linux` and `kvm`."""
    return linux.require_linux()


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


def pytest_report_header() -> str:
    return f"kvm: {host.kvm_missing(host.DEVICE) or 'works'}"


def pytest_itemcollected(item: pytest.Item) -> None:
    if needs_kvm(item):
        item.add_marker("kvm")
    if "linux" in getattr(item, "fixturenames", ()):
        item.add_marker("linux")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("kvm"):
        host.require_kvm()
    for name in probes_of(item):
        host.require_host(name)


def unexcused(item: pytest.Item, error: BaseException | None) -> bool:
    """Whether `error` leaves a test unrun that the environment says must run."""
    if isinstance(error, host.KVMMissing):
        return kvm_required()
    if isinstance(error, linux.LinuxMissing):
        return linux_required()
    if not kvm_required():
        return False
    if item.get_closest_marker("kvm") is None or isinstance(error, host.HostCannot):
        return False
    # One that fails as expected is reported as skipped too, but it ran, unless it called xfail().
    return isinstance(error, (pytest.skip.Exception, pytest.xfail.Exception))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not report.skipped:
        return report
    error = call.excinfo.value if call.excinfo else None
    if isinstance(error, host.HostCannot):
        report.user_properties.append((PROPERTY, f"{error.probe}: {error.reason}"))
    elif unexcused(item, error):
        report.outcome = "failed"
        required = REQUIRE_LINUX if isinstance(error, linux.LinuxMissing) else REQUIRE
        report.longrepr = f"{required}=1, but this test was skipped: {error}"
        vars(report).pop("wasxfail", None)
        return report
    if isinstance(error, (host.HostCannot, host.KVMMissing, linux.LinuxMissing)):
        # One place for all of them, so that the summary has each reason once.
        report.longrepr = (host.__file__, 0, str(error))
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and kvm_required():
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = (
            f"{REQUIRE}=1, but {collector.nodeid} was skipped before anyone could see "
            f"whether its tests need KVM: {reason}"
        )
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped: dict[str, list[str]] = defaultdict(list)
    for report in terminalreporter.getreports("skipped"):
        for name, verdict in getattr(report, "user_properties", ()):
            if name == PROPERTY:
                skipped[verdict].append(report.nodeid)
    if not skipped:
        return
    terminalreporter.section("what this host cannot do, by probe")
    for verdict, nodeids in sorted(skipped.items()):
        terminalreporter.write_line(verdict)
        for nodeid in nodeids:
            terminalreporter.write_line(f"    skipped {nodeid}")
