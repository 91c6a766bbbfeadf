"""The arithmetic of the benchmarks: medians, paired ratios, targets, operations counted. No speed is tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import harness  # noqa: E402
import prepare  # noqa: E402
import shapes  # noqa: E402
import train  # noqa: E402
import train_rivals  # noqa: E402
from harness import RivalFailedError, Target  # noqa: E402
from train_rivals import Row  # noqa: E402

from afina.engine.encoded import Encoded  # noqa: E402
from afina.training.collate import Layout, Schedule  # noqa: E402


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


# -- processes -----------------------------------------------------------------------------------


def test_a_rival_is_measured_without_the_memory_of_who_started_it() -> None:
    held = bytearray(300 << 20)
    held[:: 4 << 10] = b"x" * len(held[:: 4 << 10])
    code = "import time; x = b'x' * (64 << 20); time.sleep(0.3); print('before'); print('{\"speed\": 2.5}')"
    measured = harness.run_process(python(code))
    assert measured.result == {"speed": 2.5}
    assert 0.3 <= measured.process_s < 30
    assert 64 << 20 < measured.peak_rss_bytes < 200 << 20, "its own 64 MiB, not our 300"


def test_a_rival_sees_no_network_and_this_checkout() -> None:
    code = "import json, os, afina; print(json.dumps({'hub': os.environ['HF_HUB_OFFLINE'], 'at': afina.__file__}))"
    result = harness.run_process(python(code)).result
    assert result["hub"] == "1"
    assert Path(result["at"]).is_relative_to(harness.ROOT / "src")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise SystemExit('no room left')", "no room left"),
        ("print('hello')", "no JSON object: hello"),
        ("print('[1]')", r"no JSON object: \[1\]"),
        ("pass", "no JSON object: nothing"),
        ("import os; os.kill(os.getpid(), 9)", "exit -9"),
    ],
)
def test_a_failed_rival_says_why(code: str, said: str) -> None:
    with pytest.raises(RivalFailedError, match=said):
        harness.run_process(python(code))


def test_a_rival_is_stopped_at_its_limit() -> None:
    with pytest.raises(RivalFailedError, match=r"stopped after 0\.2 s"):
        harness.run_process(python("import time; time.sleep(60)"), timeout_s=0.2)


def test_rivals_take_turns_and_one_failure_stops_no_other(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write = 'open({!r}, \'a\').write({!r}); print(\'{{"v": 1, "kind": "x"}}\')'
    rivals = {name: python(write.format(str(log), name)) for name in "ac"}
    rivals = {"a": rivals["a"], "b": python("raise SystemExit('broken')"), "c": rivals["c"]}
    rows = harness.interleave(rivals, 3)
    assert log.read_text() == "ac" + "ca" + "ca", "the order turns by one: abc, bca, cab"
    assert [row["name"] for row in rows] == ["a", "b", "c"]
    assert "broken" in rows[1]["failed"]
    assert rows[1]["rounds"] == []
    assert [r["round"] for r in rows[2]["rounds"]] == [0, 1, 2]
    assert (rows[0]["v"], rows[0]["kind"]) == (1, "x")


# -- arithmetic ------------------------------------------------------------------------------------


def test_a_row_has_the_medians_of_its_rounds() -> None:
    rounds = [{"round": n, "v": v, "on": True, "list": [n], "none": None} for n, v in enumerate((5.0, 1.0, 2.0))]
    row = harness.summary("x", rounds)
    assert (row["v"], row["on"], row["list"], row["none"]) == (2.0, True, [0], None)
    assert row["rounds"] == rounds


def test_a_ratio_is_paired_by_round() -> None:
    rows = [
        {"name": "a", "rounds": [{"round": 0, "v": 2.0}, {"round": 1, "v": 30.0}, {"round": 2, "v": 6.0}]},
        {"name": "b", "rounds": [{"round": 0, "v": 1.0}, {"round": 1, "v": 10.0}, {"round": 3, "v": 1.0}]},
        {"name": "c", "failed": "why", "rounds": []},
    ]
    assert harness.ratio(rows, "v", "a", "b") == 2.5, "of 2 and 3; rounds that only one of them has do not count"
    assert harness.ratio(rows, "v", "a", "c") is None
    assert harness.ratio(rows, "w", "a", "b") is None


def test_targets() -> None:
    assert Target(2.5, at_least=2.5).met
    assert not Target(2.4, at_least=2.5).met
    assert Target(0.0, at_most=0.0).met
    assert not Target(None, at_most=1.0).met, "what was not measured is not met"
    assert Target(1.0, at_most=1.5).to_json() == {"value": 1.0, "at_most": 1.5, "met": True}
    assert Target(None, at_least=1.0).to_json() == {"value": None, "at_least": 1.0, "met": False}
    with pytest.raises(AssertionError, match="one bound"):
        Target(1.0, at_least=1.0, at_most=2.0)


def test_the_result_is_kept_and_its_targets_are_printed_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"name": "a", "v": 1234.5, "rounds": []}, {"name": "b", "failed": "exit 1: broken", "rounds": []}]
    targets = {"fast": Target(3.0, at_least=2.0), "small": Target(2.0, at_most=1.0)}
    path = harness.write_result("x", rows, {"a / b": 3.0}, targets, ["a note"], machine={"peak": 1}, folder=tmp_path)
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert set(kept) == {"benchmark", "date", "machine", "versions", "rows", "ratios", "targets", "notes"}
    assert path.name == f"x-{kept['date']}.json"
    assert kept["machine"]["peak"] == 1
    assert kept["targets"]["small"] == {"value": 2.0, "at_most": 1.0, "met": False}
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-2:] == ["  fast: 3  (at least 2): met", "  small: 2  (at most 1): MISSED"]
    assert any("1,234" in line for line in lines)


def test_the_ceiling_is_positive_in_every_type() -> None:
    for dtype in ("bfloat16", "float32"):
        assert harness.matmul_peak_gflops(dtype, [(8, 16, 32)]) > 0


# -- models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"), [("13m", 13_767_552), ("135m", 134_515_008), ("1b", 1_235_814_400), ("8b", 8_030_261_248)]
)
def test_shapes_have_the_public_models_parameters(name: str, count: int) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(shapes.llama_config(shapes.SHAPES[name]))
    assert sum(p.numel() for p in model.parameters()) == count


def test_a_shape_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", shapes.Shape(16, 2, 2, 1, 24, 8192, "none"))
    place = shapes.make_shape("tiny", tmp_path)
    made = (place / "model.safetensors").stat().st_mtime_ns
    weights = LlamaForCausalLM.from_pretrained(place).get_parameter("model.layers.0.mlp.up_proj.weight").detach()
    assert weights.dtype == torch.bfloat16
    assert float(weights.float().std()) == pytest.approx(0.02, rel=0.15), "384 draws"
    assert (place / "tokenizer.json").exists()
    assert (shapes.make_shape("tiny", tmp_path) / "model.safetensors").stat().st_mtime_ns == made


# -- training --------------------------------------------------------------------------------------


def test_the_rivals_learn_in_afinas_order() -> None:
    examples = [Encoded((0, n, 1), 1) for n in range(40)]
    size = train_rivals.EXAMPLES_PER_UPDATE
    layout = Layout("completion", 0)
    made = Schedule(
        examples, 6, batch_size=size, accumulation=1, group_by_length=False, seed=train_rivals.SEED, layout=layout
    )
    order = train_rivals.update_order(40, 6)
    assert [len(update) for update in order] == [size, size, 40 - 2 * size] * 2
    assert order == [*made.order(0), *made.order(1)]
    assert order[:3] != order[3:], "each epoch is shuffled anew"


def test_the_operations_counted_are_those_that_a_step_makes() -> None:
    """Against torch's own counter, on a Llama with LoRA, forward and backward of one example."""
    from peft import LoraConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    config._attn_implementation = "eager"  # plain products, which the counter knows
    lora = LoraConfig(r=4, target_modules=list(train_rivals.SEVEN_MODULES))
    model = get_peft_model(LlamaForCausalLM(config), lora)  # type: ignore[arg-type]
    linear = 12 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    adapter = 12 * 4 * (4 * 32 + 2 * (32 + 16) + 3 * (32 + 48))
    cost = train.Cost(linear, adapter, attention=12 * 32, head=64 * 32)
    ids = torch.arange(40).unsqueeze(0)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, logits_to_keep=10).logits.sum().backward()
    # torch computes the whole square of attention, we count the causal half.
    square = 12 * 12 * 32 * (40 * 40 - 40 * 41 / 2)
    # Nothing before the first layer is trained, so its gradients of the input are not made: one part in 12 of a third.
    assert counter.get_total_flops() == pytest.approx(cost.flop(40, 10) + square, rel=0.03)


def test_validation_loss_is_the_mean_over_completion_tokens() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    rows = [Row(tuple(torch.randint(0, 64, (n,)).tolist()), p) for n, p in ((12, 5), (9, 1))]
    nats: list[float] = []
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for row in rows:
            logits = model(input_ids=torch.tensor([row.ids])).logits.float().log_softmax(-1)
            nats += [-float(logits[0, at - 1, row.ids[at]]) for at in range(row.num_prompt, len(row.ids))]
    assert len(nats) == 7 + 8
    assert train_rivals.validation_loss(model, rows) == pytest.approx(sum(nats) / len(nats), rel=1e-5)


def test_time_to_quality_is_the_first_time_not_above() -> None:
    curve = [[5.0, 1, 2.0], [6.0, 2, 1.0], [7.0, 3, 1.5]]
    assert train.reached_s(curve, 1.5) == 6.0
    assert train.reached_s(curve, 2.0) == 5.0
    assert train.reached_s(curve, 0.5) is None


def test_rows_get_rates_and_shares_without_the_evaluation() -> None:
    one = {"round": 0, "examples_per_s": 4.0, "examples": 32, "tokens": 3200, "process_s": 20.0, "evaluation_s": 4.0}
    rows = [
        {"name": harness.PEAK, "rounds": [{"round": 0, "matmul_peak_gflops": 100.0}]},
        {"name": "afina", "rounds": [one]},
    ]
    row = train.enriched(rows[1], 10e9, rows)
    assert (row["gflops"], row["share_of_peak"]) == (40.0, 0.4)
    assert (row["process_examples_per_s"], row["tokens_per_s"]) == (2.0, 400.0)


def test_the_news_is_one_answer_for_each_item() -> None:
    from afina.engine.loader import load_tokenizer, resolve

    data = train.encoded_news(Path(resolve("afina/nano")))
    assert (len(data["train"]), len(data["validation"])) == (208, 52)
    assert len(data["train"]) % train_rivals.EXAMPLES_PER_UPDATE == 0, "no update is smaller than the others"
    tokenizer = load_tokenizer("afina/nano")
    ids, num_prompt = data["train"][0]
    answer = json.loads(tokenizer.decode(ids[num_prompt:-1]))
    assert [list(answer[s]) for s in ("f1", "f2", "f3")] == [["polaridade", "emocao"]] * 3
    assert ids[-1] == tokenizer.eos_token_id


# -- preparing a catalogue ---------------------------------------------------------------------------


def test_memory_of_children_counts_and_shared_memory_once() -> None:
    child = "x = b'x' * (80 << 20); import time; time.sleep(1.2)"
    parent = (
        "import subprocess, sys, json; "
        f"ps = [subprocess.Popen([sys.executable, '-c', {child!r}]) for _ in range(2)]; "
        "[p.wait() for p in ps]; print(json.dumps({'v': 1}))"
    )
    argv = [sys.executable, str(BENCHMARKS / "rivals" / "watch.py"), *python(parent)]
    measured = harness.run_process(argv).result
    assert measured["v"] == 1
    assert 160 << 20 < measured["tree_peak_bytes"] < 260 << 20
    assert 1.2 <= measured["run_s"] < 30


def test_a_watched_command_that_fails_is_a_failure() -> None:
    with pytest.raises(RivalFailedError, match="exit 3"):
        harness.run_process([sys.executable, str(BENCHMARKS / "rivals" / "watch.py"), *python("raise SystemExit(3)")])


def test_the_preparations_targets() -> None:
    def row(name: str, run_s: float, tree_peak_bytes: float) -> dict[str, object]:
        return {
            "name": name,
            "tree_peak_bytes": tree_peak_bytes,
            "rounds": [{"round": 0, "run_s": run_s, "tree_peak_bytes": tree_peak_bytes}],
        }

    found = [
        row("zcat", 1, 1),
        row("reading", 1.5, 5e8),
        row("cleaning", 4, 5e8),
        row("whole", 6, 9e8),
        row("pandas", 30, 3e9),
        row(prepare.THIRD, 2.5, 8e8),
    ]
    ratios = prepare.compared(found, 300)
    assert ratios[prepare.PANDAS] == 5
    assert ratios[prepare.READING] == 1.5
    assert ratios[prepare.SEARCH] == 0.5
    assert ratios[prepare.LINEAR] == pytest.approx(6 / 300 / (2.5 / 100))
    assert ratios[prepare.FLAT] == 9 / 8
    bounds = prepare.targets(found, ratios)
    assert all(target.met for target in bounds.values())
    assert len(bounds) == 6
    assert prepare.PANDAS not in prepare.targets(found[:4], ratios)


@pytest.mark.slow
def test_the_preparation_is_measured_and_pandas_keeps_the_same_rows(tmp_path: Path) -> None:
    argv = [sys.executable, str(BENCHMARKS / "prepare.py"), "--quick", "--results", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    kept = json.loads(next(tmp_path.glob("prepare-quick-*.json")).read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in kept["rows"]}
    assert set(rows) == {*prepare.SYSTEMS, prepare.THIRD}
    assert not any(row.get("failed") for row in rows.values())
    assert rows["whole"]["kept"] == rows["pandas"]["kept"] > 1500
    assert "100.00% of the products" in kept["notes"][2]
