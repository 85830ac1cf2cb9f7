"""Fuzzing of tokenisation and wording: any text, cut as it must be, and the same tokens as transformers gives."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from tests.trust.attack import Attack, Ground, Tally
from tests.trust.fuzz_engine import Broken, numbered
from tests.trust.fuzz_mutation import ODD_TEXTS

MAX_TOKENS = 24
BATCH = 16
"""Texts of a case are tokenised together; each counts as one case."""
LONGEST = 12_000
SECOND = 1_000  # transformers keeps every pair of the pieces that it cuts off: gigabytes for two long texts
SHORT = tuple(text for text in ODD_TEXTS if len(text) < 100)
RANGES = (
    (0x20, 0x7F),
    (0xA0, 0x250),
    (0x300, 0x370),
    (0x370, 0x600),
    (0x900, 0xE00),
    (0x1100, 0x1200),
    (0x2000, 0x2100),
)
RANGES += (
    (0x3040, 0x3100),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A4),
    (0xFB00, 0xFE10),
    (0xFF00, 0xFFF0),
    (0x1F300, 0x1FAFF),
)
RANGES += ((0x0, 0x20), (0xE000, 0xE100), (0xE0000, 0xE0080), (0x10000, 0x10FFFF))
WORDS = (
    "alpha",
    "Beta",
    "part of",
    "[MASK]",
    "[CLS]",
    "[SEP]",
    "<s>",
    "</s>",
    "<mask>",
    "##a",
    "Ġa",
    "inverse",
    "near",
    ":",
)


def a_text(rng: random.Random) -> str:
    """A text of one to many scripts, marks, spaces and special tokens; now and then a very long one."""
    parts = []
    for _ in range(rng.choice((0, 1, 2, 3, 8, 30))):
        kind = rng.random()
        if kind < 0.35:
            parts.append(rng.choice(WORDS))
        elif kind < 0.5:
            parts.append(rng.choice(SHORT))
        else:
            first, last = rng.choice(RANGES)
            parts.append("".join(chr(rng.randrange(first, last)) for _ in range(rng.choice((1, 2, 5, 12)))))
    text = rng.choice((" ", "", "\u200b", "\t")).join(parts)
    if rng.random() < 0.01:
        text = (text or "x") * (rng.randrange(LONGEST) // max(1, len(text)) + 1)
    return "".join(char for char in text if not 0xD800 <= ord(char) < 0xE000)


class Pair:
    """One tokenizer.json under our reader and under transformers' fast tokenizer."""

    def __init__(self, name: str, tokenizer_json: str) -> None:
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        from pmd.serving.tokenization import TextTokenizer

        self.name = name
        self.ours = TextTokenizer(tokenizer_json, MAX_TOKENS)
        self.theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer_json))
        self.vocabulary = Tokenizer.from_str(tokenizer_json).get_vocab_size()

    def compare(self, texts: list[Any]) -> str:
        """Raise Broken unless both give the same ids and types, single and in a batch, cut to MAX_TOKENS."""
        import numpy as np

        table = self.ours(texts)
        padded = table.padded(self.ours.pad_id)
        for place, (text, expected) in enumerate(zip(texts, self._transformers(texts), strict=True)):
            found = table.ids[table.offsets[place] : table.offsets[place + 1]]
            if found.tolist() != expected:
                raise Broken(f"{self.name}: {_cut(text)} gives {_around(found.tolist(), expected)}")
            single = self.ours.single(text)
            real = padded["attention_mask"][place].astype(bool)
            if any(not np.array_equal(single[name][0], padded[name][place][real]) for name in single):
                raise Broken(f"{self.name}: {_cut(text)} gives other tokens alone than in a batch")
            if len(found) > MAX_TOKENS or not ((0 <= found) & (found < self.vocabulary)).all():
                raise Broken(f"{self.name}: {_cut(text)} gives {len(found)} tokens, up to {found.max(initial=0)}")
        return "same tokens as transformers"

    def _transformers(self, texts: list[Any]) -> list[list[int]]:
        cut = {"truncation": "longest_first", "max_length": MAX_TOKENS}
        found: list[list[int]] = [[]] * len(texts)
        for kind in (str, tuple):
            places = [place for place, text in enumerate(texts) if isinstance(text, kind)]
            if places:
                ids = self.theirs([texts[place] for place in places], **cut)["input_ids"]
                for place, tokens in zip(places, ids, strict=True):
                    found[place] = tokens
        return found


def _cut(text: Any) -> str:
    return f"{str(text)[:60]!r} of {len(str(text))} characters"


def _around(found: list[int], expected: list[int]) -> str:
    first = next((at for at, (one, two) in enumerate(zip(found, expected, strict=False)) if one != two), None)
    at = min(len(found), len(expected)) if first is None else first
    return f"{found[at : at + 4]} at {at} of {len(found)}, transformers {expected[at : at + 4]} of {len(expected)}"


def tokenizers() -> list[Pair]:
    """Words, byte-level BPE and, where it is installed, the WordPiece of all-MiniLM-L6-v2."""
    from tests.tiny_encoder import mpnet_tokenizer, roberta_tokenizer, tiny_tokenizer

    found = [
        Pair("words", tiny_tokenizer().to_str()),
        Pair("byte-level BPE", roberta_tokenizer().to_str()),
        Pair("words of MPNet", mpnet_tokenizer().to_str()),
    ]
    try:
        from pmd.encoder import resolve_encoder

        folder = resolve_encoder("all-MiniLM-L6-v2").folder
    except Exception:  # it is not installed here
        return found
    return [*found, *[Pair("WordPiece", (folder / "tokenizer.json").read_text(encoding="utf-8"))] * 2]


def _tokens(ground: Ground) -> Tally:
    tally, pairs = Tally(), tokenizers()
    for number in range(-(-ground.count // BATCH)):
        rng = random.Random(f"{ground.seed}/{number}")
        texts = [a_text(rng) if rng.random() < 0.5 else (a_text(rng), a_text(rng)[:SECOND]) for _ in range(BATCH)]
        pair = rng.choice(pairs)
        before = tally.failed_cases
        numbered(tally, partial(pair.compare, texts), ground, number)
        if tally.failed_cases == before:
            tally.saw("same tokens as transformers", BATCH - 1)
    tally.figures["tokenizers"] = ", ".join(dict.fromkeys(pair.name for pair in pairs))
    return tally


def _word(rng: random.Random) -> str:
    """Build texts of a graph of odd names; check them against the rule written out plainly."""
    import numpy as np

    from pmd.serving.known import KnownAnswers
    from pmd.serving.neighbours import NeighbourGraph
    from pmd.serving.texts import TemplateError, Templates, TextBuilder

    size = rng.randrange(1, 6)
    names = [a_text(rng)[:60] or "x" for _ in range(size)]
    descriptions = [
        rng.choice(("", a_text(rng)[:80], "word " * 20, "{name} {description} \\g<1>")) for _ in range(size)
    ]
    parts = ("{name}", "{description}", ": ", " ", "{relation}", "{", "}", "{{name}}", "\\1", a_text(rng)[:9])
    entity, bare, inverse = ("".join(rng.choice(parts) for _ in range(rng.randrange(4))) for _ in range(3))
    limit, most = rng.choice((0, 1, 20)), rng.choice((0, 1, 10, -1))
    try:
        templates = Templates(entity, bare, inverse, most, limit)
    except TemplateError as error:
        if "\n" in str(error):
            raise Broken("an error of two lines") from error
        return "TemplateError"
    triples = np.array([[rng.randrange(size), 0, rng.randrange(size)] for _ in range(rng.randrange(6))]).reshape(
        -1, 3
    )
    known, graph = KnownAnswers.from_triples(size, 1, triples), NeighbourGraph.from_triples(size, triples)
    builder = TextBuilder(names, descriptions, ["is a"], templates, graph, known)
    head, relation = rng.randrange(size), rng.randrange(2)
    answers = {int(t if relation == 0 else h) for h, _, t in triples if int(h if relation == 0 else t) == head}
    beside = sorted({int(b) for a, b in [*triples[:, [0, 2]], *triples[:, [2, 0]]] if a == head != b} - answers)
    words = descriptions[head]
    if most > 0 and len(words.split()) < limit and beside[:most]:
        words = " ".join([words, *(names[other] for other in beside[:most])]).strip()
    expected = _filled(entity if words else bare, {"name": names[head], "description": words})
    found = builder.query(head, relation)[0]
    if found != expected:
        raise Broken(f"worded {found[:80]!r}, expected {expected[:80]!r}")
    return "worded by the rule"


def _filled(template: str, fields: dict[str, str]) -> str:
    """A template filled left to right, one field at a time."""
    out, at = [], 0
    while at < len(template):
        for name, text in fields.items():
            if template.startswith("{" + name + "}", at):
                out.append(text)
                at += len(name) + 2
                break
        else:
            out.append(template[at])
            at += 1
    return "".join(out)


def _wordings(ground: Ground) -> Tally:
    tally = Tally()
    for number in range(ground.count):
        rng = random.Random(f"{ground.seed}/{number}")
        numbered(tally, partial(_word, rng), ground, number)
    return tally


ATTACKS = (
    Attack(
        "fuzz-tokens",
        "fuzzing",
        "Texts and pairs of every script, control and special token: the tokens that transformers gives",
        _tokens,
        quick=4_000,
        full=150_000,
    ),
    Attack(
        "fuzz-wordings",
        "fuzzing",
        "Templates, names and descriptions of odd text: the wording that the rule, written out plainly, gives",
        _wordings,
        quick=3_000,
        full=80_000,
    ),
)
