"""Rows of a table -> rows with a hosted model's answers, and the task that question and answers define.

Comes in: what is to be asked, of whom, and how it was trained to be asked: by the words of a recipe, of its old
training file, or of an instruction. Goes out: `Labelled`. Money: estimate, agree, reserve, call, settle; what was
answered once is never asked again. What is learned from the answers is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afina.core.errors import DataError, RecipeError
from afina.core.recipe_file import load_recipe, make_recipe
from afina.core.storage import require_file
from afina.core.task_config import load_task
from afina.data import training_file
from afina.data.columns import cell, has_column, text_of
from afina.data.examples import read_inputs
from afina.data.formats import read_table
from afina.data.infer import Shape, infer_shape
from afina.data.propose import Column
from afina.data.table import Table
from afina.data.wrapping import Exchange, Wrapping, exchanges, find_wrapping
from afina.pipeline import say
from afina.providers.asking import Asker, Body
from afina.providers.budget import Budget, BudgetError
from afina.providers.cache import Answer, AnswerCache
from afina.providers.client import Provider, connect
from afina.providers.prices import FREE, dollars
from afina.strategies.hosted import HostedPredictor
from afina.training.hosted import Agree, find_price

ANSWERS = "answers.sqlite"
INSTRUCTION = "Answer as the model did whose answers these are."  # where the hosted model had no system message
ANSWER_COLUMN, ID_COLUMN = "_answer", "_id"


@dataclass(frozen=True)
class Request:
    """What is to be rescued, and how. base_model: of the student. overrides: KEY=VALUE of the student's recipe.

    Exactly one of recipe, training_file and instruction says how the hosted model is asked. input_columns: of the rows;
    found when empty. max_tokens: of one answer. batch: through /v1/batches where there are any.
    """

    model: str
    provider: Provider
    inputs: Path
    base_model: str
    output: Path
    recipe: Path | None = None
    training_file: Path | None = None
    instruction: str | None = None
    input_columns: Sequence[str] = ()
    max_cost_usd: float | None = None
    prices: Path | None = None
    max_tokens: int = 512
    batch: bool = True
    num_threads: int = 8
    overrides: Sequence[str] = ()


@dataclass
class Labelled:
    """Rows with the hosted model's answers, and the task that they define.

    rows: of the student's table. gold: rows of the old training file. raw: the student's recipe without data and train.
    failed: row id -> why there is no answer.
    """

    task: dict[str, Any]
    columns: dict[str, str]
    rows: list[dict[str, Any]]
    gold: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)


def label(request: Request, agree: Agree) -> Labelled:
    """The rows with the answers of the hosted model. Raises ProviderError, BudgetError, DataError, RecipeError."""
    _require_one_way_to_ask(request)
    return _ask_by_recipe(request, agree) if request.recipe else _ask_by_wrapping(request, agree)


def _require_one_way_to_ask(request: Request) -> None:
    ways = {"--recipe": request.recipe, "--training-file": request.training_file, "--instruction": request.instruction}
    given = [name for name, value in ways.items() if value is not None]
    if not given:
        raise RecipeError(
            "how is the hosted model to be asked? Name its training file (--training-file FILE.jsonl), its system "
            "message (--instruction TEXT, '' for none), or the recipe it was trained by (--recipe RECIPE.yaml)."
        )
    if request.recipe and len(given) > 1:
        raise RecipeError(f"--recipe says how to ask, so {given[1]} has no effect. Remove one.")
    if request.recipe and request.input_columns:
        raise RecipeError("--recipe names the inputs, so --input-column has no effect. Remove one.")


def _asker(request: Request) -> Asker:
    connection = connect(request.provider)
    cache = AnswerCache(request.output / ANSWERS)
    price = find_price(request.provider, request.model, request.prices)
    if price is None and request.max_cost_usd is not None:
        raise BudgetError(
            f"--max-cost-usd is {request.max_cost_usd:g}, but no price of {request.model} at {request.provider.name} "
            "is known, so the cap cannot be kept. Name the price with --prices FILE.yaml, or leave the cap out."
        )
    pause_s = 1.0 if request.provider.is_local else 30.0
    budget = Budget(request.max_cost_usd, cache.spent_usd)
    return Asker(
        connection,
        cache,
        price,
        budget,
        batch=request.batch,
        num_threads=request.num_threads,
        pause_s=pause_s,
        tell=say,
    )


def _agree_to(asker: Asker, request: Request, bodies: Sequence[Body], answer_tokens: int, agree: Agree) -> None:
    """Say what is about to be asked and what it costs. Raises BudgetError above the cap."""
    estimate = asker.estimate(bodies, answer_tokens)
    if not estimate.num_new:
        say(f"{request.model}: all {estimate.num_requests} answers are here already")
        return
    line = f"{request.model}: {estimate.num_new} requests"
    line += f" ({estimate.num_cached} more are answered already)" if estimate.num_cached else ""
    line += f", {'' if estimate.exact else 'about '}{estimate.prompt_tokens:,} tokens to read"
    if asker.price is FREE:
        agree([f"{line}; a server on this machine, nothing to pay"], 0.0)
    elif estimate.likely_usd is None or estimate.most_usd is None:
        agree([f"{line}; no price of it is known (--prices can name one)"], None)
    else:
        if request.max_cost_usd is not None:
            Budget(request.max_cost_usd, asker.budget.spent_usd).reserve(estimate.likely_usd, "asking these rows")
        source = f"prices: {asker.price.source}, {asker.price.as_of}" if asker.price else ""
        cost = f"about {dollars(estimate.likely_usd)}, at most {dollars(estimate.most_usd)}"
        agree([f"{line}: {cost}", source], estimate.likely_usd)


def _ask_by_recipe(request: Request, agree: Agree) -> Labelled:
    """Ask with the words of a recipe's task."""
    assert request.recipe is not None, "called with a recipe"
    raw = _plain_recipe(request.recipe)
    # The recipe's own table and provider are not ours: only its task is taken.
    probe = make_recipe({"task": raw["task"], "data": {"path": str(request.inputs)}}, str(request.recipe))
    task = load_task(probe.task)
    if task.reasoning:
        raise RecipeError(
            f"{request.recipe}: task.reasoning is {task.reasoning!r}; a student of answers alone learns no reasoning. "
            "Remove it from the recipe."
        )
    rows = read_inputs(request.inputs, task)
    failed = {row.id: row.problem for row in rows if row.problem is not None}
    good = [row for row in rows if row.problem is None]
    asker = _asker(request)
    predictor = HostedPredictor("teacher", request.model, task, asker, max_tokens=request.max_tokens)
    inputs = [row.inputs for row in good]
    _agree_to(asker, request, predictor.bodies(inputs), 64, agree)
    table: list[dict[str, Any]] = []
    for row, prediction in zip(good, predictor.predict(inputs), strict=True):
        if prediction.error is not None:
            failed[row.id] = prediction.error
            continue
        named = {task.inputs[name]: text for name, text in row.inputs.items()}
        table.append({ID_COLUMN: row.id, **named, ANSWER_COLUMN: prediction.output})
    return Labelled(raw["task"], {"": ANSWER_COLUMN}, table, failed=failed, raw={"answer": raw.get("answer", {})})


def _plain_recipe(path: Path) -> dict[str, Any]:
    """The recipe's groups as they stand, paths made relative to here; checked by the caller."""
    recipe = load_recipe(path)
    resolved = recipe.resolved()
    task = {k: v for k, v in resolved["task"].items() if k in recipe.task.model_fields_set}
    if isinstance(task["output"], str) and task["output"].endswith(".json"):
        task["output"] = str(Path(task["output"]).resolve())  # it is written into another folder
    return {"task": task, "answer": recipe.answer.model_dump(mode="json", exclude_unset=True)}


def _ask_by_wrapping(request: Request, agree: Agree) -> Labelled:
    """Ask with the system message and the words around the text that the training file or --instruction says."""
    table = read_table(request.inputs)
    known, wrapping = _find_wrapping(request)
    columns = _input_columns(request, table)
    texts = {str(row.line): _text([(c, text_of(cell(row.values, c))) for c in columns]) for row in table.rows}
    texts = {name: text for name, text in texts.items() if text.strip()}
    if not texts:
        raise DataError(f"{request.inputs}: no row has a text in {list(columns)}. Name others with --input-column.")
    asker = _asker(request)
    bodies = [_body(request, wrapping, text) for text in texts.values()]
    first = "\n  ".join(f"{m['role']}: {m['content'][:300]}" for m in bodies[0]["messages"])
    say(f"the first question:\n  {first}")
    _agree_to(asker, request, bodies, _answer_tokens(known), agree)
    answers = dict(zip(texts, asker.ask(bodies, "teacher"), strict=True))
    return _by_shape(request, table, columns, answers, known, wrapping)


def _find_wrapping(request: Request) -> tuple[list[Exchange], Wrapping]:
    """The exchanges of the training file, and how the model is asked."""
    if request.training_file is None:
        return [], Wrapping(request.instruction or None)
    path = request.training_file
    require_file(path, "the training file")
    checked = training_file.check(path)
    if checked.problems:
        first = checked.problems[0]
        raise DataError(f"{path}:{first.line}: {first.message}. Correct the line, or name another --training-file.")
    known, others = exchanges(training_file.read(path))
    if others:
        say(f"{path}: {others} lines are no single question and answer in text; they are not used")
    if request.instruction is not None:
        known = [exchange for exchange in known if exchange.system == (request.instruction or None)]
    return known, find_wrapping(known, str(path))


def _input_columns(request: Request, table: Table) -> list[str]:
    for column in request.input_columns:
        if not has_column(column, table):
            raise DataError(f"{request.inputs}: has no column {column!r}; the columns are {table.columns}.")
    if request.input_columns:
        return list(request.input_columns)
    if table.format == "chat":
        if any(text_of(cell(row.values, "history")) for row in table.rows):
            raise DataError(f"{request.inputs}: holds conversations of several turns; single questions can be asked.")
        return ["user"]
    sample = [[text_of(cell(row.values, name)) for row in table.rows[:500]] for name in table.columns]
    shaped = zip(table.columns, sample, strict=True)
    found = [name for name, cells in shaped if Column(name, [c for c in cells if c], 1.0).kind == "text"]
    if len(found) == 1 or len(table.columns) == 1:
        return found or list(table.columns)
    raise DataError(
        f"{request.inputs}: which column is the model asked with? Found {len(found)} columns of text ({found}) among "
        f"{table.columns}. Name it: --input-column NAME (several: as 'name: text', a line each)."
    )


def _text(named: Sequence[tuple[str, str]]) -> str:
    """One column as it stands; of several, a line each with its name."""
    return named[0][1] if len(named) == 1 else "\n".join(f"{name}: {text}" for name, text in named)


def _body(request: Request, wrapping: Wrapping, text: str) -> Body:
    return {
        "model": request.model,
        "messages": wrapping.messages(text),
        "temperature": 0,
        "max_completion_tokens": request.max_tokens,
    }


def _answer_tokens(known: Sequence[Exchange]) -> int:
    """About how long an answer is, from the training file where there is one."""
    sample = [len(exchange.assistant) for exchange in known[:200]]
    return max(8, round(sum(sample) / len(sample) / 3)) if sample else 64


def _by_shape(
    request: Request,
    table: Table,
    columns: Sequence[str],
    answers: Mapping[str, Answer],
    known: Sequence[Exchange],
    wrapping: Wrapping,
) -> Labelled:
    """Rows of the student's table: texts become values of the shape that gold and answers have in common."""
    failed = {name: _problem(answer) for name, answer in answers.items() if _problem(answer)}
    given = {name: answer.content or "" for name, answer in answers.items() if name not in failed}
    # A gold row has one text; it can be a row again only where the model is asked with one column.
    gold = [exchange for exchange in known if len(columns) == 1]
    shape: Shape = infer_shape([*given.values(), *(exchange.assistant for exchange in gold)])
    values = dict(zip(given, shape.values, strict=False))
    failed |= {name: f"another shape: {given[name][:80]!r}" for name, value in values.items() if value is None}
    rows = [
        {
            ID_COLUMN: str(row.line),
            **{column: text_of(cell(row.values, column)) for column in columns},
            ANSWER_COLUMN: values[str(row.line)],
        }
        for row in table.rows
        if values.get(str(row.line)) is not None
    ]
    gold_rows = [
        {ID_COLUMN: f"gold-{number}", columns[0]: wrapping.unwrap(exchange.user), ANSWER_COLUMN: value}
        for number, (exchange, value) in enumerate(zip(gold, shape.values[len(given) :], strict=True), 1)
        if value is not None
    ]
    instruction = (wrapping.system or "").strip() or INSTRUCTION
    task = {"name": "rescued", "instruction": instruction, "inputs": list(columns), "output": shape.output}
    return Labelled(task, {"": ANSWER_COLUMN}, rows, gold_rows, {k: v or "" for k, v in failed.items()})


def _problem(answer: Answer) -> str | None:
    if answer.error is not None:
        return answer.error
    if answer.finish_reason == "length":
        return f"cut off after {answer.completion_tokens} tokens (raise --max-tokens)"
    return None if (answer.content or "").strip() else "an empty answer"
