"""The command line's words, parsed; no guest takes part."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from pykvm import MachineConfig
from pykvm.cli.help import help_text
from pykvm.cli.machine import config_of
from pykvm.cli.options import OF_MACHINE, OPTIONS, Destination, Options, parse
from pykvm.cli.status import UsageError

SECONDS = "above zero and up to 1000000000"


def test_defaults() -> None:
    options = parse(["guest.elf"])
    assert (options.command, options.guest, options.arguments) == ("run", "guest.elf", ())
    assert (options.config, options.timeout) == ({}, None)
    assert options.serial == Destination("stdio")


@pytest.mark.parametrize("words", [["run", "a.elf"], ["a.elf"]])
def test_run_is_the_default(words: list[str]) -> None:
    options = parse(words)
    assert (options.command, options.guest) == ("run", "a.elf")


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--memory", "1G"], "memory", 1 << 30),
        (["-m", "16M"], "memory", 16 << 20),
        (["--memory=2M"], "memory", 2 << 20),
        (["-m", "64"], "memory", 64 << 20),
        (["-m64"], "memory", 64 << 20),
        (["-m64M"], "memory", 64 << 20),
        (["--memory", "4096"], "memory", 4 << 30),
        (["--smp", "4"], "vcpus", 4),
        (["--smp=-1"], "vcpus", -1),
        (["--cpu", "host"], "cpu", "host"),
        (["--cpu=x86-64-v3,-avx2,+aes"], "cpu", "x86-64-v3,-avx2,+aes"),
        (["--quirks", "on"], "quirks", "on"),
        (["--tsc-khz", "2500000"], "tsc_khz", 2_500_000),
        (["--mode", "real"], "mode", "real"),
        (["--load-address", "0x1_0000"], "load_address", 0x10000),
        (["--entry", "7C0:0x10"], "entry", "07c0:0010"),
        (["--stack", "9000:FFFE"], "stack", "9000:fffe"),
        (["--append", "a b"], "append", "a b"),
        (["--append", "--x"], "append", "--x"),
        (["--kernel", "bzImage"], "kernel", "bzImage"),
        (["--fw-cfg", "opt/a=b=c"], "fw_cfg", (("opt/a", "b=c"),)),
        (["--fw-cfg", "opt/a=b", "--fw-cfg=c=d"], "fw_cfg", (("opt/a", "b"), ("c", "d"))),
        (["--serial", "none"], "serial", Destination("none")),
        (["--serial", "file:a:b"], "serial", Destination("file", "a:b")),
        (["--serial=unix:/tmp/s"], "serial", Destination("unix", "/tmp/s")),
        (["--serial", "tcp:4444"], "serial", Destination("tcp", "4444")),
        (["--serial2", "tcp:[::1]:4444"], "serial2", Destination("tcp", "[::1]:4444")),
        (["--debugcon", "pty"], "debugcon", Destination("pty")),
        (["--unclaimed", "open-bus"], "unclaimed", "open-bus"),
        (["--timeout", "0.5"], "timeout", 0.5),
        (["--until", "login: "], "until", ("login: ",)),
        (["--until", "a", "--until=b"], "until", ("a", "b")),
        (["--until", "\udcff"], "until", (b"\xff",)),
        (["--until-regex", "^a+$"], "until", (re.compile("^a+$", re.MULTILINE),)),
        (["--exit-status", "qemu"], "exit_status", "qemu"),
        (["--trace"], "trace", "text"),
        (["--trace=json"], "trace", "json"),
        (["--trace-file", "t"], "trace", "text"),
        (["--trace-file", "t", "--trace=json"], "trace", "json"),
        (["--stats"], "stats", True),
        (["--dump-on-exit"], "dump_on_exit", True),
        (["-q"], "quiet", True),
    ],
)
def test_option(words: list[str], field: str, value: object) -> None:
    for argv in ([*words, "guest.elf"], ["guest.elf", *words], ["run", *words, "guest.elf"]):
        options = parse(argv)
        assert {**vars(options), **options.config}[field] == value
        assert options.guest == "guest.elf"


def test_what_follows_two_dashes_is_the_guests() -> None:
    options = parse(["a.elf", "--stats", "--", "--memory", "--", "x"])
    assert options.arguments == ("--memory", "--", "x")
    assert options.stats
    assert options.config == {}


def test_commands_are_first_words_only() -> None:
    assert parse(["./info"]).guest == "./info"
    assert parse(["run", "info"]).guest == "info"
    assert parse(["--memory", "8M", "step", "a.elf"]).command == "step"
    assert parse(["info", "--json"]).json


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no guest file given"),
        (["run"], "no guest file given"),
        (["a.elf", "b"], "unexpected 'b': what is meant for the guest goes after --"),
        (
            ["--cpu", "haswell", "a"],
            "--cpu: there is no CPU model 'haswell' (choose from baseline, host, x86-64-v1, "
            "x86-64-v2, x86-64-v3, x86-64-v4)",
        ),
        (
            ["--cpu", "host,+sse42", "a"],
            "--cpu: there is no CPUID feature 'sse42' (did you mean sse4_2 or sse2 or sse4a?)",
        ),
        (
            ["--cpu", "host,+tsc-deadlin", "a"],
            "--cpu: there is no CPUID feature 'tsc-deadlin' (did you mean tsc_deadline_timer?)",
        ),
        (["--cpu", "max", "a"], "--cpu: there is no CPU model 'max' (QEMU's max is host)"),
        (
            ["-m", "67108864", "a"],
            "-m takes a size with its unit, as 64M (67108864 alone would be MiB), not '67108864'",
        ),
        (["--cpu", "+avx,-avx", "a"], "--cpu: the CPU '+avx,-avx' both adds and removes avx"),
        (["--quirks", "no", "a"], "--quirks takes one of auto, on, off, not 'no'"),
        (["--memroy", "1G", "a"], "unknown option --memroy (did you mean --memory?)"),
        (["-x", "a"], "unknown option -x"),
        (["a", "--memory"], "--memory needs a value: --memory SIZE"),
        (["a", "--memory", "--"], "--memory needs a value: --memory SIZE"),
        (["a", "--memory", "much"], "--memory takes a size such as 64M or 2G, not 'much'"),
        (["a", "--memory", "0"], "--memory takes a size above zero, such as 64M, not '0'"),
        *(
            (
                ["a", "--tsc-khz", wrong],
                f"--tsc-khz takes a frequency in kHz, as 2000000 for 2 GHz, not '{wrong}'",
            )
            for wrong in ("0", "-1", "2GHz", "1e6", "4294967296", "9" * 5000)
        ),
        (["a", "--smp", "two"], "--smp takes a number, not 'two'"),
        (["a", "--mode", "v86"], "--mode takes one of real, protected, long, not 'v86'"),
        (["a", "--entry", "7c00"], "--entry takes SEGMENT:OFFSET, as 07C0:0000, not '7c00'"),
        (["a", "--stack", "x:0"], "--stack takes SEGMENT:OFFSET, as 07C0:0000, not 'x:0'"),
        (["a", "--load-address", "x"], "--load-address takes an address such as 0x100000, not 'x'"),
        (["a", "--load-address", "-1"], "--load-address takes an address, not negative, not '-1'"),
        *(
            (["a", "--timeout", wrong], f"--timeout takes seconds, {SECONDS}, not '{wrong}'")
            for wrong in ("nan", "0", "-1", "inf", "1e300", "1000000001")
        ),
        (["a", "--timeout", "soon"], "--timeout takes seconds such as 5 or 0.5, not 'soon'"),
        (
            ["a", "--serial", "tty"],
            "--serial takes stdio, file:PATH, pty, unix:PATH, tcp:[HOST:]PORT or none, not 'tty'",
        ),
        *(
            (
                ["a", "--serial", wrong],
                f"--serial takes tcp:PORT or tcp:HOST:PORT, as tcp:4444, not '{wrong}'",
            )
            for wrong in ("tcp:", "tcp:host", "tcp:host:", "tcp:70000", "tcp:-1", "tcp:http")
        ),
        (["a", "--serial", "file:"], "--serial takes file:PATH, with a path, not 'file:'"),
        (
            ["a", "--fw-cfg", "opt/a"],
            "--fw-cfg takes NAME=FILE, as opt/org.example/key=key.pem, not 'opt/a'",
        ),
        (["a", "--until", ""], "--until takes text that is not empty, not ''"),
        (
            ["a", "--until-regex", "("],
            "--until-regex takes a regular expression (missing ), unterminated subpattern at "
            "position 0), not '('",
        ),
        (
            ["a", "--until-regex", "a*"],
            "--until-regex takes a regular expression that matches no empty text, not 'a*'",
        ),
        (["step", "a", "--until", "b"], "--until belongs to run, not to step"),
        (["a", "--trace=xml"], "--trace takes one of text, json, not 'xml'"),
        (["a", "--stats=yes"], "--stats takes no value"),
        (["step", "a", "--trace"], "--trace belongs to run, not to step"),
        (["a", "--json"], "--json belongs to info and snapshot, not to run"),
        (["info", "a"], "info takes no guest: unexpected 'a'"),
    ],
)
def test_wrong_use_is_named(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(words)
    assert str(caught.value) == message


def test_help_is_asked_for_whatever_else_is_wrong() -> None:
    assert parse(["--help"]).help
    assert parse(["step", "--version"]).version


# Fields of a MachineConfig that the command line fills otherwise, or not at all.
WITHOUT_OPTION = {
    "image": "the guest file is a word of its own",
    "args": "what follows -- is the guest's",
    "devices": "objects of a program",
}


def test_every_field_of_a_machine_has_its_option() -> None:
    set_ = [option.field for option in OPTIONS if option.group in OF_MACHINE]
    assert sorted([*set_, *WITHOUT_OPTION]) == sorted(inspect.signature(MachineConfig).parameters)


def test_every_other_option_sets_an_attribute_that_exists() -> None:
    others = [option for option in OPTIONS if option.group not in OF_MACHINE]
    assert [option.flag for option in others if not hasattr(Options, option.field)] == []


def test_the_options_of_a_machine_are_its_config(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"secret")
    options = parse(
        [
            *("--smp", "2", "--tsc-khz", "2000000", "--module", "m words", "--append-only"),
            *("--fw-cfg", f"opt/key={tmp_path / 'key'}", "a.elf", "--", "one"),
        ]
    )
    assert config_of(options) == MachineConfig(
        "a.elf",
        vcpus=2,
        tsc_khz=2_000_000,
        modules=[("m", "words")],
        append_only=True,
        fw_cfg={"opt/key": b"secret"},
        args=["one"],
    )
    assert config_of(parse(["a.elf"])) == MachineConfig("a.elf")


def test_help_names_every_option_in_narrow_lines() -> None:
    text = help_text()
    assert [option.flag for option in OPTIONS if option.flag not in text] == []
    assert max(map(len, text.splitlines())) <= 100
