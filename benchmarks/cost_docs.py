"""The section "How cost grows" of docs/performance.md and its figure, from the rows of cost.py.

Comes in: rows. Goes out: docs/cost.svg, and the section: in docs/performance.md between its two marks, or, where that
has none, docs/performance-cost.part.md. It measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import ROOT, machine_facts

DOCS = ROOT / "docs"
FIGURE, PAGE, PART = DOCS / "cost.svg", DOCS / "performance.md", DOCS / "performance-cost.part.md"
BEGIN, END = "<!-- cost: begin (benchmarks/cost.py --write-docs) -->", "<!-- cost: end -->"
MIB = 1 << 20
# Okabe and Ito's blue and vermilion, told apart by all kinds of colour vision; dash and marker differ as well.
MEASURED, PREDICTED = "#0072B2", "#D55E00"
PANELS = (
    ("examples", "training examples"),
    ("tokens", "tokens per example"),
    ("batch", "examples per micro-batch"),
    ("rank", "rank of the adapter"),
    ("model", "parameters (millions)"),
)
BASE_X = {"examples": 128, "batch": 4, "rank": 16}  # where the base point stands in each group
TEXT = """## How cost grows

`python benchmarks/cost.py --write-docs` trains small models from beginning to end, one thing varied at a time
around a base point: a Llama of 13 M parameters, LoRA of rank 16 on seven modules, news items of {tokens:.0f} tokens on
average, 4 x 4 examples per update. For each point one process says what `afina plan` would say, and another one
trains; neither knows of the other. *Said* is the plan, *seen* the most memory that the system counted for the training
process, or the wall time of the training with its evaluations, checkpoints and final save. Memory holds
{runtime:,.0f} MiB of Python, torch and transformers in every row. {cpu}, {cores} cores.

![Time per example and peak memory against examples, tokens, micro-batch, rank and model size, predicted and
measured](cost.svg)

| varied | | memory said, MiB | seen | ratio | time said, s | seen | ratio | s per example |
|---|---|--:|--:|--:|--:|--:|--:|--:|
{table}

Within 20 % of the memory seen: {near_memory} of {of} predictions. Within 30 % of the time seen: {near_time} of {of}.

### What the memory is made of

The formula that `afina plan` prints was found by listing every tensor that autograd keeps, with the line of code that
made it (`torch.autograd.graph.saved_tensors_hooks`). For one token in one layer of the 13 M shape (hidden 384, MLP
1024, 6 heads, rows of 232 tokens, bfloat16, fused adapters with dropout):

| kept | bytes | formula |
|---|--:|---|
| the stream in float32, read by two norms | 3,072 | 8 h |
| inputs of the linear layers, their dropout masks, the masked copies | 13,056 | 3 x 2 x (3 h + MLP) |
| low-rank products | 224 | 2 r for each of 7 modules |
| queries, keys, values | 2,304 | 3 x 2 h |
| attention weights, in float32 and in bfloat16 | 8,352 | heads x T x 6 |
| gate, up and silu(gate) | 6,144 | 3 x 2 MLP |

33,152 bytes; counted: 33,184. The attention weights are what grows with the square of a row's length, which is why rows
are short and `sdpa` takes over above 512 tokens.

Three things are no tensors.

*Allocator holes.* glibc gives PyTorch's aligned blocks back in pieces that a tensor of the same size does not fit into
again, so the peak stands above the sum of what is in use; the formula says by {holes:.0f} % of the activations, single
runs had 20 to 100 %. Giving every tensor pages of its own (`MALLOC_MMAP_THRESHOLD_=262144`) takes that away (1,376 to
1,113 MiB at 8 x 232 tokens), and doubles the time of a step by page faults.

*Kernels.* oneDNN compiles bfloat16 products for each size of a micro-batch and keeps them: 22.5 MiB for each new size
with fused adapters, 9 with all weights, up to 1024 kernels (about 700 MiB). That is why micro-batches of one example,
whose lengths all differ, are no smaller than those of four. `ONEDNN_PRIMITIVE_CACHE_CAPACITY=32` took 276 MiB off such
a run, and compiled more often.

*Checkpoint pages.* Weights are used where safetensors mapped the file; fused adapters copy them side by side, and the
file's pages stay counted until the system wants them back. Loading is therefore never the peak: a mapped file costs
nothing until it is read.

### What the time is made of

The plan measures three updates, leaves out the first, and multiplies. An evaluation of as many tokens counts as a half
of that for an adapter (its forward pass is 2 of 4 operations per weight) and as a third for all weights (2 of 6).
Start-up, the first update's warming up, checkpoints and the final save are not in it; they are in what was seen.
"""


def write(rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Draw and write; the paths written."""
    done = [row for row in rows if "failed" not in row]
    draw(done, FIGURE)
    body = f"{BEGIN}\n{section(rows, done)}{END}\n"
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if BEGIN in page and END in page:
        before, rest = page.split(BEGIN, 1)
        PAGE.write_text(before + body + rest.split(END, 1)[1].lstrip("\n"), encoding="utf-8")
        return [FIGURE, PAGE]
    PART.write_text(body, encoding="utf-8")
    return [FIGURE, PART]


def section(rows: Sequence[Mapping[str, Any]], done: Sequence[Mapping[str, Any]]) -> str:
    """The section as Markdown."""
    from cost import MEMORY_WITHIN, TIME_WITHIN, share_within

    from afina.training.memory import HEAP_HOLES

    here = machine_facts()
    near_memory, of = share_within(rows, "memory_ratio", MEMORY_WITHIN)
    near_time, _ = share_within(rows, "time_ratio", TIME_WITHIN)
    return TEXT.format(
        tokens=done[0]["mean_tokens"],
        runtime=done[0]["memory_parts_bytes"]["runtime"] / MIB,
        cpu=here["cpu"],
        cores=here["cores"],
        table="\n".join(map(_table_row, rows)),
        near_memory=near_memory,
        near_time=near_time,
        of=of,
        holes=100 * HEAP_HOLES,
    )


def _table_row(row: Mapping[str, Any]) -> str:
    if "failed" in row:
        return f"| {row['group']} | {row['value']} | failed | | | | | | |"
    return (
        f"| {row['group']} | {row['value']} | {row['predicted_memory_bytes'] / MIB:,.0f} | "
        f"{row['measured_memory_bytes'] / MIB:,.0f} | {row['memory_ratio']:.2f} | {row['predicted_s']:.1f} | "
        f"{row['measured_s']:.1f} | {row['time_ratio']:.2f} | {row['s_per_example']:.3f} |"
    )


def series(rows: Sequence[Mapping[str, Any]], group: str) -> list[tuple[float, Mapping[str, Any]]]:
    """(x, row) of one group, by rising x; the base point where it belongs to the group."""
    if group == "model":
        found = [(row["parameters"] / 1e6, row) for row in rows if row["group"] in ("model", "base")]
    else:
        found = [(row["x"], row) for row in rows if row["group"] == group]
        found += [(BASE_X[group], row) for row in rows if row["group"] == "base" and group in BASE_X]
    return sorted(found, key=lambda pair: pair[0])


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Two rows of panels (time per example, memory) over what was varied. Axes from zero, but for x, which doubles."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "afina", "axes.spines.top": False, "axes.spines.right": False})
    chosen = [panel for panel in PANELS if len(series(rows, panel[0])) > 1]
    figure, grid = plt.subplots(2, len(chosen), figsize=(2.5 * len(chosen), 4.8), squeeze=False, layout="constrained")
    for column, (group, title) in enumerate(chosen):
        found = series(rows, group)
        xs = [x for x, _ in found]
        for at, (label, seen, said, scale) in enumerate(_measures()):
            axes = grid[at][column]
            axes.plot(xs, [seen(r) / scale for _, r in found], "o-", color=MEASURED, label="measured")
            axes.plot(
                xs,
                [said(r) / scale for _, r in found],
                "s--",
                color=PREDICTED,
                mfc="none",
                label="predicted by the plan",
            )
            axes.set_xscale("log", base=2)
            axes.set_xticks(xs, [f"{x:.0f}" for x in xs])
            axes.minorticks_off()
            axes.set_ylim(0, 1.1 * max(max(seen(r), said(r)) / scale for _, r in found))
            axes.grid(axis="y", alpha=0.3)
            if column == 0:
                axes.set_ylabel(label)
            if at == 1:
                axes.set_xlabel(title)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _measures() -> tuple[tuple[str, Any, Any, float], ...]:
    """(axis title, what was seen, what was said, unit)."""
    return (
        (
            "time per example (ms)",
            lambda r: r["measured_s"] / r["num_examples"],
            lambda r: r["predicted_s"] / r["num_examples"],
            1e-3,
        ),
        ("peak memory (GiB)", lambda r: r["measured_memory_bytes"], lambda r: r["predicted_memory_bytes"], 1 << 30),
    )
