"""The pretrained encoders that a run starts from."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pmd.encoder import EncoderFiles, load_encoder, resolve_encoder
from pmd.errors import EncoderError
from pmd.model import BiEncoder
from pmd.recipe import Recipe
from pmd.stages import TEACHER


@dataclass(frozen=True)
class Pretrained:
    """The pretrained encoders of a run: the teacher's, and the students' where it is another."""

    teacher: BiEncoder
    student: BiEncoder
    teacher_name: str
    student_name: str
    tokenizer_json: str
    facts: dict[str, str]

    @classmethod
    def load(cls, recipe: Recipe) -> Pretrained:
        """Find and load them. Raises EncoderError if one cannot be used, or their tokenizers differ."""
        files = resolve_encoder(recipe.encoder, recipe.encoder_sha256)

        def load(files: EncoderFiles) -> BiEncoder:
            return load_encoder(
                files,
                dropout=recipe.dropout,
                temperature=recipe.temperature,
                sharing=recipe.share_towers,
                max_tokens=recipe.max_tokens,
            )

        facts = {"name": files.name, "sha256": files.sha256}
        tokenizer_json = (files.folder / "tokenizer.json").read_text(encoding="utf-8")
        teacher = load(files)
        if recipe.student_encoder is None:
            return cls(teacher, teacher, files.name, files.name, tokenizer_json, facts)
        other = resolve_encoder(recipe.student_encoder)
        _same_tokenizer(tokenizer_json, (other.folder / "tokenizer.json").read_text(encoding="utf-8"), other.name)
        facts |= {"student_name": other.name, "student_sha256": other.sha256}
        return cls(teacher, load(other), files.name, other.name, tokenizer_json, facts)

    def of(self, stage: str) -> tuple[BiEncoder, str]:
        """The encoder that a stage starts from, directly or through others, and its name."""
        return (self.teacher, self.teacher_name) if stage == TEACHER else (self.student, self.student_name)

    @property
    def student_depth(self) -> int | None:
        """Layers of the students' encoder, None where it is the teacher's."""
        return None if self.student is self.teacher else self.student.depth


def _same_tokenizer(ours: str, theirs: str, name: str) -> None:
    """Raise EncoderError unless two encoders give every text the same ids: masks and positions must be the same."""
    first, second = ({**json.loads(text), "truncation": None, "padding": None} for text in (ours, theirs))
    if first != second:
        raise EncoderError(
            f"student_encoder {name} has another tokenizer than the encoder; both must read the same tokens"
        )
