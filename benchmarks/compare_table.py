"""A comparison for people reading a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pmd.benchmarks.compare import FIGURES, MOVED, UNKNOWN, WITHIN, Figure
from pmd.benchmarks.table import UNKNOWN as BLANK
from pmd.benchmarks.table import three_digits

HEADINGS = ("bundle", "figure", "first", "second", "change", "")
TEXT_COLUMNS = (0, 1, 5)
NAMES = {figure.key: figure for figure in FIGURES}


def lines(found: Mapping[str, Any], processor: str, threads: int, *, everything: bool = False) -> list[str]:
    """Whether times compare, then a table of what moved (of every figure with `everything`), then the count."""
    cells = [_cells(bundle, key, figure) for bundle, key, figure in _figures(found) if everything or _tells(figure)]
    told = [_opening(found, processor, threads), *(f"also different: {note}" for note in found["notes"]), ""]
    told[1:1] = [_noisier(bundle) for bundle in found["bundles"] if _is_noisier(bundle, found)]
    if cells:
        told += [*_aligned([HEADINGS, *cells]), ""]
    return [*told, *_oddities(found["bundles"]), _count(found)]


def _opening(found: Mapping[str, Any], processor: str, threads: int | None) -> str:
    differences = "; ".join(found["differences"])
    if not found["same_machine"]:
        return f"different machines, so times are not judged ({differences})"
    if not found["times_judged"]:
        return f"one machine, but times are not judged ({differences})"
    used = "threads unknown" if threads is None else f"{threads} thread{'s' * (threads > 1)}"
    return f"one machine ({processor}, {used}); noise {three_digits(found['noise_percent'])} %"


def _is_noisier(bundle: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether a bundle's own times are less certain than those of the whole."""
    return bool(found["times_judged"] and (bundle["noise_percent"] or 0.0) > (found["noise_percent"] or 0.0))


def _noisier(bundle: Mapping[str, Any]) -> str:
    noise = three_digits(bundle["noise_percent"])
    return f"{bundle['bundle']} was slowed by something else while it was timed; noise {noise} %"


def _figures(found: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str, Mapping[str, Any]]]:
    for bundle in found["bundles"]:
        for key, figure in bundle["figures"].items():
            yield bundle, key, figure


def _tells(figure: Mapping[str, Any]) -> bool:
    """Whether a figure belongs in the short table: it moved, or one side of it is missing."""
    missing = [figure["a"], figure["b"]].count(None)
    return figure["verdict"] in MOVED or (figure["verdict"] == UNKNOWN and missing == 1)


def _cells(bundle: Mapping[str, Any], key: str, figure: Mapping[str, Any]) -> tuple[str, ...]:
    shown, change = NAMES[key], figure["change_percent"]
    verdict = figure["verdict"]
    if verdict == WITHIN and key.startswith("query_ms") and bundle["noise_percent"]:
        verdict = f"{WITHIN} of {three_digits(bundle['noise_percent'])} %"
    return (
        bundle["bundle"],
        shown.name,
        _with_unit(shown, figure["a"]),
        _with_unit(shown, figure["b"]),
        BLANK if change is None else f"{change:+.1f} %",
        verdict,
    )


def _with_unit(figure: Figure, value: float | None) -> str:
    return " ".join(
        [figure.show(value), figure.unit] if figure.unit and value is not None else [figure.show(value)]
    )


def _oddities(bundles: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Bundles that one report lacks or could not measure."""
    for bundle in bundles:
        for side, name in (("a", "first"), ("b", "second")):
            if not bundle[f"in_{side}"]:
                yield f"only in the {'second' if side == 'a' else 'first'}: {bundle['bundle']}"
            elif bundle[f"error_{side}"]:
                yield f"failed in the {name}: {bundle['bundle']}: {bundle[f'error_{side}']}"


def _count(found: Mapping[str, Any]) -> str:
    verdicts = [figure["verdict"] for _, _, figure in _figures(found)]
    moved = sum(verdict in MOVED for verdict in verdicts)
    others = {verdict: verdicts.count(verdict) for verdict in verdicts if verdict not in MOVED}
    rest = ", ".join(f"{count} {verdict}" for verdict, count in others.items())
    told = f"{found['better']} better, {found['worse']} worse"
    return f"{moved} of {len(verdicts)} figures moved beyond noise ({told})" + (f"; {rest}" if rest else "")


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    return [
        "  ".join(
            cell.ljust(width) if column in TEXT_COLUMNS else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
