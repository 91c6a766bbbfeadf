"""Training lines for the client scripts. Standard library only: the scripts run in environments without Afina."""

import json
import os

BASE = "gpt-4o-mini-2024-07-18"
SYSTEM = "Say whether the sentence is good or bad news."
GOOD = [
    "Exports grew again.",
    "The harvest was rich.",
    "Prices fell.",
    "A new school opened.",
    "Wages rose.",
    "Rain came.",
]
BAD = [
    "The factory closed.",
    "Inflation is back.",
    "The bridge fell.",
    "A drought began.",
    "Jobs were lost.",
    "Debt rose.",
]
MODEL = os.environ.get("AFINA_TUNED_MODEL", "")  # a model that was tuned before, for scripts that only ask


def examples():
    """Twelve labelled chats."""
    found = []
    for text, label in [(t, "good") for t in GOOD] + [(t, "bad") for t in BAD]:
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": text},
            {"role": "assistant", "content": json.dumps({"label": label})},
        ]
        found.append({"messages": messages})
    return found


def jsonl():
    return "\n".join(json.dumps(one) for one in examples()).encode()


class Checks:
    """Counts what was checked, so that a script that checked nothing cannot pass."""

    def __init__(self):
        self.count = 0

    def __call__(self, holds, what):
        if not holds:
            raise SystemExit(f"FAILED: {what}")
        self.count += 1

    def done(self):
        print(f"checks: {self.count}")
