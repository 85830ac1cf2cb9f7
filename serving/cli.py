"""`pmd-predict`: ask a bundle one question, or all questions of a split, from the command line."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from pmd.serving.command import HELP, TRUSTED_KEY, Command, emit
from pmd.serving.errors import QueryError
from pmd.serving.known import SPLIT_NAMES
from pmd.serving.predictions import write_predictions
from pmd.serving.scorer import Prediction, Scorer

SCHEMA = "pmd-predict/1"
NAME_COLUMNS = 60
EPILOG = """\b
Examples:
  pmd-predict bundles/umls-pmd-grade-3-int8 --head acquired_abnormality --relation affects
  pmd-predict bundles/umls-pmd-grade-3-int8 --relation affects --tail "physiologic function" -k 3
  pmd-predict model.zip --head "a disorder of the heart muscle" --relation isa --json
  pmd-predict model.zip --trusted-key maker.pub.pem --relation isa --tail virus
  pmd-predict model.zip --split test --out predictions.jsonl
"""


@click.command(name="pmd-predict", cls=Command, context_settings=HELP, epilog=EPILOG)
@click.argument("bundle", type=click.Path())
@click.option("--head", metavar="TEXT|ID", help="Ask for the tails of this head: an id, a name, or any text.")
@click.option("--tail", metavar="TEXT|ID", help="Ask for the heads of this tail: an id, a name, or any text.")
@click.option("--relation", metavar="NAME", help="The relation, by id or text.")
@click.option("--split", type=click.Choice(SPLIT_NAMES), help="Ask every question of a split instead; needs --out.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="With --split: JSON lines with ranks and best answers."
)
@click.option("-k", "count", type=click.IntRange(min=1), default=10, show_default=True, help="Answers to show.")
@click.option("--include-known", is_flag=True, help="Show answers that the graph already has, too.")
@click.option("--reranked", is_flag=True, help="Add the neighbour re-ranking that the bundle describes.")
@click.option("--json", "only_json", is_flag=True, help="Print the JSON line alone, without the table.")
@TRUSTED_KEY
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the model.  [default: the usable cores]")
@click.option("--quiet", is_flag=True, help="No remarks on stderr.")
def main(
    bundle: str,
    head: str | None,
    tail: str | None,
    relation: str | None,
    split: str | None,
    out: Path | None,
    count: int,
    include_known: bool,
    reranked: bool,
    only_json: bool,
    trusted_keys: tuple[Path, ...],
    threads: int | None,
    quiet: bool,
) -> None:
    """Rank the entities that complete a triple, with the model in BUNDLE (a folder or .zip).

    Give --relation with --head or --tail. What is no entity's id or name is taken as the text of an entity that
    the graph does not hold. The last line of stdout is one JSON object.
    """
    load = partial(Scorer.load, bundle, threads=threads, trusted_keys=trusted_keys or None)
    if split is not None or out is not None:
        if split is None or out is None or (head, tail, relation) != (None, None, None):
            raise QueryError("--split goes with --out, and without --head, --tail and --relation")
        emit(write_predictions(load(), split, count, out, reranked=reranked))
        return
    if relation is None:
        raise QueryError("give --relation, and --head or --tail; or --split and --out for all questions of a split")
    if (head is None) == (tail is None):
        raise QueryError("give either --head or --tail: the other one is what is asked for")
    scorer = load()
    given = head if head is not None else tail or ""
    entity = scorer.find_entity(given)
    if entity is None and not quiet:
        click.echo(f"{given!r} is no entity's id or unique name; taken as text", err=True)
    options: dict[str, Any] = {"k": count, "exclude_known": not include_known, "reranked": reranked}
    key = given if entity is None else entity
    if head is not None:
        side, found = "head", scorer.top_tails(key, relation, head_is_text=entity is None, **options)
    else:
        side, found = "tail", scorer.top_heads(relation, key, tail_is_text=entity is None, **options)
    if not only_json:
        _show(found)
    emit(
        {
            "schema": SCHEMA,
            "bundle": bundle,
            side: key,
            "relation": relation,
            "predictions": [prediction._asdict() for prediction in found],
        }
    )


def _show(predictions: list[Prediction]) -> None:
    """Print predictions as a table: rank, score, id, name."""
    if not predictions:
        click.echo("no answers are left: every entity is a known answer (see --include-known)")
        return
    width = max(len("entity"), *(len(_printable(found.entity)) for found in predictions))
    click.echo(f"{'rank':>4}  {'score':>7}  {'entity':<{width}}  name")
    for rank, found in enumerate(predictions, start=1):
        entity, name = _printable(found.entity), _printable(found.name)
        click.echo(f"{rank:>4}  {found.score:>7.4f}  {entity:<{width}}  {name}")


def _printable(text: str) -> str:
    """`text` on one line, without characters that steer a terminal, cut to a column."""
    text = "".join(char if char.isprintable() else "�" for char in text)
    return text if len(text) <= NAME_COLUMNS else text[: NAME_COLUMNS - 1] + "…"


if __name__ == "__main__":
    main()
