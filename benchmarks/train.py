"""Training against what a user would otherwise run: examples per second, memory, loss, share of the ceiling.

    python benchmarks/train.py --shape 13m                    (nano, 13m, 135m, 1b; 8b on a GPU)
    python benchmarks/train.py --shape 13m --time-to-quality

The embedded news table, one answer for each item: three sentences in, one JSON with six choices out. Rivals:
  notebook   the course's notebook: TRL's SFTTrainer over NF4 weights, loss on the whole text, batch 4 x 4
  trl-best   the fastest right settings of SFTTrainer that were found for a CPU (`--rivals` runs the other candidates)
  afina      the same rank, targets, dropout, rate, batch and examples; everything else is the planner's
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from harness import (
    BUILD,
    PEAK,
    PEAK_ARGV,
    RESULTS,
    ROOT,
    Target,
    interleave,
    ratio,
    say,
    summary,
    value_of,
    write_result,
)
from shapes import NAMES, make_shape
from train_rivals import EXAMPLES_PER_UPDATE, LORA_R, RIVALS, SEED, SEVEN_MODULES

ASSETS = ROOT / "src" / "afina" / "assets" / "noticias"
DEFAULT_RIVALS = ("notebook", "trl-best", "afina")
EPOCHS = 3.0  # the notebook's, for time to quality
MEMORY_LIMIT_BYTES = 24 << 30
FORMULA = (
    "useful FLOP = tokens x (4 x N + 6 x A) + sum over examples of 12 x layers x d x T(T+1)/2 + completion tokens x "
    "4 x V x H.  N: parameters of the decoder's linear layers (forward 2, gradient of the activations 2; frozen, so no "
    "gradient of the weights); A: of the adapter (forward 2, both gradients 4); d: heads x head size (two products, "
    "forward 2 FLOP each, backward twice that, over the causal half); V x H: the head, where a completion token is "
    "predicted. Real tokens only, no padding, and counted alike for all rivals, also where one of them saves a part "
    "(as by reading a shared beginning once)."
)


@dataclass(frozen=True)
class Size:
    """How much is run for a shape, so that the whole benchmark stays within minutes. results: where it is kept."""

    updates: int
    rounds: int
    validation_rows: int
    results: Path = RESULTS


SIZES = {
    "nano": Size(8, 3, 52),
    "13m": Size(8, 3, 52),
    "135m": Size(4, 3, 16),
    "1b": Size(2, 1, 4),
    "8b": Size(4, 1, 4),
}


@dataclass(frozen=True)
class Cost:
    """Useful floating-point operations of learning, for one model.

    num_linear, num_adapter: parameters. attention: layers x heads x head size. head: vocabulary x hidden.
    """

    num_linear: int
    num_adapter: int
    attention: int
    head: int

    def flop(self, num_tokens: int, num_completion: int) -> float:
        """Of one example: all its tokens, of which num_completion are predicted."""
        pairs = num_tokens * (num_tokens + 1) / 2
        per_token = 4 * self.num_linear + 6 * self.num_adapter
        return num_tokens * per_token + 12 * self.attention * pairs + 4 * self.head * num_completion


def cost_of(model: Path) -> Cost:
    """Counted from the model's configuration."""
    from afina.engine.loader import load_config
    from afina.training.facts import model_facts

    facts, config = model_facts(str(model)), load_config(str(model))
    width = config.num_attention_heads * config.head_dim
    adapter = facts.num_adapter(LORA_R, list(SEVEN_MODULES))
    return Cost(facts.num_linear, adapter, facts.num_layers * width, facts.vocabulary * facts.hidden)


# -- data ----------------------------------------------------------------------------------------


def encoded_news(model: Path) -> dict[str, list[tuple[list[int], int]]]:
    """{"train", "validation"}: (token ids, prompt tokens) of each news item, as Afina's renderer writes them.

    One answer for the whole item, completion style; 80/20 by a fixed seed.
    """
    from afina.core.predictor import Example
    from afina.core.recipe_file import make_recipe
    from afina.core.task_config import load_task
    from afina.engine.codec import Codec
    from afina.engine.loader import load_tokenizer
    from afina.engine.renderer import Renderer

    raw: dict[str, Any] = yaml.safe_load((ASSETS / "recipe.yaml").read_text(encoding="utf-8"))
    raw["task"].pop("parts")
    task = load_task(make_recipe(raw).task)
    renderer = Renderer(task, Codec(load_tokenizer(str(model))), "completion")
    rows: list[tuple[list[int], int]] = []
    with (ASSETS / "noticias.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            sentences = ("f1", "f2", "f3")
            output = {s: {"polaridade": row[f"{s}_polaridade"], "emocao": row[f"{s}_emocao"]} for s in sentences}
            example = Example(row["news_id"], {s: row[s] for s in sentences}, output)
            encoded = renderer.encode(task.parts[0], example)
            assert encoded is not None, "every row of the embedded table is labelled"
            rows.append((list(encoded.input_ids), encoded.num_prompt))
    random.Random(SEED).shuffle(rows)
    held_out = len(rows) // 5
    return {"train": rows[held_out:], "validation": rows[:held_out]}


# -- the two benchmarks ------------------------------------------------------------------------


def compare(rivals: Mapping[str, Sequence[str]], shape: str, size: Size, cost: Cost, data: dict[str, Any]) -> None:
    """Steady rate, whole process, memory, loss and share of the ceiling."""
    rows = interleave({PEAK: PEAK_ARGV, **rivals}, size.rounds)
    flop_s = [cost.flop(len(ids), len(ids) - n) for ids, n in data["train"]]
    rows = [enriched(row, mean(flop_s), rows) for row in rows]
    wanted = {
        "rate": "examples_per_s",
        "whole-process rate": "process_examples_per_s",
        "peak memory": "peak_memory_bytes",
        "validation loss": "validation_loss",
    }
    ratios = {
        f"afina / {other}: {words}": ratio(rows, key, "afina", other)
        for words, key in wanted.items()
        for other in rivals
        if other != "afina"
    }
    targets = {
        "afina / notebook: rate": Target(ratios.get("afina / notebook: rate"), at_least=2.5),
        "afina / trl-best: rate": Target(ratios.get("afina / trl-best: rate"), at_least=1.5),
        "afina / notebook: peak memory": Target(ratios.get("afina / notebook: peak memory"), at_most=1.0),
        "afina / notebook: validation loss": Target(ratios.get("afina / notebook: validation loss"), at_most=1.0),
    }
    if shape == "135m":
        targets["afina: share of the matrix-product peak"] = Target(
            value_of(rows, "afina", "share_of_peak"), at_least=0.6
        )
    if shape == "1b":
        peak = value_of(rows, "afina", "peak_memory_bytes")
        targets["afina: peak memory, bytes"] = Target(peak, at_most=MEMORY_LIMIT_BYTES)
    write_result(f"train-{shape}", rows, ratios, targets, notes(rows, data), folder=size.results)


def enriched(row: Mapping[str, Any], flop_per_example: float, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row with what follows from its figures, round by round; the shared evaluation is taken out of the time."""
    peaks = next(({r["round"]: r["matmul_peak_gflops"] for r in q["rounds"]} for q in rows if q["name"] == PEAK), {})
    rounds: list[dict[str, Any]] = []
    for one in row["rounds"]:
        more: dict[str, Any] = {}
        if "examples_per_s" in one:
            gflops = one["examples_per_s"] * flop_per_example / 1e9
            share = gflops / peaks[one["round"]] if one["round"] in peaks else None
            alone_s = one["process_s"] - one["evaluation_s"]
            more = {
                "process_examples_per_s": one["examples"] / alone_s,
                "tokens_per_s": one["examples_per_s"] * one["tokens"] / one["examples"],
                "gflops": gflops,
                "share_of_peak": share,
            }
        rounds.append({**one, **more})
    return summary(row["name"], rounds, row.get("failed"))


def time_to_quality(rivals: Mapping[str, Sequence[str]], shape: str, size: Size, data: dict[str, Any]) -> None:
    """Wall time from the start of the process until Afina is as good as the notebook is at its end."""
    rows = interleave({name: rivals[name] for name in ("notebook", "afina-planner")}, size.rounds)
    ends = {r["round"]: r for r in rows[0]["rounds"]}
    for one in rows[1]["rounds"]:
        rival = ends.get(one["round"])
        one["reached_s"] = reached_s(one["curve"], rival["validation_loss"]) if rival else None
        one["reached_share"] = one["reached_s"] / rival["trained_s"] if rival and one["reached_s"] else None
    rows = [summary(row["name"], row["rounds"], row.get("failed")) for row in rows]
    share = value_of(rows, "afina-planner", "reached_share")
    ratios = {"afina until the notebook's loss / notebook, wall time": share}
    targets = {"time to quality": Target(share, at_most=0.2)}
    more = [
        f"notebook: {size.updates} updates; trained_s is the age of its process when its training ended, before any "
        "evaluation. afina-planner: nothing told but the model and as many epochs; reached_s is the age of its process "
        "at the first evaluation whose loss was not above the notebook's, its evaluations included.",
    ]
    write_result(f"time-to-quality-{shape}", rows, ratios, targets, [*more, *notes(rows, data)], folder=size.results)


def reached_s(curve: Sequence[Sequence[float]], loss: float) -> float | None:
    """The time of the first [time, step, loss] whose loss is at most this; None if there is none."""
    return next((time_s for time_s, _, found in curve if found <= loss), None)


def notes(rows: Sequence[Mapping[str, Any]], data: dict[str, Any]) -> list[str]:
    """What a reader needs beside the figures."""
    lengths = [len(ids) for ids, _ in data["train"]]
    answers = [len(ids) - n for ids, n in data["train"]]
    found = [
        f"{len(lengths)} training items of {min(lengths)}-{max(lengths)} tokens, mean {mean(lengths):.0f}, of which "
        f"answer {mean(answers):.0f}; {EXAMPLES_PER_UPDATE} examples an update, the same for all.",
        FORMULA,
        "examples_per_s: median over the updates after the first two. validation_loss: mean nats of completion tokens.",
        "peak_memory_bytes: of the process (on a GPU, of the device) when training ended.",
    ]
    found += [f"{row['name']}: {line}" for row in rows for line in row.get("plan") or ()]
    found += [f"{row['name']} failed: {row['failed']}" for row in rows if row.get("failed")]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=NAMES, default="13m")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--updates", type=int, help=f"of {EXAMPLES_PER_UPDATE} examples")
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=DEFAULT_RIVALS)
    parser.add_argument("--time-to-quality", action="store_true")
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="for --time-to-quality")
    parser.add_argument("--validation-rows", type=int)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to keep the result in")
    args = parser.parse_args()
    model = make_shape(args.shape, BUILD / "shapes")
    data = encoded_news(model)
    default = SIZES[args.shape]
    per_epoch = len(data["train"]) / EXAMPLES_PER_UPDATE
    size = Size(
        updates=round(args.epochs * per_epoch) if args.time_to_quality else args.updates or default.updates,
        rounds=args.rounds or default.rounds,
        validation_rows=args.validation_rows or default.validation_rows,
        results=args.results,
    )
    data["validation"] = data["validation"][: size.validation_rows]
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        path = Path(folder) / "news.json"
        path.write_text(json.dumps(data), encoding="utf-8")
        work = json.dumps({"model": str(model), "data": str(path), "updates": size.updates, "num_epochs": args.epochs})
        script = str(Path(__file__).with_name("train_rivals.py"))
        rivals = {name: (sys.executable, script, name, work) for name in (*args.rivals, "notebook", "afina-planner")}
        rows = len(data["validation"])
        say(f"shape {args.shape}: {size.updates} updates, {size.rounds} rounds, {rows} validation rows")
        if args.time_to_quality:
            time_to_quality(rivals, args.shape, size, data)
        else:
            compare({name: rivals[name] for name in args.rivals}, args.shape, size, cost_of(model), data)


if __name__ == "__main__":
    main()
