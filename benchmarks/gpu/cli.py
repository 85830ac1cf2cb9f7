"""`python -m pmd.benchmarks.gpu`: pack a kit, run slices on a GPU machine without network, keep results."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pmd.serving.command import EXIT_TIME_LIMIT, HELP, Command, Group, emit
from pmd.serving.extras import require

if TYPE_CHECKING:
    from pmd.benchmarks.gpu.slices import Slice

DATASETS = ("wn18rr", "fb15k237", "nell995-h100", "umls")
FOLDER = click.Path(path_type=Path, file_okay=False)
FOUND = click.Path(path_type=Path, file_okay=False, exists=True)
RESULTS = Path("benchmarks") / "results"
EPILOG = """\b
Examples:
  python -m pmd.benchmarks.gpu prepare kit              here, with network: encoder, data, wheels, at most 64 MiB
  python -m pmd.benchmarks.gpu list                     the slices in order of worth, and which are done
  python -m pmd.benchmarks.gpu run wn18rr-teacher --kit kit --out out/teacher      there
  python -m pmd.benchmarks.gpu run wn18rr-pmd --kit kit --out out/pmd --start out/teacher
  python -m pmd.benchmarks.gpu collect out/pmd          here again: check, and keep in benchmarks/results
"""


@click.group("pmd.benchmarks.gpu", cls=Group, context_settings=HELP, epilog=EPILOG)
def main() -> None:
    """Make the most of a GPU machine that is at hand for minutes and has no network (docs/gpu.md)."""
    require("train", "yaml", "safetensors")


@main.command(cls=Command, context_settings=HELP)
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--encoder", default="all-MiniLM-L6-v2", show_default=True, metavar="NAME|DIR")
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    metavar="NAME|DIR",
    help=f"May be given several times. [default: {', '.join(DATASETS)}]",
)
@click.option(
    "--python", default="3.12", show_default=True, help="Python of the machine, for which wheels are packed."
)
@click.option("--no-wheels", is_flag=True, help="The machine has every package already.")
@click.option(
    "--max-bytes", type=click.IntRange(min=1), default=64 * 2**20, show_default=True, help="Of the whole kit."
)
def prepare(
    folder: Path, encoder: str, datasets: tuple[str, ...], python: str, no_wheels: bool, max_bytes: int
) -> None:
    """Pack DIR: the package, the encoder in float16, datasets, and wheels of small packages."""
    from pmd.benchmarks.gpu.kit import pack_kit, size_of

    wanted = datasets or DATASETS
    facts = pack_kit(folder, encoder, wanted, python=None if no_wheels else python, max_bytes=max_bytes)
    size = size_of(facts)
    click.echo(f"{folder}: {len(facts['files'])} files, {size / 2**20:.1f} of {max_bytes / 2**20:.1f} MiB")
    emit({"schema": "pmd-gpu-prepare/1", "kit": str(folder), "bytes": size, "commit": facts["commit"]})


@main.command("list", cls=Command, context_settings=HELP)
@click.option("--results", type=FOLDER, default=RESULTS, show_default=True)
def list_slices(results: Path) -> None:
    """Show the slices in order of worth, how long each takes, and what is done."""
    from pmd.benchmarks.gpu.results import results_of
    from pmd.benchmarks.gpu.slices import shipped_slices

    kept, rows = results_of(results), []
    for entry in shipped_slices().values():
        mine = {label: result for label, result in kept.items() if result["slice"] == entry.name}
        done = sorted(label for label, result in mine.items() if result["done"])
        state = f"done: {', '.join(done)}" if done else "begun" if mine else "open"
        click.echo(f"{entry.name:<22}{entry.minutes:>3} min  {state:<8}  {entry.why}{_after(entry)}")
        rows.append({"slice": entry.name, "minutes": entry.minutes, "needs": list(entry.needs), "done": done})
    emit({"schema": "pmd-gpu-slices/1", "slices": rows})


@main.command(cls=Command, context_settings=HELP)
@click.argument("name", metavar="SLICE")
@click.option("--kit", "kit_folder", type=FOUND, required=True, help="What `prepare` packed.")
@click.option("--out", type=FOLDER, required=True, help="What is to travel back.")
@click.option(
    "--work", type=FOLDER, default=Path("gpu-work"), show_default=True, help="Shared by slices of one stay."
)
@click.option(
    "--start", "starts", type=FOUND, multiple=True, metavar="OUT", help="An earlier slice's --out folder."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--time-limit", type=click.FloatRange(min=1), default=540.0, show_default=True, metavar="SECONDS")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A recipe key of every run, as YAML.")
@click.option("--slices", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="Slices of your own.")
@click.option("--fresh", is_flag=True, help="Train what is needed from other slices, too.")
def run(
    name: str,
    kit_folder: Path,
    out: Path,
    work: Path,
    starts: tuple[Path, ...],
    seed: int,
    device: str,
    time_limit: float,
    settings: tuple[str, ...],
    slices: Path | None,
    fresh: bool,
) -> int:
    """Run SLICE and write result.json and the weights it returns to --out.

    Ends with exit code 75 when the time is up first: what was finished is in --out, and the same command on the
    same machine goes on.
    """
    from pmd.benchmarks.gpu.kit import open_kit
    from pmd.benchmarks.gpu.runner import Sitting, run_slice
    from pmd.benchmarks.gpu.slices import choose, read_slices, shipped_slices

    chosen = choose(read_slices(slices) if slices else shipped_slices(), name)
    sitting = Sitting(
        kit=open_kit(kit_folder.absolute()),
        work=work.absolute(),
        out=out.absolute(),
        seed=seed,
        device=device,
        settings=dict(map(_setting, settings)),
        time_limit=time_limit,
        fresh=fresh,
    )
    result = run_slice(chosen, sitting, starts, _shown(name, seed, device, time_limit, settings))
    for line in _table(result):
        click.echo(line)
    emit({"schema": "pmd-gpu-run/1", "out": str(out), "slice": name, "seed": seed, "done": result["done"]})
    return 0 if result["done"] else EXIT_TIME_LIMIT


@main.command(cls=Command, context_settings=HELP)
@click.argument("out", type=FOUND)
@click.option("--results", type=FOLDER, default=RESULTS, show_default=True)
@click.option("--weights", type=FOLDER, metavar="DIR", help="Write run folders with the stages that came back.")
@click.option("--force", is_flag=True, help="Replace a finished result by an unfinished one.")
def collect(out: Path, results: Path, weights: Path | None, force: bool) -> None:
    """Check what a slice wrote to OUT, part by part, and keep its result."""
    from pmd.benchmarks.gpu.results import collect as keep

    kept, result = keep(out, results, weights, force=force)
    for line in _table(result):
        click.echo(line)
    emit({"schema": "pmd-gpu-collect/1", "result": str(kept), "done": result["done"]})


def _setting(text: str) -> tuple[str, Any]:
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--set")
    return key, yaml.safe_load(value)


def _after(entry: Slice) -> str:
    return f" (after {', '.join(entry.needs)})" if entry.needs else ""


def _shown(name: str, seed: int, device: str, time_limit: float, settings: tuple[str, ...]) -> str:
    """The command as a result keeps it: KIT and OUT stand for this machine's folders."""
    words = ["python", "-m", "pmd.benchmarks.gpu", "run", name, "--kit", "KIT", "--out", "OUT", "--seed", str(seed)]
    words += ["--device", device, "--time-limit", f"{time_limit:g}"]
    return shlex.join([*words, *(word for setting in settings for word in ("--set", setting))])


def _table(result: dict[str, Any]) -> list[str]:
    lines = [f"{'run':<20}{'stage':<15}{'seconds':>8}{'triples/s':>11}{'valid MRR':>11}{'test MRR':>10}"]
    for made in result["runs"]:
        for stage in made["ladder"]["stages"]:
            figures = [(stage[split] or {}).get("mrr") for split in ("valid", "test")]
            shown = [f"{figure:.4f}" if figure is not None else "-" for figure in figures]
            rate = made["rates"].get(stage["stage"], stage)["triples_per_second"]
            lines.append(
                f"{made['run']:<20}{stage['stage']:<15}{stage['train_seconds']:>8.0f}{rate:>11,.0f}"
                f"{shown[0]:>11}{shown[1]:>10}"
            )
    return lines


if __name__ == "__main__":
    sys.exit(main())
