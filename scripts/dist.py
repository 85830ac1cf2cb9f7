"""The wheel and the source archive of a commit: the same bytes wherever, whenever and by whomever they are built.

`python -m scripts.dist` builds HEAD into dist/. The files come from git, not from the working tree, so neither its
modes, times and order nor what lies beside them matter; the clock is the commit's. From that, setuptools writes the
same wheel every time. Its source archive names the user and the moment, so it is packed again. Other versions of
setuptools and Python may give other bytes: requirements/ci.txt names ours.
"""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
FILE_MODE, FOLDER_MODE = 0o644, 0o755


def build(repository: Path, out: Path) -> list[Path]:
    """Build HEAD of a git repository; returns the paths of the source archive and the wheel in `out`.

    Raises click.ClickException if git or the build fails.
    """
    clock = int(_output("git", "log", "-1", "--format=%ct", cwd=repository))
    archive = _output("git", "-c", "tar.umask=0022", "archive", "--format=tar", "HEAD", cwd=repository)
    with tempfile.TemporaryDirectory(prefix="pmd-dist-") as scratch:
        tree, made = Path(scratch) / "tree", Path(scratch) / "made"
        before = os.umask(0o022)  # of what setuptools adds
        try:
            with tarfile.open(fileobj=io.BytesIO(archive)) as files:
                files.extractall(tree, filter="fully_trusted")  # of our own commit; it holds links between folders
            command = (sys.executable, "-m", "build", "--no-isolation", "--outdir", str(made), str(tree))
            _output(*command, cwd=tree, SOURCE_DATE_EPOCH=str(clock), PYTHONHASHSEED="0", LC_ALL="C", TZ="UTC")
        finally:
            os.umask(before)
        out.mkdir(parents=True, exist_ok=True)
        targets = []
        for path in sorted(made.iterdir()):
            data = path.read_bytes()
            targets.append(out / path.name)
            targets[-1].write_bytes(packed_again(data, clock) if path.name.endswith(".tar.gz") else data)
    return targets


def packed_again(data: bytes, clock: int) -> bytes:
    """A .tar.gz with its members in the order of their names, without owners, all of one time, in plain modes."""
    plain, result = io.BytesIO(), io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(data)) as before,
        tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as after,
    ):
        for old in sorted(before.getmembers(), key=lambda member: member.name):
            new = tarfile.TarInfo(old.name)
            new.type, new.linkname, new.size, new.mtime = old.type, old.linkname, old.size, clock
            new.mode = FOLDER_MODE if old.isdir() or old.mode & 0o100 else FILE_MODE
            after.addfile(new, before.extractfile(old) if old.isfile() else None)
    with gzip.GzipFile(fileobj=result, mode="wb", filename="", mtime=clock) as file:
        file.write(plain.getvalue())
    return result.getvalue()


def _output(*command: str, cwd: Path, **variables: str) -> bytes:
    done = subprocess.run(command, cwd=cwd, env=os.environ | variables, capture_output=True)
    if done.returncode:
        said = (done.stdout + done.stderr).decode(errors="replace").strip().splitlines()
        raise click.ClickException(f"{' '.join(command[:3])} failed: {said[-1] if said else 'without a word'}")
    return done.stdout


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "dist", help="Folder.  [default: dist]")
def main(out: Path) -> None:
    """Build the wheel and the source archive of HEAD."""
    for path in build(ROOT, out):
        click.echo(path)


if __name__ == "__main__":
    main()
