"""The wording of entities and queries."""

from __future__ import annotations

import numpy as np
import pytest

from pmd.serving.known import KnownAnswers
from pmd.serving.neighbours import NeighbourGraph
from pmd.serving.texts import TemplateError, Templates, TextBuilder, fill, is_short

LONG = " ".join(["word"] * 20)
TRAIN = np.array([[0, 0, 1], [0, 0, 2], [0, 1, 3], [3, 1, 0]])
VALID = np.array([[0, 0, 4]])


def builder(descriptions: list[str], templates: Templates | None = None) -> TextBuilder:
    names = ["zero", "one", "two", "three", "four"]
    graph = NeighbourGraph.from_triples(5, TRAIN)
    known = KnownAnswers.from_triples(5, 2, TRAIN, VALID)
    return TextBuilder(names, descriptions, ["likes", "is near"], templates or Templates(), graph, known)


def test_a_short_description_is_followed_by_neighbours():
    texts = builder(["short", "", LONG, "", ""])
    assert texts.entity(0) == "zero: short one two three"
    assert texts.entity(1) == "one: zero"
    assert texts.entity(2) == f"two: {LONG}"
    assert texts.entity(4) == "four"  # no description, no neighbours


def test_a_query_never_shows_the_training_answers_it_asks_for():
    texts = builder(["short", "", "", "", ""])
    assert texts.query(0, 0) == ("zero: short three", "likes")
    assert texts.query(0, 1) == ("zero: short one two", "is near")
    assert texts.query(1, 2) == ("one", "inverse likes")


def test_an_answer_of_another_split_is_not_hidden_because_it_is_no_neighbour():
    """Validation answers are not in the graph; hiding training answers alone must not let them in either."""
    assert "four" not in builder(["", "", "", "", ""]).query(0, 0)[0]


def test_the_number_of_neighbours_and_their_switch():
    assert builder(["", "", "", "", ""], Templates(neighbours=2)).entity(0) == "zero: one two"
    assert builder(["", "", "", "", ""], Templates(neighbours=0)).entity(0) == "zero"


def test_templates_of_ones_own():
    templates = Templates(
        entity="{description} ({name})", bare_entity="<{name}>", inverse="{relation} of", neighbours=0
    )
    texts = builder(["short", "", "", "", ""], templates)
    assert (texts.entity(0), texts.entity(1)) == ("short (zero)", "<one>")
    assert texts.query(1, 3) == ("<one>", "is near of")
    assert texts.wording("new", "thing") == "thing (new)"
    assert texts.wording("new") == "<new>"


def test_what_a_field_holds_is_not_read_as_a_field():
    assert fill("{name}: {description}", name="{description}", description="{name}") == "{description}: {name}"


def test_unknown_fields_are_refused():
    with pytest.raises(TemplateError, match="inverse has unknown field 'name'"):
        Templates(inverse="inverse {name}")


def test_short_is_fewer_words_than_the_limit():
    assert is_short("", 1)
    assert is_short("one two", 3)
    assert not is_short("one two three", 3)


def test_templates_survive_their_dictionary():
    templates = Templates(inverse="reverse {relation}", neighbours=3)
    assert Templates(**templates.as_dict()) == templates
