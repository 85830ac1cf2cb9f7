"""Steps of all loops in turn, so that what else the machine does hits all of them; and peak memory, each alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from pmd.benchmarks.loops.floor import floor_flops, matmul_rate, stack_parameters
from pmd.benchmarks.loops.setting import Case, Setting
from pmd.benchmarks.loops.sides import Loop, StepSize, make_loop
from pmd.benchmarks.loops.wanted import LOOPS, Wanted
from pmd.benchmarks.memory import peak_rss_bytes

LARGEST_OF = 20  # batches among which those for the peak memory are chosen


@dataclass(frozen=True)
class Lap:
    """One step: making the batch, gradients, optimiser."""

    seconds: float
    cpu_seconds: float
    size: StepSize


def measure_case(wanted: Wanted, case_name: str, warmup: int, steps: int) -> dict[str, Any]:
    """All loops of one case, interleaved, with the machine's matmul rate before and after."""
    setting = Setting.load(wanted)
    case = setting.case(case_name)
    loops = {name: make_loop(name, setting, case, warmup + steps) for name in LOOPS}
    student, teacher = setting.student(case), setting.teacher(case)
    tokens = _mean_tokens(next(iter(loops.values())))
    bf16 = setting.precision.bf16
    rates = [matmul_rate(student, tokens, bf16=bf16)]
    laps = interleaved(loops, warmup, steps)
    rates.append(matmul_rate(student, tokens, bf16=bf16))
    own, others = stack_parameters(student), stack_parameters(teacher) if teacher else 0
    flops_per_second = sum(rate["forward"] for rate in rates) / len(rates)

    def floor_seconds(size: StepSize) -> float:
        return floor_flops(size, own, others) / flops_per_second

    figures = {
        name: loop_figures(laps[name], floor_seconds) | {"remembered": _remembered(setting, case, loop, laps[name])}
        for name, loop in loops.items()
    }
    return {
        "case": case.name,
        "layers": case.stage.grade,
        "mask_rate": case.mask_rate,
        "parameters_per_token": {"student": own, "teacher": others},
        "matmul": {"before": rates[0], "after": rates[1], "flops_per_second": flops_per_second},
        "loops": figures,
    }


def measure_memory(wanted: Wanted, case_name: str, loop_name: str, steps: int) -> dict[str, Any]:
    """Peak memory of this process after the largest `steps` of the first batches of one loop."""
    setting = Setting.load(wanted)
    ahead = max(steps, LARGEST_OF)
    loop = make_loop(loop_name, setting, setting.case(case_name), ahead)
    before = peak_rss_bytes()
    sizes = [loop.size(batch).laid_out for batch in islice(loop.batches(), ahead)]
    chosen = set(np.argsort(sizes)[::-1][:steps].tolist())
    for number, batch in enumerate(islice(loop.batches(), len(sizes))):
        if number in chosen:
            loop.train(batch)
    return {"peak_rss_bytes": peak_rss_bytes(), "before_steps_bytes": before, "largest_laid_out": max(sizes)}


def interleaved(loops: dict[str, Loop], warmup: int, steps: int) -> dict[str, list[Lap]]:
    """Laps of every loop, one step of each in turn; the first `warmup` rounds are left out."""
    batches = {name: loop.batches() for name, loop in loops.items()}
    laps: dict[str, list[Lap]] = {name: [] for name in loops}
    names = list(loops)
    for number in range(warmup + steps):
        for name in names[number % len(names) :] + names[: number % len(names)]:  # nobody always comes first
            loop = loops[name]
            begin, cpu = time.perf_counter(), time.process_time()
            batch = next(batches[name])
            loop.train(batch)
            lap = Lap(time.perf_counter() - begin, time.process_time() - cpu, loop.size(batch))
            if number >= warmup:
                laps[name].append(lap)
    return laps


def loop_figures(laps: Sequence[Lap], floor_seconds: Callable[[StepSize], float]) -> dict[str, Any]:
    """What a loop's laps say; every figure that varies by step as a spread."""
    sizes = [lap.size for lap in laps]
    tokens, triples = (sum(size[column] for size in sizes) for column in (2, 0))
    return {
        "steps": len(laps),
        "seconds": spread_of([lap.seconds for lap in laps]),
        "cpu_seconds": spread_of([lap.cpu_seconds for lap in laps]),
        "triples_per_second": spread_of([lap.size.triples / lap.seconds for lap in laps]),
        "tokens_per_second": spread_of([lap.size.tokens / lap.seconds for lap in laps]),
        "floor_share": spread_of([floor_seconds(lap.size) / lap.seconds for lap in laps]),
        "padding_share": 1.0 - tokens / sum(size.laid_out for size in sizes),
        "tokens_per_triple": tokens / triples,
        "triples_per_step": triples / len(laps),
        "queries_per_step": sum(size.queries for size in sizes) / len(laps),
    }


def spread_of(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes."""
    names, places = ("min", "p25", "median", "p75", "max"), (0, 25, 50, 75, 100)
    return dict(zip(names, np.percentile(values, places).tolist(), strict=True))


def _mean_tokens(loop: Loop) -> int:
    """Real tokens that one tower reads in a step, about: the rows of its matrix products."""
    return max(1, loop.size(next(loop.batches())).tokens // 2)


def _remembered(setting: Setting, case: Case, loop: Loop, laps: Sequence[Lap]) -> dict[str, Any] | None:
    """What the teacher's reading before the first step costs, spread over a stage's epochs."""
    found = loop.remembered
    if found is None:
        return None
    seconds = found["seconds"] * found["all_tokens"] / max(1, found["tokens"])
    triples = len(setting.texts.known.answers)
    epochs = setting.recipe.epochs_of(case.stage.name)
    rate = float(np.median([lap.size.triples / lap.seconds for lap in laps]))
    return {
        "estimated_seconds": seconds,
        "measured": found,
        "epochs": epochs,
        "triples_per_second_with_it": triples / (triples / rate + seconds / epochs),
    }
