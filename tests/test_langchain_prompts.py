"""What LangChain's side is read by: prompts for inputs, wanted schemas beside a specialist's. No model needed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.prompts import PromptTemplate
from pydantic import BaseModel

from afina.core.schema import from_shorthand, normalise
from afina.core.task import Task
from afina.integrations.langchain import PromptError
from afina.integrations.langchain.matching import mismatch
from afina.integrations.langchain.prompt_text import read_inputs, text_of

THREE = ["f1", "f2", "f3"]
NEWS = Task("noticias", "Classifique a notícia.", dict.fromkeys(THREE, "x"), {"type": "string"})
ONE = Task("frase", "Classifique a frase.", {"texto": "x"}, {"type": "string"})
# The notebook's, as it stands.
TEMPLATE = """Classifique a noticia abaixo conforme a polaridade e emoção universal.
Texto:
f1: {f1_text}
f2: {f2_text}
f3: {f3_text}

Resultado:
"""


class Noticia(BaseModel):
    f1: str
    f2: str
    f3: str


# -- what a prompt says ------------------------------------------------------------------------------

ABC = {"f1": "a: um", "f2": "b", "f3": "c\nd"}
FIELDS = "f1: a: um\nf2: b\nf3: c\nd"
FORMAT, JSON_FORMAT = (
    p(pydantic_object=Noticia).get_format_instructions() for p in (PydanticOutputParser, JsonOutputParser)
)
READABLE = {
    "lines alone": FIELDS,
    "the notebook's": f"Classifique.\nTexto:\n{FIELDS}\n\nResultado:\n",
    "another order": "Leia.\nf3: c\nd\nf1: a: um\nf2: b",
    "indented": "  f1 : a: um\n\n  f2 : b\n\n\tf3: c\nd\n### Resposta:",
    "format instructions behind": f"Classifique.\n{FIELDS}\n\n{FORMAT}\n",
    "format instructions before": f"Classifique.\n\n{JSON_FORMAT}\n\n{FIELDS}\n\nResposta:",
    "no schema": f"{FIELDS}\n{JsonOutputParser().get_format_instructions()}",
    "on the next line": "f1:\na: um\nf2:\nb\nf3:\nc\nd",
    "JSON": json.dumps({**ABC, "id": 3}),
}


@pytest.mark.parametrize("name", READABLE)
def test_prompts_that_can_be_read(name: str) -> None:
    assert read_inputs(READABLE[name], NEWS) == ABC


def test_the_text_of_training_may_hold_anything() -> None:
    text = "um\n\ndois\n\nfim"
    assert read_inputs(f"Classifique a notícia.\n\nf1: {text}\nf2: b\nf3: {text}", NEWS) == {
        "f1": text, "f2": "b", "f3": text,
    }  # fmt: skip


def test_one_input_is_the_message_or_its_line() -> None:
    for text in (
        "O PIB: cresceu.\n\nMuito.",
        "O PIB: cresceu.\n\nMuito.\n",
        "Classifique a frase.\n\nO PIB: cresceu.\n\nMuito.",
    ):
        assert read_inputs(text, ONE) == {"texto": "O PIB: cresceu.\n\nMuito."}
    for text in (
        "Classifique:\ntexto: O PIB.\n\nClasse:",
        '{"texto": "O PIB."}',
        "Classifique a frase.\n\ntexto: O PIB.",
    ):
        assert read_inputs(text, ONE) == {"texto": "O PIB."}
    assert read_inputs('{"outro": 1}', ONE) == {"texto": '{"outro": 1}'}


UNREADABLE = {
    "Classifique: a, b e c.": r"found no line that begins with 'f1:' or 'f2:' or 'f3:' in 'Classifique: a, b e c.'",
    "f1: a\nf2: b": r"the input 'f3' was not found; the specialist 'noticias' wants .* found \['f1', 'f2'\]",
    "f1: a\nf2: b\nf3: c\nf2: d": "found two lines that begin with 'f2:', expected one",
    "f1: a\nf2: b\nf3: c\n\nResponda em JSON.": "after the blank line behind 'f3:' comes 'Responda em JSON.'",
    "f1: a\n\nmais\nf2: b\nf3: c": "after the blank line behind 'f1:' comes 'mais'",
    '{"f1": 1, "f2": "b", "f3": "c"}': "the input 'f1' is int, expected text",
    "": "found no line",
}


@pytest.mark.parametrize("text", UNREADABLE)
def test_prompts_that_cannot_be_read(text: str) -> None:
    with pytest.raises(PromptError, match=UNREADABLE[text]) as caught:
        read_inputs(text, NEWS)
    assert isinstance(caught.value, ValueError)


def test_a_prompt_for_one_input_needs_its_line() -> None:
    with pytest.raises(PromptError, match=r"wants the lines 'texto: \.\.\.'"):
        read_inputs(f"Classifique: O PIB cresceu.\n{FORMAT}", ONE)


@given(*[st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\n"), max_size=80)] * 3)
def test_any_line_goes_through_the_notebooks_prompt(first: str, second: str, third: str) -> None:
    texts = {"f1_text": first, "f2_text": second, "f3_text": third}
    found = read_inputs(PromptTemplate(template=TEMPLATE).invoke(texts).to_string(), NEWS)
    assert found == {name: texts[f"{name}_text"].strip() for name in THREE}


def test_conversations_and_pictures_are_refused() -> None:
    assert text_of([SystemMessage("seja breve"), HumanMessage("oi")]) == "oi"
    assert text_of([HumanMessage([{"type": "text", "text": "o"}, "i"])]) == "oi"
    for messages in ([HumanMessage("a"), AIMessage("b"), HumanMessage("c")], [AIMessage("b")], []):
        with pytest.raises(PromptError, match="expected one human message"):
            text_of(messages)
    with pytest.raises(PromptError, match="a block of type 'image'"):
        text_of([HumanMessage([{"type": "text", "text": "o"}, {"type": "image", "url": "http://x/y.png"}])])


# -- wanted schemas -----------------------------------------------------------------------------------

SENTENCE = {"polaridade": ["a", "b"], "nota?": "int(0..10)"}
MATCHES = [
    ({"x": ["a", "b"]}, {"x": ["b", "a", "c"]}),
    ({"x": ["a", "b"]}, {"x": "text"}),
    ({"x": "bool"}, {"x": {"enum": [False, True]}}),
    ({"x": "int(0..10)"}, {"x": "number(0..100)"}),
    ({"x": "text(20)"}, {"x": "text"}),
    ({"x": [["a", "b"]]}, {"x": [["a", "b"]]}),
    ({"x": [["a", "b"]]}, {"x": {"type": "array", "items": {"type": "string"}}}),
    ({"x": ["a"]}, {"x": ["a"], "y?": "text"}),
    ({"s": SENTENCE}, {"s": SENTENCE}),
    ({"x": "int"}, {"x": {"anyOf": [{"type": "number"}, {"type": "null"}]}}),
]
DIFFERENCES = [
    ({"x": ["a", "b"]}, {"x": ["A", "B"]}, "'x' may be 'a', but one of ['A', 'B'] is wanted"),
    ({"x": ["a", "b"]}, {"x": ["a"]}, "'x' may be 'b'"),
    ({"x": "text"}, {"x": ["a"]}, "'x' is string, but one of ['a'] is wanted"),
    ({"x": "text"}, {"x": "int"}, "'x' is string, but integer is wanted"),
    ({"x": "number"}, {"x": "int"}, "'x' is number, but integer is wanted"),
    ({"x": "int"}, {"x": "int(0..10)"}, "'x' has minimum not set, but 0 is wanted"),
    ({"x": "text"}, {"x": "text(20)"}, "'x' has maxLength not set, but 20 is wanted"),
    ({"x": [["a"]]}, {"x": [["b"]]}, "'x[]' may be 'a'"),
    ({"x": ["a"]}, {"x": ["a"], "y": "text"}, "needs the field 'y', which is unknown to the specialist"),
    ({"x": ["a"], "y?": "text"}, {"x": ["a"], "y": "text"}, "needs the field 'y', which is not always there"),
    ({"x": ["a"], "y": "text"}, {"x": ["a"]}, "has the field 'y', which the wanted schema does not name"),
    ({"s": SENTENCE}, {"s": {"polaridade": ["a"]}}, "'s.polaridade' may be 'b'"),
    ({"x": "bool"}, {"x": "text"}, "'x' may be True"),
]


def shape(fields: dict[str, Any]) -> dict[str, Any]:
    """Shorthand, in which a value may be a JSON Schema already."""
    made = {
        k: v if isinstance(v, dict) and ("type" in v or "enum" in v or "anyOf" in v) else None
        for k, v in fields.items()
    }
    schema = from_shorthand({k: v if made[k] is None else "text" for k, v in fields.items()})
    schema["properties"] |= {k: v for k, v in made.items() if v is not None}
    return normalise(schema)


@pytest.mark.parametrize(("answer", "wanted"), MATCHES)
def test_schemas_that_match(answer: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert mismatch(shape(answer), shape(wanted)) is None


@pytest.mark.parametrize(("answer", "wanted", "said"), DIFFERENCES)
def test_schemas_that_differ(answer: dict[str, Any], wanted: dict[str, Any], said: str) -> None:
    assert said in str(mismatch(shape(answer), shape(wanted)))
