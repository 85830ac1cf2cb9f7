"""Flipped bytes, cuts and extensions of every file that is shipped or kept.

A file that was damaged is refused in one line, or changes no answer. Files of a bundle that were changed and sealed
again, as a stranger would, may change answers, but neither crash nor hang the process.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.trust.attack import Attack, Ground, Tally
from tests.trust.case_child import Case
from tests.trust.case_pool import SERVING_BYTES, TRAINING_BYTES, run_cases
from tests.trust.fuzz_engine import Broken, settled

if TYPE_CHECKING:
    from pmd.serving import Scorer

SAME, OTHER = "same answers", "other answers"
LONGEST_RUN = 64
LONGEST_ADDED = 4096
PART = "hostile files"


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Other bytes than `data`: one flipped, a few, a run of them, the end cut off, or some added."""
    changed, kind = bytearray(data), rng.choice(("one", "one", "few", "run", "cut", "more"))
    if kind == "more" or not data:
        return data + rng.choice((bytes(1), b"\n", rng.randbytes(rng.randint(1, LONGEST_ADDED)), data))
    if kind == "cut":
        return data[: rng.randrange(len(data))]
    count = {"one": 1, "few": rng.randint(2, 8), "run": rng.randint(2, LONGEST_RUN)}[kind]
    start = rng.randrange(len(data))
    for place in range(start, start + count) if kind == "run" else rng.choices(range(len(data)), k=count):
        changed[place % len(data)] ^= rng.randint(1, 255)
    return bytes(changed) if bytes(changed) != data else damaged(rng, data)


def answers(scorer: Scorer) -> str:
    """The hash of all that a Scorer of the tiny graph says: every question, both towers, metrics."""
    ids, every = list(scorer.entity_ids), len(scorer.entity_ids)
    said: list[Any] = [
        scorer.entity_ids,
        scorer.relation_ids,
        [scorer.find_entity(key) for key in ("heart attack", "cold")],
    ]
    for relation in scorer.relation_ids:
        said.append(scorer.top_tails(ids, relation, k=every))
        said.append(scorer.top_heads(relation, ids, k=every, exclude_known=False))
    said.append(scorer.top_tails("a drug against sugar", scorer.relation_ids[0], k=5, head_is_text=True))
    reranks = scorer.bundle.manifest["rerank"] is not None
    said.append(scorer.top_tails(ids[0], scorer.relation_ids[0], k=5, reranked=reranks))
    said += [scorer.evaluate(split) for split in ("valid", "test")]
    if scorer.find_entity("fresh") is None:
        scorer.add_entity("fresh", name="a drug", description="against pain")
        said.append(scorer.top_tails("fresh", scorer.relation_ids[0], k=every))
    return hashlib.sha256(repr(said).encode("utf-8", "surrogatepass")).hexdigest()


def _whole(folder: Path, kind: str) -> Path:
    """The bundle that is attacked: a folder, or a zip."""
    from pmd.serving.archive import pack
    from tests.tiny_bundle import write_tiny_bundle

    bundle = write_tiny_bundle(folder / "bundle", precision="fp32" if kind == "fp32" else "int8")
    if kind != "zip":
        return bundle
    pack(bundle, folder / "bundle.zip")
    return folder / "bundle.zip"


def _replace(path: Path, data: bytes) -> None:
    """Put bytes in a file's place; whoever has mapped the old one keeps it."""
    partial_path = path.with_name(f"{path.name}.new")
    partial_path.write_bytes(data)
    os.replace(partial_path, path)


def bundle_case(folder: Path, *, kind: str) -> Case:
    """Cases of a bundle, its files in turn, with the default checks, all of them, or none."""
    from pmd.serving import PmdError, Scorer

    bundle = _whole(folder, kind)
    files = [bundle] if kind == "zip" else sorted(path for path in bundle.rglob("*") if path.is_file())
    right = answers(Scorer.load(bundle, threads=1))

    def case(number: int, rng: random.Random) -> str:
        file, verify = files[number % len(files)], rng.choice(("used", "used", "used", True, False))
        data = file.read_bytes()
        _replace(file, damaged(rng, data))
        try:
            found = settled(lambda: answers(Scorer.load(bundle, threads=1, verify=verify)), PmdError)
        finally:
            _replace(file, data)
        if found == right:
            if verify is True and file.name != "manifest.json" and kind != "zip":
                raise Broken(f"verify=True does not find a change of {file.name}")
            return SAME
        if len(found) == len(right):
            if verify is not False:
                raise Broken(f"other answers with a changed {file.name}, verify={verify}")
            return f"{OTHER} with verify=False"
        return found

    return case


def resealed_case(folder: Path) -> Case:
    """Cases of bundles whose manifest was made to fit the changed file: what a stranger could send."""
    from pmd.serving import PmdError, Scorer
    from pmd.serving.bundle import MANIFEST, seal

    bundles = [_whole(folder / kind, kind) for kind in ("fp32", "int8")]
    files = [path for bundle in bundles for path in sorted(bundle.rglob("*")) if path.is_file()]
    files = [path for path in files if path.suffix not in (".md",) and "config" not in path.name]
    right = [answers(Scorer.load(bundle, threads=1)) for bundle in bundles]

    def case(number: int, rng: random.Random) -> str:
        file = files[number % len(files)]
        bundle = next(bundle for bundle in bundles if bundle in file.parents)
        data, manifest = file.read_bytes(), (bundle / MANIFEST).read_bytes()
        if file.name == MANIFEST:
            _replace(file, _as_if_meant(damaged(rng, data)))
        else:
            _replace(file, damaged(rng, data))
            seal(bundle, json.loads(manifest))
        try:
            found = settled(lambda: answers(Scorer.load(bundle, threads=1)), PmdError)
        finally:
            _replace(file, data)
            _replace(bundle / MANIFEST, manifest)
        return SAME if found in right else OTHER if len(found) == len(right[0]) else found

    return case


def _as_if_meant(manifest: bytes) -> bytes:
    """A manifest with its digest made to fit, where it is JSON."""
    from pmd.serving.manifest import DIGEST, digest_of

    try:
        facts = json.loads(manifest)
        return json.dumps({**facts, DIGEST: digest_of(facts)}).encode()
    except (ValueError, TypeError, RecursionError):
        return manifest


def grade_case(folder: Path) -> Case:
    """Cases of a grade's three files: refused, or the same model, texts and tokenizer."""
    from pmd.errors import PmdError
    from pmd.grade import CONFIG, TOKENIZER, WEIGHTS, load_grade
    from pmd.tensorfile import seal_of
    from tests.tiny_run import write_run

    grade = write_run(folder, stages={"grade-2": 2}) / "grade-2"
    files = [grade / name for name in (CONFIG, TOKENIZER, WEIGHTS)]

    def read() -> str:
        found = load_grade(grade)
        about = repr((found.info, found.model.query.config.to_dict())).encode()
        return seal_of(found.model.state_dict(), {}, about + found.tokenizer_json.encode("utf-8", "replace"))

    return _same_or_refused(files, read, PmdError)


def checkpoint_case(folder: Path) -> Case:
    """Cases of a stage's checkpoint: refused, or the same tensors and counters."""
    import torch

    from pmd.checkpoint import StageState, load_checkpoint, save_checkpoint
    from pmd.errors import PmdError
    from pmd.tensorfile import seal_of

    path, generator = folder / "checkpoint.safetensors", torch.Generator().manual_seed(0)
    sections = {
        name: {"0.exp_avg": torch.rand(40, 8, generator=generator)} for name in ("model", "optimizer", "best")
    }
    save_checkpoint(path, sections, StageState("teacher", step=12, best_mrr=0.5, history=[{"epoch": 1}]))

    def read() -> str:
        found, state = load_checkpoint(path, "teacher")
        flat = {f"{section}.{name}": tensor for section, named in found.items() for name, tensor in named.items()}
        return seal_of(flat, {}, repr(state).encode())

    return _same_or_refused([path], read, PmdError)


def journal_case(folder: Path) -> Case:
    """Cases of a journal: refused or the same answers; what is cut loses the last changes and no others."""
    from pmd.serving import PmdError, Scorer

    bundle, path, kept = _whole(folder, "fp32"), folder / "journal", folder / "kept"
    states = []
    with Scorer.load(bundle, threads=1, journal=path) as scorer:
        for name in ("one", "two", "three", "four"):
            scorer.add_entity(name, name=f"a drug {name}", description="against pain")
            shutil.copyfile(path, kept)
            with Scorer.load(bundle, threads=1, journal=kept) as copy:
                states.append(answers(copy))
            kept.unlink()
    with Scorer.load(bundle, threads=1) as scorer:
        states.insert(0, answers(scorer))
    data = path.read_bytes()

    def read() -> str:
        with Scorer.load(bundle, threads=1, journal=path) as scorer:
            return answers(scorer)

    def case(_: int, rng: random.Random) -> str:
        changed = damaged(rng, data)
        _replace(path, changed)
        found = settled(read, PmdError)
        if found == states[-1]:
            return SAME
        if found in states and data.startswith(changed):
            return "cut: as after so many changes"
        if found == states[-2] and not changed.endswith(b"\n"):
            return "end of the last line damaged, as if half of it had been written: as after one change fewer"
        if len(found) == len(states[0]):
            raise Broken(f"other answers of a journal of {len(changed)} bytes instead of {len(data)}")
        return found

    return case


def _same_or_refused(files: list[Path], read: Callable[[], str], error: type[BaseException]) -> Case:
    right = read()

    def case(number: int, rng: random.Random) -> str:
        file = files[number % len(files)]
        data = file.read_bytes()
        _replace(file, damaged(rng, data))
        try:
            found = settled(read, error)
        finally:
            _replace(file, data)
        if len(found) == len(right) and found != right:
            raise Broken(f"something else is read from a changed {file.name}")
        return SAME if found == right else found

    return case


fp32_case, int8_case, zip_case = (partial(bundle_case, kind=kind) for kind in ("fp32", "int8", "zip"))


def _run(factory: str, ground: Ground, memory: int = SERVING_BYTES) -> Tally:
    tally = Tally()
    run_cases(f"flips:{factory}", ground, tally, memory=memory)
    return tally


def _attack(name: str, what: str, quick: int, full: int, memory: int = SERVING_BYTES) -> Attack:
    run = partial(_run, f"{name}_case", memory=memory)
    return Attack(f"flip-{name}", PART, what, run, quick, full)


DAMAGE = "flipped bytes, cuts and extensions: refused in one line, or the same answers"
ATTACKS = (
    _attack("fp32", f"Every file of a float32 bundle, {DAMAGE}; all found with verify=True", 250, 15_000),
    _attack("int8", f"Every file of an int8 bundle, {DAMAGE}; all found with verify=True", 250, 16_000),
    _attack("zip", f"A bundle as one zip, {DAMAGE}", 120, 16_000),
    _attack(
        "resealed", "Changed files with a manifest that fits them: no crash, no hang, one-line errors", 200, 18_000
    ),
    _attack("grade", f"A grade's weights, config and tokenizer, {DAMAGE}", 30, 3_000, TRAINING_BYTES),
    _attack("checkpoint", f"A training checkpoint, {DAMAGE}", 60, 2_000, TRAINING_BYTES),
    _attack("journal", f"A journal of changes, {DAMAGE}; a cut one is that of fewer changes", 60, 2_000),
)
