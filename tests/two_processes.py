"""What test_workers.py runs in two processes at once; each writes what it saw to DIR/KIND-PART.json.

Usage, with WORLD_SIZE, MASTER_ADDR and MASTER_PORT set: python -m tests.two_processes short|long DIR
"""

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import sys
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from pmd.batches import Batching, Masking, epoch_rows, make_batch, tokenise
from pmd.cli import main
from pmd.encoder import load_encoder, resolve_encoder
from pmd.learner import Learner, Objective
from pmd.memory import EntityMemory
from pmd.serving.errors import PmdError
from pmd.serving.texts import Templates
from pmd.serving.tokenization import TextTokenizer
from pmd.step import step_gradients, train_step
from pmd.teacher import Teacher
from pmd.workers import WorkerError, Workers
from tests.tiny_encoder import tiny_graph, tiny_tokenizer, write_encoder

ALL = Batching(batch_size=8, candidates="all", self_negatives=True, answers_per_query=None)
FEW = Batching(batch_size=1, candidates="batch", self_negatives=False, answers_per_query=1)
SOME = Batching(batch_size=5, candidates="batch", self_negatives=True, answers_per_query=2)
LONE = Batching(batch_size=7, candidates="batch", self_negatives=True, answers_per_query=1)


class Material:
    """Tiny models and batches, the same in both processes."""

    def __init__(self, folder):
        tokenizer = TextTokenizer(tiny_tokenizer().to_str(), 50)
        self.texts = tokenise(tiny_graph(), tokenizer, Templates(neighbours=3))
        self.folders = {width: write_encoder(folder / f"bert-{width}", width=width) for width in (16, 32)}

    @cache  # noqa: B019 - lives as long as the process
    def model(self, width=32, sharing="none"):
        files = resolve_encoder(str(self.folders[width]))
        return load_encoder(files, dropout=0.0, temperature=0.05, sharing=sharing)

    def learner(self, workers, width=32, sharing="none", feature="positions", memory=False, taught=True):
        torch.manual_seed(5)
        student = self.model(width, sharing).cut((1, 3))
        projection = nn.Linear(width, 32, bias=False) if width != 32 else None
        inner = (0,) if feature == "patient" else ()
        parameters = [*student.parameters(), *(projection.parameters() if projection else ())]
        return Learner(
            student,
            torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1),
            Objective(0.2, 0.3, 0.02, score_scale=20.0, feature=feature, inner=inner),
            10.0,
            teacher=Teacher(self.model(), (1,) if inner else ()) if taught else None,
            projection=projection,
            memory=EntityMemory(torch.zeros(12, width), horizon=2, self_negatives=True) if memory else None,
            workers=workers,
        )

    def batch(self, batching=ALL, rate=0.3, step=0, shared_rows=True):
        rows = epoch_rows(self.texts, batching, np.random.default_rng(step))[0]
        rng = np.random.default_rng(step)
        return make_batch(self.texts, rows, batching, Masking(rate), rng, shared_rows=shared_rows)


def cases(material):
    """Name: settings of the learner, batches of the steps, chunk_tokens."""
    batch = material.batch
    return {
        "masks": ({}, [batch()], None),
        "masks pooled by text": ({"feature": "pooled"}, [batch()], None),
        "inner layers": ({"feature": "patient"}, [batch()], None),
        "memory": ({"memory": True}, [batch(SOME, step=step) for step in range(3)], None),
        "chunks": ({}, [batch()], 64),
        "rows of their own": ({"taught": False}, [batch(rate=0.0, shared_rows=False)], None),
        "no row for one": ({}, [batch(FEW)], None),
        "rows do not divide": ({}, [batch(LONE, shared_rows=False)], None),
        "shared towers": ({"sharing": "all"}, [batch()], None),
        "projection": ({"width": 16}, [batch()], None),
        "projection without a mask": ({"width": 16}, [batch(rate=0.0)], None),
    }


def rows_of(batch, workers):
    """Rows of each side that this process takes."""
    sides = (batch.queries, batch.entities)
    return [sum(len(s.ids) for s in side.sheets(None, workers.part, workers.parts)) for side in sides]


def gradients(learner):
    named = [*learner.student.named_parameters()]
    named += [("projection", learner.projection.weight)] if learner.projection else []
    return {name: parameter.grad for name, parameter in named if parameter.grad is not None}


def stepped(material, workers, settings, batches, chunk_tokens):
    """Losses and gradients of the last of some steps."""
    learner = material.learner(workers, **settings)
    for step, batch in enumerate(batches):
        learner.optimizer.zero_grad()
        parts = step_gradients(learner, batch, step, (0, step), chunk_tokens)
    return torch.stack(list(parts)), gradients(learner)


def compared(material, workers, settings, batches, chunk_tokens):
    """How far a step of both processes is from one that the leading process takes alone."""
    parts, got = stepped(material, workers, settings, batches, chunk_tokens)
    facts = {"names": sorted(got), "rows": rows_of(batches[-1], workers), "digest": digest([parts, *got.values()])}
    if workers.leads:
        whole, wanted = stepped(material, Workers(), settings, batches, chunk_tokens)
        facts |= {
            "losses": float((parts - whole).abs().max()),
            "gradients": max(float((got[name] - wanted[name]).abs().max()) for name in wanted if name in got),
            "largest": max(float(gradient.abs().max()) for gradient in wanted.values()),
            "wanted": sorted(wanted),
        }
    return facts


def after_steps(material, workers):
    """Weights after some optimiser steps, with a projection that has no gradient at first."""
    learner = material.learner(workers, width=16)
    parameters = learner.optimizer.param_groups[0]["params"]
    learner.optimizer = torch.optim.SGD(parameters, lr=0.05, weight_decay=0.1)  # Adam magnifies rounding
    for step in range(3):
        batch = material.batch(SOME, step=step, rate=0.0 if step < 1 else 0.3)
        train_step(learner, batch, step, (0, step), None)
    return torch.cat([p.detach().flatten() for p in [*learner.student.parameters(), learner.projection.weight]])


def weights(material, workers):
    got = after_steps(material, workers)
    gap = float((got - after_steps(material, Workers())).abs().max()) if workers.leads else None
    return {"digest": digest([got]), "gap": gap}


def lopsided(material, workers):
    """Whether a step whose loss is NaN in the second process alone changed weights here, and what is counted."""
    learner = material.learner(workers)

    def gradients(*arguments):
        parts = step_gradients(*arguments)
        return parts if workers.leads else parts._replace(total=parts.total * float("nan"))

    before = [parameter.detach().clone() for parameter in learner.parameters]
    with patch("pmd.step.step_gradients", gradients):
        train_step(learner, material.batch(), 0, (0, 0), None)
    same = all(old.equal(new) for old, new in zip(before, learner.parameters, strict=True))
    return {"same": same, "counts": learner.skips.read()}


def digest(tensors):
    return hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()


def mistakes(workers):
    """What a mistake of one, the other, and both processes becomes in this one."""
    seen = []
    for guilty in ([0], [1], [0, 1], []):
        try:
            with workers.together():
                if workers.part in guilty:
                    raise mistake_of(workers.part)
            seen.append(None)
        except PmdError as error:
            seen.append([str(error), error.exit_code])
    return seen


def mistake_of(part):
    error = PmdError(f"wrong in {part}")
    error.exit_code = 2 + part
    return error


def short_commands(folder):
    """Exit code, stdout and stderr of `pmd-train` with some command lines that end soon."""
    alone = ["--method", "baseline", "--grades", "2", "--epochs", "1"]
    lines = {
        "train": ["--out", folder / "short", *alone],
        "again": ["--out", folder / "short", *alone],
        "unknown key": ["--out", folder / "other", "--set", "colour=red"],
        "unknown option": ["--colour"],
        "dry run": ["--dry-run"],
        "stopped": ["--out", folder / "soon", *alone, "--time-limit", "0"],
    }
    return {name: command(["--recipe", folder / "toy.yaml", *line]) for name, line in lines.items()}


def long_commands(folder):
    """The same of command lines that train a ladder."""
    lines = {
        "train": ["--out", folder / "run"],
        "stopped": ["--out", folder / "stopped", "--time-limit", "0"],
        "resumed": ["--out", folder / "stopped", "--resume"],
        "diverging": ["--out", folder / "diverging", "--lr", "1e30"],
    }
    return {name: command(["--recipe", folder / "toy.yaml", *line]) for name, line in lines.items()}


def command(line):
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            main(list(map(str, line)), prog_name="pmd-train")
        except SystemExit as left:
            code = left.code
    return [code, stdout.getvalue(), stderr.getvalue()]


def short(folder, workers):
    material = Material(folder / f"material-{workers.part}")
    return {
        "steps": {name: compared(material, workers, *case) for name, case in cases(material).items()},
        "weights": weights(material, workers),
        "lopsided": lopsided(material, workers),
        "told": workers.told({"part": workers.part, "text": "é" * (1 + workers.part), "number": 0.1}),
        "agreed": workers.agreed([workers.part, None]),
        "mistakes": mistakes(workers),
        "commands": short_commands(folder),
        "lost": lost(workers),
    }


def lost(workers):
    """What the leading process says when the other leaves in the middle."""
    if not workers.leads:
        return None
    try:
        workers.total(torch.ones(2))
    except WorkerError as error:
        return [str(error), error.exit_code]


def work(kind, folder, part):
    os.environ.update(RANK=str(part), LOCAL_RANK=str(part))
    with contextlib.suppress(WorkerError), Workers.started("cpu") as workers:
        report = {"commands": long_commands(folder)} if kind == "long" else short(folder, workers)
        (folder / f"{kind}-{part}.json").write_text(json.dumps(report), encoding="utf-8")
        if kind == "short":
            os._exit(0)  # without a word to the other


if __name__ == "__main__":
    # Forked, so that torch is imported once; that torchrun starts them as well is a test of its own.
    parsed = (sys.argv[1], Path(sys.argv[2]))
    children = [multiprocessing.get_context("fork").Process(target=work, args=(*parsed, part)) for part in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    sys.exit(max(abs(child.exitcode) for child in children))
