"""A training text as tokens: what the renderer makes and the trainer learns from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Encoded:
    """One example as tokens: prompt, answer, end of sequence.

    input_ids: T token ids; the last one is eos, which stands nowhere else in the answer.
    num_prompt: how many of them are the prompt, which is never trained on.
    trained_at: the learned positions, ascending, where they are not simply all behind the prompt: a conversation of
        several turns, or one whose answers are partly left out. num_prompt is then the first of them.
    choices: position of each answer token where the grammar left a choice -> the token ids it
        allowed there (the chosen one among them), or None where the set is open (free text).
        Answer tokens that are not in it were forced.
    fields: position of each choice -> path of the field that it decides.
    truncated: tokens of the inputs that were cut away to fit.
    second: another text of the same row, a second task that the model learns in the same update (the rationale of its
        labels); it is part of no validation loss. second_weight: of its mean loss, beside that of this text and its
        like.
    """

    input_ids: tuple[int, ...]
    num_prompt: int
    choices: Mapping[int, tuple[int, ...] | None] = field(default_factory=dict)
    fields: Mapping[int, str] = field(default_factory=dict)
    truncated: int = 0
    trained_at: tuple[int, ...] | None = None
    second: Encoded | None = None
    second_weight: float = 1.0

    @property
    def longest(self) -> int:
        """Tokens of the longer one of its texts."""
        return max(len(self.input_ids), len(self.second.input_ids) if self.second is not None else 0)

    def after(self, path: str) -> Encoded:
        """The same tokens, of which only those behind the field `path` are learned; itself without such a field."""
        end = max((at + 1 for at, found in self.fields.items() if found == path), default=self.num_prompt)
        kept = {at: allowed for at, allowed in self.choices.items() if at >= end}
        return replace(self, num_prompt=end, choices=kept, fields={at: self.fields[at] for at in kept})

    def trained(self, loss_on: str) -> list[int]:
        """Positions whose token is learned, ascending. Without `trained_at` the last of them is eos, which is there
        once."""
        if self.trained_at is not None and loss_on == "completion" and not self.choices:
            return list(self.trained_at)
        if loss_on == "choices":
            return sorted({*self.choices, len(self.input_ids) - 1})
        return list(range(self.num_prompt, len(self.input_ids)))
