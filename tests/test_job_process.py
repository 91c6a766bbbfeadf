"""A fine-tuning job's process on the real nano: its log, its models, and that no signal changes a weight."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from warm_process import Starter, Warm

from afina.core.storage import read_json, write_json
from afina.data import training_file
from afina.engine.chat import ChatFormat
from afina.engine.codec import Codec
from afina.engine.loader import load_specialist, load_tokenizer, specialist_spec
from afina.server.job_process import JobError, JobLog, read_spec
from afina.training.collate import Layout, collate
from afina.training.loss import loss_sum

COLOURS = ("azul", "verde", "preto", "branco")
WAIT_S = 400.0


def chat_line(number: int) -> dict[str, Any]:
    colour = COLOURS[number % 4]
    return {
        "messages": [
            {"role": "system", "content": "Responda com uma cor."},
            {"role": "user", "content": f"Qual é a cor do objeto {number % 4}?"},
            {"role": "assistant", "content": colour},
        ]
    }


def preference_line(number: int) -> dict[str, Any]:
    question = {"role": "user", "content": f"Qual é a cor do objeto {number % 4}?"}
    return {
        "input": {"messages": [question], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [{"role": "assistant", "content": COLOURS[number % 4]}],
        "non_preferred_output": [{"role": "assistant", "content": "não sei"}],
    }


def completion_line(number: int) -> dict[str, Any]:
    return {"prompt": f"Objeto {number % 4}: ", "completion": COLOURS[number % 4]}


def write_lines(path: Path, make: Callable[[int], dict[str, Any]], count: int) -> Path:
    path.write_text("".join(json.dumps(make(n), ensure_ascii=False) + "\n" for n in range(count)), encoding="utf-8")
    return path


def job(folder: Path, *, line: Callable[[int], dict[str, Any]] = chat_line, count: int = 12, **changes: Any) -> Path:
    """A job's folder as the supervisor leaves it."""
    folder.mkdir(parents=True)
    spec: dict[str, Any] = {
        "job_id": "ftjob-test",
        "method": "supervised",
        "base": {"name": "afina/nano", "folder": None},
        "training_file": str(write_lines(folder / "train.jsonl", line, count)),
        "validation_file": str(write_lines(folder / "valid.jsonl", line, 4)),
        "hyperparameters": {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.0},
        "seed": 7,
        "train": {},
        "max_length": None,
        "style": "auto",
        "keep_checkpoints": 3,
    }
    write_json(folder / "spec.json", {**spec, **changes})
    return folder


def start(folder: Path) -> subprocess.Popen[str]:
    """As the supervisor starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "afina.server.job_process", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="session")
def starter(job_starter: Starter) -> Starter:
    """Starts processes that have made their imports."""
    return job_starter


def finish(folder: Path, starter: Starter | None = None) -> list[dict[str, Any]]:
    """Run the job's process to its end, which must be a good one; its log. With a starter it is a warm process."""
    process = starter.start(folder, errors=folder / "said.txt") if starter else start(folder)
    _, said = process.communicate(timeout=WAIT_S)
    trace = (folder / "trainer.log").read_text() if (folder / "trainer.log").exists() else said
    assert process.returncode == 0, trace
    return log_of(folder)


def log_of(folder: Path) -> list[dict[str, Any]]:
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def wait_for(folder: Path, key: str, process: subprocess.Popen[str] | Warm) -> None:
    deadline = time.monotonic() + WAIT_S
    while not (folder / "log.jsonl").exists() or f'"{key}"' not in (folder / "log.jsonl").read_text():
        assert process.poll() is None, f"it ended before {key}: {(folder / 'trainer.log').read_text()}"
        assert time.monotonic() < deadline, f"no {key}"
        time.sleep(0.002)


def once(log: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What a reader keeps who ignores a key that was seen."""
    seen: dict[str, dict[str, Any]] = {}
    for line in log:
        seen.setdefault(line["key"], line)
    return seen


def mean_loss(model: Any, file: Path) -> float:
    chat = ChatFormat(Codec(load_tokenizer("afina/nano")), "chat")
    encoded = [chat.encode(line, 512) for line in training_file.read(file)]  # type: ignore[arg-type]
    layout = Layout("completion", 2, packing=False)
    with torch.no_grad():
        total = sum(float(loss_sum(model, collate([[e]], layout))) for e in encoded)
    return total / sum(len(e.trained("completion")) for e in encoded)


def assert_same_weights(one: Path, other: Path) -> None:
    files = sorted(p.name for p in one.glob("*.safetensors"))
    assert files == sorted(p.name for p in other.glob("*.safetensors"))
    assert len(files) == 1
    a, b = load_file(one / files[0]), load_file(other / files[0])
    assert a.keys() == b.keys()
    assert len(a) > 50
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that nobody disturbed."""
    folder = job(tmp_path_factory.mktemp("jobs") / "whole")
    finish(folder)
    return folder


# -- one job -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_log_tells_all(whole: Path) -> None:
    log = log_of(whole)
    assert [line["key"] for line in log] == [
        "started",
        *("step-1", "step-2", "step-3", "checkpoint-3"),
        *("step-4", "step-5", "step-6", "checkpoint-6"),
        "finished",
    ]
    assert all(abs(line["at"] - time.time()) < 3600 for line in log)
    started, finished = log[0], log[-1]
    chat = ChatFormat(Codec(load_tokenizer("afina/nano")), "chat")
    num_tokens = sum(len(chat.encode(c, 512).input_ids) for c in training_file.read(whole / "train.jsonl"))  # type: ignore[arg-type]
    assert started["total_steps"] == 6
    assert started["steps_per_epoch"] == 3
    assert started["tokens_per_epoch"] == num_tokens
    assert started["warnings"] == []
    assert finished["trained_tokens"] == 2 * num_tokens
    assert finished["step"] == 6
    assert finished["folder"] == "models/step-6"
    steps = [line for line in log if line["kind"] == "step"]
    assert len(steps) == 6
    for line in steps:
        keys = {"train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy"}
        keys |= {"full_valid_loss", "full_valid_mean_token_accuracy"} if line["step"] in (3, 6) else set()
        assert set(line) == {"key", "kind", "at", "step", "total_steps", *keys}
        assert all(math.isfinite(line[key]) for key in keys)
        assert all(0 <= line[key] <= 1 for key in keys if key.endswith("accuracy"))
    assert steps[-1]["train_loss"] < steps[0]["train_loss"]
    last = next(line for line in log if line["key"] == "checkpoint-6")
    assert last["folder"] == "models/step-6"
    assert last["metrics"] == {k: v for k, v in steps[-1].items() if k not in ("key", "kind", "at", "total_steps")}


@pytest.mark.slow
def test_its_models_can_be_served(whole: Path) -> None:
    served = read_json(whole / "models" / "step-6" / "served.json")
    assert served == {"style": "chat", "method": "supervised", "base_name": "afina/nano"}
    assert sorted(p.name for p in (whole / "models").iterdir()) == ["step-3", "step-6"]
    first, last = (load_specialist(whole / "models" / f"step-{n}", "cpu", dtype="float32").model for n in (3, 6))
    data = whole / "train.jsonl"
    from afina.engine.loader import load_base

    untrained = mean_loss(load_base("afina/nano", device="cpu").model, data)
    assert mean_loss(last, data) < mean_loss(first, data) < untrained
    assert not (whole / "train").exists(), "checkpoints go when the job is done"


@pytest.mark.slow
def test_a_finished_job_is_left_alone(whole: Path, starter: Starter) -> None:
    before = (whole / "log.jsonl").read_bytes()
    finish(whole, starter)
    assert (whole / "log.jsonl").read_bytes() == before
    assert not (whole / "train").exists()


# -- signals -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_terminated_and_continued_gives_the_same_weights(whole: Path, tmp_path: Path, starter: Starter) -> None:
    folder = job(tmp_path / "job")
    process = starter.start(folder, errors=folder / "said.txt")
    wait_for(folder, "step-2", process)
    process.terminate()
    assert process.wait(WAIT_S) == 0
    stopped = log_of(folder)[-1]
    assert stopped["kind"] == "stopped"
    assert stopped["key"] == f"stopped-{stopped['step']}"
    assert stopped["step"] >= 2
    log = finish(folder, starter)
    at = log.index(stopped)
    assert log[at + 1]["key"] == "started"
    assert log[at + 2]["key"] == f"step-{stopped['step'] + 1}"
    assert_same_story(log, whole)
    assert_same_weights(whole / "models" / "step-6", folder / "models" / "step-6")


@pytest.mark.slow
def test_killed_and_continued_gives_the_same_weights(whole: Path, tmp_path: Path, starter: Starter) -> None:
    folder = job(tmp_path / "job")
    for key in ("step-1", "step-4"):
        process = starter.start(folder, errors=folder / "said.txt")
        wait_for(folder, key, process)
        process.kill()
        process.wait(WAIT_S)
        with (folder / "log.jsonl").open("a") as file:
            file.write('{"key":"step-')  # half a line, as a power cut may leave it
    log = finish(folder)  # in a process that shares nothing with the others
    assert sum(line["key"] == "started" for line in log) == 3
    assert_same_story(log, whole)
    assert_same_weights(whole / "models" / "step-3", folder / "models" / "step-3")
    assert_same_weights(whole / "models" / "step-6", folder / "models" / "step-6")


def assert_same_story(log: list[dict[str, Any]], whole: Path) -> None:
    """Who reads each key once learns what the undisturbed job said, numbers included."""
    told = {key: line for key, line in once(log).items() if line["kind"] != "stopped"}
    wanted = once(log_of(whole))
    assert list(told) == list(wanted)
    for key, line in wanted.items():
        assert {k: v for k, v in told[key].items() if k != "at"} == {k: v for k, v in line.items() if k != "at"}


@pytest.mark.slow
def test_terminated_before_the_first_step(tmp_path: Path) -> None:
    folder = job(tmp_path / "job")
    process = start(folder)
    while not (folder / "lock").exists() or not (folder / "lock").read_text():
        time.sleep(0.002)
    assert int((folder / "lock").read_text()) == process.pid
    process.terminate()
    assert process.wait(WAIT_S) == 0
    assert [(line["key"], line["step"]) for line in log_of(folder)] == [("stopped-0", 0)]
    second = start(folder)
    while '"stopped-0"' not in (folder / "log.jsonl").read_text() or (folder / "lock").read_text() != str(second.pid):
        time.sleep(0.002)
    second.terminate()
    assert second.wait(WAIT_S) == 0
    assert [line["key"] for line in log_of(folder)] == ["stopped-0", "stopped-0-2"]


@pytest.mark.slow
def test_the_folder_is_one_process_own(tmp_path: Path, starter: Starter) -> None:
    folder = job(tmp_path / "job")
    first = starter.start(folder, errors=folder / "said.txt")
    while not (folder / "lock").exists() or not (folder / "lock").read_text():
        time.sleep(0.002)
    second = starter.start(folder, errors=folder / "said too.txt")
    _, said = second.communicate(timeout=WAIT_S)
    assert second.returncode == 3
    assert f"process {first.pid} is training this job already" in said
    first.terminate()
    assert first.wait(WAIT_S) == 0


# -- other jobs --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_chain_of_adapters_is_one_adapter(tmp_path: Path, starter: Starter) -> None:
    first = job(tmp_path / "first", train={"finetuning_type": "lora", "lora_r": 8})
    assert finish(first, starter)[-1]["key"] == "finished"
    source = first / "models" / "step-6"
    assert load_specialist(source, "cpu").has_adapter
    second = job(tmp_path / "second", base={"name": None, "folder": str(source)}, seed=8)
    log = finish(second, starter)
    result = second / "models" / log[-1]["folder"].removeprefix("models/")
    assert read_json(result / "served.json")["base_name"] == "afina/nano"
    assert specialist_spec(result).name == "afina/nano"
    a, b = (load_file(p / "adapter_model.safetensors") for p in (source, result))
    assert a.keys() == b.keys()
    assert {t.shape for t in a.values()} == {t.shape for t in b.values()}
    assert any(not torch.equal(a[name], b[name]) for name in a)
    firsts = [next(line for line in log_of(f) if line["key"] == "step-1")["train_loss"] for f in (first, second)]
    assert firsts[1] < firsts[0], "the second begins where the first ended"
    data = second / "train.jsonl"
    assert mean_loss(load_specialist(result, "cpu").model, data) < mean_loss(load_specialist(source, "cpu").model, data)


@pytest.mark.slow
def test_a_chain_of_whole_models(whole: Path, tmp_path: Path, starter: Starter) -> None:
    source = whole / "models" / "step-6"
    second = job(tmp_path / "second", base={"name": None, "folder": str(source)}, train={"lora_r": 8}, seed=8)
    log = finish(second, starter)
    assert "lora_r has no effect" in log[0]["warnings"][0]
    result = second / "models" / "step-6"
    assert not load_specialist(result, "cpu").has_adapter
    assert read_json(result / "base.json")["name"] == "afina/nano"
    firsts = [next(line for line in log_of(f) if line["key"] == "step-1")["train_loss"] for f in (whole, second)]
    assert firsts[1] < firsts[0]


@pytest.mark.slow
@pytest.mark.parametrize("train", [{}, {"finetuning_type": "lora", "lora_r": 8}], ids=["whole", "lora"])
def test_preferences(tmp_path: Path, train: dict[str, Any], starter: Starter) -> None:
    numbers = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0, "beta": 0.1}
    folder = job(tmp_path / "job", line=preference_line, method="dpo", hyperparameters=numbers, train=train)
    process = starter.start(folder, errors=folder / "said.txt")
    wait_for(folder, "step-4", process)
    process.kill()
    process.wait(WAIT_S)
    log = once(finish(folder, starter))
    steps = [log[f"step-{n}"] for n in range(1, 10)]
    assert steps[0]["train_loss"] == pytest.approx(math.log(2), abs=2e-3)  # bfloat16 products, in two batches' shapes
    assert steps[-1]["full_valid_loss"] < 0.9 * math.log(2)
    chat = ChatFormat(Codec(load_tokenizer("afina/nano")), "chat")
    tuned = load_specialist(folder / "models" / "step-9", "cpu", dtype="float32").model
    from afina.engine.loader import load_base

    plain = load_base("afina/nano", device="cpu").model
    margins = [_margin(model, chat, folder / "train.jsonl") for model in (plain, tuned)]
    assert margins[1] > margins[0] + 0.5
    assert read_json(folder / "models" / "step-9" / "served.json")["method"] == "dpo"
    assert log["finished"]["trained_tokens"] == 3 * log["started"]["tokens_per_epoch"]
    assert (folder / "models" / "step-9" / "adapter_config.json").exists() == bool(train)


def _margin(model: Any, chat: ChatFormat, file: Path) -> float:
    """Mean log-probability of preferred minus other answers."""
    from afina.training.job import read_tokens

    def logp(prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
        with torch.no_grad():
            logp_TV = model(torch.tensor([(*prompt, *answer)])).logits[0].float().log_softmax(-1)
        return sum(float(logp_TV[len(prompt) + i - 1, token]) for i, token in enumerate(answer))

    pairs = read_tokens(training_file.read(file), chat, 512).examples
    assert len(pairs) == 12
    return sum(logp(p.prompt_ids, p.chosen_ids) - logp(p.prompt_ids, p.rejected_ids) for p in pairs) / len(pairs)


@pytest.mark.slow
def test_completions_and_cut_examples(tmp_path: Path, starter: Starter) -> None:
    def line(number: int) -> dict[str, Any]:
        found = completion_line(number)
        return {**found, "completion": "azul " * 100} if number == 3 else found

    numbers = {"n_epochs": 4, "batch_size": 6, "learning_rate_multiplier": 0.5}
    folder = job(tmp_path / "job", line=line, hyperparameters=numbers, max_length=48)
    log = finish(folder, starter)
    assert read_json(folder / "models" / "step-8" / "served.json")["style"] == "completion"
    assert "1 of 12 training examples are longer than 48 tokens" in log[0]["warnings"][0]
    assert "1 of 4 validation examples" in log[0]["warnings"][1]
    # Of four epochs' ends the last three are kept.
    assert sorted(p.name for p in (folder / "models").iterdir()) == ["step-4", "step-6", "step-8"]
    assert [entry["step"] for entry in log if entry["kind"] == "checkpoint"] == [2, 4, 6, 8]


# -- jobs that cannot be done --------------------------------------------------------------------------


def failure(folder: Path, starter: Starter | None = None) -> dict[str, Any]:
    log = finish(folder, starter)
    assert log[-1]["kind"] == log[-1]["key"] == "failed"
    assert "Traceback" not in log[-1]["message"]
    again = finish(folder, starter)
    assert again == log, "a failed job is over"
    return log[-1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "reinforcement"}, "method"),
        ({"hyperparameters": {"n_epochs": "3", "batch_size": 4, "learning_rate_multiplier": 1.0}}, "n_epochs"),
        ({"base": {"name": None, "folder": None}}, "base"),
        ({"surplus": 1}, "surplus"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_bad_spec_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    folder = job(tmp_path / "job", **change)
    with pytest.raises(JobError, match=f"spec.json cannot be used: .*{said}"):
        read_spec(folder / "spec.json")


def test_a_broken_spec_fails_the_job(tmp_path: Path) -> None:
    folder = job(tmp_path / "job")
    (folder / "spec.json").write_text('{"job_id": ')
    found = failure(folder)
    assert found["code"] == "invalid_job"
    assert found["param"] is None
    assert "Traceback" in (folder / "trainer.log").read_text()


def test_a_deleted_file_fails_the_job(tmp_path: Path) -> None:
    folder = job(tmp_path / "job")
    (folder / "train.jsonl").unlink()
    found = failure(folder)
    assert (found["code"], found["param"]) == ("deleted_training_file", "training_file")
    assert found["message"] == "The job failed because the training file was deleted"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"base": {"name": "no/such/model/here", "folder": None}}, "model_not_available", "no/such/model/here"),
        ({"train": {"lora_rank": 3}}, "invalid_configuration", "lora_rank"),
        ({"train": {"finetuning_type": "lora", "lora_target_modules": ["q"]}}, "invalid_configuration", "no layer 'q'"),
    ],
)
def test_what_cannot_be_trained_is_said(
    tmp_path: Path, changes: dict[str, Any], code: str, said: str, starter: Starter
) -> None:
    found = failure(job(tmp_path / "job", **changes), starter)
    assert found["code"] == code
    assert said in found["message"]


@pytest.mark.slow
def test_a_bad_line_is_said(tmp_path: Path, starter: Starter) -> None:
    folder = job(tmp_path / "job")
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"messages": 3}\n')
    found = failure(folder, starter)
    assert (found["code"], found["param"]) == ("invalid_training_file", "training_file")
    assert ":13:" in found["message"]


@pytest.mark.slow
def test_a_rate_that_destroys_the_weights_is_said(tmp_path: Path, starter: Starter) -> None:
    numbers = {"n_epochs": 20, "batch_size": 12, "learning_rate_multiplier": 1e35}
    found = failure(job(tmp_path / "job", hyperparameters=numbers), starter)
    assert (found["code"], found["param"]) == ("training_diverged", "learning_rate_multiplier")


def test_a_bug_of_ours_is_a_crash(tmp_path: Path) -> None:
    folder = job(tmp_path / "job")
    (folder / "log.jsonl").write_text("this is no log\n")
    process = start(folder)
    process.communicate(timeout=WAIT_S)
    assert process.returncode == 1
    assert "Traceback" in (folder / "trainer.log").read_text()


def test_the_log_forgets_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = JobLog(path)
    log.say("step-1", "step", train_loss=0.5)
    with path.open("ab") as file:
        file.write(b'{"key":"step-2","ki')
    again = JobLog(path)
    again.say("step-2", "step", train_loss=0.25)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["key"] for line in lines] == ["step-1", "step-2"]
    assert again.keys == {"step-1", "step-2"}


def test_starting_takes_no_heavy_library() -> None:
    """A bad spec, a held lock and a stop before the work are answered without torch."""
    code = (
        "import sys, afina.server.job_process; print([m for m in ('torch', 'transformers', 'trl') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_a_signal_ends_only_what_may_be_ended(tmp_path: Path) -> None:
    code = """
import os, signal
from afina.server.job_process import Interrupted, Stop
stop = Stop()
os.kill(os.getpid(), signal.SIGTERM)
assert stop.asked
try:
    with stop.at_once():
        raise SystemExit("not reached")
except Interrupted:
    print("before")
stop.asked = False
try:
    with stop.at_once():
        os.kill(os.getpid(), signal.SIGTERM)
        raise SystemExit("not reached")
except Interrupted:
    print("within")
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["before", "within"]
