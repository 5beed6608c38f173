"""`--stats`: what a run cost."""

from __future__ import annotations

from pykvm.bus import Space
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import Counter

    from pykvm.result import Result

__all__ = ["stats_text"]

_BUSIEST = 12


def stats_text(result: Result, places: Counter[tuple[str, Space, int, str]] | None = None) -> str:
    """A table of the exits by kind, the time in and out of the guest, and the busiest `places`."""
    total = sum(result.exits.values())
    rows = [("VM exits", f"{total}", "")]
    for name, count in sorted(result.exits.items(), key=lambda item: (-item[1], item[0])):
        rows.append((f"  {name}", f"{count}", f"{100 * count / total:.1f} %"))
    if result.workarounds:
        rows.append(("workarounds", f"{sum(result.workarounds.values())}", ""))
        rows += [(f"  {what}", f"{count}", "") for what, count in result.workarounds.items()]
    unclaimed = result.unclaimed
    if unclaimed.reads or unclaimed.writes:
        rows.append(("went nowhere", f"{unclaimed.reads + unclaimed.writes}", ""))
        rows.append(("  reads", f"{unclaimed.reads}", ""))
        rows.append(("  writes", f"{unclaimed.writes}", ""))
        rows += [("", "", place) for place in unclaimed.places]
    for name, seconds in (
        ("in the guest", result.guest_seconds),
        ("outside", result.outside_seconds),
    ):
        each = f"{1e6 * seconds / total:.1f} µs per exit" if total else ""
        rows.append((name, f"{1000 * seconds:.3f} ms", each))
    emulated = result.emulated
    if emulated:
        count, seconds = sum(emulated.values()), result.emulated_seconds
        each = f"{1000 * seconds:.3f} ms, {1e6 * seconds / count:.1f} µs each"
        rows.append(("emulated", f"{count}", each))
        for name, count in sorted(emulated.items(), key=lambda item: (-item[1], item[0])):
            rows.append((f"  {name}", f"{count}", ""))
    for (kind, space, address, device), count in places.most_common(_BUSIEST) if places else ():
        unit = "port" if space is Space.PIO else "address"
        rows.append((f"  {kind} {unit} {address:#x}", f"{count}", device))
    width = max(len(name) for name, _, _ in rows)
    return "".join(
        f"{name:<{width}}  {value:>12}  {note}".rstrip() + "\n" for name, value, note in rows
    )
