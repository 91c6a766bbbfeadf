"""The official Python package, versions 1 and 3: files, chained jobs, chat, streams, structured answers, errors."""

import asyncio
import base64
import json
import time
from typing import Literal

import openai
from lines import BASE, SYSTEM, Checks, jsonl
from pydantic import BaseModel

check = Checks()
client = openai.OpenAI()
ROUND = str(time.time_ns())


class Label(BaseModel):
    label: Literal["good", "bad"]


def finished(job):
    seen = {job.status}
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(0.3)
        job = client.fine_tuning.jobs.retrieve(job.id)
        seen.add(job.status)
    check("running" in seen or job.status == "succeeded", f"statuses {seen}")
    return job


# 1. Files.
file = client.files.create(file=("notícias.jsonl", jsonl()), purpose="fine-tune")
check(file.filename == "notícias.jsonl" and file.bytes == len(jsonl()), "the file's name and size")
check(client.files.retrieve(file.id).id == file.id, "retrieve a file")
check(file.id in [one.id for one in client.files.list(purpose="fine-tune")], "list files")
check(client.files.content(file.id).read() == jsonl(), "a file's content")
extra = client.files.create(file=("b.jsonl", jsonl()), purpose="fine-tune")
check(client.files.delete(extra.id).deleted, "delete a file")

# 2. A job, then another on its model, with both ways to give hyperparameters.
numbers = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.0}
method = {"type": "supervised", "supervised": {"hyperparameters": numbers}}
job = finished(
    client.fine_tuning.jobs.create(
        model=BASE,
        training_file=file.id,
        validation_file=file.id,
        suffix="Round one",
        method=method,
        metadata={"round": ROUND},
        seed=7,
    )
)
check(job.status == "succeeded" and not getattr(job.error, "code", None), f"first job: {job.error}")
check(job.fine_tuned_model.startswith(f"ft:{BASE}:") and ":round-one:" in job.fine_tuned_model, job.fine_tuned_model)
check(job.hyperparameters.n_epochs == 2 and job.seed == 7 and job.trained_tokens % 2 == 0, "numbers of the job")
events = client.fine_tuning.jobs.list_events(job.id, limit=100).data
metrics = [e for e in events if e.type == "metrics"]
check(len(metrics) == 6, f"one metrics event for each step: {len(metrics)}")
check(events[0].message == "The job has successfully completed", events[0].message)
check(events[-1].message == f"Created fine-tuning job: {job.id}", events[-1].message)
checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
check([c.step_number for c in checkpoints] == [6, 3], "a checkpoint for each epoch, newest first")
check(checkpoints[0].fine_tuned_model_checkpoint == job.fine_tuned_model, "the last checkpoint is the model")
csv = base64.b64decode(client.files.content(job.result_files[0]).read()).decode()
check(csv.startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"), csv[:80])
check(len(csv.splitlines()) == 7, "one line for each step")
second = finished(
    client.fine_tuning.jobs.create(
        model=job.fine_tuned_model, training_file=file.id, hyperparameters={"n_epochs": 1, "batch_size": 4}
    )
)
check(second.status == "succeeded" and second.fine_tuned_model != job.fine_tuned_model, "a job on a model")
check(job.id in [j.id for j in client.fine_tuning.jobs.list(limit=50)], "list jobs")
check([j.id for j in client.fine_tuning.jobs.list(extra_query={"metadata[round]": ROUND})] == [job.id], "by metadata")
third = client.fine_tuning.jobs.create(model=BASE, training_file=file.id, method=method)
check(client.fine_tuning.jobs.cancel(third.id).status == "cancelled", "cancel")

# 3. Chat with the result.
model = second.fine_tuned_model
messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "The harvest was rich."}]
chat = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=20)
check(
    chat.model == model and chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens, "chat"
)
stream = client.chat.completions.create(
    model=model, messages=messages, temperature=0, max_tokens=20, stream=True, stream_options={"include_usage": True}
)
chunks = list(stream)
text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
check(text == chat.choices[0].message.content, f"streamed {text!r}, whole {chat.choices[0].message.content!r}")
check(chunks[-1].usage.total_tokens == chat.usage.total_tokens, "usage of a stream")
parse = getattr(client.chat.completions, "parse", None) or client.beta.chat.completions.parse
parsed = parse(model=model, messages=messages, response_format=Label)
check(parsed.choices[0].message.parsed.label in ("good", "bad"), "parse")
several = client.chat.completions.create(
    model=model, messages=messages, n=3, seed=1, max_tokens=5, logprobs=True, top_logprobs=2, stop=["\n"]
)
check(len(several.choices) == 3, "n")
check(all(len(t.top_logprobs) == 2 for c in several.choices for t in c.logprobs.content), "top_logprobs")
tool = {
    "type": "function",
    "function": {
        "name": "file_it",
        "description": "File a sentence.",
        "parameters": {
            "type": "object",
            "properties": {"drawer": {"type": "string", "enum": ["good", "bad"]}},
            "required": ["drawer"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
called = client.chat.completions.create(model=model, messages=messages, tools=[tool], tool_choice="required")
call = called.choices[0].message.tool_calls[0]
check(called.choices[0].finish_reason in ("tool_calls", "stop"), called.choices[0].finish_reason)
check(call.function.name == "file_it" and json.loads(call.function.arguments)["drawer"] in ("good", "bad"), "a call")


# 4. The asynchronous client.
async def many():
    async with openai.AsyncOpenAI() as aclient:
        asked = [aclient.chat.completions.create(model=model, messages=messages, max_tokens=8) for _ in range(8)]
        return await asyncio.gather(*asked)


check(len(asyncio.run(many())) == 8, "eight at once")

# 5. Models, embeddings, responses, batches.
check({BASE, model} <= {m.id for m in client.models.list()}, "models")
check(client.models.retrieve(model).id == model, "retrieve a model")
vectors = client.embeddings.create(model=BASE, input=["uma frase", "outra"]).data
check(len(vectors) == 2 and abs(sum(x * x for x in vectors[0].embedding) - 1) < 1e-3, "embeddings")
response = client.responses.create(model=model, input="The bridge fell.", max_output_tokens=16)
check(response.output_text is not None and response.usage.total_tokens > 0, "responses")
body = {"model": model, "messages": messages, "max_tokens": 5}
line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
asked = client.files.create(file=("batch.jsonl", json.dumps(line).encode()), purpose="batch")
batch = client.batches.create(input_file_id=asked.id, endpoint="/v1/chat/completions", completion_window="24h")
while batch.status not in ("completed", "failed", "cancelled", "expired"):
    time.sleep(0.3)
    batch = client.batches.retrieve(batch.id)
check(batch.status == "completed" and batch.request_counts.completed == 1, f"batch {batch.status}")
answer = json.loads(client.files.content(batch.output_file_id).read().decode().splitlines()[0])
check(answer["custom_id"] == "a" and answer["response"]["status_code"] == 200, "a batch's answer")

# 6. Errors are the package's own classes.
for expected, wrong in (
    (openai.AuthenticationError, lambda: openai.OpenAI(api_key="sk-wrong").models.list()),
    (openai.NotFoundError, lambda: client.files.retrieve("file-absent")),
    (openai.NotFoundError, lambda: client.chat.completions.create(model="ft:absent", messages=messages)),
    (openai.BadRequestError, lambda: client.fine_tuning.jobs.create(model=BASE, training_file="file-absent")),
    (openai.BadRequestError, lambda: client.fine_tuning.jobs.create(model="absent", training_file=file.id)),
    (openai.BadRequestError, lambda: client.chat.completions.create(model=model, messages=messages, temperature=9)),
    (
        openai.BadRequestError,
        lambda: (
            client.fine_tuning.jobs.pause(job.id)
            if hasattr(client.fine_tuning.jobs, "pause")
            else client.fine_tuning.jobs.cancel(job.id)
        ),
    ),
):
    try:
        wrong()
    except expected as error:
        check(error.request_id is not None and error.body["message"], "an error's body and request id")
    else:
        raise SystemExit(f"FAILED: {expected.__name__} was not raised")
check(client.models.delete(job.fine_tuned_model).deleted, "delete a model")
check.done()
