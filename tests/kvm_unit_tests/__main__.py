"""Run the entries, one after the other, and print a table in Markdown."""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import cache, partial
from pathlib import Path

from kvm_unit_tests.entries import Entry, read_entries
from kvm_unit_tests.hypervisors import Command, Verdict, pykvm_command, qemu_command, run
from pykvm import Machine
from pykvm.errors import ConfigError

HYPERVISORS = ("pykvm", "kvm", "tcg")


def main(arguments: list[str] | None = None) -> int:
    """Print the table; the status says whether pykvm did what QEMU does, or 2 for no such tree."""
    options = _parser().parse_args(arguments)
    tree: Path = options.tree
    try:
        entries = read_entries(tree)
    except OSError as error:
        print(f"kvm-unit-tests: {tree} is no checkout of them: {error.strerror}", file=sys.stderr)
        return 2
    entries = [entry for entry in entries if not options.only or entry.name in options.only]
    commands: dict[str, Command] = {
        "pykvm": partial(pykvm_command, offers=_offers),
        "kvm": partial(qemu_command, accel="kvm", cpu=options.kvm_cpu),
        "tcg": partial(qemu_command, accel="tcg"),
    }
    chosen = {name: commands[name] for name in options.under}
    print("| Test |", " | ".join(chosen), "|")
    print("|---|" + "---|" * len(chosen))
    totals = dict.fromkeys(chosen, 0)
    lost = []
    for entry in entries:
        verdicts = _verdicts(entry, chosen, options.limit, options.logs)
        print(f"| {entry.name} |", " | ".join(map(_cell, verdicts.values())), "|", flush=True)
        passed = {name for name, verdict in verdicts.items() if verdict.word == "PASS"}
        for name in passed:
            totals[name] += 1
        if passed and "pykvm" in chosen and "pykvm" not in passed:
            lost.append(entry.name)
    print(f"| {len(entries)} entries |", " | ".join(map(str, totals.values())), "|")
    if lost:
        print(f"\nPassed by QEMU and not by pykvm: {', '.join(lost)}")
    return 1 if lost else 0


def _verdicts(
    entry: Entry, commands: dict[str, Command], limit: float, logs: Path | None
) -> dict[str, Verdict]:
    verdicts = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, command in commands.items():
            if name == "pykvm" and entry.device:
                verdicts[name] = Verdict("SKIP", f"there is no {entry.device}", 0.0, "")
                continue
            words = command(entry)
            verdict = verdicts[name] = run(words, limit, Path(folder))
            if logs is not None:
                logs.mkdir(parents=True, exist_ok=True)
                (logs / f"{entry.name}.{name}").write_text(f"{' '.join(words)}\n{verdict.output}")
    return verdicts


def _cell(verdict: Verdict) -> str:
    return f"{verdict}, {verdict.seconds:.1f} s".replace("|", "\\|")


@cache
def _offers(feature: str) -> bool:
    """Whether a machine on this host can have a feature of CPUID."""
    try:
        with Machine(cpu=f"baseline,+{feature}"):
            return True
    except ConfigError:
        return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kvm_unit_tests", description=__doc__)
    parser.add_argument("tree", type=Path, help="a checkout of kvm-unit-tests, built")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these entries alone")
    parser.add_argument("--under", nargs="+", choices=HYPERVISORS, default=HYPERVISORS)
    parser.add_argument("--limit", type=float, default=60, metavar="SECONDS", help="for each run")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep what each run says")
    parser.add_argument(
        "--kvm-cpu", default="", metavar="MODEL", help="QEMU's -cpu under KVM, whatever the entry's"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
