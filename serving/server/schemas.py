"""The shapes of requests; OpenAPI and the checks of requests are made from the same models."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, create_model

from pmd.serving.server.limits import MAX_AMONG, MAX_EXPLAINED_TRIPLES, Limits

Model = TypeVar("Model", bound=BaseModel)

DEFAULT_K, DEFAULT_TRIPLES = 10, 5


class Shape(BaseModel):
    """A JSON object of known fields and nothing else; texts are not taken for numbers."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TopQuestion(Shape):
    """What questions for tails and for heads share."""

    relation: str | list[str]
    k: int = DEFAULT_K
    exclude_known: bool = True
    reranked: bool = False
    among: list[str] | None = None


class TailsQuestion(TopQuestion):
    """The best tails of (head, relation, ?)."""

    head: str | list[str]
    head_is_text: bool = False


class HeadsQuestion(TopQuestion):
    """The best heads of (?, relation, tail)."""

    tail: str | list[str]
    tail_is_text: bool = False


class ScoreQuestion(Shape):
    """The scores of triples."""

    triples: list[list[str]]


class ExplainQuestion(Shape):
    """What drove the score of one answer."""

    head: str
    relation: str
    tail: str
    asks: Literal["tail", "head"] = "tail"
    is_text: bool = False
    triples: int = DEFAULT_TRIPLES


class NewEntity(Shape):
    """An entity to put in, with its text, or with its vector as well."""

    id: str
    name: str
    description: str = ""
    vector: list[float] | None = None


class ChangedEntity(Shape):
    """What to change of an entity; what is left out, or null, stays."""

    name: str | None = None
    description: str | None = None
    vector: list[float] | None = None


class Models(NamedTuple):
    """The models of requests with the limits of one server."""

    tails: type[TailsQuestion]
    heads: type[HeadsQuestion]
    score: type[ScoreQuestion]
    explain: type[ExplainQuestion]


def request_models(limits: Limits) -> Models:
    """The models that refuse what is beyond `limits`, and whose JSON Schemas state them."""
    text: Any = Annotated[str, Field(min_length=1, max_length=limits.max_text_characters)]
    few: Any = Field(min_length=1, max_length=limits.max_batch)
    keys: Any = Annotated[list[text], few]
    one_or_many: Any = Annotated[
        Annotated[text, Tag("one")] | Annotated[keys, Tag("many")],
        Discriminator(lambda value: "many" if isinstance(value, list) else "one"),
    ]
    k: Any = Annotated[int, Field(ge=1, le=limits.max_k, description="How many answers, at most.")]
    among: Any = Annotated[list[text], Field(min_length=1, max_length=MAX_AMONG)]
    triple: Any = Annotated[list[text], Field(min_length=3, max_length=3)]
    triples: Any = Annotated[int, Field(ge=1, le=MAX_EXPLAINED_TRIPLES, description="Triples to show, at most.")]
    top = {
        "relation": _field(one_or_many, "Id or text of the relation; or one for each question.", "affects"),
        "k": (k, min(DEFAULT_K, limits.max_k)),
        "exclude_known": (bool, Field(True, description="Leave out answers that the graph already has.")),
        "reranked": (bool, Field(False, description="Re-rank by the neighbours, where the bundle can.")),
        "among": (among | None, Field(None, description="Ids of the only entities that may be answers.")),
    }
    entity = "Id of the entity, or its name if only one has it; or a list of them."
    is_text = (bool, Field(False, description="What is given is the text of an entity the graph does not hold."))
    asks = Field("tail", description="Which side was asked for, and is explained.")
    return Models(
        _limited(
            TailsQuestion,
            {"head": _field(one_or_many, entity, "acquired_abnormality"), "head_is_text": is_text} | top,
        ),
        _limited(
            HeadsQuestion,
            {"tail": _field(one_or_many, entity, "physiologic_function"), "tail_is_text": is_text} | top,
        ),
        _limited(ScoreQuestion, {"triples": (Annotated[list[triple], few], Field(description=TRIPLES))}),
        _limited(
            ExplainQuestion,
            {
                "head": _field(text, "Id or unique name.", "acquired_abnormality"),
                "relation": _field(text, "Id or text of the relation.", "affects"),
                "tail": _field(text, "Id or unique name.", "physiologic_function"),
                "asks": (Literal["tail", "head"], asks),
                "is_text": is_text,
                "triples": (triples, DEFAULT_TRIPLES),
            },
        ),
    )


class ChangeModels(NamedTuple):
    """The models of requests that change a bundle, with the limits of one server."""

    add: type[NewEntity]
    update: type[ChangedEntity]


def change_models(limits: Limits) -> ChangeModels:
    """As `request_models`."""
    text: Any = Annotated[str, Field(min_length=1, max_length=limits.max_text_characters)]
    maybe_empty: Any = Annotated[str, Field(max_length=limits.max_text_characters)]
    number: Any = Annotated[float, Field(allow_inf_nan=False)]
    vector = (list[number] | None, Field(None, description="Of the bundle's width; by default the text is read."))
    return ChangeModels(
        _limited(
            NewEntity,
            {
                "id": _field(text, "A new id.", "new_disease"),
                "name": _field(text, "As people read it.", "new disease"),
                "description": (maybe_empty, Field("", description="What the entity tower reads besides.")),
                "vector": vector,
            },
        ),
        _limited(
            ChangedEntity,
            {
                "name": (text | None, Field(None, description="A new name.")),
                "description": (maybe_empty | None, Field(None, description="A new description.")),
                "vector": vector,
            },
        ),
    )


TRIPLES = "Triples of head, relation, tail, each by id or unique name."


def _field(kind: Any, description: str, example: str) -> tuple[Any, Any]:
    return kind, Field(description=description, examples=[example])


def _limited(model: type[Model], fields: dict[str, Any]) -> type[Model]:
    return create_model(model.__name__, __base__=model, __doc__=model.__doc__, **fields)
