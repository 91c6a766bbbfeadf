"""What a system's answers took: money, time, tokens, requests, and how many of them are usable.

Comes in: a `SystemRun` and what an hour of this machine costs. Goes out: JSON-ready figures over the answers of all
its seeds. It does not know whether an answer is right.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from afina.core import schema as schemas
from afina.evaluation.system import SystemRun


def costs(system: SystemRun, output: dict[str, Any], machine_usd_per_hour: float | None) -> dict[str, Any]:
    """Tokens, passes, requests: means per answer. num_...: counts over `num_answers`. cost_usd: paid, in all.

    output: the answers' schema. machine_usd_per_hour: of wall time; None and 0 alike mean that it is free.
    timed_alone: latencies are of rows asked alone, else shares of a batch's time.
    cost_basis: which of the two `cost_per_1000_usd` is made of: "paid", "machine", "paid+machine", or "none".
    """
    answers = [prediction for run in system.runs for prediction in run]
    usages = [answer.usage for answer in answers]
    valid = [p.error is None and schemas.problems(p.output, output) is None for p in answers]
    latencies = np.array(system.latencies_s or [p.latency_s for p in answers])
    paid_usd = float(sum(usage.cost_usd for usage in usages))
    machine_usd = (machine_usd_per_hour or 0.0) * system.wall_s / 3600
    parts = {"paid": paid_usd, "machine": machine_usd}
    return {
        "num_answers": len(answers),
        "valid_rate": float(np.mean(valid)),
        "num_failed": sum(p.error is not None for p in answers),
        "num_truncated": sum(p.truncated for p in answers),
        "num_repaired": sum(usage.repairs for usage in usages),
        "reasoning_rate": float(np.mean([any(p.reasoning.values()) for p in answers])),
        "timed_alone": bool(system.latencies_s),
        "latency_p50_s": float(np.quantile(latencies, 0.5)),
        "latency_p95_s": float(np.quantile(latencies, 0.95)),
        "answers_per_s": len(answers) / max(system.wall_s, 1e-9),
        "prompt_tokens": float(np.mean([u.prompt_tokens for u in usages])),
        "completion_tokens": float(np.mean([u.completion_tokens for u in usages])),
        "forward_passes": float(np.mean([u.forward_passes for u in usages])),
        "requests": float(np.mean([u.requests for u in usages])),
        "cost_usd": paid_usd,
        "cost_per_1000_usd": 1000 * (paid_usd + machine_usd) / len(answers),
        "paid_per_1000_usd": 1000 * paid_usd / len(answers),
        "machine_per_1000_usd": 1000 * machine_usd / len(answers),
        "cost_basis": "+".join(name for name, usd in parts.items() if usd > 0) or "none",
    }
