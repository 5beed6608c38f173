"""Views of guest memory that outlive what they are views of."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent


def test_views_that_the_garbage_collector_finds_in_a_loop() -> None:
    """CPython 3.11 crashes where it clears a memoryview whose bytes another object has."""
    code = """
        import gc
        from pykvm import GuestMemory

        for _ in range(300):
            memory = GuestMemory()
            memory.add_ram(0, 0x4000)
            loop = [memory, memory.view(0, 16), memory.view(0x1000, 16)]
            loop += [loop]
            del memory, loop
        gc.collect()
    """
    subprocess.run([sys.executable, "-c", dedent(code)], check=True, timeout=60)
