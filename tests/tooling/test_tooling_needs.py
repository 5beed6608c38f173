"""When a test that needs KVM may be skipped, and when that is a failure (support/needs.py)."""

import errno
import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from support import host

PROBES = """
from support.host import host_probe

@host_probe("can")
def can():
    return None

@host_probe("cannot")
def cannot():
    return "it does something else"

@host_probe("breaks")
def breaks():
    raise OSError("the probe itself is broken")
"""
KVM_WORKS = """
from support import host
host.kvm_missing = lambda device: None
"""
NO_KVM = """
from support import host
host.DEVICE = "/nonexistent/kvm"
"""
NO_LINUX = """
from support import linux
linux.find = lambda: "tests that boot Linux: it is not built yet: make guest-linux"
"""
LINUX_TEST = "def test_boot(linux): pass"
MANY_TESTS = """
@pytest.mark.kvm
@pytest.mark.parametrize("number", range(3))
def test_many(number): pass
"""
DOCTESTS = '''
def plain():
    """
    >>> 1 + 1
    2
    """

def guest():
    """
    >>> machine = 1  # needs /dev/kvm
    >>> machine + 1
    2
    """
'''
TESTS = """
import pytest
from support.host import require_host

def test_plain(): pass

@pytest.mark.skip(reason="not about KVM")
def test_plain_skipped(): pass

@pytest.mark.kvm
def test_marked(): pass

@pytest.fixture
def machine(kvm): return 1

def test_by_fixture(machine): pass

def test_by_late_fixture(request): request.getfixturevalue("kvm")

@pytest.mark.needs_host("can")
def test_can(): pass

@pytest.mark.needs_host("can", "cannot")
def test_cannot(): raise AssertionError("must not run")

def test_cannot_late(kvm): require_host("cannot")

@pytest.mark.needs_host("breaks")
def test_broken_probe(): pass

@pytest.mark.needs_host("unknown")
def test_unknown_probe(): pass

@pytest.mark.kvm
@pytest.mark.skip(reason="not today")
def test_skipped_by_mark(): pass

@pytest.mark.kvm
def test_skipped_inside(): pytest.skip("never mind")

@pytest.mark.kvm
@pytest.mark.xfail(reason="known bug")
def test_fails_as_expected(): assert False

@pytest.mark.kvm
@pytest.mark.xfail(reason="known bug", run=False)
def test_expected_but_not_run(): assert False

@pytest.mark.kvm
def test_gives_up(): pytest.xfail("never mind")
"""

PLAIN = {"test_plain": "passed", "test_plain_skipped": "skipped"}
ANSWERED = {
    "test_marked": "passed",
    "test_by_fixture": "passed",
    "test_by_late_fixture": "passed",
    "test_can": "passed",
    "test_cannot": "skipped",
    "test_cannot_late": "skipped",
    "test_broken_probe": "failed",
    "test_unknown_probe": "failed",
    "test_fails_as_expected": "skipped",
}
EXCUSES = (
    "test_skipped_by_mark",
    "test_skipped_inside",
    "test_expected_but_not_run",
    "test_gives_up",
)
NEEDS_KVM = (*ANSWERED, *EXCUSES)


class Session:
    """A run of pytest with the plugin, in a process of its own."""

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pytester = pytester
        self.monkeypatch = monkeypatch
        monkeypatch.setenv("PYTHONPATH", str(Path(host.__file__).parent.parent))
        # Loading Hypothesis takes three quarters of such a run.
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(
        self, conftest: str, *args: str, required: bool = False, linux_required: bool = False
    ) -> pytest.RunResult:
        self.monkeypatch.setenv("PYKVM_REQUIRE_KVM", "1" if required else "")
        self.monkeypatch.setenv("PYKVM_REQUIRE_LINUX", "1" if linux_required else "")
        self.pytester.makeconftest(conftest)
        self.pytester.makeini("[pytest]")  # no pyproject.toml further up takes part
        return self.pytester.runpytest_subprocess(
            "-p", "support.needs", "-p", "no:cacheprovider", "--strict-markers", "-rs", *args
        )

    def outcomes(self, conftest: str, *, required: bool) -> dict[str, str]:
        """What became of each of TESTS."""
        self.pytester.makepyfile(test_inner=TESTS)
        self.run(conftest, "--junit-xml=report.xml", required=required)
        cases = ElementTree.parse(self.pytester.path / "report.xml").iter("testcase")
        return {case.attrib["name"]: outcome(case) for case in cases}


def outcome(case: ElementTree.Element) -> str:
    kinds = {child.tag for child in case}
    if kinds & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in kinds else "passed"


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Session:
    return Session(pytester, monkeypatch)


@pytest.mark.parametrize("required", [False, True])
def test_with_kvm(session: Session, required: bool) -> None:
    excused = dict.fromkeys(EXCUSES, "failed" if required else "skipped")
    expected = PLAIN | ANSWERED | excused
    assert session.outcomes(KVM_WORKS + PROBES, required=required) == expected


@pytest.mark.parametrize("required", [False, True])
def test_without_kvm(session: Session, required: bool) -> None:
    expected = PLAIN | dict.fromkeys(NEEDS_KVM, "failed" if required else "skipped")
    assert session.outcomes(NO_KVM + PROBES, required=required) == expected


def test_missing_kvm_is_told_once(session: Session) -> None:
    session.pytester.makepyfile("import pytest\n" + MANY_TESTS)
    result = session.run(NO_KVM)
    assert result.ret == pytest.ExitCode.OK
    reasons = [line for line in result.outlines if line.startswith("SKIPPED")]
    assert len(reasons) == 1
    assert reasons[0].startswith("SKIPPED [3] ")
    assert (
        ": tests that need KVM: opening /nonexistent/kvm: No such file or directory "
        "(load kvm_intel" in reasons[0]
    )


@pytest.mark.parametrize("required", [False, True])
def test_missing_linux_names_the_command_that_builds_it(session: Session, required: bool) -> None:
    session.pytester.makepyfile(LINUX_TEST)
    result = session.run(KVM_WORKS + NO_LINUX, required=required)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*it is not built yet: make guest-linux"])


def test_missing_linux_fails_where_it_is_required(session: Session) -> None:
    session.pytester.makepyfile(LINUX_TEST)
    result = session.run(KVM_WORKS + NO_LINUX, linux_required=True)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["PYKVM_REQUIRE_LINUX=1, but*make guest-linux"])


def test_linux_needs_kvm(session: Session) -> None:
    session.pytester.makepyfile(LINUX_TEST)
    assert session.run(NO_KVM, "-m", "kvm and linux").ret == pytest.ExitCode.OK
    result = session.run(NO_KVM + NO_LINUX, linux_required=True)
    result.assert_outcomes(skipped=1)


def test_summary_names_the_probe(session: Session) -> None:
    session.pytester.makepyfile(test_inner=TESTS)
    result = session.run(KVM_WORKS + PROBES, "-k", "cannot")
    result.stdout.fnmatch_lines(
        [
            "*what this host cannot do, by probe*",
            "cannot: it does something else",
            "    skipped test_inner.py::test_cannot",
            "    skipped test_inner.py::test_cannot_late",
        ]
    )


def test_module_skipped_before_collection(session: Session) -> None:
    session.pytester.makepyfile("import pytest; pytest.importorskip('no_such_module_anywhere')")
    assert session.run(KVM_WORKS).ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert session.run(KVM_WORKS, required=True).ret == pytest.ExitCode.INTERRUPTED


def test_doctest_with_the_comment_needs_kvm(session: Session) -> None:
    session.pytester.makepyfile(module=DOCTESTS)
    result = session.run(NO_KVM, "--doctest-modules", "module.py")
    result.assert_outcomes(passed=1, skipped=1)


def test_kvm_that_is_not_kvm() -> None:
    assert host.kvm_missing("/dev/null") == (
        "tests that need KVM: KVM_GET_API_VERSION on /dev/null: " + os.strerror(errno.ENOTTY)
    )


def test_a_forbidden_device_says_what_to_do() -> None:
    error = OSError(errno.EACCES, os.strerror(errno.EACCES))
    assert host.explain("opening /dev/kvm", error).endswith(
        "Permission denied (join the group that owns it (usermod -aG kvm NAME) and log in again)"
    )


def test_probes_have_one_name_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "probes", {})
    register = host.host_probe("once")
    register(lambda: None)
    with pytest.raises(ValueError, match="two host probes are named once"):
        register(lambda: None)
