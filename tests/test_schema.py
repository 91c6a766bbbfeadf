"""Output schemas: shorthand, what is refused by name, reading of table cells."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from afina.core import schema as schemas
from afina.core.errors import SchemaError
from afina.core.task import Task


def test_shorthand_covers_every_kind_of_field() -> None:
    schema = schemas.normalise(
        schemas.from_shorthand(
            {
                "a": ["x", "y"],
                "b": [["p", "q"]],
                "c?": "bool",
                "d": "int(0..3)",
                "e": "number(0..1)",
                "f": "text(9)",
                "g": {"h": "text"},
            }
        )
    )
    assert schema["required"] == ["a", "b", "d", "e", "f", "g"]
    paths = {f.path: (f.labels, f.multi) for f in schemas.fields(schema)}
    assert paths == {
        "a": (("x", "y"), False),
        "b": (("p", "q"), True),
        "c": ((True, False), False),
        "d": ((0, 1, 2, 3), False),
        "e": (None, False),
        "f": (None, False),
        "g.h": (None, False),
    }


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "object", "properties": {"a": {"type": "string"}}, "patternProperties": {}}, "patternProperties"),
        ({"type": "object", "properties": {"a": {"type": "number", "multipleOf": 2}}}, "multipleOf"),
        ({"type": "object", "properties": {"a": {"not": {}, "type": "string"}}}, "not"),
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "items": {"type": "string"}, "contains": {}}, "contains"),
        ({"type": "string", "format": "iri"}, "iri"),
        (
            {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": True},
            "additionalProperties",
        ),
        ({"anyOf": [{"type": "object", "properties": {"a": {"type": "null"}}}] * 2}, "anyOf"),
        ({"type": "object", "properties": {"a": {"allOf": [{}, {}]}}}, "type"),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"type": "array", "items": {"$ref": "#/$defs/A"}}}}, "A"),
    ],
)
def test_a_keyword_that_cannot_be_enforced_is_refused_by_name(schema: dict, named: str) -> None:
    with pytest.raises(SchemaError, match=named):
        schemas.normalise(schema)


def test_pydantic_models_with_inheritance_and_optionals_are_understood() -> None:
    class Base(BaseModel):
        sure: bool

    class Inner(Base):
        why: str | None = None

    class Outer(BaseModel):
        inner: Inner
        score: int

    schema = schemas.normalise(Outer.model_json_schema())
    assert schemas.problems({"inner": {"sure": True, "why": None}, "score": 3}, schema) is None
    assert "score" in str(schemas.problems({"inner": {"sure": True}}, schema))


def test_labels_are_matched_mapped_and_ordered() -> None:
    enum = {"enum": ["alegria", "medo"]}
    assert schemas.coerce(" Alegria ", enum) == "alegria"
    assert schemas.coerce("Felicidade", enum, {"Felicidade": "alegria"}) == "alegria"
    assert schemas.coerce("tristeza", enum) == "tristeza"
    many = schemas.normalise({"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True})
    assert schemas.coerce("c; a", many, separator=";") == ["a", "c"]
    assert schemas.coerce("6, 7", {"type": "array", "items": {"enum": ["6", "7"]}, "uniqueItems": True}) == ["6", "7"]
    assert schemas.coerce("sim", {"type": "boolean"}) is True
    assert schemas.coerce("0", {"type": "boolean"}) is False
    assert schemas.coerce("7", {"type": "integer"}) == 7
    assert "7.5" in str(schemas.problems(schemas.coerce("7.5", {"type": "integer"}), {"type": "integer"}))


def test_yaml_booleans_as_labels_are_explained() -> None:
    with pytest.raises(SchemaError, match="quotes"):
        schemas.from_shorthand({"a": [True, False]})


def test_integer_ranges_respect_exclusive_bounds() -> None:
    assert schemas.integer_range({"type": "integer", "minimum": 0, "maximum": 3}) == [0, 1, 2, 3]
    assert schemas.integer_range({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3}) == [1, 2]
    assert schemas.integer_range({"type": "integer", "minimum": 0, "maximum": 1000}) is None


def test_parts_that_differ_in_words_alone_share_what_is_learned() -> None:
    def sentence(words: str) -> dict[str, Any]:
        label = {"enum": ["a", "b"], "description": words}
        return {"type": "object", "title": words, "properties": {"title": label}, "required": ["title"],
                "additionalProperties": False}  # fmt: skip

    output = {"f1": sentence("of the first"), "f2": sentence("of the second")}
    schema = {"type": "object", "properties": output, "required": ["f1", "f2"], "additionalProperties": False}
    parts = {"f1": (("text", "f1"),), "f2": (("text", "f2"),)}
    task = Task("t", "i", {"f1": "f1", "f2": "f2"}, schemas.normalise(schema), part_inputs=parts)
    assert [group.name for group in task.groups] == ["title"]
    assert len(task.groups[0].fields) == 2
