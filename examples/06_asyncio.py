"""A machine in an asyncio program: talk to a guest, and stop it when it takes too long.

Run it:  python examples/06_asyncio.py

`machine.run` blocks, so it gets a thread.  That thread calls back with serial output, which goes to
the event loop; the loop stays free for everything else.  echo.elf sends back what it is sent.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from pykvm import Machine

GUEST = Path(__file__).parents[1] / "guests" / "build" / "echo.elf"


class Console:
    """The guest's serial port, as a coroutine sees it."""

    def __init__(self, machine: Machine) -> None:
        self.serial = machine.serial
        self.received: asyncio.Queue[bytes] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self.serial.on_output(
            lambda data: loop.call_soon_threadsafe(self.received.put_nowait, data)
        )

    async def read_line(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            line += await self.received.get()
        return line.decode().rstrip("\n")


async def main() -> None:
    with Machine(GUEST) as machine:
        console = Console(machine)
        running = asyncio.create_task(asyncio.to_thread(machine.run))
        print("guest:", await asyncio.wait_for(console.read_line(), timeout=10))

        for line in ("one", "two"):
            console.serial.send(line + "\n")
            print("guest:", await asyncio.wait_for(console.read_line(), timeout=10))

        # Without more input the guest waits for ever.  Cancelling the task would not end its
        # thread; `stop` ends the run, however busy the guest is.
        done, _ = await asyncio.wait({running}, timeout=0.1)
        print("done by itself:", bool(done))
        machine.stop()
        print((await running).sentence)


if __name__ == "__main__":
    if not GUEST.exists():
        sys.exit("Build the guests first: make guests")
    asyncio.run(main())
