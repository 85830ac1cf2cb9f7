"""What can be done to a signed bundle: each edit makes a changed copy, and says in words what it did."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pmd.export.signing import SigningKey

QUESTION = ("heart_attack", "causes")


class Field:
    """A signed bundle as folder and zip, another one by the same key, and a key that is not trusted."""

    def __init__(self, folder: Path) -> None:
        """Write them into `folder`."""
        from pmd.export.signing import SigningKey, sign_folder
        from pmd.serving.archive import pack
        from tests.signing_keys import write_keys
        from tests.tiny_bundle import write_tiny_bundle

        self.root, (private, self.public) = folder, write_keys(folder, "maker")
        self.stranger: SigningKey = SigningKey.read(write_keys(folder, "stranger")[0])
        self.clean, self.other = folder / "clean", folder / "other"
        write_tiny_bundle(self.clean, precision="int8")
        write_tiny_bundle(self.other)
        for bundle in (self.clean, self.other):
            sign_folder(bundle, SigningKey.read(private))
        self.zip = folder / "clean.zip"
        pack(self.clean, self.zip)
        self.files = sorted(path.relative_to(self.clean) for path in self.clean.rglob("*") if path.is_file())

    @cached_property
    def answers(self) -> list[object]:
        """Those of the bundle before anyone touched it."""
        return self.ask(self.clean, self.public)

    def ask(self, bundle: Path, key: Path) -> list[object]:
        """Answers of a bundle, its entity tower used as well, if `key` signed it."""
        from pmd.serving import Scorer

        scorer = Scorer.load(bundle, threads=1, trusted_keys=[key])
        scorer.add_entity("new", name="a new drug against pain")
        return [scorer.top_tails(*QUESTION, k=5), scorer.top_tails("new", "treats", k=5)]


class Change(NamedTuple):
    """A changed copy: the bundle, the key to trust, and in words what was done to it, to be repeated by hand."""

    bundle: Path
    key: Path
    words: str


Edit = Callable[[Field, random.Random, Path], Change]


def _copy(field: Field, target: Path, name: Path, data: bytes) -> Path:
    """The clean bundle as links, with other bytes for one file."""
    shutil.copytree(field.clean, target, copy_function=_link)
    (target / name).unlink()
    (target / name).write_bytes(data)
    return target


def _link(source: str, target: str) -> None:
    Path(target).symlink_to(source)


def _changed(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A flipped bit, another byte, a cut, bytes put in, taken out or swapped; never the same bytes."""
    at = rng.randrange(len(data)) if data else 0
    other = bytes([rng.randrange(256)])
    made, words = {
        0: lambda: (data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :], f"bit of byte {at}"),
        1: lambda: (data[:at] + other + data[at + 1 :], f"byte {at} to {other.hex()}"),
        2: lambda: (data[:at], f"cut at {at}"),
        3: lambda: (data[:at] + other * rng.randrange(1, 9) + data[at:], f"{other.hex()} put in at {at}"),
        4: lambda: (data[:at] + data[at + 1 :], f"byte {at} taken out"),
        5: lambda: (data[at:] + data[:at], f"turned by {at}"),
    }[rng.randrange(6)]()
    return (made, words) if made != data else (data + b"\0", "a byte added")


def file_edit(field: Field, rng: random.Random, target: Path) -> Change:
    """Any file but the signature, the manifest among them."""
    name = rng.choice([name for name in field.files if name.name != "manifest.sig"])
    data, words = _changed((field.clean / name).read_bytes(), rng)
    return Change(_copy(field, target, name, data), field.public, f"{name}: {words}")


def signature_edit(field: Field, rng: random.Random, target: Path) -> Change:
    """The signature's file."""
    name = Path("manifest.sig")
    data, words = _changed((field.clean / name).read_bytes(), rng)
    return Change(_copy(field, target, name, data), field.public, f"{name}: {words}")


def key_edit(field: Field, rng: random.Random, target: Path) -> Change:
    """The file of the trusted key."""
    data, words = _changed(field.public.read_bytes(), rng)
    target.with_suffix(".pem").write_bytes(data)
    return Change(field.clean, target.with_suffix(".pem"), f"key: {words}")


def zip_edit(field: Field, rng: random.Random, target: Path) -> Change:
    """The zip: its members, their headers and its directory. Gaps between members are nobody's bytes."""
    data, words = _changed(field.zip.read_bytes(), rng)
    target.with_suffix(".zip").write_bytes(data)
    return Change(target.with_suffix(".zip"), field.public, f"zip: {words}")


def other_signature(field: Field, rng: random.Random, target: Path) -> Change:
    """The signature that the same key gave to another bundle, alone or beside that of this bundle."""
    name, theirs = Path("manifest.sig"), (field.other / "manifest.sig").read_bytes()
    return Change(_copy(field, target, name, theirs), field.public, "signature of another bundle")


def other_files(field: Field, rng: random.Random, target: Path) -> Change:
    """Some file of another bundle of the same key."""
    name = rng.choice([name for name in field.files if _differs(field, name)])
    return Change(_copy(field, target, name, (field.other / name).read_bytes()), field.public, f"{name} of another")


def resealed(field: Field, rng: random.Random, target: Path) -> Change:
    """Other texts under a new manifest that fits them, with the old signature."""
    from pmd.serving.bundle import Bundle, seal

    shutil.copytree(field.clean, target)
    manifest = Bundle.open(target).manifest
    texts = (target / "entities.tsv").read_text(encoding="utf-8")
    (target / "entities.tsv").write_text(
        texts.replace("pain", rng.choice(["sun", "moon", "rain"])), encoding="utf-8"
    )
    signature = (target / "manifest.sig").read_bytes()
    (target / "manifest.sig").unlink()
    seal(target, {key: value for key, value in manifest.items() if key != "files"})
    (target / "manifest.sig").write_bytes(signature)
    return Change(target, field.public, "sealed anew with other texts, under the old signature")


def stranger(field: Field, rng: random.Random, target: Path) -> Change:
    """A bundle signed by a stranger's key, under its own id or under that of the trusted key."""
    from pmd.serving.signing import format_signatures, read_signatures

    manifest = (field.clean / "manifest.json").read_bytes()
    theirs = field.stranger.sign(manifest)
    if rng.randrange(2):
        (mine,) = read_signatures((field.clean / "manifest.sig").read_bytes(), "manifest.sig")
        theirs = theirs._replace(key_id=mine.key_id)
    bundle = _copy(field, target, Path("manifest.sig"), format_signatures([theirs]))
    return Change(bundle, field.public, f"signed by a stranger as key {theirs.key_id[:8]}")


def no_signature(field: Field, rng: random.Random, target: Path) -> Change:
    """None, in a folder."""
    bundle = _copy(field, target, Path("manifest.sig"), b"")
    (bundle / "manifest.sig").unlink()
    return Change(bundle, field.public, "no signature")


def _differs(field: Field, name: Path) -> bool:
    theirs = field.other / name
    return theirs.exists() and theirs.read_bytes() != (field.clean / name).read_bytes()


EDITS: dict[str, Edit] = {
    edit.__name__: edit
    for edit in (
        file_edit,
        signature_edit,
        key_edit,
        zip_edit,
        other_signature,
        other_files,
        resealed,
        stranger,
        no_signature,
    )
}
HARMLESS = {"signature_edit", "key_edit", "zip_edit"}
"""Kinds that may leave what is signed, signature and key as they were: a space in JSON, a gap in a zip."""
