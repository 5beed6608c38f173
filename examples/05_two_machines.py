"""Two machines at once, each in a thread of its own, joined by a serial cable.

Run it:  python examples/05_two_machines.py

While a guest runs, its thread does not hold Python's global interpreter lock: machines run in
parallel on as many processors as there are.  args.elf prints its arguments on its serial port.
That output is the input of echo.elf, which sends back every byte until a line is just "q".
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pykvm import Machine

GUESTS = Path(__file__).parents[1] / "guests" / "build"


def main() -> None:
    with (
        Machine(GUESTS / "args.elf", args=["knock", "knock"]) as talker,
        Machine(GUESTS / "echo.elf") as listener,
        ThreadPoolExecutor() as pool,
    ):
        # Called in the talker's thread, for every byte; `send` may be called from any thread.
        talker.serial.on_output(listener.serial.send)

        listening = pool.submit(listener.run, timeout=10)
        talking = pool.submit(talker.run, timeout=10)
        print("talker:  ", talking.result().sentence)

        listener.serial.send("q\n")
        print("listener:", listening.result().sentence)
        print(listener.serial.text, end="")


if __name__ == "__main__":
    if not GUESTS.exists():
        sys.exit("Build the guests first: make guests")
    main()
