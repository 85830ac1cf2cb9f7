"""Fuzzing of command lines: options dropped, doubled, unknown and odd; files that are none of what is asked for."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.trust.attack import Attack, Ground, Tally
from tests.trust.fuzz_engine import Broken, numbered
from tests.trust.fuzz_mutation import ODD_TEXTS, mutated

CODES = {0, 1, 2}
"""Done, our failure or a gate, the user's mistake."""
UNKNOWN = (
    "--nope",
    "-",
    "--",
    "--json=1",
    "-k",
    "--out",
    "--help",
    "-h",
    "--quiet",
    "--=",
    "-kk",
    "--seed",
    "--to",
)
NUMBERS = ("0", "-1", "1", "3", "1e9", "nan", "inf", "-inf", "0x10", "1_000", "9" * 40, "1.5", "٣", " 2", "")
CONDITIONS = (
    "mrr_kept<0.9",
    "query_ms.p50>+10%",
    "mrr_kept<",
    "x<1",
    "query_ms.p50>1e999",
    "a.b.c==nan",
    "mrr_kept<<1",
    "metrics.mrr!=0",
)


def arguments_of(rng: random.Random) -> str:
    """One odd argument that no option can turn into a path outside the working folder, nor a system into an end."""
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(NUMBERS)
    if kind < 0.6:
        return rng.choice(UNKNOWN)
    if kind < 0.7:
        return rng.choice(CONDITIONS)
    if kind < 0.75:
        return rng.choice(FILES)
    plain = [text for text in ODD_TEXTS if "/" not in text and ".." not in text and "\x00" not in text]
    return rng.choice([text for text in plain if "\ud800" not in text])


NO_TEXT = os.fsdecode(b"b\xff")
"""A name that is not UTF-8, as Python has it."""
FILES = (
    "bundle",
    "bundle.zip",
    "graph",
    "report.json",
    "other.json",
    "a.jsonl",
    "b.jsonl",
    "triples.tsv",
    "nobody",
    "empty",
    ".",
    NO_TEXT,
)
LINES: dict[str, tuple[tuple[str, ...], ...]] = {
    "predict": (
        ("bundle", "--head", "aspirin", "--relation", "treats", "-k", "3", "--json"),
        ("bundle.zip", "--tail", "a hot body", "--relation", "part of", "--reranked", "--include-known", "--quiet"),
        ("bundle", "--split", "test", "--out", "out.jsonl", "-k", "2", "--threads", "1"),
        (NO_TEXT, "--head", "aspirin", "--relation", "treats"),
    ),
    "data": (
        ("list", "--json"),
        ("convert", "graph", NO_TEXT + "2", "--to", "parquet"),
        ("convert", "graph", "new", "--to", "csv", "--quiet"),
        (
            "split",
            "triples.tsv",
            "new",
            "--seed",
            "3",
            "--valid",
            "0.2",
            "--test",
            "0.2",
            "--inductive",
            "--to",
            "nt",
        ),
        ("check", "graph", "--json", "--allow", "unknown-ids", "--encoder", "nobody"),
        ("compare", "a.jsonl", "b.jsonl", "--seed", "1"),
    ),
    "bench": (
        ("compare", "report.json", "other.json", "--all", "--noise", "5", "--fail-if", "mrr_kept<0.9"),
        ("pick", "report.json", "--max-mb", "10", "--min-mrr", "0.5", "--max-p50-ms", "2"),
    ),
}


def a_line(rng: random.Random) -> tuple[str, list[str]]:
    """A command and its arguments: a line that works, changed in up to three places."""
    name = rng.choice(("predict", "predict", "data", "data", "data", "bench"))
    line = list(rng.choice(LINES[name]))
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        place = rng.randrange(len(line) + 1)
        kind = rng.random()
        if kind < 0.45 and place < len(line):
            line[place] = arguments_of(rng)
        elif kind < 0.65 and place < len(line):
            del line[place]
        elif kind < 0.8:
            line.insert(place, arguments_of(rng))
        elif line:
            line.insert(place, rng.choice(line))
    return name, line


def write_files(folder: Path) -> None:
    """What the lines name."""
    from pmd.datasets import tsv
    from pmd.serving import Scorer
    from pmd.serving.archive import pack
    from pmd.serving.predictions import write_predictions
    from tests.bench_rows import report
    from tests.tiny_bundle import write_tiny_bundle
    from tests.trust.fuzz_readers import small_graph

    write_tiny_bundle(folder / "bundle")
    pack(folder / "bundle", folder / "bundle.zip")
    scorer = Scorer.load(folder / "bundle", threads=1)
    for name, reranked in (("a.jsonl", False), ("b.jsonl", True)):
        write_predictions(scorer, "test", 2, folder / name, reranked=reranked)
    (folder / "graph").mkdir()
    tsv.write(small_graph(), folder / "graph")
    triples = "".join(f"e{n}\tr{n % 2}\te{(n + 1) % 9}\n" for n in range(40))
    (folder / "triples.tsv").write_text(triples, encoding="utf-8")
    for name in ("report.json", "other.json"):
        (folder / name).write_text(json.dumps(report()), encoding="utf-8")
    (folder / "empty").write_bytes(b"")
    shutil.copytree(folder / "bundle", folder / NO_TEXT)


def spoiled(rng: random.Random, folder: Path) -> Callable[[], None]:
    """Spoil a file that the lines name; returns what mends it."""
    name = rng.choice(
        ("a.jsonl", "triples.tsv", "report.json", "graph/train.tsv", "bundle/manifest.json", "graph/entities.tsv")
    )
    file = folder / name
    whole = file.read_bytes()
    file.write_bytes(mutated(rng, whole))
    return lambda: file.write_bytes(whole) and None


def _run(folder: Path, commands: dict[str, Any], number: int, seed: int) -> str:
    from click.testing import CliRunner

    rng = random.Random(f"{seed}/{number}")
    name, line = a_line(rng)
    mend = spoiled(rng, folder) if rng.random() < 0.2 else None
    try:
        result = CliRunner().invoke(commands[name], line, prog_name=f"pmd-{name}")
    finally:
        if mend is not None:
            mend()
        _swept(folder)
    where = f"pmd-{name} {line!r}"[:300]
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise Broken(f"{type(result.exception).__name__}: {result.exception} of {where}") from result.exception
    return _judged(result.exit_code, result.stdout, result.stderr, line, where)


def _judged(code: int, out: str, err: str, line: Sequence[str], where: str) -> str:
    if code not in CODES:
        raise Broken(f"exit code {code} of {where}")
    errors = re.findall(r"^error: .*$", err, re.MULTILINE)
    if "Traceback" in err or "Traceback" in out:
        raise Broken(f"a traceback of {where}: {err[-300:]}")
    if code == 2 and (len(errors) != 1 or not err.rstrip("\n").endswith(errors[0])):
        raise Broken(f"{len(errors)} error lines of {where}: {err[-300:]!r}")
    if code == 1 and not errors:
        _check_json(out, where)
    if code == 0 and not {"-h", "--help"} & set(line):
        _check_json(out, where)
        if errors:
            raise Broken(f"exit code 0 with {errors[0][:200]!r} of {where}")
    return f"exit code {code}"


def _check_json(out: str, where: str) -> None:
    lines = out.splitlines() or [""]
    try:
        found = json.loads(lines[-1])
    except ValueError as error:
        raise Broken(f"stdout of {where} ends with {lines[-1][:100]!r}") from error
    if not str(found.get("schema", "")).startswith("pmd-"):
        raise Broken(f"stdout of {where} ends with JSON without a schema")


def _swept(folder: Path) -> None:
    """Remove what a command wrote."""
    for path in folder.iterdir():
        if path.name in FILES:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _commands(ground: Ground) -> Tally:
    os.environ["PMD_CACHE"] = str(ground.folder / "cache")
    os.environ["COLUMNS"] = "100"
    from pmd.benchmarks.commands import compare, pick
    from pmd.datasets.cli import main as data
    from pmd.serving.cli import main as predict
    from pmd.serving.command import HELP, Group

    bench = Group("pmd-bench", commands={"compare": compare, "pick": pick}, context_settings=HELP)
    folder = ground.folder / "work"
    folder.mkdir()
    write_files(folder)
    before = os.getcwd()
    os.chdir(folder)
    tally = Tally()
    commands = {"predict": predict, "data": data, "bench": bench}
    try:
        for number in range(ground.count):
            case = partial(_run, folder, commands, number, ground.seed)
            numbered(tally, case, ground, number)
    finally:
        os.chdir(before)
    return tally


ATTACKS = (
    Attack(
        "fuzz-commands",
        "fuzzing",
        "Command lines with odd options and spoiled files: exit code 0, 1 or 2, JSON at the end or one error line",
        _commands,
        quick=500,
        full=12_000,
    ),
)
