"""uapi.py is what derive makes of abi, and construct reads the same bytes the same way."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import construct
import pytest
from construct import Bytes, Int16ub, Int32ul, Struct
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.kvm import VCPU, VM, Device, System, abi, derive, layouts, uapi
from pykvm.kvm.codec import StructLayout
from pykvm.kvm.flexible import FlexibleLayout
from pykvm.kvm.records import Overlay, Record

STRUCTS = sorted(name for name, value in vars(uapi).items() if isinstance(value, StructLayout))


def test_uapi_is_up_to_date() -> None:
    assert uapi.__file__ is not None
    assert Path(uapi.__file__).read_text() == derive.source(), (
        "abi has changed: run python -m pykvm.kvm.derive"
    )


def test_running_derive_writes_the_same_file_again(tmp_path: Path, root: Path) -> None:
    copy = tmp_path / "derive.py"
    copy.write_text(Path(derive.__file__).read_text())
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, str(copy)], check=True, env=environment)
    assert (tmp_path / "uapi.py").read_text() == derive.source()


def test_every_ioctl_has_a_method_that_explains_it() -> None:
    explained = {
        name
        for handle in (System, VM, VCPU, Device)
        for attribute in dir(handle)
        if not attribute.startswith("_")
        for name in re.findall(r"KVM_\w+", getattr(handle, attribute).__doc__ or "")
    }
    package = Path(derive.__file__).parent
    text = "".join(path.read_text() for path in package.glob("*.py"))
    issued = set(re.findall(r"uapi\.(KVM_\w+)", text))
    ioctls = {name for name in vars(abi.ioctls) if name.startswith("KVM_")}
    assert ioctls - explained == set()
    assert ioctls - issued == set()


def test_importing_the_api_does_not_import_construct() -> None:
    code = (
        "import sys; from pykvm.kvm import System, VM, VCPU, Device, Cap, ExitReason;"
        "import pykvm.kvm.vcpu; print(*{'construct', 'ctypes'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def plain(value: object) -> Any:
    """Turn what construct parsed into plain dicts and lists."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items() if name != "_io"}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def differences(parsed: object, ours: Any, where: str) -> list[str]:
    """Where a record says something else than construct's container, aliases and unions too."""
    if isinstance(parsed, dict):
        return [
            found
            for name, item in parsed.items()
            for found in differences(item, getattr(ours, name), f"{where}.{name}")
        ]
    if isinstance(parsed, list):
        if len(parsed) != len(ours):
            return [f"{where}: {len(ours)} elements, not {len(parsed)}"]
        return [
            found
            for at, item in enumerate(parsed)
            for found in differences(item, ours[at], f"{where}[{at}]")
        ]
    return [] if parsed == ours else [f"{where}: {ours!r}, not {parsed!r}"]


def random_bytes(layout: StructLayout, chance: random.Random) -> bytes:
    """A struct of any content, with three elements if it has a flexible array."""
    data = bytearray(chance.randbytes(layout.size))
    if isinstance(layout, FlexibleLayout):
        elements = 3
        head = layout.room(elements)
        if layout.counter is not None:
            # Only the counter must fit what follows it.
            at = layout.offset_of(layout.counter)
            data[at : at + 4] = head[at : at + 4]
            if layout.name == "kvm_reg_list":
                data[at : at + 8] = head[at : at + 8]
        data += chance.randbytes(elements * layout.element_size)
    return bytes(data)


@settings(max_examples=10)
@given(st.randoms(use_true_random=True))
def test_every_struct_is_read_as_construct_reads_it_and_packs_again(chance: random.Random) -> None:
    for name in STRUCTS:
        layout: StructLayout = getattr(uapi, name)
        data = random_bytes(layout, chance)
        record = layout.unpack(data)
        assert differences(plain(getattr(abi, name).parse(data)), record, name) == []
        packed = layout.pack(record)
        again = layout.unpack(packed)
        assert (name, again) == (name, record)
        assert (name, layout.pack(again)) == (name, packed)


@pytest.mark.parametrize("name", ["kvm_regs", "kvm_sregs", "kvm_cpuid_entry2", "kvm_vcpu_events"])
def test_construct_builds_the_same_bytes(name: str) -> None:
    layout: StructLayout = getattr(uapi, name)
    record = layout.unpack(random.Random(name).randbytes(layout.size))
    assert getattr(abi, name).build(record.as_dict()) == layout.pack(record)


def test_redirection_entries_have_bit_fields() -> None:
    state = uapi.kvm_ioapic_state.new()
    first = state.redirtbl[0]
    assert isinstance(first, Overlay)
    fields = first.fields
    assert isinstance(fields, Record)
    fields.vector, fields.trig_mode, fields.mask, fields.dest_id = 0x31, 1, 1, 0xAA
    assert first.bits == 0xAA000000_00018031


def test_a_construct_without_a_layout_is_refused() -> None:
    with pytest.raises(TypeError, match=r"odd\.a: cannot derive"):
        layouts.layout_of(Struct("a" / construct.CString("ascii")), "odd")


def test_a_struct_of_ones_own_gets_a_layout() -> None:
    layout = layouts.layout_of(Struct("a" / Int32ul, "b" / Bytes(3)), "mine")
    assert layout.unpack(b"\1\0\0\0xyz").as_dict() == {"a": 1, "b": b"xyz"}


def test_big_endian_fields_are_refused() -> None:
    with pytest.raises(TypeError, match="byte order"):
        layouts.layout_of(Struct("a" / Int16ub), "odd")
