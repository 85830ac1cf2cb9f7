"""Whether two reports come from one machine, and how far their times may differ where nothing changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pmd.benchmarks.case import Row
from pmd.benchmarks.figures import is_time
from pmd.benchmarks.report import Report

SAME_KEYS = ("cpu", "flags", "cores_physical", "cores_available", "container_limits")
RAM_SHARE = 0.02
"""Kernels of one machine report memory that differs by less."""
QUICK_NOTE = "one is a first look (--quick), which asks other questions"


@dataclass(frozen=True)
class Pair:
    """What two reports have in common."""

    same_machine: bool
    differences: tuple[str, ...]
    """In words: why their times do not compare."""
    notes: tuple[str, ...]
    """In words: what else differs, and may be the reason of a change."""
    noise_percent: float | None
    """How far a time may lie below another where nothing changed; None where a report does not say."""
    one_thread: bool
    same_split: bool

    @property
    def times_judged(self) -> bool:
        """Whether a difference between times says anything."""
        return not self.differences

    def judges(self, key: str) -> bool:
        """Whether a change of this figure says anything."""
        return not self.why_not(key)

    def why_not(self, key: str) -> str:
        """Why a change of this figure is not judged; empty where it is."""
        if is_time(key) and not self.times_judged:
            return "; ".join(self.differences)
        if key.startswith(("metrics", "mrr", "analysis")) and not self.same_split:
            return "the reports are of different splits"
        return ""

    def noise_of(self, a: Row, b: Row) -> float | None:
        """Noise of one bundle's times, in percent.

        A process on one thread that had only part of its core was slowed by as much, and one whose machine was
        disturbed by as much as the work between its questions was, whatever the calibration says, which ran at
        other moments.
        """
        if self.noise_percent is None:
            return None
        shares = [row["cores_busy"] for row in (a, b) if row["cores_busy"] is not None and self.one_thread]
        shares += [1 / (1 + _spread(row)) for row in (a, b) if row["disturbed"]]
        return max(self.noise_percent, *(100 * (1 - share) for share in shares), 0.0)


def _spread(row: Row) -> float:
    """How much longer the work between a bundle's questions took when it was slow, as a share; 0 if not told."""
    return float((row["disturbance"] or {}).get("spread_percent") or 0) / 100


def pair_of(a: Report, b: Report, noise_percent: float = 0.0) -> Pair:
    """What two reports, as `read_report` gives them, have in common.

    noise_percent: the least noise to reckon with, for who knows more of the machine than the reports say.
    """
    machines = a["machine"], b["machine"]
    hardware = [text for key in SAME_KEYS if (text := _differs(key, *(machine[key] for machine in machines)))]
    hardware += _memory(*machines)
    if None in (machines[0]["cpu"], machines[1]["cpu"]):
        hardware.append("cpu is unknown")
    threads = _differs("threads", *(machine["cores_used"] for machine in machines))
    stated = _noise(*machines)
    noise = noise_percent or None if stated is None else max(stated, noise_percent)
    unknown_noise = [] if noise is not None else ["a report does not say how noisy its machine was"]
    return Pair(
        same_machine=not hardware,
        differences=(*hardware, *([threads] if threads else []), *unknown_noise),
        notes=tuple(_notes(a, b)),
        noise_percent=noise,
        one_thread=machines[0]["cores_used"] == machines[1]["cores_used"] == 1,
        same_split=a["split"] == b["split"] or None in (a["split"], b["split"]),
    )


def _differs(name: str, one: Any, two: Any) -> str:
    if one == two:
        return ""
    if isinstance(one, list) and isinstance(two, list):
        lost, won = sorted(set(one) - set(two)), sorted(set(two) - set(one))
        return (
            f"{name}: only in the first {', '.join(lost) or 'none'}, only in the second {', '.join(won) or 'none'}"
        )
    return f"{name}: {_said(one)} in the first, {_said(two)} in the second"


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_said(inner)}" for key, inner in value.items())
    return "unknown" if value is None else str(value)


def _memory(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    sizes = one["ram_bytes"], two["ram_bytes"]
    if None in sizes or abs(sizes[0] - sizes[1]) <= RAM_SHARE * max(sizes):
        return []
    return [f"memory: {sizes[0] / 1e9:.1f} GB in the first, {sizes[1] / 1e9:.1f} GB in the second"]


def _noise(one: dict[str, Any], two: dict[str, Any]) -> float | None:
    """The larger noise of both, or how far apart the same loop ran in them where that is more; percent."""
    stated = [machine["calibration"]["slowest_median_percent"] for machine in (one, two)]
    if None in stated:
        return None
    speeds = [machine["calibration"]["matmul_gflops"] for machine in (one, two)]
    drift = 0.0 if None in speeds or not max(speeds) else 100 * (1 - min(speeds) / max(speeds))
    return float(max(*stated, drift))


def _notes(a: Report, b: Report) -> list[str]:
    """What differs besides the machine, in words."""
    found = [_differs("system", a["machine"].get("os"), b["machine"].get("os"))]
    versions = a["machine"].get("versions") or {}, b["machine"].get("versions") or {}
    for name in dict.fromkeys([*versions[0], *versions[1]]):
        found.append(_differs(name, versions[0].get(name), versions[1].get(name)))
    found.append(_differs("split", a["split"], b["split"]))
    if bool(a["quick"]) != bool(b["quick"]):
        found.append(QUICK_NOTE)
    return [text for text in found if text]
