"""langchain-openai: with_structured_output in its three ways, streaming, tools."""

from typing import Literal

from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from lines import BASE, MODEL, SYSTEM, Checks
from pydantic import BaseModel, Field

check = Checks()


class Label(BaseModel):
    """What the sentence says."""

    label: Literal["good", "bad"] = Field(description="the label")
    reasons: list[str]


model = ChatOpenAI(model=MODEL or BASE, temperature=0, max_tokens=300)
prompt = [("system", SYSTEM), ("user", "Wages rose.")]
check(isinstance(model.invoke(prompt).content, str), "invoke")
check("".join(str(c.content) for c in model.stream(prompt)) == model.invoke(prompt).content, "stream = invoke")
for method in ("json_schema", "function_calling"):
    found = model.with_structured_output(Label, method=method, strict=True).invoke(prompt)
    check(isinstance(found, Label), f"{method}: {found!r}")
both = model.with_structured_output(Label, include_raw=True).invoke(prompt)
check(both["parsing_error"] is None and both["raw"].usage_metadata["total_tokens"] > 0, "include_raw")
check(len(model.batch([prompt] * 4)) == 4, "batch")
vectors = OpenAIEmbeddings(model=BASE, check_embedding_ctx_length=False).embed_documents(["uma", "duas"])
check(len(vectors) == 2, "embeddings")
check.done()
