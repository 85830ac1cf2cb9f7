"""Who made a bundle: Ed25519 signatures over the bytes of its manifest, which holds the sha256 of every file.

`manifest.sig` beside `manifest.json` is a DSSE envelope without its payload, for the manifest is the payload. What
is signed is DSSE's pre-authentication encoding (https://github.com/secure-systems-lab/dsse, protocol.md), so a
bundle's signature can never be taken for one of something else. `pmd.export.signing` makes it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pmd.serving.errors import SignatureError
from pmd.serving.extras import require

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SCHEMA = "pmd-signature/1"
PAYLOAD_TYPE = "application/vnd.pmd-bundle.manifest+json"
MOST_BYTES, MOST_SIGNATURES = 65536, 64
KEY_ID = re.compile("[0-9a-f]{64}")
SIGNATURE_BYTES = 64
SHORT = 16  # characters of a key's id, in messages


class Signature(NamedTuple):
    """One signature of a manifest. key_id: of the key that made it, which only says which key to try."""

    key_id: str
    value: bytes


def signed_bytes(manifest: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding of a manifest's bytes."""
    kind = PAYLOAD_TYPE.encode("ascii")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(manifest), manifest)


def key_id_of(key: Ed25519PublicKey) -> str:
    """The hex sha256 of a public key's DER: `openssl pkey -pubin -in FILE -outform DER | sha256sum`."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def read_public_keys(paths: Sequence[str | Path]) -> dict[str, Ed25519PublicKey]:
    """Public keys by their ids. paths: PEM files, at least one.

    Raises MissingExtra without cryptography, SignatureError for no file at all or one that is no such key.
    """
    if isinstance(paths, str | bytes | Path) or not len(paths):
        raise SignatureError(f"trusted_keys is a list of PEM files of public keys, at least one; got {paths!r}")
    require("sign", "cryptography")
    keys = [_public_key(Path(path)) for path in paths]
    return {key_id_of(key): key for key in keys}


def check_signature(
    manifest: bytes, signatures: Sequence[Signature], keys: Mapping[str, Ed25519PublicKey], what: str
) -> None:
    """Raise SignatureError unless a trusted key signed exactly these bytes. One is enough, whoever else signed."""
    from cryptography.exceptions import InvalidSignature

    tried = [signature for signature in signatures if signature.key_id in keys]
    if not tried:
        raise SignatureError(
            f"{what} is signed by {_shown(one.key_id for one in signatures)}, trusted is {_shown(keys)}; "
            "trust that key, or get the bundle from who has a trusted one"
        )
    for signature in tried:
        try:
            keys[signature.key_id].verify(signature.value, signed_bytes(manifest))
            return
        except InvalidSignature:
            continue
    raise SignatureError(f"{what} is not what {_shown(one.key_id for one in tried)} signed; get the bundle again")


def read_signatures(data: bytes, what: str) -> list[Signature]:
    """The signatures of a `manifest.sig`, at least one. Raises SignatureError for what is not of its schema."""
    try:
        envelope = json.loads(data.decode("utf-8")) if len(data) <= MOST_BYTES else None
    except (ValueError, RecursionError):
        envelope = None
    entries = _entries(envelope)
    if entries is None:
        raise SignatureError(f"{what} is not a signature of schema {SCHEMA!r}; sign the bundle again")
    return entries


def format_signatures(signatures: Sequence[Signature]) -> bytes:
    """The bytes that `read_signatures` reads back."""
    entries = [{"keyid": one.key_id, "sig": base64.b64encode(one.value).decode("ascii")} for one in signatures]
    envelope = {"schema": SCHEMA, "payloadType": PAYLOAD_TYPE, "signatures": entries}
    return (json.dumps(envelope, indent=1) + "\n").encode("ascii")


def _entries(envelope: Any) -> list[Signature] | None:
    """The signatures of an envelope; None if any part is not as it must be."""
    if not isinstance(envelope, dict):
        return None
    listed = envelope.get("signatures")
    if (envelope.get("schema"), envelope.get("payloadType")) != (SCHEMA, PAYLOAD_TYPE) or not isinstance(
        listed, list
    ):
        return None
    found = [_entry(one) for one in listed]
    return [one for one in found if one] if found and None not in found and len(found) <= MOST_SIGNATURES else None


def _entry(one: Any) -> Signature | None:
    key, text = (one.get("keyid"), one.get("sig")) if isinstance(one, dict) else (None, None)
    if not isinstance(key, str) or not isinstance(text, str) or not KEY_ID.fullmatch(key):
        return None
    try:
        value = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return Signature(key, value) if len(value) == SIGNATURE_BYTES else None


def _public_key(path: Path) -> Ed25519PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    wanted = "expected a PEM file of an Ed25519 public key (openssl pkey -in KEY -pubout)"
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise SignatureError(f"{path} cannot be read: {error.strerror}; {wanted}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{path} is not a public key; {wanted}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"{path} is a key of another kind, {type(key).__name__}; {wanted}")
    return key


def _shown(ids: Iterable[str]) -> str:
    return ", ".join(f"key {key[:SHORT]}…" for key in ids)
