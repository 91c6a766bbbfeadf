"""What every benchmark shares: rivals in processes of their own, interleaved; the measured ceiling; one result file.

A rival is a command line whose last line on standard output is one JSON object. Out come rows with the medians of
its numbers, ratios that are medians over rounds (so that a slow minute hits both sides), and targets met or missed.
It knows nothing of training or answering, and asserts no time: a benchmark is not a test.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from afina import __version__
from afina.core.storage import write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BUILD = ROOT / "build" / "benchmarks"
LIBRARIES = (
    "torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "xgrammar", "llguidance", "fastapi", "polars",
    "ftfy", "tantivy", "usearch",
)  # fmt: skip

# (tokens, in, out) of the products whose best median is the ceiling: a small model's layer up to a large one's.
PEAK_SHAPES = ((1024, 576, 1536), (2048, 2048, 2048), (1024, 2048, 8192), (4096, 4096, 4096))
PEAK_MIN_S = 0.25  # of repetitions for each shape
PEAK_MIN_TIMES = 7

# No network and no telemetry in any rival, and this checkout rather than an installed Afina.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_MODE": "disabled",
    "TOKENIZERS_PARALLELISM": "false",
}

# Linux counts the memory of whoever forks a process into that process's peak. So a small process starts the rival.
WAITER = """
import json, os, sys, time
began = time.perf_counter()
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, used = os.wait4(pid, 0)
scale = 1 if sys.platform == "darwin" else 1024
found = {"process_s": time.perf_counter() - began, "peak_rss_bytes": used.ru_maxrss * scale,
         "cpu_s": used.ru_utime + used.ru_stime, "rc": os.waitstatus_to_exitcode(status)}
open(sys.argv[1], "w").write(json.dumps(found))
"""


PEAK = "matmul peak"  # the name of the row that measures the ceiling
PEAK_ARGV = (sys.executable, str(Path(__file__).resolve()))


class RivalFailedError(Exception):
    """A rival's process ended without a result; the message says how."""


@dataclass(frozen=True)
class Measured:
    """One process. result: its JSON. process_s: wall seconds from its start to its end. peak_rss_bytes: its most
    resident memory. cpu_s: processor seconds, all threads."""

    result: dict[str, Any]
    process_s: float
    peak_rss_bytes: int
    cpu_s: float

    def flat(self) -> dict[str, Any]:
        own = {"process_s": self.process_s, "peak_rss_bytes": self.peak_rss_bytes, "cpu_s": self.cpu_s}
        return {**self.result, **own}


@dataclass(frozen=True)
class Target:
    """A figure and its bound; exactly one of the bounds is given. value None: not measured, so not met."""

    value: float | None
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        assert (self.at_least is None) != (self.at_most is None), "a target has one bound"

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        return self.value >= self.at_least if self.at_least is not None else self.value <= (self.at_most or 0.0)

    def to_json(self) -> dict[str, Any]:
        kept = {k: v for k, v in asdict(self).items() if k == "value" or v is not None}
        return {**kept, "met": self.met}

    def __str__(self) -> str:
        bound = f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"
        return f"{number(self.value)}  ({bound}): {'met' if self.met else 'MISSED'}"


# -- machine -----------------------------------------------------------------------------------


def machine_facts() -> dict[str, Any]:
    """Processor, usable cores, memory, matrix features, GPUs."""
    from afina.training.machine import machine

    found = machine(ROOT).to_json()
    return {k: v for k, v in found.items() if k not in ("available_bytes", "disk_free_bytes")}


def versions() -> dict[str, str | None]:
    """What decides the figures; None where a library is absent."""
    found: dict[str, str | None] = {"afina": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def matmul_peak_gflops(dtype: str = "bfloat16", shapes: Sequence[tuple[int, int, int]] = PEAK_SHAPES) -> float:
    """The best shape's median GFLOP/s of `linear` on the device that trains here.

    dtype: "bfloat16", "float16" or "float32". shapes: (tokens, in, out).
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind: torch.dtype = getattr(torch, dtype)
    best = 0.0
    for tokens, inner, outer in shapes:
        x, w = (torch.randn(rows, inner, device=device).to(kind) for rows in (tokens, outer))
        times: list[float] = []
        with torch.inference_mode():
            for _ in range(3):
                torch.nn.functional.linear(x, w)
            while sum(times) < PEAK_MIN_S or len(times) < PEAK_MIN_TIMES:
                times.append(_timed_linear(x, w))
        best = max(best, 2 * tokens * inner * outer / median(times) / 1e9)
    return best


def _timed_linear(x: Any, w: Any) -> float:
    import torch

    if x.is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    torch.nn.functional.linear(x, w)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


# -- rivals ------------------------------------------------------------------------------------


def rival_environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """The surroundings of every rival: offline, silent, this checkout's sources first."""
    path = os.pathsep.join(p for p in (str(ROOT / "src"), os.environ.get("PYTHONPATH", "")) if p)
    return {**os.environ, **OFFLINE, "PYTHONPATH": path, **(env or {})}


def run_process(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, timeout_s: float | None = None
) -> Measured:
    """Run one rival to its end. Raises RivalFailedError with the end of what it said."""
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "used.json"
        command = [sys.executable, "-I", "-S", "-c", WAITER, str(note), *argv]
        try:
            done = subprocess.run(
                command, env=rival_environment(env), capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise RivalFailedError(f"stopped after {timeout_s:g} s") from error
        used: dict[str, Any] = json.loads(note.read_text()) if note.exists() else {"rc": done.returncode}
    if used["rc"] != 0:
        raise RivalFailedError(f"exit {used['rc']}: {_tail(done.stderr) or _tail(done.stdout) or 'it said nothing'}")
    lines = done.stdout.strip().splitlines()
    try:
        result = json.loads(lines[-1])
        assert isinstance(result, dict)
    except (IndexError, ValueError, AssertionError) as error:
        raise RivalFailedError(f"its last line is no JSON object: {(lines or ['nothing'])[-1][:300]}") from error
    return Measured(result, used["process_s"], used["peak_rss_bytes"], used["cpu_s"])


def _tail(text: str, num_lines: int = 12) -> str:
    return "\n".join(text.strip().splitlines()[-num_lines:])[-2000:]


def interleave(
    rivals: Mapping[str, Sequence[str]],
    rounds: int,
    *,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> list[dict[str, Any]]:
    """Every rival once in each round, the order turned by one each time. One row for each rival, in the order given:

    {"name", the median of each number it reported, "rounds": [what each round reported]}, or {"name", "failed": why}.
    A rival that failed once is not run again; the others go on.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in rivals}
    failed: dict[str, str] = {}
    names = list(rivals)
    for turn in range(rounds):
        at = turn % len(names)
        for name in names[at:] + names[:at]:
            if name in failed:
                continue
            began = time.perf_counter()
            try:
                found[name].append({"round": turn, **run_process(rivals[name], env=env, timeout_s=timeout_s).flat()})
                word = "done"
            except RivalFailedError as error:
                failed[name] = str(error)
                word = f"failed: {error}"
            say(f"round {turn + 1}/{rounds}  {name:<16} {time.perf_counter() - began:6.1f} s  {word}")
    return [summary(name, found[name], failed.get(name)) for name in names]


def summary(name: str, rounds: Sequence[dict[str, Any]], failed: str | None = None) -> dict[str, Any]:
    """One row of a rival's rounds: medians of its numbers, the first round's words and lists."""
    row: dict[str, Any] = {"name": name}
    if failed is not None:
        row["failed"] = failed
    for key in dict.fromkeys(key for one in rounds for key in one if key != "round"):
        values = [one[key] for one in rounds if one.get(key) is not None]
        if not values:
            row[key] = None
        elif all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            row[key] = median(values)
        else:
            row[key] = values[0]
    row["rounds"] = list(rounds)
    return row


def ratio(rows: Sequence[Mapping[str, Any]], key: str, over: str, under: str) -> float | None:
    """Median over rounds of over/under in `key`; None where either has no figure."""
    by_name = {row["name"]: {r["round"]: r.get(key) for r in row.get("rounds", ())} for row in rows}
    above, below = by_name.get(over, {}), by_name.get(under, {})
    found = [above[n] / below[n] for n in above if above[n] is not None and below.get(n)]
    return median(found) if found else None


def value_of(rows: Sequence[Mapping[str, Any]], name: str, key: str) -> Any:
    """A row's figure, or None."""
    return next((row.get(key) for row in rows if row["name"] == name), None)


# -- result ------------------------------------------------------------------------------------


def write_result(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    ratios: Mapping[str, float | None],
    targets: Mapping[str, Target],
    notes: Sequence[str] = (),
    *,
    machine: Mapping[str, Any] | None = None,
    folder: Path = RESULTS,
) -> Path:
    """Keep the result as folder/<name>-<date>.json and print it: rows, notes, ratios, and targets last.

    machine: facts beside `machine_facts()`, as the measured ceiling.
    """
    date = time.strftime("%Y-%m-%d")
    path = folder / f"{name}-{date}.json"
    write_json(
        path,
        {
            "benchmark": name,
            "date": date,
            "machine": {**machine_facts(), **(machine or {})},
            "versions": versions(),
            "rows": [dict(row) for row in rows],
            "ratios": {k: _rounded(v) for k, v in ratios.items()},
            "targets": {k: t.to_json() for k, t in targets.items()},
            "notes": list(notes),
        },
    )
    print(*table(rows), sep="\n")
    for title, lines in (
        ("notes", list(notes)),
        ("ratios", [f"{key}: {number(value)}" for key, value in ratios.items()]),
        ("targets", [f"{key}: {target}" for key, target in targets.items()]),
    ):
        if lines:
            print(f"\n{title}", *(f"  {line}" for line in lines), sep="\n")
    print(f"\nkept in {_shown(path)}", flush=True) if not targets else say(f"kept in {_shown(path)}")
    return path


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of plain text: one column for each rival, one line for each of its figures and short words."""
    keys = [k for k in dict.fromkeys(k for row in rows for k in row) if k not in ("name", "rounds")]
    keys = [k for k in keys if any(_short(row.get(k)) for row in rows)]
    columns = [["", *keys]]
    columns += [[str(row["name"]), *(number(row.get(k)) for k in keys)] for row in rows]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(
            cell.ljust(w) if n == 0 else cell.rjust(w) for n, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in zip(*columns, strict=True)
    ]


def _short(value: Any) -> bool:
    return isinstance(value, int | float | str)


def number(value: Any) -> str:
    """A figure as a reader wants it: bytes stay whole, small ones keep three digits."""
    if value is None:
        return "-"
    if isinstance(value, bool | str):
        return str(value).splitlines()[0][:24] if value != "" else "-"
    if isinstance(value, int | float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if isinstance(value, float) else str(value)
    return "..."


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _shown(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def say(line: str) -> None:
    """Progress, on standard error: standard output belongs to results."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":  # a rival of its own, so that every round has the ceiling of its own minute
    print(json.dumps({"matmul_peak_gflops": matmul_peak_gflops()}))
