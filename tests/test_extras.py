"""A runtime that is installed and does not load is one line, not a traceback."""

import sys

import pytest

from pmd.serving import MissingExtra, Scorer
from pmd.serving.exhausted import OutOfMemory
from pmd.serving.extras import load


def broken(folder, monkeypatch, words):
    """An installed onnxruntime that says `words` as it is imported."""
    (folder / "onnxruntime.py").write_text(f"raise ImportError({words!r})\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("libstdc++.so.6: version `GLIBCXX_3.4.30' not found\n(required by it)", MissingExtra),
        ("it.so: failed to map segment from shared object", MissingExtra),
        ("Exception caught: std::bad_alloc", OutOfMemory),
    ],
)
def test_an_onnxruntime_that_does_not_load(tiny_folder, tmp_path, monkeypatch, words, kind):
    broken(tmp_path, monkeypatch, words)
    with pytest.raises(kind) as caught:
        Scorer.load(tiny_folder)
    assert "\n" not in str(caught.value)


def test_a_module_is_given_back():
    assert load("cpu", "json").__name__ == "json"
