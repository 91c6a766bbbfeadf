"""LangChain: the notebook's chain as it stands, structured output, batches, streams, threads, event loops."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypedDict

import pytest
from command_line import POLARITY, afina, news, recipe_text, untrained_specialist, write_csv
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser, StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langsmith.utils import tracing_is_enabled
from pydantic import BaseModel, Field, ValidationError

from afina import Specialist
from afina.core.errors import ModelError, RunError, SchemaError
from afina.integrations.langchain import ChatAfina, PromptError, SpecialistRunnable

# -- the notebook, section 5: copied as it stands ------------------------------------------------------

TipoPolaridade = Literal["Positivo", "Negativo", "Neutro"]
TipoEmocao = Literal["Felicidade", "Tristeza", "Raiva", "Nojo", "Medo", "Surpresa", "Desprezo", "Neutro"]


class AnaliseFrase(BaseModel):
    """Define a estrutura para a análise de uma única frase."""

    polaridade: TipoPolaridade = Field(description="A polaridade da frase (Positivo, Negativo ou Neutro)")
    emocao: TipoEmocao = Field(description="A emoção universal de Ekman detectada na frase")


class ClassificacaoNoticia(BaseModel):
    """Define a estrutura completa do JSON de saída para a notícia."""

    f1: AnaliseFrase = Field(description="Análise da primeira frase da notícia")
    f2: AnaliseFrase = Field(description="Análise da segunda frase da notícia")
    f3: AnaliseFrase = Field(description="Análise da terceira frase da notícia")


parser = PydanticOutputParser(pydantic_object=ClassificacaoNoticia)

template = """Classifique a noticia abaixo conforme a polaridade e emoção universal.
Texto:
f1: {f1_text}
f2: {f2_text}
f3: {f3_text}

Resultado:
"""
prompt = PromptTemplate(template=template)

# -- material ----------------------------------------------------------------------------------------

THREE = ["f1", "f2", "f3"]
ROWS = [{f"{name}_text": row[name] for name in THREE} for row in news(12)]


class Person(BaseModel):
    name: str = Field(description="The name of the person.")
    age: int


class Frase(TypedDict):
    polaridade: TipoPolaridade
    emocao: TipoEmocao


class Noticia(TypedDict):
    f1: Frase
    f2: Frase
    f3: Frase


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose answers are the notebook's class, trained for a few steps."""
    place = tmp_path_factory.mktemp("notebook")
    write_csv(place / "news.csv", news(48))
    recipe = recipe_text(
        task__name="noticias",
        task__inputs=THREE,
        task__output=f"{__name__}:ClassificacaoNoticia",
        task__parts={name: {"texto": name} for name in THREE},
        data__columns={},
        data__labels={"emocao": {"alegria": "Felicidade"}},
        data__min_examples_per_label=0,
        train__max_steps=8,
        train__loss_on="choices",
        train__learning_rate=5e-4,
        output_dir=str(place / "run"),
    )
    (place / "recipe.yaml").write_text(recipe, encoding="utf-8")
    outcome = afina("train", place / "recipe.yaml")
    assert outcome.code == 0, outcome.err
    return place / "run"


@pytest.fixture(scope="module")
def llm(run: Path) -> ChatAfina:
    return ChatAfina(run=run)


@pytest.fixture(scope="module")
def one_input(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A specialist of one input, `texto`, as the embedded model is."""
    return untrained_specialist(tmp_path_factory.mktemp("one") / "specialist")


@pytest.fixture
def asked(llm: ChatAfina, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows the specialist was asked at a time."""
    specialist = llm._desk.specialist
    sizes: list[int] = []
    real = specialist.predict

    def counted(inputs: Sequence[Any], *, label: str | None = None) -> Any:
        sizes.append(len(inputs))
        return real(inputs, label=label)

    monkeypatch.setattr(specialist, "predict", counted)
    return sizes


# -- the notebook's chain ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_notebooks_chain(run: Path) -> None:
    """The same cell with another `llm`."""
    df = news(4)
    llm = ChatAfina(run=str(run))

    chain = prompt | llm | parser
    resposta = chain.invoke({
        'f1_text': df[0]['f1'],
        'f2_text': df[0]['f2'],
        'f3_text': df[0]['f3'],
    })  # fmt: skip

    assert isinstance(resposta, ClassificacaoNoticia)
    direct = Specialist.load(run)
    assert resposta.model_dump() == direct.predict([{name: df[0][name] for name in THREE}])[0].output


@pytest.mark.slow
def test_the_example(run: Path) -> None:
    script = Path(__file__).resolve().parents[1] / "examples" / "langchain_chain.py"
    done = subprocess.run(
        [sys.executable, script, run, *(news(1)[0][name] for name in THREE)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("f1=AnaliseFrase(polaridade='")
    assert len(re.findall(r"^f[123]\.(polaridade|emocao): [01]\.\d\d$", done.stdout, re.MULTILINE)) == 6


@pytest.mark.slow
def test_the_message_tells_confidences_and_counts(llm: ChatAfina) -> None:
    message = (prompt | llm).invoke(ROWS[0])
    assert isinstance(message, AIMessage)
    metadata = message.response_metadata
    paths = {f"{part}.{field}" for part in THREE for field in ("polaridade", "emocao")}
    assert set(metadata["confidence"]) == paths
    assert all(0 < value <= 1 for value in metadata["confidence"].values())
    answer = json.loads(str(message.content))
    for path in paths & set(metadata["probabilities"]):
        part, _, field = path.partition(".")
        shares = metadata["probabilities"][path]
        assert max(shares, key=shares.get) == answer[part][field]
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)  # float32 softmax
    assert metadata["inputs"] == {name: ROWS[0][f"{name}_text"] for name in THREE}
    assert metadata["model_provider"] == "afina"
    usage = message.usage_metadata
    assert usage is not None
    assert usage["input_tokens"] > 0 < usage["output_tokens"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert len(llm.get_token_ids("O PIB cresceu.")) > 1


@pytest.mark.slow
def test_callbacks_tags_and_no_tracing(llm: ChatAfina) -> None:
    class Heard(BaseCallbackHandler):
        def __init__(self) -> None:
            self.events: list[Any] = []

        def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
            self.events.append(("start", kwargs["tags"], kwargs["metadata"]["ls_provider"], kwargs["metadata"]["who"]))

        def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            self.events.append(token)

        def on_llm_end(self, response: Any, **kwargs: Any) -> None:
            self.events.append(("end", response.generations[0][0].text))

        def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
            self.events.append(("error", str(error)))

    before = dict(os.environ)
    heard, usage = Heard(), UsageMetadataCallbackHandler()
    config: Any = {"callbacks": [heard, usage], "tags": ["t"], "metadata": {"who": "me"}}
    message = (prompt | llm).invoke(ROWS[0], config)
    assert heard.events == [("start", ["seq:step:2", "t"], "afina", "me"), ("end", message.content)]
    assert usage.usage_metadata["noticias"]["total_tokens"] == message.usage_metadata["total_tokens"]
    heard.events.clear()
    streamed = "".join(str(chunk.content) for chunk in (prompt | llm).stream(ROWS[0], config))
    assert "".join(event for event in heard.events if isinstance(event, str)) == streamed == message.content
    heard.events.clear()
    with pytest.raises(PromptError):
        llm.invoke("no inputs here", config)
    assert heard.events[-1][0] == "error"
    assert not tracing_is_enabled()
    assert dict(os.environ) == before


# -- pieces ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_streams_hand_out_the_same_answer(llm: ChatAfina) -> None:
    whole = (prompt | llm).invoke(ROWS[1])

    async def pieces() -> list[AIMessageChunk]:
        return [chunk async for chunk in (prompt | llm).astream(ROWS[1])]

    for chunks in (list((prompt | llm).stream(ROWS[1])), asyncio.run(pieces())):
        assert len(chunks) > 10
        total = chunks[0]
        for chunk in chunks[1:]:
            total = total + chunk
        assert total.content == whole.content
        assert total.usage_metadata == whole.usage_metadata
        unlike = {"latency_s"}
        assert {k: v for k, v in total.response_metadata.items() if k not in unlike} == {
            k: v for k, v in whole.response_metadata.items() if k not in unlike
        }
        assert total.chunk_position == "last"
    partial = list((prompt | llm | JsonOutputParser()).stream(ROWS[1]))
    assert len(partial) > 6
    assert partial[-1] == json.loads(str(whole.content))


@pytest.mark.slow
def test_free_text_streams_by_words(tmp_path: Path) -> None:
    folder = untrained_specialist(tmp_path / "free", task__output="text", compare=["nearest"])
    chain = PromptTemplate.from_template("{texto}") | ChatAfina(run=folder)
    whole = chain.invoke({"texto": "O PIB cresceu."})
    pieces = [str(chunk.content) for chunk in chain.stream({"texto": "O PIB cresceu."})]
    assert "".join(pieces) == whole.content
    assert len(pieces) >= len(str(whole.content).split())
    with pytest.raises(SchemaError, match=r"answers with free text\. Use llm \| parser"):
        ChatAfina(run=folder).with_structured_output(Person)


# -- batches, threads, event loops -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_batch_is_answered_together(llm: ChatAfina, asked: list[int]) -> None:
    chain = prompt | llm | parser
    alone = [chain.invoke(row) for row in ROWS]
    assert asked == [1] * len(ROWS)
    asked.clear()
    assert chain.batch(ROWS) == alone
    # Whoever comes while the first is answered waits, and is answered with the others that wait.
    assert sum(asked) == len(ROWS)
    assert len(asked) <= len(ROWS) // 2
    asked.clear()
    assert asyncio.run(chain.abatch(ROWS)) == alone
    assert sum(asked) == len(ROWS)
    assert len(asked) <= len(ROWS) // 2
    asked.clear()
    assert chain.batch(ROWS[:3], {"max_concurrency": 1}) == alone[:3]
    assert asked == [1, 1, 1]


@pytest.mark.slow
def test_the_runnable_answers_a_batch_in_one(llm: ChatAfina, run: Path, asked: list[int]) -> None:
    runnable = SpecialistRunnable(run)
    rows = [{name: row[f"{name}_text"] for name in THREE} for row in ROWS]
    answers = runnable.batch(rows)
    assert asked == [len(rows)]
    assert [answer.to_output() for answer in answers] == [
        json.loads(str((prompt | llm).invoke(r).content)) for r in ROWS
    ]
    asked.clear()
    assert asyncio.run(runnable.abatch(rows)) == answers
    assert asked == [len(rows)]
    assert 0 < answers[0].confidence["f1.emocao"] <= 1
    assert runnable.batch([]) == []
    assert runnable.get_input_jsonschema()["required"] == THREE
    assert runnable.get_output_jsonschema()["required"] == THREE


@pytest.mark.slow
def test_the_runnable_in_chains(run: Path, one_input: Path) -> None:
    runnable = SpecialistRunnable(run)
    row = {name: ROWS[0][f"{name}_text"] for name in THREE}
    answer: Any = runnable.invoke({**row, "other": 3})  # other keys of the chain are left alone
    emotion = runnable | (lambda answer: answer.f1.emocao)
    assert emotion.invoke(row) == answer.f1.emocao
    assert (RunnablePassthrough.assign(answer=runnable) | RunnableLambda(lambda d: d["answer"])).invoke(row) == answer
    assert list(runnable.stream(row)) == [answer]

    async def ways() -> tuple[Any, Any]:
        return await runnable.ainvoke(row), [a async for a in runnable.astream(row)]

    assert asyncio.run(ways()) == (answer, [answer])
    single: Any = SpecialistRunnable(one_input).invoke({"texto": "O PIB cresceu."})
    assert single.polaridade in POLARITY
    with pytest.raises(PromptError, match=r"the input 'f3' was not found.*\['f1', 'f2', 'f3'\]"):
        runnable.invoke({"f1": "a", "f2": "b"})
    with pytest.raises(PromptError, match="the input 'f2' is int, expected text"):
        asyncio.run(runnable.ainvoke({"f1": "a", "f2": 1, "f3": "c"}))
    found: list[Any] = runnable.batch([row, {"f1": "a"}, row], return_exceptions=True)
    assert [type(one) for one in found] == [type(answer), PromptError, type(answer)]
    assert found[2].to_output() == answer.to_output()  # a confidence's last digits go by who shares the batch
    with pytest.raises(PromptError):
        runnable.batch([row, {"f1": "a"}])
    with pytest.raises(PromptError, match="'temperature' has no effect"):
        runnable.invoke(row, temperature=0.5)


@pytest.mark.slow
def test_threads_and_loops_share_one_model(llm: ChatAfina, run: Path, asked: list[int]) -> None:
    copies = [llm, ChatAfina(run=str(run)), copy.deepcopy(llm), llm.model_copy()]
    assert len({id(one._desk.specialist.predictor.model) for one in copies}) == 1
    assert SpecialistRunnable(run)._desk is llm._desk
    expected = [(prompt | llm).invoke(row).content for row in ROWS]
    asked.clear()

    def ask(at: int) -> tuple[int, str]:
        chain = prompt | copies[at % 4]
        row = ROWS[at % len(ROWS)]
        message = chain.invoke(row) if at % 3 else asyncio.run(chain.ainvoke(row))
        return at % len(ROWS), str(message.content)

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, range(60)))
    assert len(found) == 60
    assert all(text == expected[at] for at, text in found)
    assert sum(asked) == 60
    assert len(asked) < 30


@pytest.mark.slow
def test_the_event_loop_goes_on(llm: ChatAfina) -> None:
    async def measured() -> tuple[int, float]:
        work = asyncio.ensure_future((prompt | llm).abatch(ROWS * 4))
        beats, longest = 0, 0.0
        clock = asyncio.get_running_loop().time
        while not work.done():
            began = clock()
            await asyncio.sleep(0.002)
            beats, longest = beats + 1, max(longest, clock() - began)
        assert len(await work) == len(ROWS) * 4
        return beats, longest

    beats, _ = asyncio.run(measured())
    assert beats > 20  # a blocked loop would beat a few times, between the batches


@pytest.mark.slow
def test_who_gives_up_is_not_answered(llm: ChatAfina, asked: list[int]) -> None:
    """A cancelled request that still waits costs the model nothing, and the others are answered."""

    async def some() -> list[Any]:
        chain = prompt | llm
        tasks = [asyncio.ensure_future(chain.ainvoke(row)) for row in ROWS]
        await asyncio.sleep(0)  # all are written down before any is done
        while not asked:
            await asyncio.sleep(0.001)
        for task in tasks[-4:]:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(some())
    assert [type(one) for one in found[-4:]] == [asyncio.CancelledError] * 4
    assert all(isinstance(one, AIMessage) for one in found[:-4])
    assert len(found) == len(ROWS)


@pytest.mark.slow
def test_a_failure_reaches_whoever_asked(llm: ChatAfina, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(inputs: Any, *, label: str | None = None) -> Any:
        raise MemoryError("no more")

    with monkeypatch.context() as patched:
        patched.setattr(llm._desk.specialist, "predict", breaks)
        with pytest.raises(MemoryError, match="no more"):
            (prompt | llm).invoke(ROWS[0])
        with pytest.raises(MemoryError, match="no more"):
            asyncio.run((prompt | llm).ainvoke(ROWS[0]))
    assert (prompt | llm).invoke(ROWS[0]).content  # and the next is answered


@pytest.mark.slow
def test_langchains_cache_knows_the_specialist(run: Path, one_input: Path, llm: ChatAfina, asked: list[int]) -> None:
    cache = InMemoryCache()
    kept = ChatAfina(run=run, cache=cache)
    first, second = ((prompt | kept).invoke(ROWS[0]) for _ in range(2))
    assert first.content == second.content
    assert first.response_metadata["confidence"] == second.response_metadata["confidence"]
    assert asked == [1]
    other = ChatAfina(run=one_input, cache=cache)
    assert json.loads(str(other.invoke(str(prompt.invoke(ROWS[0]).to_string())).content)).keys() == {"polaridade"}


# -- structured output -------------------------------------------------------------------------------


@pytest.mark.slow
def test_structured_output(llm: ChatAfina) -> None:
    expected = (prompt | llm | parser).invoke(ROWS[0])
    chain = prompt | llm.with_structured_output(ClassificacaoNoticia)
    assert chain.invoke(ROWS[0]) == expected
    assert chain.batch(ROWS[:2])[0] == expected
    assert asyncio.run(chain.ainvoke(ROWS[0])) == expected
    for schema in (ClassificacaoNoticia.model_json_schema(), Noticia):
        assert (prompt | llm.with_structured_output(schema)).invoke(ROWS[0]) == expected.model_dump()
    for method in ("json_schema", "json_mode", "function_calling"):
        assert (prompt | llm.with_structured_output(ClassificacaoNoticia, method=method)).invoke(ROWS[0]) == expected
    both: Any = (prompt | llm.with_structured_output(ClassificacaoNoticia, include_raw=True)).invoke(ROWS[0])
    assert both["parsed"] == expected
    assert both["parsing_error"] is None
    assert 0 < both["raw"].response_metadata["confidence"]["f1.polaridade"] <= 1


@pytest.mark.slow
def test_a_schema_that_the_specialist_cannot_answer_in(llm: ChatAfina) -> None:
    class Estrita(ClassificacaoNoticia):
        geral: str

    class Outra(BaseModel):
        f1: AnaliseFrase

    with pytest.raises(
        SchemaError, match="'noticias' cannot answer in this schema: the answer needs the field 'geral'"
    ):
        llm.with_structured_output(Estrita)
    with pytest.raises(SchemaError, match="the answer has the field 'f2', which the wanted schema does not name"):
        llm.with_structured_output(Outra)
    with pytest.raises(SchemaError, match="'method=guess' is unknown"):
        llm.with_structured_output(Outra, method="guess")


@pytest.mark.slow
def test_reasoning_where_it_is_wanted(tmp_path: Path) -> None:
    folder = untrained_specialist(tmp_path / "cot", task__reasoning="pensamento")
    llm = ChatAfina(run=folder)

    class Rotulo(BaseModel, extra="forbid"):
        polaridade: Literal["positivo", "negativo", "neutro"]

    class Pensado(Rotulo):
        pensamento: str

    plain = llm.invoke("O PIB cresceu.")
    assert Rotulo.model_validate_json(str(plain.content))
    thought = plain.response_metadata["reasoning"][""]
    blocks = [block["type"] for block in plain.content_blocks]
    assert blocks == (["reasoning", "text"] if thought else ["text"])
    assert isinstance(llm.with_structured_output(Rotulo).invoke("O PIB cresceu."), Rotulo)
    full: Any = llm.with_structured_output(Pensado).invoke("O PIB cresceu.")
    assert full.pensamento == thought
    written = ChatAfina(run=folder, include_reasoning=True).invoke("O PIB cresceu.")
    assert list(json.loads(str(written.content))) == ["pensamento", "polaridade"]


# -- settings ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_chat_prompts_and_a_reading_of_ones_own(one_input: Path) -> None:
    llm = ChatAfina(run=one_input)
    chat = ChatPromptTemplate([("system", "Classifique."), ("human", "{frase}")])
    message = (chat | llm).invoke({"frase": "O PIB cresceu."})
    assert message.response_metadata["inputs"] == {"texto": "O PIB cresceu."}
    assert json.loads((chat | llm | StrOutputParser()).invoke({"frase": "O PIB cresceu."})).keys() == {"polaridade"}
    between = ChatAfina(run=one_input, read=lambda text: {"texto": text.split("<<")[1].split(">>")[0]})
    found = between.invoke("Classifique <<O PIB cresceu.>> agora, por favor.\n\nObrigado.")
    assert found.response_metadata["inputs"] == {"texto": "O PIB cresceu."}
    assert found.content == message.content
    with pytest.raises(PromptError, match="the input 'texto' was not found"):
        ChatAfina(run=one_input, read=lambda text: {}).invoke("x")


@pytest.mark.slow
def test_what_has_no_effect_is_refused(one_input: Path, tmp_path: Path) -> None:
    llm = ChatAfina(run=one_input)
    with pytest.raises(PromptError, match="'temperature' has no effect on a specialist"):
        llm.invoke("x", temperature=0.7)
    with pytest.raises(PromptError, match="'stop' has no effect"):
        llm.bind(stop=["}"]).invoke("x")
    with pytest.raises(ValidationError, match="temperature"):
        ChatAfina(run=one_input, temperature=0.7)  # pyright: ignore[reportCallIssue]
    with pytest.raises(NotImplementedError, match="calls no tools"):
        llm.bind_tools([])
    with pytest.raises(RunError, match="holds no specialist"):
        ChatAfina(run=tmp_path)
    specialist = Specialist.load(one_input)
    assert ChatAfina(run=specialist)._desk.specialist is specialist
    with pytest.raises(ModelError, match="batch_size is 2, but the specialist is loaded already"):
        ChatAfina(run=specialist, batch_size=2)


def test_without_langchain_core_it_says_what_to_install() -> None:
    script = "import sys; sys.modules['langchain_core'] = None; import afina.integrations.langchain"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert (
        "MissingExtraError: langchain-core is not installed. Install it with: pip install 'afina[langchain]'"
        in done.stderr
    )
