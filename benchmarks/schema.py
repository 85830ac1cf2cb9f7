"""The JSON Schema of report.json: shipped beside this module, walked here without any library.

`facts/report.schema.json` uses few keywords, and `breaches` knows those alone; a test holds it against jsonschema.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from typing import Any, TypeAlias

Schema: TypeAlias = Mapping[str, Any]

FOLDER, NAME = "facts", "report.schema.json"


def finite(value: Any) -> bool:
    """Whether this is a number to reckon with; JSON can write 1e999 and whole numbers of any length."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max


TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "number": finite,
    "integer": lambda value: finite(value) and value == int(value),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


@functools.cache
def report_schema() -> dict[str, Any]:
    """The schema of pmd-bench/1, as a dictionary that must not be changed."""
    text = resources.files("pmd.benchmarks").joinpath(FOLDER, NAME).read_text(encoding="utf-8")
    return dict(json.loads(text))


def breaches(value: Any, schema: Schema | None = None, place: str = "") -> Iterator[str]:
    """What is wrong with a report, one line each: where, what was found, what is expected.

    Keys left out are no breach here: older reports have fewer, and absent means unknown.
    """
    schema = report_schema() if schema is None else schema
    if "$ref" in schema:
        yield from breaches(value, resolved(schema), place)
        return
    if "anyOf" in schema:  # in this schema always a thing or null
        if value is not None:
            yield from breaches(value, schema["anyOf"][0], place)
        return
    wrong = _wrong(value, schema)
    if wrong:
        yield f"{place or 'the report'} is {_shown(value)}, expected {wrong}"
        return
    yield from _inside(value, schema, place)


def resolved(schema: Schema) -> Schema:
    """What a `$ref` stands for; a schema without one is itself."""
    if "$ref" not in schema:
        return schema
    return dict(report_schema()["$defs"][schema["$ref"].rpartition("/")[2]])


def _inside(value: Any, schema: Schema, place: str) -> Iterator[str]:
    """Breaches of the items of a list, or of the values of an object."""
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from breaches(item, schema["items"], f"{place}[{index}]")
    elif isinstance(value, dict):
        known, other = schema.get("properties", {}), schema.get("additionalProperties", {})
        for key, item in value.items():
            yield from breaches(item, known.get(key, other), f"{place}.{key}" if place else key)


def _wrong(value: Any, schema: Schema) -> str | None:
    """What was expected of the value itself, None where it is right."""
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(TYPES[kind](value) for kind in kinds):
        return " or ".join(kinds)
    if "const" in schema and value != schema["const"]:
        return _shown(schema["const"])
    if "enum" in schema and value not in schema["enum"]:
        return " or ".join(_shown(choice) for choice in schema["enum"])
    if isinstance(value, list):
        return _wrong_length(len(value), schema)
    return _out_of_range(value, schema) if finite(value) else None


def _wrong_length(length: int, schema: Schema) -> str | None:
    low, high = schema.get("minItems", 0), schema.get("maxItems", length)
    if low <= length <= high:
        return None
    return f"{low} items" if low == high else f"{low} to {high} items"


def _out_of_range(value: float, schema: Schema) -> str | None:
    if value < schema.get("minimum", value):
        return f"at least {schema['minimum']}"
    return f"at most {schema['maximum']}" if value > schema.get("maximum", value) else None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
