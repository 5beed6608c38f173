"""How messages spell a machine's options: as Python's keywords, or as the command line has them.

An error is raised where it is not known who reads it.  What names an option asks `option` how it is
written; the command line sets its own spelling while it runs.

>>> option("memory"), option("clock", "warp"), option("append_only", True)
('memory=', "clock='warp'", 'append_only=True')
>>> with spelled(lambda name, value: f"--{name} {value}"):
...     option("clock", "warp"), in_python(" or use GuestMemory(overcommit=True)")
('--clock warp', '')
"""

from __future__ import annotations

from contextlib import contextmanager

from pykvm.typed import TYPE_CHECKING
from pykvm.values.checks import show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    #: What an option's name and its value, None for any, are written as.
    Speller = Callable[[str, object], str]

__all__ = ["in_python", "option", "spelled"]

_speller: Speller | None = None


def option(name: str, value: object = None) -> str:
    """How the option of `Machine` of this name is written, with `value` if it is not None."""
    if _speller is not None:
        return _speller(name, value)
    return f"{name}=" if value is None else f"{name}={show(value)}"


def in_python(advice: str) -> str:
    """`advice` on what only a program can do; empty for the command line."""
    return advice if _speller is None else ""


@contextmanager
def spelled(speller: Speller) -> Iterator[None]:
    """Spell options by `speller` meanwhile, in the whole process."""
    global _speller
    before, _speller = _speller, speller
    try:
        yield
    finally:
        _speller = before
