"""`pmd-hub`: bundles to and from a hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pmd.serving.command import HELP, Group, emit, show_progress
from pmd.serving.extras import require

if TYPE_CHECKING:
    from pmd.export.hub import Transfer

SCHEMA = "pmd-hub/1"
EXAMPLES = """\b
Examples:
  pmd-hub push bundles/umls-pmd-grade-3-int8 me/umls-grade-3-int8 --private
  pmd-hub pull me/umls-grade-3-int8 bundles/theirs
"""
PUSH_EXAMPLES = """\b
Examples:
  pmd-hub push bundles/umls-pmd-grade-3-int8 me/umls-grade-3-int8
  pmd-hub push bundles/umls-pmd-grade-2-int8 me/umls --revision grade-2 --message "Two layers"
"""
PULL_EXAMPLES = """\b
Examples:
  pmd-hub pull me/umls-grade-3-int8 bundles/theirs
  pmd-hub pull me/umls bundles/small --revision grade-2 --force
"""
ENDPOINT = click.option("--endpoint", metavar="URL", help="Another hub than the usual one, or HF_ENDPOINT's.")
QUIET = click.option("--quiet", is_flag=True, help="No progress on stderr.")


@click.group("pmd-hub", cls=Group, context_settings=HELP, epilog=EXAMPLES)
def main() -> None:
    """Share bundles through a hub. The token is HF_TOKEN's, or that of `hf auth login`."""


@main.command("push", epilog=PUSH_EXAMPLES)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Let only you and those you choose see a new repository.")
@click.option("--revision", metavar="R", help="Branch to push to, made if it is not there. [default: main]")
@click.option("--message", metavar="M", help="The commit's message. [default: the bundle's name]")
@ENDPOINT
@QUIET
def push_bundle(
    bundle: Path,
    repo: str,
    private: bool,
    revision: str | None,
    message: str | None,
    endpoint: str | None,
    quiet: bool,
) -> None:
    """Upload the folder BUNDLE to OWNER/NAME, after a check of every file's sha256."""
    require("export", "huggingface_hub")
    from pmd.export.hub import push

    done = push(
        bundle,
        repo,
        private=private,
        revision=revision,
        message=message,
        endpoint=endpoint,
        progress=show_progress(quiet),
    )
    _report("push", bundle, done, revision)


@main.command("pull", epilog=PULL_EXAMPLES)
@click.argument("repo", metavar="OWNER/NAME")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--revision", metavar="R", help="Branch, tag or commit. [default: main]")
@ENDPOINT
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
@QUIET
def pull_bundle(
    repo: str, folder: Path, revision: str | None, endpoint: str | None, force: bool, quiet: bool
) -> None:
    """Download the bundle OWNER/NAME to DIR, which is whole and as its manifest says, or is not made."""
    require("export", "huggingface_hub")
    from pmd.export.hub import pull

    done = pull(repo, folder, revision=revision, endpoint=endpoint, replace=force, progress=show_progress(quiet))
    _report("pull", folder, done, revision)


def _report(action: str, folder: Path, done: Transfer, revision: str | None) -> None:
    preposition = "to" if action == "push" else "from"
    click.echo(
        f"{action}ed {done.files} files, {done.bytes / 1e6:.2f} MB, {preposition} {done.repo} "
        f"at commit {done.commit[:12]}"
    )
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "action": action,
        "bundle": str(folder),
        "repo": done.repo,
        "revision": revision,
        "endpoint": done.endpoint,
        "commit": done.commit,
        "files": done.files,
        "bytes": done.bytes,
    }
    emit(result)


if __name__ == "__main__":
    main()
