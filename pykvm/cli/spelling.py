"""A machine's options as the command line has them, for advice that names one."""

from __future__ import annotations

__all__ = ["flag"]

# Where the name is another; the others have theirs with dashes.
_FLAGS = {"vcpus": "--smp", "modules": "--module", "on_exit": "--trace"}


def flag(name: str, value: object) -> str:
    """How the option of `Machine` that is called so is written; `value` is None for any.

    >>> flag("load_address", None), flag("vcpus", 4), flag("append_only", True)
    ('--load-address', '--smp 4', '--append-only')
    """
    word = _FLAGS.get(name) or f"--{name.replace('_', '-')}"
    return word if value is None or value is True else f"{word} {value}"
