"""The machine's fingerprint, and the limits that control groups set."""

from __future__ import annotations

import json

import pytest

from pmd.benchmarks.machine import container_limits, fingerprint


def group(root, path, **files):
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n", encoding="utf-8")


def limits(tmp_path, cgroups):
    (tmp_path / "cgroup").write_text(cgroups, encoding="utf-8")
    return container_limits(tmp_path / "mount", tmp_path / "cgroup")


def test_fingerprint_has_every_key_and_is_json():
    found = fingerprint(threads=3)
    wanted = {"cpu", "flags", "cores_used", "ram_bytes", "os", "versions", "container_limits", "frequency_mhz"}
    assert wanted <= set(found)
    assert found["cores_used"] == 3
    assert found["ram_bytes"] > 1e8
    assert set(found["versions"]) == {"python", "numpy", "onnxruntime", "tokenizers", "pmd-kgc"}
    json.dumps(found, allow_nan=False)


def test_limits_of_version_2(tmp_path):
    group(tmp_path / "mount", "box", cpu__max="150000 100000", memory__max="2000000000")
    assert limits(tmp_path, "0::/box\n") == {"cpus": 1.5, "memory_bytes": 2_000_000_000}


def test_the_tightest_limit_on_the_way_up_counts(tmp_path):
    group(tmp_path / "mount", "outer", cpu__max="100000 100000", memory__max="1000000000")
    group(tmp_path / "mount", "outer/inner", cpu__max="max 100000", memory__max="5000000000")
    assert limits(tmp_path, "0::/outer/inner\n") == {"cpus": 1.0, "memory_bytes": 1_000_000_000}


def test_limits_of_version_1(tmp_path):
    mount = tmp_path / "mount"
    group(mount, "cpu/box", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    group(mount, "memory/box", memory__limit_in_bytes="300000000")
    assert limits(tmp_path, "4:memory:/box\n1:cpu:/box\n") == {"cpus": 0.5, "memory_bytes": 300_000_000}


def test_a_memory_limit_alone(tmp_path):
    group(tmp_path / "mount", "", cpu__max="max 100000", memory__max="700000000")
    assert limits(tmp_path, "0::/path/of/the/host\n") == {"cpus": None, "memory_bytes": 700_000_000}


@pytest.mark.parametrize("cgroups", ["0::/box\n", "4:memory:/box\n1:cpu:/box\n", "", "nonsense\n"])
def test_no_limits_are_none(tmp_path, cgroups):
    mount = tmp_path / "mount"
    group(mount, "box", cpu__max="max 100000", memory__max="max")
    group(mount, "cpu/box", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    group(mount, "memory/box", memory__limit_in_bytes="9223372036854771712")
    assert limits(tmp_path, cgroups) is None
