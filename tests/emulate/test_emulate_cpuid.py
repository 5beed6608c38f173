"""Instructions and the guest's CPUID: what it does not show is undefined."""

from __future__ import annotations

from contextlib import suppress

import pytest

from emulate.encodings import encodings
from emulate.fake_vcpu import Bench
from pykvm.emulate.features import features_of
from pykvm.emulate.table import method_of
from pykvm.x86.cpuid_features import FEATURES
from pykvm.x86.decode import UndecodableError, decode
from pykvm.x86.registers import CR4


def test_the_feature_of_every_instruction_is_known() -> None:
    """Nothing is done of which it is not known which processors have it."""
    unknown = set()
    for code in encodings():
        with suppress(UndecodableError):
            instruction = decode(code, 32)
            plan = method_of(instruction)
            if plan.operation is None and plan.unit is None:
                continue
            features = features_of(instruction)
            if features is None or not set(features) <= FEATURES:
                unknown.add((plan.name, code[:5].hex(" ")))
    assert not unknown


@pytest.mark.parametrize(
    ("code", "hidden"),
    [
        ("0f01fd", "rdpru"),
        ("f3480fb8c3", "popcnt"),
        ("0f58c1", "sse"),
        ("660f58c1", "sse2"),
        ("f20fd0c1", "pni"),
        ("660f3800c1", "ssse3"),
        ("660f3817c1", "sse4_1"),
        ("660f3a63c10c", "sse4_2"),
        ("660f38dcc1", "aes"),
        ("660f3a44c111", "pclmulqdq"),
        ("0ffcc1", "mmx"),
        ("d9e8", "fpu"),
        ("dac1", "cmov"),
        ("0f01cb", "smap"),
        ("0f01f9", "rdtscp"),
        ("480fc70f", "cx16"),
        ("480fae27", "xsave"),
        ("480fc727", "xsavec"),
        ("660f388207", "invpcid"),
        ("c5fc28c1", "avx"),
        ("c5f5efd3", "avx2"),
        ("c4e2f9dcc1", "aes"),
        ("c4e27d13c1", "f16c"),
        ("c4e2f1b8c2", "fma"),
        ("c4e2f8f3cb", "bmi1"),
        ("c4e2f0f5c3", "bmi2"),
        ("66480f38f6c3", "adx"),
        ("62f17c4858c1", "avx512f"),
        ("8fe878a2c110", "xop"),
        ("0f0fc19e", "3dnow"),
        ("0f38c9c1", "sha_ni"),
    ],
)
def test_what_cpuid_does_not_show_is_undefined(bench: Bench, code: str, hidden: str) -> None:
    bench.cpu.kvm.hidden = {hidden}
    assert bench.take(bytes.fromhex(code))
    exception = bench.cpu.all.events.exception
    assert (exception.injected, exception.nr) == (1, 6)
    assert bench.cpu.all.regs.rip == 0x1000


@pytest.mark.parametrize(
    "code",
    [
        "f3480f1ece",  # rdsspq rsi
        "f30f1ec8",
        "f30f1efa",  # endbr64
        "f30f1efb",
        "0f1c00",  # cldemote [rax], at an address that is not there
        "0f0d08",
        "0f1800",
        "0f19c0",
        "660f1a00",  # bndmov
        "f30f1b00",
        "0f1dc0",
        "0f1f440000",
    ],
)
def test_hints_do_nothing(bench: Bench, code: str) -> None:
    """The reserved NOPs, with the features that use some of them shown or not."""
    bench.cpu.kvm.hidden = set(FEATURES)
    regs = bench.cpu.all.regs
    regs.rax, regs.rsi = 1 << 62, 7
    assert bench.take(bytes.fromhex(code))
    assert (regs.rip, regs.rax, regs.rsi) == (0x1000 + len(code) // 2, 1 << 62, 7)
    assert not bench.cpu.all.events.exception.injected


def test_rdssp_with_shadow_stacks_is_not_taken_for_a_nop(bench: Bench) -> None:
    bench.cpu.all.sregs.cr4 |= CR4.CET
    assert not bench.take(bytes.fromhex("f3480f1ece"))
