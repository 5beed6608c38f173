"""pykvm's structs, ioctls and constants against <linux/kvm.h>: all equal, none left out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from kvm.applicable import (
    EXCLUDED,
    EXCLUDED_MEMBERS,
    EXCLUDED_STRUCTS,
    SINCE,
    excluded,
)
from kvm.headers import Header, Place, without

from pykvm.kvm import abi, constants, uapi
from pykvm.kvm.capabilities import Cap
from pykvm.kvm.codec import BitsLayout, Repeat, StructLayout, UnionLayout, size_of
from pykvm.kvm.flexible import FlexibleLayout
from pykvm.kvm.reasons import ExitReason

STRUCTS = {name: value for name, value in vars(uapi).items() if isinstance(value, StructLayout)}
IOCTLS = {name: value for name, value in vars(abi.ioctls).items() if name.startswith("KVM_")}
CONSTANTS = {name: value for name, value in vars(constants).items() if name.isupper()}
NUMBERS: dict[str, int] = {
    **IOCTLS,
    **CONSTANTS,
    **{cap.name: int(cap) for cap in Cap},
    **{reason.name: int(reason) for reason in ExitReason},
}

# The layouts of kvm_run's union, which have no struct name in C.
PAYLOADS = {name.removeprefix("kvm_run_"): name for name in STRUCTS if name.startswith("kvm_run_")}


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Header:
    if shutil.which("gcc") is None:
        pytest.skip("comparing with <linux/kvm.h> takes gcc")
    return Header(tmp_path_factory.mktemp("header"))


def places(type_: object, path: str, base: int) -> Iterator[tuple[str, Place]]:
    """Yield every member of a layout by its C path, as `Header.structs` does."""
    if isinstance(type_, BitsLayout):
        for name, shift, width in type_.bits:
            yield f"{path}.{name}", Place(base + shift, width)
    elif isinstance(type_, StructLayout):
        for name, offset, inner in (*type_.fields, *type_.alias_fields):
            yield from places(inner, f"{path}.{name}", base + 8 * offset)
        if isinstance(type_, FlexibleLayout):
            yield f"{path}.{type_.tail}", Place(base + 8 * type_.size, 0)
    elif isinstance(type_, UnionLayout):
        for name, inner in type_.members.items():
            yield from places(inner, f"{path}.{name}", base)
    elif isinstance(type_, Repeat):
        yield path, Place(base, 8 * size_of(type_))
        if not isinstance(type_.element, str) and not isinstance(type_.element, Repeat):
            yield from places(type_.element, f"{path}[0]", base)
    else:
        assert isinstance(type_, str)
        yield path, Place(base, 8 * size_of(type_))


def c_members(name: str) -> dict[str, Place]:
    """The members of a struct of ours; kvm_run's union has no name in C."""
    found = places(STRUCTS[name], "", 0)
    members = {path[1:].removeprefix("exit."): place for path, place in found}
    return without(members, tuple(EXCLUDED_MEMBERS.get(name, ())))


def known(struct: str, path: str, header: Header) -> bool:
    """Whether the header has a member, which only those in SINCE may lack."""
    if path in header.structs[struct]:
        return True
    parts = f"{struct}.{path}".split(".")
    listed = any(".".join(parts[:length]) in SINCE for length in range(2, len(parts) + 1))
    assert listed, f"{struct}.{path} is neither in <linux/kvm.h> nor newer than it"
    return False


def test_every_struct_has_the_kernels_size(header: Header) -> None:
    names = [name for name in STRUCTS if name in header.structs]
    sizes = header.evaluate([f"sizeof(struct {name})" for name in names])
    assert {name: STRUCTS[name].size for name in names} == dict(zip(names, sizes, strict=True))


def test_every_payload_has_the_size_of_its_member_of_kvm_run(header: Header) -> None:
    members = [m for m in PAYLOADS if any(p.startswith(f"{m}.") for p in header.structs["kvm_run"])]
    sizes = header.evaluate([f"sizeof(((struct kvm_run *)0)->{member})" for member in members])
    ours = {member: STRUCTS[PAYLOADS[member]].size for member in members}
    assert ours == dict(zip(members, sizes, strict=True))
    assert set(PAYLOADS) - set(members) <= {path.split(".")[1] for path in SINCE if "." in path}


def test_every_field_has_the_kernels_offset(header: Header) -> None:
    paths = [
        (struct, path)
        for struct in STRUCTS
        if struct in header.structs
        for path in c_members(struct)
        if ".fields." not in path and known(struct, path, header)
    ]
    assert len(paths) > 700
    offsets = header.evaluate([f"offsetof(struct {struct}, {path})" for struct, path in paths])
    ours = {(struct, path): c_members(struct)[path].offset // 8 for struct, path in paths}
    assert ours == dict(zip(paths, offsets, strict=True))


def test_every_field_of_the_kernels_structs_is_there(header: Header) -> None:
    """Members, places and widths, bit fields too, from the compiler's debug information."""
    for struct in STRUCTS:
        if struct not in header.structs:
            continue
        theirs = without(header.structs[struct], tuple(EXCLUDED_MEMBERS.get(struct, ())))
        members = c_members(struct)
        ours = {path: place for path, place in members.items() if known(struct, path, header)}
        assert ours == theirs, struct


def test_every_number_is_the_kernels(header: Header) -> None:
    names = [name for name in NUMBERS if name in header.macros]
    values = header.evaluate(names)
    assert {name: NUMBERS[name] for name in names} == dict(zip(names, values, strict=True))


def test_what_the_header_lacks_is_newer_than_it(header: Header) -> None:
    lacking = {name for name in NUMBERS if name not in header.macros}
    lacking |= {
        name for name in STRUCTS if name not in header.structs and not name.startswith("kvm_run_")
    }
    assert lacking <= set(SINCE)


def test_everything_listed_as_newer_is_ours() -> None:
    for name in SINCE:
        struct, _, path = name.partition(".")
        if path:
            assert any(member.startswith(path) for member in c_members(struct)), name
        else:
            assert name in NUMBERS or name in STRUCTS


def test_no_macro_is_left_out(header: Header) -> None:
    missing = [
        name for name in header.macros if name not in NUMBERS and not excluded(name, EXCLUDED)
    ]
    assert missing == []


def test_no_struct_is_left_out(header: Header) -> None:
    missing = [
        name
        for name in header.structs
        if name not in STRUCTS and not excluded(name, EXCLUDED_STRUCTS)
    ]
    assert missing == []


def test_nothing_is_both_ours_and_left_out() -> None:
    assert [name for name in NUMBERS if excluded(name, EXCLUDED)] == []
    assert [name for name in STRUCTS if excluded(name, EXCLUDED_STRUCTS)] == []


def test_ioctl_numbers_are_distinct() -> None:
    assert len(set(IOCTLS.values())) == len(IOCTLS)
