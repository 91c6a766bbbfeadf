"""instructor: structured answers by tool call and by JSON schema."""

from typing import Literal

import instructor
import openai
from lines import BASE, MODEL, SYSTEM, Checks
from pydantic import BaseModel

check = Checks()


class Label(BaseModel):
    label: Literal["good", "bad"]
    score: int


messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Prices fell."}]
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS_STRICT):
    client = instructor.from_openai(openai.OpenAI(), mode=mode)
    found = client.chat.completions.create(
        model=MODEL or BASE, messages=messages, response_model=Label, max_retries=1, temperature=0
    )
    check(isinstance(found, Label), f"{mode}: {found!r}")
check.done()
