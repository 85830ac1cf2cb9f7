"""Threads from affinity and container quotas, over made-up control group files."""

from __future__ import annotations

import os

import pytest

from pmd.serving.cores import cpu_quota, default_threads, usable_threads

V2 = "0::/system.slice/box.scope\n"
V1 = "12:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n"


@pytest.mark.parametrize(
    ("cores", "quota", "threads"), [(8, None, 8), (8, 2.0, 2), (8, 2.9, 2), (8, 0.5, 1), (2, 6.0, 2), (0, None, 1)]
)
def test_the_smaller_of_cores_and_quota_at_least_one(cores, quota, threads):
    assert usable_threads(cores, quota) == threads


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")


@pytest.mark.parametrize(
    ("cgroups", "files", "quota"),
    [
        ("", {}, None),
        (V2, {}, None),
        (V2, {"system.slice/box.scope/cpu.max": "max 100000"}, None),
        (V2, {"system.slice/box.scope/cpu.max": "150000 100000"}, 1.5),
        # a tighter group above binds as well
        (V2, {"system.slice/box.scope/cpu.max": "400000 100000", "system.slice/cpu.max": "200000 100000"}, 2.0),
        # inside a container its own group is the root, and the outer path is not there
        (V2, {"cpu.max": "50000 100000"}, 0.5),
        ("0::/../outside\n", {"cpu.max": "300000 100000"}, 3.0),
        (V2, {"cpu.max": "nonsense"}, None),
        (
            V1,
            {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "-1", "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000"},
            None,
        ),
        (
            V1,
            {
                "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        (V1, {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1.0),
        (
            V1,
            {"memory/docker/abc/cpu.cfs_quota_us": "100000", "memory/docker/abc/cpu.cfs_period_us": "100000"},
            None,
        ),
    ],
)
def test_quota_of_both_versions(tmp_path, cgroups, files, quota):
    write(tmp_path, files)
    assert cpu_quota(tmp_path, cgroups) == quota


def test_default_threads_never_exceed_the_affinity():
    assert 1 <= default_threads() <= len(os.sched_getaffinity(0))
