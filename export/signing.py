"""Signing a bundle with an Ed25519 key, and `pmd-sign`, which signs bundles that are there already.

A key is a PEM file, as `openssl genpkey -algorithm ed25519 -out KEY` makes it. It is read, used and never written.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pmd.serving.archive import pack
from pmd.serving.bundle import MANIFEST, SIGNATURE, Bundle
from pmd.serving.command import HELP, Command, emit
from pmd.serving.errors import SignatureError
from pmd.serving.extras import require
from pmd.serving.signing import Signature, format_signatures, key_id_of, read_signatures, signed_bytes
from pmd.serving.storage import atomic_file, write_atomic

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SCHEMA = "pmd-sign/1"
PASSPHRASE_VARIABLE = "PMD_SIGN_PASSPHRASE"
EPILOG = """\b
Examples:
  openssl genpkey -algorithm ed25519 -out maker.pem          the key, which stays with you
  openssl pkey -in maker.pem -pubout -out maker.pub.pem      its public half, for those who trust you
  pmd-sign --key maker.pem bundles/umls-pmd-grade-3-int8
  pmd-predict --trusted-key maker.pub.pem bundles/umls-pmd-grade-3-int8 --head virus --relation causes
"""


@dataclass(frozen=True)
class SigningKey:
    """A private key and the id of its public half; its repr shows the id alone."""

    id: str
    _key: Ed25519PrivateKey

    @classmethod
    def read(cls, path: Path) -> SigningKey:
        """The key of a PEM file; the passphrase of an encrypted one is that of PMD_SIGN_PASSPHRASE.

        Raises MissingExtra without cryptography, SignatureError for what is not such a key.
        """
        require("sign", "cryptography")
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        wanted = "expected a PEM file of an Ed25519 private key (openssl genpkey -algorithm ed25519 -out KEY)"
        data = path.read_bytes()
        given = os.environb.get(PASSPHRASE_VARIABLE.encode()) if b"ENCRYPTED" in data else None
        try:
            key = load_pem_private_key(data, password=given or None)
        except TypeError as error:  # encrypted, and no passphrase was given
            raise SignatureError(f"{path} is encrypted; set its passphrase as {PASSPHRASE_VARIABLE}") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            passphrase = f", or {PASSPHRASE_VARIABLE} is not its passphrase" if given else ""
            raise SignatureError(f"{path} is not a private key{passphrase}; {wanted}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise SignatureError(f"{path} is a key of another kind, {type(key).__name__}; {wanted}")
        return cls(key_id_of(key.public_key()), key)

    def __repr__(self) -> str:
        """Without the key."""
        return f"SigningKey({self.id})"

    def sign(self, manifest: bytes) -> Signature:
        """The signature of a manifest's bytes; the same every time."""
        return Signature(self.id, self._key.sign(signed_bytes(manifest)))


def sign_folder(folder: Path, key: SigningKey) -> None:
    """Write the signature of a sealed folder, in place of any that is there."""
    manifest = (folder / MANIFEST).read_bytes()
    write_atomic(folder / SIGNATURE, format_signatures([key.sign(manifest)]))


def sign_bundle(path: Path, key: SigningKey) -> list[str]:
    """Sign a bundle, folder or zip, after a check of every file; returns the ids of all keys that signed it.

    Signatures of other keys stay, so that one key can follow another. A zip is packed anew. Raises BundleError for
    a damaged bundle, SignatureError for a damaged signature.
    """
    bundle = Bundle.open(path, verify=True)
    manifest, found = bundle.manifest_bytes(), bundle.source.size(SIGNATURE) is not None
    earlier = read_signatures(bundle.source.mapped(SIGNATURE).tobytes(), f"{path}: {SIGNATURE}") if found else []
    signatures = [*(one for one in earlier if one.key_id != key.id), key.sign(manifest)]
    data = format_signatures(signatures)
    if path.is_dir():
        write_atomic(path / SIGNATURE, data)
    else:
        _packed_anew(bundle, {MANIFEST: manifest, SIGNATURE: data})
    return [one.key_id for one in signatures]


def _packed_anew(bundle: Bundle, more: dict[str, bytes]) -> None:
    """Put the verified files of a zip, and `more`, into a zip in its place."""
    files = {name: bundle.read_verified(name) for name in bundle.files()} | more
    with tempfile.TemporaryDirectory(prefix="pmd-sign-") as scratch:
        for name, data in files.items():
            (Path(scratch) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(scratch) / name).write_bytes(data)
        with atomic_file(bundle.path) as target:
            pack(Path(scratch), target)


@click.command(name="pmd-sign", cls=Command, context_settings=HELP, epilog=EPILOG)
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE...")
@click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help=f"PEM file of an Ed25519 private key; its passphrase, if it has one, is that of {PASSPHRASE_VARIABLE}.",
)
def main(bundles: tuple[Path, ...], key_file: Path) -> None:
    """Sign each BUNDLE (a folder or .zip): its manifest, and so the sha256 of every file.

    Every file is checked first. Signatures of other keys stay. The last line of stdout is one JSON object.
    """
    key = SigningKey.read(key_file)
    signed = [{"path": str(path), "signed_by": sign_bundle(path, key)} for path in bundles]
    for one in signed:
        click.echo(f"{one['path']}: signed by key {key.id}")
    emit({"schema": SCHEMA, "key": key.id, "bundles": signed})


if __name__ == "__main__":
    main()
