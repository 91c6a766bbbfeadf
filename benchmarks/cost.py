"""How cost grows: time and memory of a training, one thing varied at a time, beside what the planner had said.

    python benchmarks/cost.py [--quick] [--only tokens rank] [--compile] [--write-docs]

Each point has two processes. The first does what `afina plan` does: it predicts memory from the configuration alone,
and time from a few measured steps. The second trains from beginning to end, evaluations, checkpoints and the final
save included, and is measured from outside. --write-docs also draws docs/cost.svg and writes the section of
docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness import BUILD, RivalFailedError, Target, run_process, say, write_result
from shapes import NAMES, make_shape
from train import encoded_news
from train_rivals import EXAMPLES_PER_UPDATE, SEED

# What every point has, unless it varies it. The learning rate decides no cost.
BASE: dict[str, Any] = {
    "finetuning_type": "lora",
    "load_in_4bit": False,
    "lora_r": 16,
    "per_device_train_batch_size": 4,
    "gradient_checkpointing": False,
    "torch_compile": False,
    "logging_steps": 1,
}
VALIDATION_EXAMPLES = 16
EVALUATIONS = 2
COMPLETION_SHARE = 0.3  # of a cut example's tokens, as in the news items
MEMORY_WITHIN, TIME_WITHIN = 0.20, 0.30
MIB = 1 << 20


@dataclass(frozen=True)
class Point:
    """One training. group: what it varies. value: to what, as the table shows it. x: the same as a number, or None.

    tokens: of each example; None for the news items as they are. told: beside BASE.
    """

    group: str
    value: str
    x: float | None = None
    shape: str = "13m"
    num_examples: int = 128
    tokens: int | None = None
    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.group} {self.value}"


BASE_POINT = Point("base", "13m, rank 16, news items")
GROUPS = ("examples", "tokens", "batch", "rank", "model", "way")


def points(only: Sequence[str] = GROUPS, *, compiled: bool = False) -> list[Point]:
    """The base point and every variation of it; the base stands for its own value in each group (`series`)."""
    found = [Point("examples", str(n), n, num_examples=n) for n in (64, 256)]
    found += [Point("tokens", str(n), n, tokens=n) for n in (64, 128, 256, 512)]
    found += [_told("batch", n, per_device_train_batch_size=n) for n in (1, 16)]
    found += [_told("rank", n, lora_r=n) for n in (4, 64)]
    found += [
        Point("model", "nano", shape="nano"),
        Point("model", "135m", shape="135m", num_examples=48),
    ]
    found += [
        Point("way", "all weights", told={"finetuning_type": "full"}),
        Point("way", "4 bit, written out once", told={"load_in_4bit": True, "dequantize": True}),
        Point("way", "4 bit, kept", told={"load_in_4bit": True, "dequantize": False}),
        Point("way", "checkpointing", told={"gradient_checkpointing": True}),
    ]
    if compiled:
        found.append(Point("way", "torch_compile", told={"torch_compile": True}))
    return [BASE_POINT, *(p for p in found if p.group in only)]


QUICK = ("tokens 64", "tokens 512", "batch 16", "way all weights")  # of points(), beside the base


def _told(group: str, n: int, **told: int) -> Point:
    return Point(group, str(n), n, told=told)


# -- inside a point's process ------------------------------------------------------------------


def run_point(work: Mapping[str, Any]) -> dict[str, Any]:
    """One of a point's two processes. work: {"do": "plan" | "train", "model", "data", "told"}."""
    from afina.core.train_config import TrainConfig
    from afina.engine.encoded import Encoded
    from afina.engine.loader import load_spec
    from afina.training import local
    from afina.training.collate import common_beginning
    from afina.training.facts import model_facts
    from afina.training.machine import machine
    from afina.training.plan import plan
    from afina.training.planner import resolve

    data = json.loads(Path(work["data"]).read_text(encoding="utf-8"))
    train, validation = ([Encoded(tuple(ids), n) for ids, n in data[key]] for key in ("train", "validation"))
    lengths, shared = [len(e.input_ids) for e in train], common_beginning(train)
    config, here = TrainConfig(base_model=work["model"], **work["told"]), machine(Path(work["data"]).parent)
    facts = model_facts(config.base_model)
    settings = resolve(config, facts, lengths, here, shared)
    loaded = load_spec(settings.base, dequantize=settings.dequantize)
    if work["do"] == "plan":
        step_s = local.measure_step_s(loaded, settings, train, SEED)
        tokens = sum(len(e.input_ids) for e in validation)
        found = plan(settings, facts, lengths, here, step_s, shared=shared, validation_tokens=tokens).to_json()
        return {k: found[k] for k in ("memory_bytes", "estimated_s", "seconds_per_step", "parameters", "tokens")}
    with tempfile.TemporaryDirectory(dir=Path(work["data"]).parent) as folder:
        began, began_cpu_s = time.perf_counter(), time.process_time()
        result = local.train(loaded, settings, train, validation, Path(folder) / "training", SEED)
        return {
            "train_s": time.perf_counter() - began,
            "train_cpu_s": time.process_time() - began_cpu_s,
            "steps": result.steps,
        }


# -- all points --------------------------------------------------------------------------------


def run(point: Point, folder: Path) -> dict[str, Any]:
    """The point's row: predicted and measured, and their ratios (predicted over measured)."""
    model = make_shape(point.shape, BUILD / "shapes")
    path = folder / "data.json"
    data = examples_of(point, encoded_news(model))
    path.write_text(json.dumps(data), encoding="utf-8")
    updates = -(-point.num_examples // EXAMPLES_PER_UPDATE)
    told = {**BASE, "max_steps": updates, "eval_steps": max(1, updates // EVALUATIONS), **point.told}
    if told["finetuning_type"] == "full":
        told.pop("lora_r")
    told["gradient_accumulation_steps"] = EXAMPLES_PER_UPDATE // told["per_device_train_batch_size"]
    lengths = [len(ids) for ids, _ in data["train"]]
    row: dict[str, Any] = {"name": point.name, **asdict(point), "mean_tokens": sum(lengths) / len(lengths)}
    try:
        made = {
            do: run_process(
                (
                    sys.executable,
                    str(Path(__file__).resolve()),
                    "--work",
                    json.dumps({"do": do, "model": str(model), "data": str(path), "told": told}),
                )
            )
            for do in ("plan", "train")
        }
    except RivalFailedError as error:
        return {**row, "failed": str(error)}
    said, seen = made["plan"].result, made["train"]
    row |= {
        "parameters": said["parameters"],
        "predicted_memory_bytes": said["memory_bytes"]["peak"],
        "measured_memory_bytes": seen.peak_rss_bytes,
        "predicted_s": said["estimated_s"],
        "measured_s": seen.result["train_s"],
        "measured_cpu_s": seen.result["train_cpu_s"],
        "s_per_example": seen.result["train_s"] / point.num_examples,
        "memory_parts_bytes": said["memory_bytes"],
    }
    row["memory_ratio"] = row["predicted_memory_bytes"] / row["measured_memory_bytes"]
    row["time_ratio"] = row["predicted_s"] / row["measured_s"]
    return row


def examples_of(point: Point, news: dict[str, list[tuple[list[int], int]]]) -> dict[str, list[tuple[list[int], int]]]:
    """{"train", "validation"} of a point: news items, repeated where there are too few, or their text cut in equal
    pieces."""
    if point.tokens is None:
        items = news["train"]
        train = [items[i % len(items)] for i in range(point.num_examples)]
        return {"train": train, "validation": news["validation"][:VALIDATION_EXAMPLES]}
    stream = [token for ids, _ in news["train"] for token in ids]
    needed = point.num_examples + VALIDATION_EXAMPLES
    stream *= -(-needed * point.tokens // len(stream))
    prompt = point.tokens - max(1, round(COMPLETION_SHARE * point.tokens))
    pieces = [(stream[i * point.tokens : (i + 1) * point.tokens], prompt) for i in range(needed)]
    return {"train": pieces[VALIDATION_EXAMPLES:], "validation": pieces[:VALIDATION_EXAMPLES]}


def line(row: Mapping[str, Any]) -> str:
    """One point for the screen."""
    if "failed" in row:
        return f"{row['name']:<34} failed: {row['failed']}"
    return (
        f"{row['name']:<34} {row['predicted_memory_bytes'] / MIB:8,.0f} {row['measured_memory_bytes'] / MIB:8,.0f} "
        f"{row['memory_ratio']:6.2f} {row['predicted_s']:8.1f} {row['measured_s']:8.1f} {row['time_ratio']:6.2f} "
        f"{row['s_per_example']:8.3f}"
    )


HEADER = f"{'':<34} {'MiB said':>8} {'seen':>8} {'ratio':>6} {'s said':>8} {'seen':>8} {'ratio':>6} {'s/exam.':>8}"


def share_within(rows: Sequence[Mapping[str, Any]], key: str, bound: float) -> tuple[int, int]:
    """(how many, of how many) points whose prediction is off by at most `bound` of what was measured. A failed
    point counts among the second."""
    return sum(abs(row[key] - 1) <= bound for row in rows if key in row), len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="five points")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--compile", action="store_true", help="one more point; a minute to compile")
    parser.add_argument("--write-docs", action="store_true")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print(json.dumps(run_point(json.loads(args.work))), flush=True)
        return
    assert set(NAMES) >= {p.shape for p in points()}, "every shape can be made"
    chosen = points(args.only, compiled=args.compile)
    if args.quick:
        chosen = [p for p in chosen if p is BASE_POINT or p.name in QUICK]
    BUILD.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    say(HEADER)
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        for point in chosen:
            rows.append(run(point, Path(folder)))
            say(line(rows[-1]))
    print(HEADER, *map(line, rows), sep="\n")
    finish(rows, write_docs=args.write_docs, name="cost-quick" if args.quick else "cost")


def finish(rows: Sequence[Mapping[str, Any]], *, write_docs: bool, name: str) -> None:
    """Keep the result, draw it if wanted, and say last how many predictions were near."""
    memory, of = share_within(rows, "memory_ratio", MEMORY_WITHIN)
    seconds, _ = share_within(rows, "time_ratio", TIME_WITHIN)
    ratios = {
        f"{kind}, predicted / measured: {r['name']}": r.get(f"{kind}_ratio")
        for r in rows
        for kind in ("memory", "time")
    }
    targets = {
        f"share of {of} points whose memory was predicted within {MEMORY_WITHIN:.0%}": Target(
            memory / of, at_least=1.0
        ),
        f"share of {of} points whose time was predicted within {TIME_WITHIN:.0%}": Target(seconds / of, at_least=1.0),
    }
    if write_docs:
        from cost_docs import write

        say("\n".join(f"wrote {path.name}" for path in write(rows)))
    with contextlib.redirect_stdout(io.StringIO()):  # its table has a column for each row: far too many
        write_result(name, rows, ratios, targets)
    print("\ntargets", *(f"  {key}: {target}" for key, target in targets.items()), sep="\n")


if __name__ == "__main__":
    main()
