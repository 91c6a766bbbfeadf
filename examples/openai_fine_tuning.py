"""Two rounds of fine-tuning through OpenAI's API, then questions to the result.

The script knows nothing of Afina: it is written for the official `openai` package. Where it is sent is said by the
two variables that the package reads itself:

    OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=sk-afina-... python examples/openai_fine_tuning.py

A catalogue of products becomes chat lines (system, user: the title, assistant: the description), in two parts. The
second job goes on from the first one's model.
"""

import csv
import json
import time
from pathlib import Path
from typing import Literal

from openai import OpenAI
from pydantic import BaseModel

BASE = "gpt-4o-mini-2024-07-18"
SYSTEM = "Act as sales representative"
HYPERPARAMETERS = {"n_epochs": 1, "batch_size": 8, "learning_rate_multiplier": 0.6}

client = OpenAI()


class Product(BaseModel):
    kind: Literal["book", "kitchen", "home", "outdoor", "toy"]
    gift_for_children: bool


def chat_lines(rows):
    for row in rows:
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": row["title"]},
            {"role": "assistant", "content": row["content"]},
        ]
        yield json.dumps({"messages": messages}, ensure_ascii=False)


def fine_tune(model, rows, suffix):
    data = "\n".join(chat_lines(rows)).encode()
    file = client.files.create(file=(f"{suffix}.jsonl", data), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=model,
        training_file=file.id,
        suffix=suffix,
        seed=42,
        method={"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS}},
    )
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(1)
        job = client.fine_tuning.jobs.retrieve(job.id)
    for event in reversed(client.fine_tuning.jobs.list_events(job.id, limit=100).data):
        print(f"  {event.message}")
    if job.status != "succeeded":
        raise SystemExit(f"{job.id}: {job.status}. {job.error.message if job.error else ''}")
    print(f"{job.fine_tuned_model}: {job.trained_tokens} tokens trained")
    return job.fine_tuned_model


with (Path(__file__).parent / "catalogue.tsv").open(encoding="utf-8", newline="") as file:
    catalogue = list(csv.DictReader(file, delimiter="\t"))
half = len(catalogue) // 2

first = fine_tune(BASE, catalogue[:half], "catalogue-1")
second = fine_tune(first, catalogue[half:], "catalogue-2")

question = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Night Bus to Belém"}]
answer = client.chat.completions.create(model=second, messages=question, temperature=0, max_tokens=60)
print(answer.choices[0].message.content)

parsed = client.chat.completions.parse(model=second, messages=question, response_format=Product)
print(parsed.choices[0].message.parsed)
