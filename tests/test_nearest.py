"""The nearest training row's output as an answer: against brute force, on validation, on bad input."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from afina.core.errors import DataError
from afina.core.predictor import Example
from afina.core.task import Task
from afina.evaluation.chrf import corpus_chrf
from afina.strategies import nearest
from afina.strategies.classical import CHARACTERS, WORDS
from afina.strategies.nearest import SETTINGS, Nearest

TASK = Task("loja", "Descreva o produto.", {"title": "title"}, {"type": "string"}, free_text=True)
NOUNS = ["caneca", "prato", "panela", "copo", "jarra", "bule", "talher", "toalha", "avental", "chaleira"]
KINDS = ["azul", "vermelha", "grande", "pequena", "de", "vidro", "antiga", "infantil", "dobrável"]


def shop(count: int, seed: int) -> list[Example]:
    rng = random.Random(seed)
    found = []
    for i in range(count):
        noun, kind, maker = rng.choice(NOUNS), rng.choice(KINDS), rng.choice("ABCDE")
        text = f"Uma {noun} {kind} feita pela casa {maker}, boa para a sua cozinha e para o seu {noun}."
        found.append(Example(f"{seed}-{i}", {"title": f"{noun.title()} {kind} {maker}"}, text, cluster=i))
    return found


def test_it_answers_with_the_row_of_highest_cosine() -> None:
    """Against scikit-learn called plainly, one row at a time."""
    train, test = shop(60, 1), shop(15, 2)
    found = Nearest(TASK, train, [])
    assert found.chosen == "words and characters"
    titles = [row.inputs["title"] for row in train]
    blocks = [TfidfVectorizer(**options, sublinear_tf=True).fit(titles) for options in (WORDS, CHARACTERS)]
    predictions = found.predict([row.inputs for row in test])
    places = {row.id: n for n, row in enumerate(train)}
    for row, prediction in zip(test, predictions, strict=True):
        near = sum((b.transform([row.inputs["title"]]) @ b.transform(titles).T).toarray()[0] for b in blocks)
        at = places[prediction.sources[0]]
        assert near[at] == pytest.approx(np.max(near), abs=1e-5)  # float32 against float64
        assert (prediction.output, prediction.error) == (train[at].output, None)
    assert len({p.output for p in predictions}) > 5


def test_a_training_row_finds_itself_and_settings_are_chosen_by_chrf() -> None:
    train, validation = shop(80, 3), shop(40, 4)
    found = Nearest(TASK, train, validation)
    own = found.predict([row.inputs for row in train])
    assert sum(p.output == row.output for p, row in zip(own, train, strict=True)) >= 75  # a few titles come twice
    golds = [str(row.output) for row in validation]
    scores = {}
    for name in SETTINGS:
        places = found._nearest(found._features.of([(row.inputs["title"],) for row in validation]), name)
        scores[name] = corpus_chrf(golds, [str(train[at].output) for at in places])
    assert scores[found.chosen] == max(scores.values())
    assert len(scores) == 3
    assert found.train_seconds > 0


def test_bad_input() -> None:
    with pytest.raises(DataError, match="none of the 1 training examples has an answer"):
        Nearest(TASK, [Example("1", {"title": "x"})], [])
    blank = Nearest(TASK, [Example("1", {"title": ""}, "texto"), Example("2", {"title": "!?"}, "outro")], [])
    found = blank.predict([{"title": ""}, {"title": "\x00 <|eos|>"}, {"title": "a" * 200_000}, {}])
    assert [p.output for p in found] == ["texto"] * 4
    assert blank.predict([]) == []


def test_of_too_many_rows_some_are_drawn_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "MAX_ROWS", 20)
    one, two = (Nearest(TASK, shop(50, 5), [], seed) for seed in (1, 1))
    assert one.notes == ["nearest: of 50 training rows, 20 drawn by the seed are compared"]
    assert [row.id for row in one._rows] == [row.id for row in two._rows]
    assert len(one._rows) == 20


@pytest.mark.shared
def test_real_titles(shared_data: Path) -> None:
    lines = (shared_data / "products" / "lf_amazon_head_500.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    examples = [
        Example(str(i), {"title": row["title"]}, row["content"], cluster=i)
        for i, row in enumerate(rows)
        if row["content"]
    ]
    assert len(examples) > 400
    train, validation, test = examples[:300], examples[300:350], examples[350:]
    found = Nearest(TASK, train, validation)
    answers = [str(p.output) for p in found.predict([row.inputs for row in test])]
    golds = [str(row.output) for row in test]
    shuffled = list(answers)
    random.Random(0).shuffle(shuffled)
    assert corpus_chrf(golds, answers) > corpus_chrf(golds, shuffled)
