"""`afina index`, `ask` and `chat`: a catalogue's search index, and answers that show their sources. No logic."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from afina.core.errors import AfinaError, DataError, MachineError, RecipeError

if TYPE_CHECKING:
    from afina.core.config import Recipe
    from afina.strategies.grounded import Answer

NEEDED = ("ftfy", "isal", "selectolax", "py3langid", "tantivy", "sacrebleu")
RecipePath = Annotated[Path, typer.Argument(help="A recipe with a catalogue, a YAML file.", metavar="RECIPE")]
RunPath = Annotated[Path, typer.Argument(help="A run folder with a specialist and an index.", metavar="RUN")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads this annotation
    typer.Argument(help="Settings that replace the recipe's, as catalogue.path=trn.json.gz", metavar="KEY=VALUE"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def require_libraries() -> None:
    """Raise MachineError where the extra `assistant` is not installed."""
    if absent := [name for name in NEEDED if find_spec(name) is None]:
        raise MachineError(
            f"The libraries for catalogues are not installed ({', '.join(absent)}). "
            "Install them: pip install 'afina[assistant]'"
        )


def has_catalogue(recipe: Recipe) -> bool:
    """Whether the recipe is about a catalogue. Raises MachineError where it is and its libraries are absent."""
    if recipe.catalogue is not None:
        require_libraries()
    return recipe.catalogue is not None


def prepare(recipe: Recipe, yes: bool, as_json: bool) -> None:
    """Clean, shard, split; then choose the rows that are learned from. Prints the account of both."""
    from afina import hosting, pipeline
    from afina.catalogue.account import summary_lines as catalogue_lines
    from afina.catalogue.export import export
    from afina.data.prepare import summary_lines
    from afina.pipeline.splits import catalogue_of

    opened = pipeline.open_recipe(recipe, overwrite=yes)
    stage = hosting if recipe.train.provider else pipeline
    prepared = stage.prepare(opened, quiet=True)
    found = catalogue_of(opened)
    assert recipe.catalogue is not None, "called for catalogue recipes only"
    written = export(found, recipe.catalogue.shards, recipe.catalogue.formats, recipe.catalogue)
    if as_json:
        print(json.dumps({"catalogue": found.report, "data": prepared.report}, ensure_ascii=False, indent=1))
        return
    print("\n".join([*catalogue_lines(found.report), "", f"shards {recipe.catalogue.shards}, as examples:"]))
    print("\n".join(summary_lines(prepared.report)))
    print(f"Catalogue: {opened.catalogue}", *(f"Written:   {path}" for path in written), sep="\n")
    print(f"Prepared:  {opened.data}")


def train(recipe: Recipe, yes: bool) -> None:
    """A specialist that describes and cites, one after another where the recipe has rounds; or a provider's model."""
    from afina import assistant, pipeline
    from afina.cli import hosted

    assert recipe.catalogue is not None, "called for catalogue recipes only"
    if recipe.catalogue.rounds is not None:
        from afina.assistant.rounds import train_rounds

        hosted.print_rounds(train_rounds(recipe, hosted.agreement_asker(yes), overwrite=yes), recipe.run_dir / "rounds")
        return
    if recipe.train.provider is not None:
        hosted.train(recipe, yes)
        return
    opened = pipeline.open_recipe(recipe, overwrite=yes)
    pipeline.prepare(opened)
    print(f"Specialist: {assistant.train(opened)}")


def index(
    recipe: RecipePath,
    overrides: Overrides = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Replace the run of another recipe.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a catalogue searchable.

    Prepares it first where that is not done. Killed, the same command continues; new shards are added to those that
    are there.
    """
    from afina import pipeline

    read = pipeline.read(recipe, overrides)
    if not has_catalogue(read):
        raise RecipeError(f"{recipe}: has no catalogue to index. Add the group catalogue, as in recipes/amazon.yaml.")
    from afina import assistant
    from afina.pipeline.splits import catalogue_of

    opened = pipeline.open_recipe(read, overwrite=yes)
    pipeline.prepare(opened)
    found = assistant.index(opened, catalogue_of(opened))
    if as_json:
        print(json.dumps({"index": str(opened.index), "products": found.num_products}))
        return
    print(f"{found.num_products:,} products can be found: {opened.index}")


def ask(
    run: RunPath,
    question: Annotated[str, typer.Argument(help="In English or Portuguese.", metavar="QUESTION")],
    as_json: AsJson = False,
) -> None:
    """Answer a question from the catalogue, with sources.

    Each source is a sentence that stands in the catalogue, word for word. What the catalogue does not hold is answered
    with "Not in the catalogue."
    """
    require_libraries()
    from afina.strategies.grounded import Grounded

    answer = Grounded.load(run).ask(question)
    if answer.prediction.error is not None:
        raise DataError(answer.prediction.error)
    print(json.dumps(_as_json(answer), ensure_ascii=False, indent=1) if as_json else "\n".join(_lines(answer)))


def chat(run: RunPath) -> None:
    """Ask one question after the other.

    An empty line, or Ctrl-D, ends it.
    """
    require_libraries()
    from afina.strategies.grounded import Grounded

    grounded = Grounded.load(run)
    shown = 0

    def write(text: str) -> None:
        nonlocal shown
        print(text[shown:], end="", flush=True)
        shown = len(text)

    print("Ask about a product; an empty line ends the chat.", file=sys.stderr)
    while True:
        try:
            question = input("? " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not question.strip():
            return
        shown = 0
        try:
            answer = grounded.ask(question, on_text=write)
        except AfinaError as problem:
            print(f"afina: {problem}", file=sys.stderr)
            continue
        print(answer.text[shown:] if answer.text.startswith(answer.text[:shown]) else f"\n{answer.text}")
        print("\n".join(_source_lines(answer)))


def _as_json(answer: Answer) -> dict[str, object]:
    return {
        "question": answer.question,
        "answer": answer.text,
        "refused": answer.refused,
        "refusal": answer.refusal,
        "support": round(answer.support, 4),
        "sources": [source.to_json() for source in answer.sources],
        "passages": [
            {"uid": hit.passage.uid, "title": hit.passage.title, "score": round(hit.score, 4)}
            for hit in answer.passages
        ],
        "note": answer.note,
    }


def _lines(answer: Answer) -> list[str]:
    note = [f"note: {answer.note}"] if answer.note else []
    return [answer.text, *_source_lines(answer), *note]


def _source_lines(answer: Answer) -> list[str]:
    lines: list[str] = []
    for number, source in enumerate(answer.sources, 1):
        score = "" if source.score is None else f"  (score {source.score:.2f})"
        lines += ["", f"[{number}] {source.uid}  {source.title}{score}", f"    “{source.quote}”"]
    return lines
