"""The shipped JSON Schema against real reports, and the reader's own walk through it against jsonschema."""

from __future__ import annotations

import copy
import json
from importlib import resources
from pathlib import Path

import bench_rows
import jsonschema
import pytest
from tiny_bundle import write_tiny_bundle

from pmd.benchmarks import figures, schema
from pmd.benchmarks.bench import bench
from pmd.benchmarks.case import Plan
from pmd.benchmarks.errors import BenchError
from pmd.benchmarks.reading import read_report

QUICK = Plan(questions=30, batches=3, cold_starts=2)
WRONG = ("a word", -7, 2.5, True, None, [], {}, [1, 2, 3], {"odd": "value"}, 1e9)
UNDERSTOOD = {
    *("$schema", "$id", "$defs", "$ref", "title", "description", "type", "properties", "additionalProperties"),
    *("required", "items", "minItems", "maxItems", "anyOf", "enum", "const", "minimum", "maximum"),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict:
    """A real report: a float bundle, a quantised one, and one that cannot be opened."""
    folder = tmp_path_factory.mktemp("bundles")
    good = write_tiny_bundle(folder / "tiny-fp32")
    small = write_tiny_bundle(folder / "tiny-int8", precision="int8")
    broken = write_tiny_bundle(folder / "broken")
    (broken / "query" / "onnx" / "model.onnx").write_bytes(b"not a model")
    made = bench([good, small, broken], QUICK, dataset="tiny", quick=True)
    assert [row["error"] is None for row in made["results"]].count(False) == 1
    made["results"].sort(key=lambda row: row["error"] is not None)  # `places` looks into the first
    return json.loads(json.dumps(made, allow_nan=False))


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema.report_schema())


def places(value: object, path: tuple = ()) -> list[tuple]:
    """Paths of everything inside a report, but only the first item of a list and the first odd name of a kind."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*path, key))
    elif isinstance(value, list) and value:
        found += places(value[0], (*path, 0))
    return found


def changed(report: dict, path: tuple, value: object) -> dict:
    made = copy.deepcopy(report)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return made


def test_the_schema_is_one_and_uses_only_what_the_reader_understands():
    jsonschema.Draft202012Validator.check_schema(schema.report_schema())
    shipped = resources.files("pmd.benchmarks").joinpath("facts", "report.schema.json")
    assert json.loads(shipped.read_text(encoding="utf-8")) == schema.report_schema()

    def keywords(part: object, *, names: bool) -> set[str]:
        if isinstance(part, list):
            return set().union(*(keywords(item, names=False) for item in part))
        if not isinstance(part, dict):
            return set()
        inner = [keywords(value, names=key in ("properties", "$defs") and not names) for key, value in part.items()]
        return (set() if names else set(part)).union(*inner)

    assert keywords(schema.report_schema(), names=False) <= UNDERSTOOD


def test_real_and_made_up_reports_keep_to_it(measured, validator):
    rows = [*bench_rows.ladder_rows(), bench_rows.failed_row()]
    for report in (measured, bench_rows.report(rows), bench_rows.report([])):
        assert [error.message for error in validator.iter_errors(report)] == []
        assert list(schema.breaches(report)) == []


def test_every_key_of_a_real_report_is_described(measured):
    def undescribed(value: object, part: dict, path: str) -> list[str]:
        part = schema.resolved(part.get("anyOf", [part])[0])
        if isinstance(value, list):
            return [name for item in value for name in undescribed(item, part["items"], f"{path}[]")]
        if not isinstance(value, dict):
            return [] if "type" in part or "const" in part else [path]
        known, other = part.get("properties", {}), part.get("additionalProperties")
        found = []
        for key, inner in value.items():
            described = known.get(key, other)
            found += undescribed(inner, described, f"{path}.{key}") if described else [f"{path}.{key}"]
        return found

    assert undescribed(measured, schema.report_schema(), "") == []
    assert undescribed({**measured, "odd": 1}, schema.report_schema(), "") == [".odd"]


def test_required_keys_are_those_of_the_contract(measured, validator):
    for path in [("machine",), ("machine", "container_limits"), *(("results", 0, key) for key in CONTRACT)]:
        broken = copy.deepcopy(measured)
        inner = broken
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        assert not validator.is_valid(broken), path


CONTRACT = (
    *("bundle", "method", "grade", "precision", "parameters", "bundle_bytes", "query_ms"),
    *("batch_queries_per_second", "cold_start_ms", "peak_rss_bytes", "metrics", "metrics_reranked"),
    *("mrr_kept", "speedup"),
)


def test_the_reader_finds_what_jsonschema_finds(measured, validator):
    """Every place of a report with every kind of wrong value: both say the same, but for keys left out."""
    short = copy.deepcopy({**measured, "results": measured["results"][:1]})
    (row,) = short["results"]
    row["analysis"] = {
        "filtered": {"realistic": row["analysis"]["filtered"]["realistic"]},
        "by_seen": row["analysis"]["by_seen"],
        "interval": row["analysis"]["interval"],
    }
    tried = refused = 0
    for path in places(short):
        for value in WRONG:
            report = changed(short, path, value)
            expected = [error for error in validator.iter_errors(report) if not _only_absent(error)]
            assert bool(list(schema.breaches(report))) == bool(expected), (path, value)
            tried, refused = tried + 1, refused + bool(expected)
    assert tried > 1000
    assert 0.5 < refused / tried < 0.95


def _only_absent(error: jsonschema.ValidationError) -> bool:
    """Whether nothing but keys left out is wrong; of a thing-or-null the thing counts unless it is null."""
    if error.validator == "anyOf":
        inner = [inner for inner in error.context if inner.schema_path[0] == 0]
        return all(_only_absent(inner) for inner in inner)
    return error.validator == "required"


def test_breaches_say_where_what_and_what_is_expected(measured):
    broken = changed(measured, ("results", 0, "query_ms", "p50"), "fast")
    assert list(schema.breaches(broken)) == ['results[0].query_ms.p50 is "fast", expected number or null']
    assert list(schema.breaches({**measured, "split": "train"})) == ['split is "train", expected "test" or "valid"']
    assert list(schema.breaches([])) == ["the report is [], expected object"]
    wide = changed(measured, ("results", 0, "intervals", "x"), [1, 2, 3])
    assert list(schema.breaches(wide)) == ["results[0].intervals.x is [1, 2, 3], expected 2 items"]


def test_every_figure_of_a_real_report_is_a_known_key(measured):
    for row in measured["results"]:
        numbers = {key: value for key, value in figures.flat(row).items() if value is not None}
        assert row["error"] or len(numbers) > 60
        for key in numbers:
            figures.check_key(key)


def test_intervals_hold_their_figures(measured):
    for row in measured["results"]:
        if row["error"] is None:
            assert set(row["intervals"]) == {
                *("query_ms.p50", "query_ms.p95", "query_ms.p99", "batch_queries_per_second"),
            }
            low, high = row["intervals"]["query_ms.p50"]
            assert low < row["query_ms"]["p50"] < high
            slow, fast = row["intervals"]["batch_queries_per_second"]
            assert slow < row["batch_queries_per_second"] and (fast is None or fast > slow)


# ---- reading ----------------------------------------------------------------------------------------------


def test_a_report_is_read_from_its_file_and_from_its_folder(measured, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(measured), encoding="utf-8")
    assert read_report(tmp_path) == read_report(tmp_path / "report.json") == measured


def test_what_an_older_report_lacks_is_unknown(tmp_path):
    row = {"bundle": "old", "query_ms": {"p50": 2}, "metrics": None}
    (tmp_path / "report.json").write_text(
        json.dumps({"schema": "pmd-bench/1", "machine": {"cpu": "x"}, "results": [row]}), encoding="utf-8"
    )
    found = read_report(tmp_path)
    (read,) = found["results"]
    assert read["query_ms"] == {"p50": 2, "p95": None, "p99": None, "mean": None}
    assert read["error"] is read["analysis"] is read["stage"] is read["bundle_bytes"] is None
    assert found["machine"]["calibration"]["slowest_median_percent"] is None
    assert found["split"] is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", r"is \[\], expected object"),
        ('{"schema": "pmd-ladder/1"}', "has no 'machine'"),
        (
            '{"schema": "pmd-bench/2", "machine": {}, "results": []}',
            'schema is "pmd-bench/2", expected "pmd-bench/1"',
        ),
        ('{"schema": "pmd-bench/1", "machine": {}, "results": 3}', "results is 3, expected array"),
        ('{"schema": "pmd-bench/1", "machine": {}, "results": [{}]}', "no 'bundle'"),
        ('{"schema": "pmd-bench/1", "machine": {}, "results": [{"bundle": NaN}]}', "NaN is no figure"),
        (
            '{"schema": "pmd-bench/1", "machine": {}, "results": [{"bundle": "a", "bundle_bytes": 1e999}]}',
            "bundle_bytes is Infinity",
        ),
        (
            '{"schema": "pmd-bench/1", "machine": {}, "results": [{"bundle": "a"}, {"bundle": "a"}]}',
            "several bundles called a",
        ),
    ],
)
def test_what_is_no_report_is_refused_in_one_line(tmp_path, text, words):
    file = tmp_path / "report.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(BenchError, match=words) as caught:
        read_report(file)
    assert "\n" not in str(caught.value)


def test_a_report_that_is_not_there(tmp_path: Path):
    with pytest.raises(BenchError, match=r"report.json does not exist; name a report.json"):
        read_report(tmp_path)
