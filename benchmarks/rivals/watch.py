"""Runs a command and watches what it and all its children hold in memory.

    python benchmarks/rivals/watch.py COMMAND ...

The command's last line is one JSON object, or nothing. Out comes that object with run_s, the command's seconds from
start to end, and tree_peak_bytes, the largest sum that was seen in ten looks a second; memory that processes share is
counted once (PSS).
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

EVERY_S = 0.1


def held_bytes(pid: int) -> int:
    """By a process and its descendants; 0 for one that has just ended."""
    try:
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        own = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0
    return own + sum(map(held_bytes, children))


def main() -> None:
    peak = 0

    def look() -> None:
        nonlocal peak
        while not ended.wait(EVERY_S):
            peak = max(peak, held_bytes(process.pid))

    ended = threading.Event()
    began = time.perf_counter()
    with subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True) as process:
        watching = threading.Thread(target=look)
        watching.start()
        said = process.communicate()[0].strip().splitlines()
        run_s = time.perf_counter() - began
        ended.set()
        watching.join()
    if process.returncode:
        sys.exit(process.returncode)
    print(json.dumps({**(json.loads(said[-1]) if said else {}), "run_s": run_s, "tree_peak_bytes": peak or None}))


if __name__ == "__main__":
    main()
