"""Signed bundles: who may open what, that only checked bytes are used, and every mistake with a key."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from pmd.export.signing import SigningKey, main, sign_bundle, sign_folder
from pmd.serving import BundleError, MissingExtra, Scorer, SignatureError, extras
from pmd.serving.archive import ZipSource, pack
from pmd.serving.bundle import MANIFEST, SIGNATURE, Bundle
from pmd.serving.cli import main as predict
from pmd.serving.server.cli import main as serve
from pmd.serving.signing import Signature, format_signatures, read_signatures, signed_bytes
from tests.signing_keys import write_keys

QUESTION = ("heart_attack", "causes")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """The folder of maker.pem, other.pem and their public halves."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("maker", "other"):
        write_keys(folder, name)
    return folder


@pytest.fixture
def maker(keys):
    return keys / "maker.pub.pem"


@pytest.fixture
def signed(tiny_int8_folder, keys, tmp_path):
    """A signed bundle to change."""
    folder = shutil.copytree(tiny_int8_folder, tmp_path / "signed")
    sign_folder(folder, SigningKey.read(keys / "maker.pem"))
    return folder


@pytest.fixture
def zipped(signed, tmp_path):
    pack(signed, tmp_path / "signed.zip")
    return tmp_path / "signed.zip"


def answers(path, *trusted):
    scorer = Scorer.load(path, threads=1, trusted_keys=trusted or None)
    return scorer.top_tails(*QUESTION, k=5)


def refusal(path, *trusted, error=SignatureError):
    with pytest.raises(error) as caught:
        Scorer.load(path, threads=1, trusted_keys=trusted)
    message = str(caught.value)
    assert "\n" not in message
    return message


def command(entry, *args):
    result = CliRunner().invoke(entry, [str(arg) for arg in args])
    return result.exit_code, result.stdout, result.stderr


def test_a_trusted_bundle_answers_as_it_does_unsigned(signed, zipped, maker, keys, tiny_int8_folder):
    want = answers(tiny_int8_folder)
    for path in (signed, zipped):
        assert answers(path) == answers(path, maker) == answers(path, keys / "other.pub.pem", maker) == want


def test_nobody_else_is_trusted(signed, zipped, keys, tiny_int8_folder, maker):
    for path in (signed, zipped):
        assert "is signed by key" in refusal(path, keys / "other.pub.pem")
    assert "is not signed: it has no manifest.sig" in refusal(tiny_int8_folder, maker)


def test_what_was_signed_is_every_byte_of_the_manifest(signed, maker):
    manifest = (signed / MANIFEST).read_bytes()
    (signed / MANIFEST).write_bytes(manifest + b"\n")  # the same JSON
    answers(signed)
    assert "manifest.json is not what key" in refusal(signed, maker)


@pytest.mark.parametrize("name", ["README.md", "entities.npy", "known.npz", "query/tokenizer.json"])
def test_every_listed_file_is_checked(signed, maker, name):
    """The card too, which no answer rests on."""
    data = bytearray((signed / name).read_bytes())
    data[-1] ^= 1
    (signed / name).write_bytes(data)
    assert f"{name} is not what the manifest's sha256 says" in refusal(signed, maker, error=BundleError)


def test_nothing_unlisted_is_read(signed, maker):
    bundle = Bundle.open(signed, trusted_keys=[maker])
    (signed / "stranger.txt").write_text("hello")
    assert bundle.source.size("stranger.txt") is None
    with pytest.raises(BundleError, match=r"the manifest does not list stranger\.txt"):
        bundle.source.mapped("stranger.txt")


def test_only_checked_bytes_are_used(signed, maker):
    """The disk may change once a bundle is open: nothing is mapped, and what is read later is checked again."""
    want = answers(signed)
    scorer = Scorer.load(signed, threads=1, trusted_keys=[maker])
    assert scorer.bundle.source.path("query/onnx/model.onnx") is None
    for name in ("entities.npy", "scales.npy", "entities.tsv", "known.npz", "graph.npz", MANIFEST, SIGNATURE):
        with open(signed / name, "r+b") as file:
            file.write(b"\0" * (signed / name).stat().st_size)
    assert scorer.top_tails(*QUESTION, k=5) == want
    with open(signed / "entity/onnx/model.onnx", "ab") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match=r"entity/onnx/model\.onnx has \d+ bytes, the manifest says"):
        scorer.add_entity("new", name="new")


def test_a_file_that_changes_between_check_and_use_is_refused(signed, maker):
    bundle = Bundle.open(signed, trusted_keys=[maker])
    data = bytearray((signed / "query/onnx/model.onnx").read_bytes())
    data[-1] ^= 1
    (signed / "query/onnx/model.onnx").write_bytes(data)
    with pytest.raises(BundleError, match="is not what the manifest's sha256 says"):
        bundle.model("query")


def test_a_signature_fits_its_own_bundle_alone(signed, tiny_folder, keys, maker, tmp_path):
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    shutil.copy(signed / SIGNATURE, other / SIGNATURE)
    assert "is not what key" in refusal(other, maker)
    raw = SigningKey.read(keys / "maker.pem")._key.sign((signed / MANIFEST).read_bytes())  # no DSSE: another use
    (entry,) = read_signatures((signed / SIGNATURE).read_bytes(), "")
    (signed / SIGNATURE).write_bytes(format_signatures([Signature(entry.key_id, raw)]))
    assert "is not what key" in refusal(signed, maker)


GOOD = {"keyid": "0" * 64, "sig": base64.b64encode(bytes(64)).decode()}
KIND = {"schema": "pmd-signature/1", "payloadType": "application/vnd.pmd-bundle.manifest+json"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[" * 60_000,
        b"[]",
        b'"text"',
        b"null",
        json.dumps({**KIND, "signatures": [GOOD]}).encode() + b" " * 65536,
        json.dumps({**KIND, "signatures": []}).encode(),
        json.dumps({**KIND, "signatures": GOOD}).encode(),
        json.dumps({**KIND, "signatures": [GOOD] * 65}).encode(),
        json.dumps({**KIND, "signatures": [GOOD, None]}).encode(),
        json.dumps({**KIND, "signatures": [{**GOOD, "keyid": "0" * 63}]}).encode(),
        json.dumps({**KIND, "signatures": [{**GOOD, "keyid": 1}]}).encode(),
        json.dumps({**KIND, "signatures": [{**GOOD, "sig": "é"}]}).encode(),
        json.dumps({**KIND, "signatures": [{**GOOD, "sig": "AAAA"}]}).encode(),
        json.dumps({**KIND, "schema": "pmd-signature/2", "signatures": [GOOD]}).encode(),
        json.dumps({**KIND, "payloadType": "text/plain", "signatures": [GOOD]}).encode(),
    ],
)
def test_what_is_no_signature(signed, maker, content):
    (signed / SIGNATURE).write_bytes(content)
    assert "is not a signature of schema 'pmd-signature/1'" in refusal(signed, maker)


def test_signatures_read_back():
    many = [Signature(f"{number:064x}", bytes([number]) * 64) for number in range(64)]
    assert read_signatures(format_signatures(many), "") == many


# ---- keys -------------------------------------------------------------------------------------------------------


def test_mistakes_with_trusted_keys(signed, keys, maker, tmp_path):
    (tmp_path / "text.pem").write_text("no key")
    ec = generate_private_key(SECP256R1()).public_key()
    (tmp_path / "ec.pem").write_bytes(ec.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for path, message in (
        (tmp_path / "absent.pem", "cannot be read: No such file"),
        (tmp_path, "cannot be read"),
        (tmp_path / "text.pem", "is not a public key; expected a PEM file of an Ed25519 public key"),
        (keys / "maker.pem", "is not a public key"),
        (tmp_path / "ec.pem", "is a key of another kind"),
    ):
        assert message in refusal(signed, maker, path)
    for given in ([], (), str(maker), maker, maker.read_bytes()):
        with pytest.raises(SignatureError, match="trusted_keys is a list of PEM files"):
            Scorer.load(signed, trusted_keys=given)


def test_mistakes_with_a_private_key(keys, tmp_path, monkeypatch):
    ec = generate_private_key(SECP256R1())
    (tmp_path / "ec.pem").write_bytes(ec.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    private, public = write_keys(tmp_path, "locked", passphrase="open sesame")
    assert (private.stat().st_size, SigningKey.read(keys / "maker.pem").id) != (0, "")
    for path, given, message in (
        (public, None, "is not a private key; expected"),
        (tmp_path / "ec.pem", None, "is a key of another kind"),
        (private, None, "is encrypted; set its passphrase as PMD_SIGN_PASSPHRASE"),
        (private, "wrong", "or PMD_SIGN_PASSPHRASE is not its passphrase"),
    ):
        if given is not None:
            monkeypatch.setenv("PMD_SIGN_PASSPHRASE", given)
        with pytest.raises(SignatureError, match=message):
            SigningKey.read(path)
    monkeypatch.setenv("PMD_SIGN_PASSPHRASE", "open sesame")
    key = SigningKey.read(private)
    assert key.id in repr(key)
    assert SigningKey.read(keys / "maker.pem").id != key.id  # the variable may be set for a key that needs none


def test_without_cryptography(signed, keys, maker, monkeypatch):
    find = extras.importlib.util.find_spec
    monkeypatch.setattr(
        extras.importlib.util, "find_spec", lambda name: None if name == "cryptography" else find(name)
    )
    answers(signed)
    for use in (lambda: answers(signed, maker), lambda: SigningKey.read(keys / "maker.pem")):
        with pytest.raises(MissingExtra, match=r"pip install 'pmd-kgc\[sign\]'"):
            use()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_makes_keys_and_checks_signatures(signed, tmp_path):
    """As docs/export.md says, with nothing of ours."""

    def openssl(*args):
        return subprocess.run(["openssl", *map(str, args)], capture_output=True, text=True)

    private, public = tmp_path / "key.pem", tmp_path / "key.pub.pem"
    assert openssl("genpkey", "-algorithm", "ed25519", "-out", private).returncode == 0
    assert openssl("pkey", "-in", private, "-pubout", "-out", public).returncode == 0
    sign_folder(signed, SigningKey.read(private))
    answers(signed, public)
    manifest = (signed / MANIFEST).read_bytes()
    (entry,) = json.loads((signed / SIGNATURE).read_text())["signatures"]
    head = f"DSSEv1 40 application/vnd.pmd-bundle.manifest+json {len(manifest)} "
    (tmp_path / "message").write_bytes(head.encode() + manifest)
    assert signed_bytes(manifest) == head.encode() + manifest
    (tmp_path / "sig").write_bytes(base64.b64decode(entry["sig"]))
    given = ("-inkey", public, "-in", tmp_path / "message", "-sigfile", tmp_path / "sig")
    assert openssl("pkeyutl", "-verify", "-pubin", "-rawin", *given).returncode == 0


# ---- commands ---------------------------------------------------------------------------------------------------


def signers(path):
    source = ZipSource.open(path) if path.is_file() else None
    data = source.mapped(SIGNATURE).tobytes() if source else (path / SIGNATURE).read_bytes()
    return [one.key_id for one in read_signatures(data, "")]


def test_pmd_sign_signs_folders_and_zips(tiny_folder, keys, maker, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "bundle")
    pack(folder, tmp_path / "bundle.zip")
    code, stdout, stderr = command(main, "--key", keys / "maker.pem", folder, tmp_path / "bundle.zip")
    assert (code, stderr) == (0, "")
    result = json.loads(stdout.splitlines()[-1])
    key = SigningKey.read(keys / "maker.pem").id
    assert (result["schema"], result["key"]) == ("pmd-sign/1", key)
    assert [one["signed_by"] for one in result["bundles"]] == [[key], [key]]
    assert answers(folder, maker) == answers(tmp_path / "bundle.zip", maker) == answers(tiny_folder)
    before = (tmp_path / "bundle.zip").read_bytes()
    assert command(main, "--key", keys / "maker.pem", tmp_path / "bundle.zip")[0] == 0
    assert (tmp_path / "bundle.zip").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "bundle.zip"]


def test_one_key_can_follow_another(signed, zipped, keys, maker):
    for path in (signed, zipped):
        ids = sign_bundle(path, SigningKey.read(keys / "other.pem"))
        assert signers(path) == ids
        assert len(ids) == 2
        assert answers(path, maker) == answers(path, keys / "other.pub.pem")
        assert sign_bundle(path, SigningKey.read(keys / "maker.pem")) == ids[::-1]


def test_a_damaged_bundle_is_not_signed(signed, keys):
    (signed / SIGNATURE).unlink()
    (signed / "README.md").write_bytes((signed / "README.md").read_bytes()[::-1])
    code, stdout, stderr = command(main, "--key", keys / "maker.pem", signed)
    assert (code, stdout) == (2, "")
    assert "README.md is not what the manifest's sha256 says" in stderr
    assert not (signed / SIGNATURE).exists()


@pytest.mark.parametrize(
    ("key", "message"), [("absent.pem", "No such file"), ("maker.pub.pem", "not a private key")]
)
def test_pmd_sign_mistakes(signed, keys, key, message):
    before = (signed / SIGNATURE).read_bytes()
    code, stdout, stderr = command(main, "--key", keys / key, signed)
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert message in stderr
    assert (signed / SIGNATURE).read_bytes() == before


def test_what_is_saved_is_not_signed(signed, keys, maker, tmp_path):
    scorer = Scorer.load(signed, threads=1, trusted_keys=[maker])
    scorer.remove_entity("fever")
    for target in (tmp_path / "saved", tmp_path / "saved.zip", signed):
        scorer.save(target, replace=True)
        assert "is not signed" in refusal(target, maker)
        sign_bundle(target, SigningKey.read(keys / "maker.pem"))
        assert answers(target, maker) == scorer.top_tails(*QUESTION, k=5)


def test_pmd_predict_opens_what_is_trusted(signed, keys, maker):
    question = (signed, "--head", "aspirin", "--relation", "treats", "--json")
    assert command(predict, *question, "--trusted-key", maker)[:2] == command(predict, *question)[:2]
    code, stdout, stderr = command(predict, *question, "--trusted-key", keys / "other.pub.pem")
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert "is signed by key" in stderr


def test_pmd_serve_opens_what_is_trusted(signed, keys):
    code, stdout, stderr = command(serve, signed, "--port", 0, "--quiet", "--trusted-key", keys / "other.pub.pem")
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert "is signed by key" in stderr
