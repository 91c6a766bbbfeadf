"""litellm: files, a fine-tuning job, chat with its model, structured answers, streams."""

import time

import litellm
from lines import BASE, SYSTEM, Checks, jsonl
from pydantic import BaseModel

check = Checks()
litellm.telemetry = False


class Label(BaseModel):
    label: str


file = litellm.create_file(file=("train.jsonl", jsonl()), purpose="fine-tune", custom_llm_provider="openai")
check(file.id.startswith("file-"), "a file")
job = litellm.create_fine_tuning_job(
    model=BASE, training_file=file.id, hyperparameters={"n_epochs": 1, "batch_size": 4}, custom_llm_provider="openai"
)
while job.status not in ("succeeded", "failed", "cancelled"):
    time.sleep(0.5)
    job = litellm.retrieve_fine_tuning_job(fine_tuning_job_id=job.id, custom_llm_provider="openai")
check(job.status == "succeeded", f"{job.status}: {job.error}")
check(job.id in [j.id for j in litellm.list_fine_tuning_jobs(custom_llm_provider="openai")], "list jobs")
messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Wages rose."}]
for model in (BASE, job.fine_tuned_model):
    answer = litellm.completion(model=model, messages=messages, max_tokens=8, temperature=0)
    check(answer.usage.completion_tokens <= 8, "a chat")
streamed = list(litellm.completion(model=job.fine_tuned_model, messages=messages, max_tokens=8, stream=True))
check(len(streamed) > 1, "a stream")
answer = litellm.completion(
    model=job.fine_tuned_model, messages=messages, response_format=Label, max_tokens=400, temperature=0
)
check(isinstance(Label.model_validate_json(answer.choices[0].message.content), Label), "a structured answer")
check.done()
