"""LlamaIndex: its fine-tuning engine, then the model it hands back."""

import tempfile
import time
from pathlib import Path

from lines import BASE, Checks, jsonl
from llama_index.core.llms import ChatMessage
from llama_index.finetuning import OpenAIFinetuneEngine

check = Checks()
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "train.jsonl"
    path.write_bytes(jsonl())
    # Its own check counts tokens with a vocabulary that it downloads.
    engine = OpenAIFinetuneEngine(BASE, str(path), validate_json=False)
    engine.finetune()
    while (job := engine.get_current_job()).status not in ("succeeded", "failed", "cancelled"):
        time.sleep(0.5)
check(job.status == "succeeded", f"{job.status}: {job.error}")
check(job.hyperparameters.n_epochs == 8, f"automatic epochs of twelve examples: {job.hyperparameters.n_epochs}")
model = engine.get_finetuned_model(temperature=0, max_tokens=8)
answer = model.chat([ChatMessage(role="user", content="Wages rose.")])
check(answer.message.role == "assistant", "chat")
parts = [part.delta for part in model.stream_chat([ChatMessage(role="user", content="Wages rose.")])]
check("".join(parts) == answer.message.content, "stream = whole")
check.done()
