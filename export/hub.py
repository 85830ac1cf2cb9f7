"""A bundle as a repository of a hub: pushed as it is, and pulled only if every file is what its manifest says."""

from __future__ import annotations

import glob
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from pmd.export.errors import HubError, HubFailure
from pmd.export.hubreasons import in_one_line
from pmd.export.quiet import own_logging
from pmd.export.target import check_target
from pmd.serving.bundle import MANIFEST, SIGNATURE, Bundle
from pmd.serving.errors import BundleError
from pmd.serving.manifest import parse_manifest
from pmd.serving.storage import atomic_folder

DOWNLOADS = ".cache"  # where the library keeps notes of a download below its target folder
SHORT = 12  # characters of a commit


@dataclass(frozen=True)
class Transfer:
    """What went over: which commit of which repository, and how much."""

    repo: str
    endpoint: str
    commit: str
    files: int
    bytes: int


def push(
    path: Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    endpoint: str | None = None,
    progress: bool = False,
) -> Transfer:
    """Upload a bundle's folder in one commit, and create the repository or the branch `revision` if need be.

    Files of the bundle that was there before go, others stay. Raises BundleError for a damaged bundle, HubError.
    """
    if path.is_file():
        raise HubError(f"{path} is one file; unpack it, so that Hub tools can open its towers, and push the folder")
    bundle = Bundle.open(path, verify=True)
    names = _names_of(bundle)
    api = HfApi(endpoint=endpoint)
    with in_one_line(repo, api.endpoint, revision), _library(progress):
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise HubError(f"{repo} exists and is public; --private is for a new repository")
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        before = _listed(api, repo, revision)
        with _commits_of(api.endpoint):
            done = api.upload_folder(
                repo_id=repo,
                folder_path=path,
                revision=revision,
                commit_message=message or f"{path.resolve().name}, by pmd-hub",
                allow_patterns=[*map(glob.escape, names)],
                delete_patterns=[*map(glob.escape, before)],
            )
    return Transfer(repo, api.endpoint, done.oid, len(names), _size(path, names))


def pull(
    repo: str,
    folder: Path,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    replace: bool = False,
    progress: bool = False,
) -> Transfer:
    """Download a bundle to `folder`, which is whole and verified or absent.

    With `replace` it takes the place of a bundle there. Raises HubError; HubFailure also for a bundle that is not
    what its manifest says.
    """
    check_target(folder, replace, HubError, "another folder")
    api = HfApi(endpoint=endpoint)
    with atomic_folder(folder, replace=replace) as partial:
        with in_one_line(repo, api.endpoint, revision), _library(progress):
            commit = str(api.model_info(repo, revision=revision).sha)  # all files of one commit, whoever pushes now
            names = _names(api, repo, commit, partial)
            api.snapshot_download(
                repo, revision=commit, local_dir=partial, allow_patterns=[*map(glob.escape, names)]
            )
        shutil.rmtree(partial / DOWNLOADS, ignore_errors=True)
        try:
            present = _names_of(Bundle.open(partial, verify=True))
        except BundleError as error:
            raise HubFailure(
                f"{repo} at commit {commit[:SHORT]} is damaged: {_named(error, partial, repo)}"
            ) from error
        size = _size(partial, present)
    return Transfer(repo, api.endpoint, commit, len(present), size)


def _names(api: HfApi, repo: str, commit: str, folder: Path) -> list[str]:
    """What a bundle's repository may hold, by its manifest, which is downloaded to `folder`.

    Raises HubError if it is no bundle.
    """
    try:
        api.hf_hub_download(repo, MANIFEST, revision=commit, local_dir=folder)
        return [*parse_manifest((folder / MANIFEST).read_bytes(), MANIFEST)["files"], SIGNATURE]
    except LocalEntryNotFoundError:  # not here, for the hub could not be asked
        raise
    except EntryNotFoundError as error:
        raise HubError(f"{repo} is not a bundle: it has no {MANIFEST} at its top level") from error
    except BundleError as error:
        raise HubError(f"{repo} is not a bundle that this version reads: {error}") from error


def _names_of(bundle: Bundle) -> list[str]:
    """Every file of a bundle that is there, its signature among them."""
    own = [name for name in (MANIFEST, SIGNATURE) if bundle.source.size(name) is not None]
    return [*bundle.files(), *own]


def _listed(api: HfApi, repo: str, revision: str | None) -> list[str]:
    """The files of the bundle that a repository holds now; none if it holds no bundle."""
    with tempfile.TemporaryDirectory(prefix="pmd-hub-") as scratch:
        try:
            return _names(api, repo, str(api.model_info(repo, revision=revision).sha), Path(scratch))
        except HubError:
            return []


@contextmanager
def _library(progress: bool) -> Iterator[None]:
    """huggingface_hub with bars only if there is someone to see them, and no remarks on stderr."""
    shown = not are_progress_bars_disabled()
    if shown and not progress:
        disable_progress_bars()
    try:
        with own_logging():
            yield
    finally:
        if shown and not progress:
            enable_progress_bars()


@contextmanager
def _commits_of(endpoint: str) -> Iterator[None]:
    """Let the library read the address of a commit as one of `endpoint`.

    It takes it for one of its usual endpoint, whatever endpoint it was given, and fails once all is uploaded.
    Downloads need the usual one, so this is for uploads alone.
    """
    usual, constants.ENDPOINT = constants.ENDPOINT, endpoint
    try:
        yield
    finally:
        constants.ENDPOINT = usual


def _named(error: BundleError, partial: Path, repo: str) -> str:
    """A message about a temporary folder as one about what was downloaded to it."""
    return str(error).replace(f"{partial}: ", "").replace(str(partial), repo)


def _size(folder: Path, names: list[str]) -> int:
    return sum((folder / name).stat().st_size for name in names)
