"""How long does one structured answer take? Same model, same prompts, every rival in its own process.

    python benchmarks/answer.py --shape nano|13m|135m [--batch 1,4,16] [--rows 40] [--rounds 3]

The model is a specialist that Afina trained on the embedded news items (three sentences in, one JSON of six choices
out) and kept under build/benchmarks/answer/. Rivals are interleaved; a figure is the median over rounds, a ratio the
median of the rounds' ratios, over the rows that both answered. A request is the whole call: tokenising, generation,
reading the value back. Prints ratios and targets last and keeps all of it under benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from harness import Target, interleave, machine_facts, write_result

COMMAND = Path(__file__).resolve()
BATCHES = (1, 4, 16)


@dataclass(frozen=True)
class Rival:
    """name: of the way to answer, in rivals/answering.py. answer_format: of the specialist that it asks.

    batches: sizes it can be asked at; shapes: whose specialists it is asked with; None for all.
    """

    name: str
    answer_format: str = "json"
    batches: tuple[int, ...] | None = None
    shapes: tuple[str, ...] | None = None


# A new way to answer is one line here and one in rivals/answering.py.
RIVALS = (
    Rival("pipeline"),
    Rival("pipeline-250", batches=(1,)),
    Rival("generate"),
    Rival("generate+xgrammar"),
    Rival("generate+llguidance"),
    Rival("floor"),
    Rival("afina"),
    Rival("afina-plain"),
    Rival("afina-no-draft"),
    Rival("afina-no-prefix"),
    Rival("afina-missing", shapes=("13m", "135m")),
    Rival("afina-compact", answer_format="compact"),
)
OURS = "afina"  # the default settings, whose targets count
REFERENCE = "afina-plain"  # undrafted: whose answers the others' are compared with
FLOOR = "floor"
SAME_MODEL = {r.name for r in RIVALS if r.answer_format == "json"}

Row = dict[str, Any]


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        from rivals.measure import main as measure

        measure(sys.argv[2:])
        return
    args = _arguments()
    from rivals.specialist import make_subject

    rivals = [r for r in RIVALS if r.shapes is None or args.shape in r.shapes]
    rivals = [r for r in rivals if not args.only or r.name in (*args.only, OURS, REFERENCE, FLOOR)]
    folders = {f: make_subject(args.shape, args.dtype, f) for f in dict.fromkeys(r.answer_format for r in rivals)}
    threads = args.threads or int(machine_facts()["cores"])
    commands: dict[str, list[str]] = {}
    for rival in rivals:
        batches = [b for b in args.batch if rival.batches is None or b in rival.batches]
        if batches:
            commands[rival.name] = [
                sys.executable, str(COMMAND), "--measure", rival.name, str(folders[rival.answer_format]),
                "--batch", ",".join(map(str, batches)), "--rows", str(args.rows),
                "--seconds", str(args.seconds), "--threads", str(threads),
            ]  # fmt: skip
    measured = interleave(commands, args.rounds)
    rows = [row_of(one, args.batch, measured) for one in measured]
    ratios = ratios_of(measured, args.batch)
    name = f"answer-{args.shape}" if args.dtype == "bfloat16" else f"answer-{args.shape}-{args.dtype}"
    notes = notes_of(measured, folders["json"], args)
    write_result(name, rows, ratios, targets_of(ratios, rows), notes)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="nano", choices=["nano", "13m", "135m"])
    parser.add_argument("--batch", default="1,4,16", help="batch sizes, as 1,4,16")
    parser.add_argument("--rows", type=int, default=40, help="requests of the test split")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--seconds", type=float, default=15, help="after which a slow rival answers no further row")
    parser.add_argument("--threads", type=int, help="of torch; as many as cores when not given")
    parser.add_argument("--only", nargs="+", help="these rivals beside afina and the floor")
    args = parser.parse_args()
    args.batch = sorted({int(b) for b in args.batch.split(",")})
    return args


# -- figures -----------------------------------------------------------------------------------


def rounds_at(row: Mapping[str, Any], batch: int) -> dict[int, dict[str, Any]]:
    """Round -> what the rival found at a batch size."""
    found = {one["round"]: one["batches"].get(str(batch)) for one in row["rounds"]}
    return {n: one for n, one in found.items() if one}


def row_of(row: Mapping[str, Any], batches: Sequence[int], measured: Sequence[Mapping[str, Any]]) -> Row:
    """One rival's line: medians over rounds; latencies of single requests, answers per second of each batch."""
    found: Row = {"name": row["name"]}
    if "failed" in row:
        found["failed"] = row["failed"].splitlines()[-1]
    if not row["rounds"]:
        return found
    at_one = list(rounds_at(row, 1).values())
    if at_one:
        found["p50_ms"] = median(1e3 * percentile(one["times_s"], 50) for one in at_one)
        found["p95_ms"] = median(1e3 * percentile(one["times_s"], 95) for one in at_one)
        found["num_requests"] = len(at_one[0]["times_s"])
    for batch in batches:
        if found_at := rounds_at(row, batch).values():
            found[f"answers_per_s_{batch}"] = median(batch / median(one["times_s"]) for one in found_at)
    for batch in batches:
        if found_at := rounds_at(row, batch).values():
            found[f"passes_{batch}"] = median(one["passes"] for one in found_at)
    smallest = min(int(b) for one in row["rounds"] for b in one["batches"])
    first = rounds_at(row, smallest)
    found["tokens"] = median(one["tokens"] for one in first.values())
    if row["name"] != FLOOR:
        everything = [v for one in row["rounds"] for b in one["batches"].values() for v in b["valid"]]
        found["valid_rate"] = sum(everything) / len(everything)
        for batch in batches:
            if row["name"] in SAME_MODEL and (share := agreement(row, batch, measured)) is not None:
                found[f"agreement_{batch}"] = share
    found[f"peak_rss_bytes_{smallest}"] = median(one["peak_rss_bytes"] for one in first.values())
    found["peak_rss_bytes"] = row["peak_rss_bytes"]
    found["load_s"] = row["load_s"]
    found["rounds"] = [
        {"round": one["round"], "process_s": one["process_s"], "peak_rss_bytes": one["peak_rss_bytes"]}
        | {"times_s": {b: [round(t, 6) for t in at["times_s"]] for b, at in one["batches"].items()}}
        for one in row["rounds"]
    ]
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """By linear interpolation between the nearest values, as numpy does it."""
    ordered = sorted(values)
    at = (len(ordered) - 1) * share / 100
    low = int(at)
    return ordered[low] + (at - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def agreement(row: Mapping[str, Any], batch: int, measured: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of answers that equal the reference's single answers to the same requests."""
    wanted = reference_answers(measured)
    found = [answers for one in rounds_at(row, batch).values() if (answers := one["answers"])]
    pairs = [(a, w) for answers in found for a, w in zip(answers, wanted, strict=False)]
    return sum(a == w for a, w in pairs) / len(pairs) if pairs else None


def reference_answers(measured: Sequence[Mapping[str, Any]]) -> list[Any]:
    row = next((r for r in measured if r["name"] == REFERENCE and r["rounds"]), None)
    answers: list[list[Any]] = [one["answers"] for one in rounds_at(row, 1).values()] if row else []
    return max(answers, key=len, default=[])


def paired(measured: Sequence[Mapping[str, Any]], over: str, under: str, batch: int) -> float | None:
    """Median over rounds of over/under in the median seconds of a call, over the calls that both made."""
    by_name = {row["name"]: rounds_at(row, batch) for row in measured}
    above, below = by_name.get(over, {}), by_name.get(under, {})
    found: list[float] = []
    for n in above.keys() & below.keys():
        both = min(len(above[n]["times_s"]), len(below[n]["times_s"]))
        found.append(median(above[n]["times_s"][:both]) / median(below[n]["times_s"][:both]))
    return median(found) if found else None


def ratios_of(measured: Sequence[Mapping[str, Any]], batches: Iterable[int]) -> dict[str, float | None]:
    """Time of every rival over ours, and ours over the floor, at every batch size; None: not measured."""
    found: dict[str, float | None] = {}
    for batch in batches:
        for row in measured:
            if row["name"] not in (OURS, FLOOR) and (rounds_at(row, batch) or "failed" in row):
                found[f"{row['name']} / {OURS}, batch {batch}"] = paired(measured, row["name"], OURS, batch)
        found[f"{OURS} / {FLOOR}, batch {batch}"] = paired(measured, OURS, FLOOR, batch)
    return found


def targets_of(ratios: Mapping[str, float | None], rows: Sequence[Row]) -> dict[str, Target]:
    """The bounds: for single requests, for batches of 16, and for validity at all sizes."""
    wanted = {"pipeline": 20, "pipeline-250": 20, "generate": 10, "generate+xgrammar": 10, "generate+llguidance": 10}
    found: dict[str, Target] = {}
    for key, value in ratios.items():
        name, batch = key.partition(" / ")[0], key.rpartition(" ")[2]
        if name == OURS and batch in ("1", "16"):
            found[key] = Target(value, at_most=1.25)
        elif name in wanted and batch == "1":
            found[key] = Target(value, at_least=wanted[name])
        elif name in wanted and batch == "16":
            found[key] = Target(value, at_least=1)
    valid = next((row.get("valid_rate") for row in rows if row["name"] == OURS), None)
    return {**found, f"valid rate of {OURS}": Target(valid, at_least=1)}


def notes_of(measured: Sequence[Mapping[str, Any]], folder: Path, args: argparse.Namespace) -> list[str]:
    """What a reader must know to judge the figures: how varied and how right the answers are, what each rival does."""
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))["test"]
    answers = reference_answers(measured)
    notes = [
        f"shape {args.shape}, {args.dtype}; prompts of {median(len(r['prompt_ids']) for r in rows):g} tokens, gold "
        f"answers of {median(len(r['gold_ids']) for r in rows):g} (medians); each rival answers rows for at most "
        f"{args.seconds:g} s at each batch size, at least 3 calls; a request is the whole call",
        "pipeline: the notebook's settings, it may stop at eos, which this specialist has learnt to write; "
        "pipeline-250: all 250 tokens, as with a model that was trained with pad = eos and never learnt to stop",
        "generate: stopped at the gold answer's number of tokens, so a longer answer is cut and counts as invalid",
        "floor: one pass over prompt and gold answer together, no cache, logits of the last position",
        "afina-plain: no guesses, nothing reused between requests; its single answers are what agreement_N (share of "
        "equal answers at batch N) refers to. afina-compact: another specialist, trained to write the choices only",
        "afina-missing (where the base has random weights): guesses made wrong on purpose at 0.4 of the fields, which "
        "takes about the passes that nano's varied answers take; the figure to look at where the specialist's answers "
        "are nearly all the same and are guessed for nothing",
    ]
    if answers:
        kinds = Counter(json.dumps(a, sort_keys=True) for a in answers)
        gold = [row["gold"] for row in rows[: len(answers)]]
        pairs = [(a[f][k], g[f][k]) for a, g in zip(answers, gold, strict=True) if a for f in g for k in g[f]]
        right = sum(a == g for a, g in pairs) / max(1, len(pairs))
        notes.append(
            f"the specialist's answers to {len(answers)} requests: {len(kinds)} different ones, the commonest "
            f"{kinds.most_common(1)[0][1]} times, {right:.2f} of the labels right"
        )
    return notes


if __name__ == "__main__":
    main()
