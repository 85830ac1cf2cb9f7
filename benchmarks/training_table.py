"""The training bench for people: a table for each part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def case_table(case: Mapping[str, Any]) -> str:
    """One row a loop: rates (median, and the quartiles), padding, share of the floor, memory."""
    rate = case["matmul"]["flops_per_second"] / 1e9
    drift = case["matmul"]["after"]["forward"] / case["matmul"]["before"]["forward"] - 1
    masks = f", {case['mask_rate']:.0%} masked" if case["mask_rate"] else ""
    lines = [
        f"{case['case']} ({case['layers']} layers{masks}); products {rate:.1f} Gflop/s ({drift:+.0%} from before "
        f"to after)",
        f"{'':<26}{'triples/s':>20}{'tokens/s':>22}{'tokens/triple':>15}{'padding':>9}{'of floor':>10}"
        f"{'peak MiB':>10}{'ratio':>7}",
    ]
    for name, loop in case["loops"].items():
        memory = loop.get("memory")
        peak = f"{memory['peak_rss_bytes'] / 2**20:,.0f}" if memory and memory["peak_rss_bytes"] else "-"
        ratio = case["ratio"].get(name, 1.0)
        lines.append(
            f"{name:<26}{_spread(loop['triples_per_second'], 1):>20}{_spread(loop['tokens_per_second'], 0):>22}"
            f"{loop['tokens_per_triple']:>15.1f}{loop['padding_share']:>9.1%}"
            f"{loop['floor_share']['median']:>10.0%}{peak:>10}{ratio:>7.2f}"
        )
    lines += [_remembered(name, loop["remembered"]) for name, loop in case["loops"].items() if loop["remembered"]]
    return "\n".join(lines)


def _spread(spread: Mapping[str, float], digits: int) -> str:
    return f"{spread['median']:,.{digits}f} ({spread['p25']:,.{digits}f}-{spread['p75']:,.{digits}f})"


def _remembered(name: str, found: Mapping[str, Any]) -> str:
    return (
        f"  {name}: the teacher reads all texts once beforehand, about {found['estimated_seconds']:,.0f} s; over "
        f"{found['epochs']} epochs that leaves {found['triples_per_second_with_it']:,.1f} triples/s"
    )


def making_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One row a size of graph."""
    lines = [f"{'making batches':<18}{'triples':>10}{'entities':>10}{'s/epoch':>9}{'us/triple':>11}{'rivals':>9}"]
    lines += [
        f"{row['times']:<18}{row['triples']:>10,}{row['entities']:>10,}{row['seconds']:>9.2f}"
        f"{row['microseconds_per_triple']:>11.1f}{row['rivals_microseconds_per_triple']:>9.1f}"
        for row in rows
    ]
    return "\n".join(lines)


def curve_table(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """One row a loop, one column an epoch: valid MRR, and seconds until then."""
    epochs = max((len(records) for records in arms.values()), default=0)
    lines = [f"{'valid MRR (s)':<26}" + "".join(f"{'epoch ' + str(number + 1):>18}" for number in range(epochs))]
    for name, records in arms.items():
        cells = (f"{_mrr(record['valid_mrr'])} ({record['seconds']:,.0f})" for record in records)
        lines.append(f"{name:<26}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def _mrr(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
