"""What does the server cost, and how does it stand beside `transformers serve`? The same model, prompts and clients.

    python benchmarks/serve.py [--clients 1,8,32] [--seconds 8] [--rounds 3]

Rivals, each a process of its own, interleaved:
  afina                   `afina serve`, asked over HTTP
  engine                  the same engine without a server: what HTTP, JSON and keys cost is the difference
  transformers            `transformers serve`
  transformers-batching   the same with --continuous-batching
Prints ratios and targets last and keeps all of it under benchmarks/results/.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness import Target, interleave, ratio, write_result

COMMAND = Path(__file__).resolve().parent / "rivals" / "serving.py"
RIVALS = ("afina", "engine", "transformers", "transformers-batching")
KEPT = 0.9  # of the engine's rate, at batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rivals", nargs="+", default=list(RIVALS), choices=RIVALS)
    asked = parser.parse_args()
    common = ["--clients", asked.clients, "--seconds", str(asked.seconds)]
    rows = interleave(
        {name: [sys.executable, str(COMMAND), name, *common] for name in asked.rivals}, asked.rounds, timeout_s=900
    )
    counts = [int(n) for n in asked.clients.split(",")]
    ratios, targets = {}, {}
    for kind in ("text", "structured"):
        for count in counts:
            key = f"{kind}_{count}_tokens_per_s"
            ratios[f"{kind}, {count} clients: served / engine, tokens per second"] = ratio(rows, key, "afina", "engine")
    for count in counts:
        for rival in RIVALS[2:]:
            for figure, what in (
                ("requests_per_s", "requests per second"),
                ("first_token_p50_s", "time to first token"),
            ):
                found = ratio(rows, f"text_{count}_{figure}", "afina", rival)
                ratios[f"text, {count} clients: afina / {rival}, {what}"] = found
    for kind in ("text", "structured"):
        for count in counts[1:]:
            value = ratios[f"{kind}, {count} clients: served / engine, tokens per second"]
            targets[f"{kind}, {count} clients, kept of the engine's rate"] = Target(value, at_least=KEPT)
    notes = [
        "text: greedy, at most 32 tokens. structured: a strict JSON schema with two choices.",
        "The clients run on the same cores as the server.",
    ]
    write_result("serve-nano", rows, ratios, targets, notes)


if __name__ == "__main__":
    main()
