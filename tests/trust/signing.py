"""Attacks on signed bundles: whatever is changed, and whenever, is refused before it is used."""

from __future__ import annotations

import importlib.util
import random
import shutil
import threading

from tests.trust.attack import Attack, Ground, Tally
from tests.trust.signed_edits import EDITS, HARMLESS, Change, Field


def tamper(ground: Ground) -> Tally:
    """Make `count` changes, of each kind in turn."""
    from pmd.serving import BundleError, SignatureError

    tally, field, rng = Tally(), Field(ground.folder), ground.random
    kinds = list(EDITS.items())
    for number in range(ground.count):
        kind, edit = kinds[number % len(kinds)]
        target = ground.folder / f"changed-{number}"
        change = edit(field, rng, target)
        try:
            found = field.ask(change.bundle, change.key)
        except SignatureError:
            tally.saw("SignatureError")
        except BundleError:
            tally.saw("BundleError")
        except Exception as error:  # any other is a broken promise, whatever it is
            tally.failed(f"{kind}: {change.words}: {type(error).__name__}: {error}")
        else:
            _opened(tally, field, kind, change, found)
        shutil.rmtree(target, ignore_errors=True)
        target.with_suffix(".zip").unlink(missing_ok=True)
        target.with_suffix(".pem").unlink(missing_ok=True)
    return tally


def _opened(tally: Tally, field: Field, kind: str, change: Change, found: list[object]) -> None:
    """A bundle that opened: harmless only if signature, key and all that is signed are what they were."""
    if found != field.answers:
        tally.failed(f"{kind}: {change.words}: opened, with other answers")
    elif kind in HARMLESS and _same(field, change):
        tally.saw("the same key and signature, written otherwise: same answers")
    else:
        tally.failed(f"{kind}: {change.words}: opened")


def _same(field: Field, change: Change) -> bool:
    """Whether signatures, key and the bytes of every file that is signed are those of the clean bundle."""
    from pmd.serving.archive import ZipSource
    from pmd.serving.signing import read_public_keys, read_signatures

    if read_public_keys([change.key]).keys() != read_public_keys([field.public]).keys():
        return False
    source = ZipSource.open(change.bundle) if change.bundle.is_file() else None
    for name in map(str, field.files):
        clean = (field.clean / name).read_bytes()
        now = source.mapped(name).tobytes() if source else (change.bundle / name).read_bytes()
        if name == "manifest.sig":
            clean, now = (repr(read_signatures(data, name)).encode() for data in (clean, now))
        if clean != now:
            return False
    return True


def race(ground: Ground) -> Tally:
    """Open a signed bundle `count` times while its files go back and forth between signed and forged bytes."""
    from pmd.serving import BundleError

    tally, field = Tally(), Field(ground.folder)
    clean = field.answers
    forged = Forger(field, ground.random)
    with forged:
        for number in range(ground.count):
            try:
                same = field.ask(forged.bundle, field.public) == clean
            except BundleError as error:
                tally.saw(type(error).__name__)
            except Exception as error:  # any other is a broken promise, whatever it is
                tally.failed(f"load {number}: {type(error).__name__}: {error}")
            else:
                if same:
                    tally.saw("same answers")
                else:
                    tally.failed(f"load {number}: opened, with other answers")
    tally.figures["swaps"] = forged.swaps
    return tally


class Forger:
    """A thread that puts forged files into a signed bundle and the signed ones back, as fast as it can."""

    def __init__(self, field: Field, rng: random.Random) -> None:
        """Forge the files: a tower of other weights, other vectors, other texts, each of the right size."""
        self.bundle, self.swaps, self._rng = field.root / "racing", 0, rng
        shutil.copytree(field.clean, self.bundle)
        self._files = {name: (field.clean / name).read_bytes() for name in RACED}
        self._forged = {name: _forged(name, data) for name, data in self._files.items()}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        """Begin."""
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        """End."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._rng.random() * 0.002):
            name = self._rng.choice(RACED)
            self._put(name, self._forged[name])
            self._over.wait(self._rng.random() * 0.004)
            self._put(name, self._files[name])
            self.swaps += 1

    def _put(self, name: str, data: bytes) -> None:
        """In place, half and half, or as a new file that takes the old one's name."""
        target = self.bundle / name
        if self._rng.randrange(2):
            with open(target, "r+b", buffering=0) as file:
                file.write(data[: len(data) // 2])
                file.write(data[len(data) // 2 :])
            return
        partial = target.with_name(f"{target.name}.new")
        partial.write_bytes(data)
        partial.replace(target)


RACED = ("query/onnx/model.onnx", "query/tokenizer.json", "entities.npy", "scales.npy", "entities.tsv", "known.npz")
"""What answers rest on."""


def _forged(name: str, data: bytes) -> bytes:
    """Other bytes of the same length that read just as well: halves of a table swapped, letters changed."""
    if name.endswith((".tsv", ".json")):
        return data.replace(b"pain", b"rain").replace(b"heart", b"earth")
    start = len(data) // 2
    middle = data[start : start + 512]
    return data[:start] + middle[::-1] + data[start + 512 :]


def _missing() -> str | None:
    absent = [name for name in ("cryptography", "onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} not installed" if absent else None


ATTACKS = (
    Attack(
        "signed-tamper",
        "hostile files",
        "Each file, the manifest, the signature, the trusted key and the zip of a signed bundle are changed, cut, "
        "or swapped with those of another bundle or key: refused with SignatureError or BundleError, or not a bit "
        "of what is signed is different",
        tamper,
        quick=1_000,
        full=20_000,
        limit_seconds=300,
        skip=_missing,
    ),
    Attack(
        "signed-race",
        "hostile files",
        "Files of a signed bundle change to forged ones and back while it is opened and asked: refused, or the "
        "answers of the bundle that was signed; what was checked is what is used",
        race,
        quick=300,
        full=5_000,
        limit_seconds=300,
        skip=_missing,
    ),
)
