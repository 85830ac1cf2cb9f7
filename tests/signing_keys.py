"""Ed25519 keys as PEM files, the same ones every time."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)


def write_keys(folder: Path, name: str, *, passphrase: str | None = None) -> tuple[Path, Path]:
    """A private key NAME.pem, made of its name, and its public half NAME.pub.pem; returns both paths."""
    key = Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32, b"."))
    wrapped = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, wrapped))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public
