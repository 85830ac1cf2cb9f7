"""The machine's fingerprint, and the limits that control groups set."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from pmd.benchmarks import machine
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
    assert {"frequency_max_mhz", "governor", "commit", "modified"} <= set(found)
    json.dumps(found, allow_nan=False)


def test_the_commit_is_that_of_the_checkout_and_of_no_other():
    found = machine.fingerprint(threads=1)
    top = Path(machine.__file__).resolve().parent
    asked = subprocess.run(
        ["git", "-C", str(top), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    assert found["commit"] == (asked.stdout.strip() if asked.returncode == 0 else None)


def test_an_installed_copy_inside_another_checkout_has_no_commit(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@localhost"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "another project"], check=True)
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    found = machine.fingerprint(threads=1)
    assert (found["commit"], found["modified"]) == (None, None)


def test_every_instruction_set_that_matters_is_looked_for():
    assert {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"} <= set(
        machine.NOTABLE_FLAGS
    )


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
