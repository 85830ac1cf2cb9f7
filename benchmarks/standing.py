"""The standing set's figures as a page: `python -m pmd.benchmarks.standing`, the last step of `make bench`.

Reads a report of pmd-bench and one of pmd.benchmarks.serving, keeps the figures that the page shows in one JSON
file, and writes the page from that file alone, so that the page can be made again and checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pmd.benchmarks.errors import BenchError
from pmd.benchmarks.reading import read_report
from pmd.benchmarks.report import Report, mrr_of
from pmd.benchmarks.standing_page import Standing, page
from pmd.serving.command import HELP, Command, emit
from pmd.serving.storage import write_atomic

SCHEMA, SERVING_SCHEMA = "pmd-bench-standing/1", "pmd-bench-serving/1"
MACHINE = (
    *("cpu", "flags", "cores_used", "cores_available", "ram_bytes", "os", "frequency_mhz", "versions"),
    *("container_limits", "commit", "modified", "load_average", "calibration"),
)
BENCH = ("dataset", "split", "threads", "questions", "cold_starts", "quick", "started_at", "seconds", "command")
ROW = (
    *("bundle", "method", "stage", "grade", "precision", "bundle_bytes", "query_ms", "batches", "cold_start_ms"),
    *("peak_rss_bytes", "private_dirty_bytes", "mrr_kept", "queries_timed", "repeats", "cores_busy", "disturbed"),
    *("intervals", "against_fp32", "growth", "error"),
)
EPILOG = """\b
Examples:
  python -m pmd.benchmarks.standing --bench reports/standing --serving reports/standing-serving.json
  python -m pmd.benchmarks.standing                    the page again, from the figures that are there
"""


@click.command("pmd.benchmarks.standing", cls=Command, context_settings=HELP, epilog=EPILOG)
@click.option("--bench", type=click.Path(path_type=Path), metavar="DIR", help="Report of pmd-bench.")
@click.option(
    "--serving", type=click.Path(path_type=Path), metavar="FILE", help="Report of pmd.benchmarks.serving."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("benchmarks/results/cpu/standing.json"),
    show_default=True,
    help="Where the page's figures are kept.",
)
@click.option(
    "--page",
    "target",
    type=click.Path(path_type=Path),
    default=Path("docs/benchmarks.md"),
    show_default=True,
    help="The page.",
)
def main(bench: Path | None, serving: Path | None, data: Path, target: Path) -> None:
    """Write the page of the standing set, from the two reports or from the figures kept before."""
    if bench is None and serving is None:
        standing = read_standing(data)
    elif bench is None or serving is None:
        raise BenchError("--bench and --serving belong together; name both, or neither to use the figures kept")
    else:
        standing = condensed(read_report(bench), _read(serving, SERVING_SCHEMA))
        text = json.dumps(standing, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomic(data, (text + "\n").encode("utf-8"))
    write_atomic(target, page(standing).encode("utf-8"))
    emit({"schema": SCHEMA, "page": str(target), "data": str(data), "bundles": len(standing["results"])})


def condensed(report: Report, serving: Mapping[str, Any]) -> Standing:
    """What the page shows of the two reports."""
    found = [target for target in serving["targets"] if target["found"] is not None]
    bundles = sorted({part["setting"]["bundles"][0] for part in serving["parts"].values() if _has_bundle(part)})
    return {
        "schema": SCHEMA,
        **{name: report[name] for name in BENCH},
        "machine": {name: report["machine"].get(name) for name in MACHINE},
        "results": [
            {
                **{name: row.get(name) for name in ROW},
                "mrr": mrr_of(row),
                "hits@10": (row["metrics"] or {}).get("hits@10"),
            }
            for row in report["results"]
        ],
        "serving": {
            "bundles": bundles,
            "measured_at": max((part["measured_at"] for part in serving["parts"].values()), default=None),
            "figures": [
                {name: target[name] for name in ("name", "figure", "found", "unit")}
                | {"noise_percent": serving["parts"][_part(target)]["noise"]["slowest_median_percent"]}
                for target in found
            ],
        },
    }


def read_standing(path: Path) -> Standing:
    """Figures that `main` kept. Raises BenchError if they cannot be read."""
    return _read(path, SCHEMA)


def _part(target: Mapping[str, Any]) -> str:
    return str(target["figure"]).partition(".")[0]


def _has_bundle(part: Mapping[str, Any]) -> bool:
    return bool(part["setting"].get("bundles"))


def _read(path: Path, schema: str) -> dict[str, Any]:
    """A JSON object of a schema. Raises BenchError for anything else."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BenchError(f"{path} does not exist; run: make bench") from error
    except (ValueError, OSError) as error:
        raise BenchError(f"{path} cannot be read ({error}); run: make bench") from error
    if not isinstance(found, dict) or found.get("schema") != schema:
        raise BenchError(f"{path} is not of schema {schema}; run: make bench")
    return found


if __name__ == "__main__":
    main()
