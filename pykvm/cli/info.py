"""`pykvm info`: what KVM offers on this host, and what to do where something is missing."""

from __future__ import annotations

from pykvm.cli.facts import collect
from pykvm.cli.report import show
from pykvm.cli.status import Status
from pykvm.host import REQUIRED
from pykvm.kvm import Cap
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from pykvm.cli.options import Options

__all__ = ["advice", "info_text", "main"]

_USED = {
    "KVM_CAP_COALESCED_MMIO": "without it every write to a collecting device costs an exit",
    "KVM_CAP_COALESCED_PIO": "without it every write to a collecting port costs an exit",
    "KVM_CAP_READONLY_MEM": "without it there are no ROMs",
    "KVM_CAP_SET_GUEST_DEBUG": "without it `pykvm step` cannot go by instructions",
}
_WIDTH = 16


def main(options: Options) -> int:
    """Print what there is; the exit status is 126 if no guest can run here."""
    facts = collect()
    facts["probes"] = _probe() if "error" not in facts else []
    facts["quirks"] = _find_quirks() if "error" not in facts else []
    facts["models"] = _models() if "error" not in facts else {}
    facts["advice"] = advice(facts)
    facts["usable"] = "error" not in facts and not _missing(facts)
    if options.json:
        import json

        show(json.dumps(facts, indent=2) + "\n")
    else:
        show(info_text(facts))
    return Status.DONE if facts["usable"] else Status.FAILED


def _probe() -> list[dict[str, Any]]:
    from pykvm.cli.probes import PROBES

    return [{"probe": probe.name, **probe()._asdict()} for probe in PROBES]


def _find_quirks() -> list[dict[str, Any]]:
    """The quirks of this host; none where no VM can be made to look for them."""
    from pykvm.errors import PykvmError
    from pykvm.quirks import QUIRKS, found

    try:
        here = found()
    except PykvmError:
        return []
    return [
        {
            "quirk": quirk.name,
            "wrong": quirk.wrong,
            "workaround": quirk.workaround,
            "cost": quirk.cost,
        }
        for quirk in QUIRKS
        if quirk.name in here
    ]


def _models() -> dict[str, list[str]]:
    """Each CPU model that insists on features, and those that this host does not offer guests."""
    from pykvm.kvm import System
    from pykvm.x86.cpuid import MODELS, Specification, missing

    with System() as system:
        offered = system.supported_cpuid()
    return {model: missing(offered, Specification.parse(model)) for model in MODELS}


def _missing(facts: dict[str, Any]) -> list[str]:
    capabilities = facts.get("capabilities", {})
    return [name for name in REQUIRED if not capabilities.get(name)]


def advice(facts: dict[str, Any]) -> list[str]:
    """What to do, a sentence each; empty where nothing is missing."""
    if "error" in facts:
        words = [facts["error"], facts.get("hint", "")]
        if facts["device"]["exists"] and facts["device"]["mode"][4:6] != "rw":
            words.append(
                "not even its group may open it: as root, "
                "`chgrp kvm /dev/kvm && chmod 660 /dev/kvm`"
            )
        if not facts["device"]["exists"] and not facts["processor"]["virtualization"]:
            words.append(
                "the processor shows neither VT-x nor SVM: switch it on in the firmware or, if "
                "this is a virtual machine, nested virtualization on its host"
            )
        return [word for word in words if word]
    missing = _missing(facts)
    if missing:
        return [f"this KVM lacks {', '.join(missing)}, and pykvm needs it: use Linux 4.17 or newer"]
    capabilities = facts["capabilities"]
    return [f"no {name}: {loss}" for name, loss in _USED.items() if not capabilities[name]]


def info_text(facts: dict[str, Any]) -> str:
    """Everything for a person to read."""
    parts = [_section("This host", _host(facts))]
    if facts["advice"]:
        parts.append("\n".join(["What to do", *(f"  {line}" for line in facts["advice"]), ""]))
    if facts["probes"]:
        parts.append(_section("Tried just now", _probes(facts["probes"]), width=34))
    if facts["models"]:
        parts.append(_section("CPU models beside baseline and host", _given(facts["models"])))
    if facts["quirks"]:
        parts.append(
            _section(
                "Quirks of this host's KVM (docs/quirks.md)", _quirks(facts["quirks"]), width=18
            )
        )
    if "capabilities" in facts:
        rows = (
            (name, str(value) if value else "-") for name, value in facts["capabilities"].items()
        )
        parts.append(_section("Capabilities (- where KVM says 0)", rows, width=40))
    for name, parameters in facts["modules"].items():
        if parameters:
            parts.append(_section(f"Parameters of {name}", parameters.items(), width=40))
    return "\n".join(parts)


def _section(title: str, rows: Iterable[tuple[str, str]], width: int = _WIDTH) -> str:
    return "".join(
        [f"{title}\n", *(f"  {name:<{width}} {value}".rstrip() + "\n" for name, value in rows)]
    )


def _host(facts: dict[str, Any]) -> Iterable[tuple[str, str]]:
    yield "kernel", facts["kernel"]
    processor, device = facts["processor"], facts["device"]
    yield "processor", processor["model"]
    extensions = " and ".join(processor["virtualization"]) or "neither VT-x nor SVM shown"
    yield (
        "virtualization",
        extensions + (" (inside a virtual machine)" if processor["in_a_vm"] else ""),
    )
    if processor["features"]:
        yield "features", " ".join(processor["features"])
    vendor = [name for name in facts["modules"] if name.startswith("kvm_")]
    yield "KVM module", ", ".join(vendor) or ("kvm alone" if facts["modules"] else "not loaded")
    if device["exists"]:
        may = "this user may open it" if device["usable"] else "this user may not open it"
        yield device["path"], f"{device['mode']} {device['owner']}:{device['group']}, {may}"
    else:
        yield device["path"], device["error"]
    if "capabilities" not in facts:
        return
    capabilities = facts["capabilities"]
    yield "API version", str(facts["api_version"])
    yield (
        "vCPUs in a VM",
        f"{capabilities['KVM_CAP_MAX_VCPUS']}, {capabilities['KVM_CAP_NR_VCPUS']} recommended",
    )
    yield "memory slots", str(capabilities["KVM_CAP_NR_MEMSLOTS"])
    for name, cap in (
        ("sync regs", Cap.KVM_CAP_SYNC_REGS),
        ("immediate exit", Cap.KVM_CAP_IMMEDIATE_EXIT),
        ("coalesced MMIO", Cap.KVM_CAP_COALESCED_MMIO),
        ("coalesced PIO", Cap.KVM_CAP_COALESCED_PIO),
    ):
        yield name, "yes" if capabilities[cap.name] else "no"


def _probes(probes: Iterable[dict[str, Any]]) -> Iterable[tuple[str, str]]:
    for probe in probes:
        yield probe["probe"], "yes" if probe["works"] else f"no: {probe['detail']}"


def _quirks(quirks: Iterable[dict[str, Any]]) -> Iterable[tuple[str, str]]:
    for quirk in quirks:
        yield quirk["quirk"], quirk["wrong"]
        yield (
            "",
            f"workaround: {quirk['workaround']}" if quirk["workaround"] else "no workaround",
        )


def _given(models: dict[str, list[str]]) -> Iterable[tuple[str, str]]:
    for model, lacking in models.items():
        yield model, f"no: it does not offer {', '.join(lacking)}" if lacking else "yes"
