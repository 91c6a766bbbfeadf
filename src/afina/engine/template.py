"""What one chat template puts around the turns of a conversation.

The template is rendered with marks of private-use characters in place of what is said, and cut at the marks. So text of
users never goes through it, and one rendering serves all conversations of the same roles. What the template cannot take
(a system's turn, two turns of one side in a row) is found by trying it once, and such turns are joined or given to the
user. Knows the text around turns, not tokens.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence

from afina.core.errors import ModelError
from afina.engine.codec import Codec
from afina.engine.turns import Part, Turn, TurnRole, joined

MARK = "\ue0f1%d\ue0f2"
MARKS = re.compile("\ue0f1([0-9]+)\ue0f2")
LEFT, RIGHT = "\t", "\v"  # white space around a mark, to see whether the template keeps it
ROLES: dict[str, TurnRole] = {"s": "system", "u": "user", "a": "assistant"}
LETTERS = {role: letter for letter, role in ROLES.items()}
# Renderings that are kept, and the longest of them in turns.
KEPT, KEPT_TURNS = 512, 64


class Template:
    """A chat template by its seams. Raises ModelError for one that cannot hold a conversation.

    Roles are written as letters: "suau" is system, user, assistant, user.
    lead, trail: white space that stands before and after what an assistant says, and belongs to what a model writes.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self._kept: OrderedDict[tuple[str, bool], list[str] | None] = OrderedDict()
        if not all(self._render(*probe) for probe in (("u", True), ("ua", False), ("uau", True))):
            raise ModelError(
                f"{codec.tokenizer.name_or_path}: its chat template refuses or rewrites a plain conversation of user "
                "and assistant, so what they say cannot be kept apart from control tokens. Use style: completion."
            )
        self.takes_system = self._takes("su", "suau")
        self.takes_system_later = self.takes_system and self._takes("uasu", "suasu")
        self.takes_repeats = self._takes("uu", "uuau", "uaau")
        self.takes_assistant_first = self._takes("au", *(["sau"] if self.takes_system else []))
        self._openings = {role: self._opening(role) for role in ROLES}
        gaps = self._render("uau", True)
        assert gaps is not None, "was rendered above"
        self.lead = self._lead(gaps[1])
        self.trail, self.closing = self._ending(gaps[2])
        self._trims = self._find_trims()

    # -- what a conversation becomes --------------------------------------------------------------

    def fitted(self, turns: Sequence[Turn]) -> list[Turn]:
        """The turns as this template takes them; equal beginnings stay equal."""
        taken: list[Turn] = []
        for turn in turns:
            if turn.role == "system" and not (self.takes_system_later if taken else self.takes_system):
                turn = Turn("user", turn.parts)
            self._add(taken, turn, join=not self.takes_repeats)
        roles = "".join(LETTERS[turn.role] for turn in taken)
        if self._render(roles, not roles.endswith("a")) is None:
            taken = []
            for turn in turns:
                self._add(taken, Turn("user", turn.parts) if turn.role == "system" else turn, join=True)
        return [turn.stripped(*self._trims[LETTERS[turn.role]]) for turn in taken]

    def _add(self, taken: list[Turn], turn: Turn, *, join: bool) -> None:
        first = not taken or (len(taken) == 1 and taken[0].role == "system")
        if turn.role == "assistant" and first and not (self.takes_assistant_first and not join):
            taken.append(Turn("user", (Part(""),)))
        if join and taken and taken[-1].role == turn.role:
            taken[-1] = joined(taken[-1], turn)
        else:
            taken.append(turn)

    def gaps(self, roles: str) -> list[str]:
        """The trusted text before each turn, and last the text that opens the assistant's answer.

        White space that `lead` and `trail` name belongs to the answers and is left out.
        """
        gaps = self._render(roles, True)
        if gaps is None:
            raise ModelError(
                f"{self.codec.tokenizer.name_or_path}: its chat template refuses a conversation of the turns {roles!r}."
                " Use style: completion."
            )
        found = list(gaps)
        for i, role in enumerate(roles):
            if role == "a":
                # In serving the model spoke after the opening, even if the template shows it otherwise later.
                opening = self._openings[roles[i - 1]] if i else None
                found[i] = gaps[i].removesuffix(self.lead) if opening is None else opening
        return [gap.removeprefix(self.trail) if i and roles[i - 1] == "a" else gap for i, gap in enumerate(found)]

    # -- probes ---------------------------------------------------------------------------------

    def _takes(self, *probes: str) -> bool:
        return all(self._render(probe, True) is not None for probe in probes)

    def _opening(self, after: str) -> str | None:
        """What opens an answer after a turn of this role; None where the template takes none there."""
        for context in (after, f"u{after}", f"ua{after}"):
            gaps = self._render(context, True)
            if gaps is not None:
                return gaps[-1]
        return None

    def _lead(self, before_answer: str) -> str:
        opening = self._openings["u"] or ""
        rest = before_answer[len(opening) :]
        return rest if before_answer.startswith(opening) and not rest.strip() else ""

    def _ending(self, after_answer: str) -> tuple[str, int | None]:
        """White space after an answer, and the control token that ends it; None for a template without one."""
        head, token = self.codec.first_control(after_answer)
        return ("", None) if token is None or head.strip() else (head, token)

    def _find_trims(self) -> dict[str, tuple[bool, bool]]:
        """Of each role, whether white space is cut before and after what it says."""
        roles = "suau" if self.takes_system else "uau"
        padded = self._render(roles, True, LEFT, RIGHT)
        found: dict[str, tuple[bool, bool]] = dict.fromkeys(ROLES, (False, False))
        for i, role in enumerate(roles):
            if padded is not None:
                found[role] = (not padded[i].endswith(LEFT), not padded[i + 1].startswith(RIGHT))
        return found

    # -- rendering ------------------------------------------------------------------------------

    def _render(self, roles: str, opened: bool, left: str = "", right: str = "") -> list[str] | None:
        """The text before, between and after the turns; None if the template refuses, loses or reorders them."""
        key = (roles, opened)
        if not left and key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        messages = [{"role": ROLES[role], "content": left + MARK % i + right} for i, role in enumerate(roles)]
        try:
            text = self.codec.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened)
        except Exception:  # a template is a program of its author's, and raises what it likes
            text = ""
        cut = MARKS.split(text)
        gaps = cut[::2] if cut[1::2] == [str(i) for i in range(len(roles))] else None
        if not left and len(roles) <= KEPT_TURNS:
            self._kept[key] = gaps
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return gaps
