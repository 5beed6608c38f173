"""Panics and oopses of Linux kernels, as their consoles show them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.bus import GuestPanic
from pykvm.machine.linux_console import LINES, LONGEST_LINE, KernelWatch

PANIC = b"""\
[    1.100000] List of all partitions:\r
[    1.200000] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r
[    1.300000] CPU: 0 PID: 1 Comm: swapper/0 Not tainted 6.1.0 #1\r
[    1.400000] Call Trace:\r
"""
PANIC_END = b"[    1.5] ---[ end Kernel panic - not syncing: VFS: Unable to mount root fs ]---\r\n"
OOPS = b"""\
[    2.000000][   T77] BUG: kernel NULL pointer dereference, address: 0000000000000000
[    2.000001][   T77] #PF: supervisor write access in kernel mode
[    2.000002][   T77] Oops: 0002 [#1] PREEMPT SMP
[    2.000003][   T77] CPU: 0 PID: 77 Comm: sh Not tainted 6.1.0 #1
[    2.000004][   T77] RIP: 0010:sysrq_handle_crash+0x16/0x20
[    2.000005][   T77] RIP: 0033:0x401234
"""
OOPS_END = b"[    2.1][   T77] ---[ end trace 0000000000000000 ]---\n"
CAUSE = "VFS: Unable to mount root fs on unknown-block(0,0)"


def test_a_panic_is_told_at_its_last_line() -> None:
    watch = KernelWatch()
    watch.output(PANIC)
    with pytest.raises(GuestPanic) as caught:
        watch.output(PANIC_END)
    assert (caught.value.kind, caught.value.cause) == ("kernel panic", CAUSE)
    assert "Comm: swapper/0" in caught.value.console
    assert "\r" not in caught.value.console


def test_a_panic_that_ends_in_a_reset_is_told_once() -> None:
    watch = KernelWatch()
    watch.output(PANIC)
    death = watch.death()
    assert death is not None
    assert death.cause == CAUSE
    assert watch.death() is None


def test_an_oops_is_told_with_its_complaint_and_its_place() -> None:
    watch = KernelWatch()
    watch.output(OOPS)
    with pytest.raises(GuestPanic) as caught:
        watch.output(OOPS_END)
    assert str(caught.value) == (
        "kernel oops: BUG: kernel NULL pointer dereference, address: 0000000000000000, "
        "at sysrq_handle_crash+0x16/0x20"
    )


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("divide error: 0000 [#3] SMP", "divide error"),
        (
            "general protection fault, probably for non-canonical address 0xdead: 0000 [#1]",
            "general protection fault, probably for non-canonical address 0xdead",
        ),
        ("kernel BUG at mm/slub.c:435!\ninvalid opcode: 0000 [#1]", "kernel BUG at mm/slub.c:435!"),
    ],
)
def test_oopses_without_a_place(line: str, cause: str) -> None:
    watch = KernelWatch()
    with pytest.raises(GuestPanic) as caught:
        watch.output(f"{line}\n".encode() + OOPS_END)
    assert caught.value.cause == cause


def test_after_an_oops_the_next_is_told_anew() -> None:
    watch = KernelWatch()
    with pytest.raises(GuestPanic):
        watch.output(OOPS + OOPS_END)
    with pytest.raises(GuestPanic) as caught:
        watch.output(b"divide error: 0000 [#2]\n" + OOPS_END)
    assert caught.value.cause == "divide error"


def test_warnings_and_talk_of_panics_are_none() -> None:
    watch = KernelWatch()
    watch.output(b"WARNING: CPU: 0 PID: 1 at kernel/foo.c:12 bar+0x1/0x2\n" + OOPS_END)
    watch.output(b"usage: Kernel panic - not syncing: is what you read\nOops: really?\n")
    assert watch.death() is None


@given(st.data())
def test_pieces_make_no_difference(data: st.DataObject) -> None:
    text = PANIC + PANIC_END
    watch = KernelWatch()
    with pytest.raises(GuestPanic, match="VFS: Unable"):
        while text:
            size = data.draw(st.integers(1, 40))
            watch.output(text[:size])
            text = text[size:]


@given(st.lists(st.binary(max_size=300)))
def test_whatever_is_printed_is_kept_within_bounds(pieces: list[bytes]) -> None:
    watch = KernelWatch()
    for piece in pieces:
        watch.output(piece * 50)
    assert len(watch.console) <= (LINES + 1) * (LONGEST_LINE + 1)
