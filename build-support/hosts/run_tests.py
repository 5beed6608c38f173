#!/usr/bin/env python3
"""Run tests on a host that this machine is not: kvm_amd or kvm_intel, in an emulator.

    run_tests.py amd                     all tests of KVM, on kvm_amd
    run_tests.py intel                   some of each room, on kvm_intel
    run_tests.py amd --short             a few minutes of it, as CI has them
    run_tests.py amd -- tests/vcpu -x    other tests; options of pytest alone go with ours
    run_tests.py amd --minutes 240       a longer limit for all of it, for a busy machine
    run_tests.py amd --stable-tsc        on a host whose TSC is stable, as those of processors are
    run_tests.py amd --optional          the same, but where something is missing say so in a line
    run_tests.py amd --packages          print the Debian packages that are missing

What pytest says is printed as it comes, and its exit status is this program's.  Both consoles stay
in build/hosts.
"""

from __future__ import annotations

import argparse
import math
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "guests/linux"))

import tree
from artifacts import Build, BuildError
from emulators import EMULATORS, Emulator, Host
from image import TREE, image, missing_tools
from selections import SELECTIONS, SHORT

LOGS = ROOT / "build" / "hosts"
#: What `init` says at last.
STATUS = re.compile(rb"emulated host: status (\d+)\r?\n")

#: How many times longer than on a processor a test may take, by its own time limits.
SLOWNESS = {"amd": 10, "intel": 20}
#: How long all tests together may take, unless `--minutes` says otherwise.
MINUTES = {"amd": 90, "intel": 90}


def main() -> int:
    options = parse()
    emulator = EMULATORS[options.host]
    missing = emulator.missing() + missing_tools()
    if options.packages:
        print(*missing)
        return 0
    try:
        if missing:
            raise BuildError(f"it needs: apt-get install {' '.join(missing)}")
        system = image()
        system.build()
    except BuildError as error:
        print(f"no tests on {emulator.title}: {error}", file=sys.stderr)
        return 0 if options.optional else 1
    try:
        minutes = options.minutes or MINUTES[options.host]
        words = ("tsc=reliable",) if options.stable_tsc else ()
        return run(options.host, emulator, system.directory, arguments(options), minutes, words)
    except BuildError as error:
        print(f"{emulator.title}: {error}", file=sys.stderr)
        return 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run tests on kvm_amd or kvm_intel, emulated.")
    parser.add_argument("host", choices=EMULATORS)
    parser.add_argument("--short", action="store_true", help="only a few of them")
    parser.add_argument(
        "--optional", action="store_true", help="emulator or packages may be missing"
    )
    parser.add_argument(
        "--stable-tsc", action="store_true", help="the host takes its TSC for stable"
    )
    parser.add_argument("--packages", action="store_true", help="print those that are missing")
    parser.add_argument("--minutes", type=time_limit, help="how long all of them together may take")
    parser.add_argument("--", dest="pytest", metavar="PYTEST", help="tests, and options of pytest")
    # What follows a `--` is pytest's, whatever it looks like.
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:end])
    options.pytest = words[end + 1 :]
    return options


def arguments(options: argparse.Namespace) -> list[str]:
    """What pytest is told: our selection, or another if one is named, and options."""
    if any(Path(ROOT, word.partition("::")[0]).exists() for word in options.pytest):
        return list(options.pytest)
    return [*(SHORT if options.short else SELECTIONS[options.host]), *options.pytest]


def time_limit(text: str) -> float:
    """A time limit.  Raises ValueError if it is none."""
    if not 0 < (value := float(text)) < math.inf:
        raise ValueError(text)
    return value


def run(
    name: str,
    emulator: Emulator,
    system: Path,
    arguments: list[str],
    minutes: float,
    words: tuple[str, ...],
) -> int:
    """Boot with these words for the kernel, print the report, and return pytest's exit status."""
    LOGS.mkdir(parents=True, exist_ok=True)
    console, report, log = (LOGS / f"{name}.{kind}" for kind in ("console", "report", "log"))
    for path in (console, report, log):
        path.unlink(missing_ok=True)
    report.touch()
    with tempfile.TemporaryDirectory(prefix=f"pykvm-{name}-") as directory:
        build = Build(Path(directory, "tree"), Path(directory, "result"), log)
        build.tree.mkdir()
        build.result.mkdir()
        environment = {
            "HOME": "/tmp",
            "LC_ALL": "C.UTF-8",
            "PATH": "/usr/bin:/usr/sbin",
            "PYKVM_LINUX": f"{TREE}/{tree.LINUX}",
            "PYKVM_REQUIRE_KVM": "1",
            "PYKVM_SLOWNESS": str(SLOWNESS[name]),
            "PYKVM_STOCK_PATIENCE": "150",
        }
        command = ["python3", "-m", "pytest", *arguments]
        disk = tree.disk(build, command, environment, system / "vmlinuz")
        host = Host(
            kernel=system / "vmlinuz",
            initramfs=system / "initramfs.cpio",
            system=system / "root.img",
            tree=disk,
            console=console,
            report=report,
            words=words,
        )
        print(f"{emulator.title}: pytest {' '.join(arguments)}", flush=True)
        process = emulator.start(host, build)
        try:
            return follow(process, host, minutes * 60)
        finally:
            process.kill()
            process.wait()


def follow(process: subprocess.Popen[bytes], host: Host, seconds: float) -> int:
    """Print the report until it has its last line.  Raises BuildError if it never comes."""
    deadline = time.monotonic() + seconds
    line = b""
    with host.report.open("rb") as report:
        while True:
            ended = process.poll() is not None
            new = report.read()
            sys.stdout.buffer.write(STATUS.sub(b"", new))
            sys.stdout.flush()
            line = (line + new)[-200:]
            if found := STATUS.search(line):
                return int(found[1])
            if ended:
                raise BuildError(f"the host ended before its tests did: see {host.console}")
            if time.monotonic() > deadline:
                raise BuildError(f"the tests were not done after {seconds / 60:g} minutes")
            time.sleep(0.2)


if __name__ == "__main__":
    # The emulator goes with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
