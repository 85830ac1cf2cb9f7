"""Peers with planted behaviour; child processes of the tests import this module by name."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import Any

from pmd.benchmarks.peers.material import Material
from pmd.benchmarks.peers.ours import pmd_side
from pmd.benchmarks.sides import Side

SLEEP_MS = 25
QUESTIONS_BEFORE_FAILING = 60
"""More than the untimed ones: the failure comes in the middle of the rounds."""


def same(request: dict[str, Any], material: Material) -> Side:
    """The bundle once more, with much to say on stdout, by Python and below it."""
    side = pmd_side(request, material)

    def ask(number: int) -> object:
        sys.stdout.write("chatter\n")
        os.write(1, b"chatter from below\n")
        return side.ask(number)

    return side._replace(ask=ask)


def slow(request: dict[str, Any], material: Material) -> Side:
    """The bundle, asleep for a while before each answer, and with nothing but wrong answers."""
    side = pmd_side(request, material)

    def ask(number: int) -> object:
        time.sleep(SLEEP_MS / 1000)
        return side.ask(number)

    return Side(ask=ask, top=lambda number: ["nobody"])


def broken(request: dict[str, Any], material: Material) -> Side:
    """Cannot be made."""
    raise RuntimeError("planted\nfailure")


def fails(request: dict[str, Any], material: Material) -> Side:
    """Raises in the middle."""
    return _after(request, material, lambda: 1 // 0)


def dies(request: dict[str, Any], material: Material) -> Side:
    """Is killed in the middle."""
    return _after(request, material, lambda: os.kill(os.getpid(), signal.SIGKILL))


def hangs(request: dict[str, Any], material: Material) -> Side:
    """Stops answering in the middle."""
    return _after(request, material, threading.Event().wait)


def telling(request: dict[str, Any], material: Material) -> Side:
    """Fails with what it was asked for, and what its environment says."""
    told = {name: value for name, value in os.environ.items() if name.startswith(("OMP_", "HF_HUB_O"))}
    raise RuntimeError(json.dumps({**request, **told}))


def _after(request: dict[str, Any], material: Material, act: Any) -> Side:
    side, asked = pmd_side(request, material), []

    def ask(number: int) -> object:
        asked.append(number)
        if len(asked) > QUESTIONS_BEFORE_FAILING:
            act()
        return side.ask(number)

    return side._replace(ask=ask)
