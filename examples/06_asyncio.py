"""A machine in an asyncio program: talk to a guest, and stop it when it takes too long.

Run it:  python examples/06_asyncio.py

`arun` runs the machine in a thread of its own, and `aexpect` waits for what the guest says; the
loop stays free for everything else.  echo.elf sends back what it is sent.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from pykvm import Machine

GUEST = Path(__file__).parents[1] / "guests" / "build" / "echo.elf"


async def main() -> None:
    with Machine(GUEST) as machine:
        running = asyncio.create_task(machine.arun())
        greeting = await machine.serial.aexpect("\n", timeout=10)
        print("guest:", greeting.before)

        for line in ("one", "two"):
            machine.serial.sendline(line)
            answer = await machine.serial.aexpect("\n", timeout=10)
            print("guest:", answer.before)

        # Without more input the guest waits for ever.  `stop` ends the run, however busy it is; so
        # would cancelling the task.
        done, _ = await asyncio.wait({running}, timeout=0.1)
        print("done by itself:", bool(done))
        machine.stop()
        print((await running).sentence)


if __name__ == "__main__":
    if not GUEST.exists():
        sys.exit("Build the guests first: make guests")
    asyncio.run(main())
