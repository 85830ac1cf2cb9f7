"""YAML of plain values, read safely, with one kind of error for all that it can be instead."""

from __future__ import annotations

from typing import Any

SHOWN_CHARACTERS = 300
NOT_YAML = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)
"""What PyYAML's constructors let through for a tag that its text does not fit, such as `!!int x`."""


def parse_yaml(text: str) -> Any:
    """The value of a YAML document. Raises ValueError, in one line, for anything else."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:SHOWN_CHARACTERS]) from error
    except NOT_YAML as error:
        reason = (
            "nested too deeply" if isinstance(error, RecursionError) else f"a value does not fit its tag: {error}"
        )
        raise ValueError(" ".join(reason.split())[:SHOWN_CHARACTERS]) from error
