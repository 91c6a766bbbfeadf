"""The page of `afina serve`: its files and endpoints in this process, and the real thing in headless Chromium."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Generator
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest
from command_line import afina
from conftest import MakeApi, Server, StartServer
from job_material import chat_lines
from page_browser import ARGUMENTS, Visit, chromium, visiting
from page_material import PRODUCTS, XSS, assistant_run, form_run

from afina.core.errors import AfinaError
from afina.server.page.files import ASSETS, TICKET_S, Tickets

STATIC = Path(str(resources.files("afina.server.page"))) / "static"
LIMIT_A_MINUTE = 60
EVERY_TEXT = re.compile(r"""\bt\(\s*["'`]([^"'`]+)["'`]""")


@pytest.fixture(scope="module")
def form(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return form_run(tmp_path_factory.mktemp("mood"))


@pytest.fixture(scope="module")
def kiosk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return assistant_run(tmp_path_factory.mktemp("kiosk"))


# -- files ---------------------------------------------------------------------------------------------------------


def test_files_are_sent_without_a_key_and_load_nothing_from_elsewhere(make_api: MakeApi) -> None:
    api = make_api()
    names = [path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*") if path.is_file()]
    assert len(names) >= 12
    for name in names:
        url = "/" if name == "index.html" else ASSETS + name
        sent = api.anonymous.get(url)
        assert sent.status_code == 200, url
        assert sent.content == (STATIC / name).read_bytes()
        policy = sent.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "require-trusted-types-for 'script'" in policy
        assert sent.headers["x-content-type-options"] == "nosniff"
        again = api.anonymous.get(url, headers={"If-None-Match": sent.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert api.anonymous.head(url).status_code == 200
        addresses = set(re.findall(r"https?://[^\s\"'<>)]+", sent.text)) - {"http://www.w3.org/2000/svg"}
        assert addresses == set(), name


def test_nothing_in_the_page_reads_markup() -> None:
    scripts = list((STATIC / "js").glob("*.js"))
    assert len(scripts) >= 9
    sinks = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc")
    assert [path.name for path in scripts if sinks.search(path.read_text(encoding="utf-8"))] == []


def test_every_text_is_there_in_both_languages() -> None:
    words = (STATIC / "js/words.js").read_text(encoding="utf-8")
    table = words[words.index("const WORDS") : words.index("\n};\n")]
    known = re.findall(r'^ {2}"?([\w-]+)"?: \[', table, re.MULTILINE)
    assert len(known) == len(set(known)) > 120
    used: set[str] = set()
    for path in (STATIC / "js").glob("*.js"):
        used |= {key for key in EVERY_TEXT.findall(path.read_text(encoding="utf-8")) if "$" not in key}
    assert len(used) > 90
    assert used - set(known) == set()


@pytest.mark.parametrize(
    "path", ["/afina/page/", "/afina/page/../keys.py", "/afina/page/%2e%2e/keys.py", "/index.html"]
)
def test_other_paths_want_a_key_and_are_nothing(make_api: MakeApi, path: str) -> None:
    api = make_api()
    assert api.anonymous.get(path).status_code == 401
    assert api.http.get(path).status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "models"), ("GET", "runs"), ("POST", "ask"), ("POST", "predict"), ("POST", "reports"), ("POST", "../../")],
)
def test_its_endpoints_want_a_key(make_api: MakeApi, method: str, path: str) -> None:
    assert make_api().anonymous.request(method, f"/afina/api/{path}", json={}).status_code in (401, 404)


# -- runs ----------------------------------------------------------------------------------------------------------


def test_runs_and_models_as_they_are_told(make_api: MakeApi, form: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "report.html").write_text("<h1>alone</h1>", encoding="utf-8")
    (tmp_path / "other").mkdir()
    second = form_run(tmp_path / "other")
    api = make_api(runs=[form, second, form, alone])
    runs = api.http.get("/afina/api/runs").json()["data"]
    assert [(run["id"], run["kind"], run["report"]) for run in runs] == [
        ("mood", "structured", True),
        ("mood-2", "structured", True),
        ("alone", None, True),
    ]
    assert runs[0]["num_test"] == 12
    models = api.http.get("/afina/api/models").json()["data"]
    assert [model["id"] for model in models if "inputs" in model] == ["mood", "mood-2"]
    assert models[0]["fields"] == [{"path": "polaridade", "labels": ["positivo", "negativo", "neutro"], "multi": False}]
    bases = [model for model in models if model["kind"] == "base"]
    assert bases[0]["id"] == "afina/nano"
    named = {name for base in bases for name in (base["id"], *base["also"])}
    assert named == {model["id"] for model in api.http.get("/v1/models").json()["data"]}


@pytest.mark.parametrize(
    ("what", "said"), [("nothing", "no such folder"), ("empty", "holds no specialist"), ("file", "is a file")]
)
def test_a_folder_that_is_no_run_is_refused_at_the_start(
    make_api: MakeApi, tmp_path: Path, what: str, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(AfinaError, match=said):
        make_api(runs=[tmp_path / what])


def test_an_assistant_without_its_index_is_refused_at_the_start(make_api: MakeApi, form: Path, tmp_path: Path) -> None:
    from grounded_material import settings

    from afina.strategies.finetuned import Specialist
    from afina.strategies.grounded.manifest import write_manifest

    run = form_run(tmp_path / "run")
    write_manifest(run / "specialist", settings(), Specialist.load(form).predictor.renderer)
    with pytest.raises(AfinaError, match="index"):
        make_api(runs=[run])


# -- one row for a specialist --------------------------------------------------------------------------------------


def test_a_row_gets_an_answer_with_confidence(make_api: MakeApi, form: Path) -> None:
    api = make_api(runs=[form])
    found = api.http.post("/afina/api/predict", json={"model": "mood", "inputs": {"texto": "Ótimo dia!"}})
    assert found.status_code == 200, found.text
    answer = found.json()
    assert answer["output"]["polaridade"] in ("positivo", "negativo", "neutro")
    assert 0 < answer["confidence"]["polaridade"] <= 1
    assert sum(one["probability"] for one in answer["probabilities"]["polaridade"]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "mood", "inputs": {}}, 400, "'texto' is missing"),
        ({"model": "mood", "inputs": {"texto": "  \n"}}, 400, "empty"),
        ({"model": "mood", "inputs": {"texto": 5}}, 400, "texto"),
        ({"model": "mood", "inputs": {"texto": "a", "x": "b"}}, 400, "no input 'x'"),
        ({"model": "gone", "inputs": {"texto": "a"}}, 404, "no run 'gone'"),
        ({"model": "mood"}, 400, "inputs"),
    ],
)
def test_bad_rows_are_refused(make_api: MakeApi, form: Path, body: Any, status: int, said: str) -> None:
    refused = make_api(runs=[form]).http.post("/afina/api/predict", json=body)
    assert refused.status_code == status
    assert said in refused.json()["error"]["message"]


# -- reports -------------------------------------------------------------------------------------------------------


def test_a_report_is_read_by_its_ticket_and_runs_no_script(make_api: MakeApi, form: Path) -> None:
    api = make_api(runs=[form])
    url = api.http.post("/afina/api/reports", json={"run": "mood"}).json()["url"]
    sent = api.anonymous.get(url)
    assert sent.status_code == 200
    assert "Report of mood" in sent.text
    policy = sent.headers["content-security-policy"]
    assert policy.startswith("sandbox ")
    assert "allow-scripts" not in policy
    assert "script-src" not in policy  # default-src 'none' holds
    assert api.anonymous.get(url[:-1] + "~").status_code == 404
    assert api.http.post("/afina/api/reports", json={"run": "gone"}).status_code == 404


def test_tickets_end(tmp_path: Path) -> None:
    now = [100.0]
    tickets = Tickets(lambda: now[0])
    url = tickets.issue(tmp_path / "report.html")
    now[0] += TICKET_S - 1
    assert tickets.find(url) == tmp_path / "report.html"
    now[0] += 2
    assert tickets.find(url) is None


# -- questions -----------------------------------------------------------------------------------------------------


def ask(api: Any, question: str) -> list[tuple[str, Any]]:
    sent = api.http.post("/afina/api/ask", json={"model": "kiosk", "question": question})
    assert sent.status_code == 200, sent.text
    return events_of(sent.text)


def events_of(text: str) -> list[tuple[str, Any]]:
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


@pytest.mark.slow
def test_an_answer_comes_with_sources_that_are_real(make_api: MakeApi, kiosk: Path) -> None:
    events = ask(make_api(runs=[kiosk]), "What is The Lighthouse Keeper's Kite about?")
    names = [name for name, _ in events]
    assert names == ["passages", *["delta"] * (len(names) - 2), "done"]
    assert len(names) > 3
    done = events[-1][1]
    assert "".join(data["text"] for name, data in events if name == "delta").strip() == done["text"]
    assert not done["refused"]
    contents = {product["uid"]: product["content"] for product in PRODUCTS}
    assert len(done["sources"]) >= 1
    for source in done["sources"]:
        assert contents[source["uid"]][source["start"] : source["end"]] == source["quote"]
    assert {hit["uid"] for hit in done["passages"]} <= set(contents)
    assert 0 <= done["support"] <= 1


@pytest.mark.slow
def test_questions_that_have_no_answer(make_api: MakeApi, kiosk: Path, form: Path) -> None:
    api = make_api(runs=[kiosk, form])
    absent = ask(api, "quantum toaster 9000")[-1][1]
    assert (absent["refused"], absent["sources"], absent["support"]) == (True, [], 0.0)
    long = ask(api, "kettle " * 7200)[-1][1]
    assert "characters" in long["note"]
    for question, said in (("", "empty"), (" \n", "empty"), ("?!", "expected words")):
        refused = api.http.post("/afina/api/ask", json={"model": "kiosk", "question": question})
        assert (refused.status_code, said in refused.json()["error"]["message"]) == (400, True), refused.text
    refused = api.http.post("/afina/api/ask", json={"model": "mood", "question": "x"})
    assert (refused.status_code, "without an index" in refused.json()["error"]["message"]) == (400, True)
    assert api.http.post("/afina/api/ask", json={"model": "gone", "question": "x"}).status_code == 404


# -- the real page -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory, form: Path, kiosk: Path) -> Server:
    """A real server with a form, an assistant, and one short training job under way."""
    settings = tmp_path_factory.mktemp("settings") / "server.yaml"
    settings.write_text(f"requests_per_minute: {LIMIT_A_MINUTE}\n", encoding="utf-8")
    data = tmp_path_factory.mktemp("site") / "data"
    server = start_server(data, str(form), str(kiosk), "--config", str(settings))
    create_job(server, n_epochs=3, suffix="short")
    return server


def create_job(server: Server, n_epochs: int, suffix: str) -> str:
    with server.http as http:
        files = [
            http.post("/v1/files", files={"file": ("t.jsonl", chat_lines(count))}, data={"purpose": "fine-tune"}).json()
            for count in (24, 10)
        ]
        chosen = {"n_epochs": n_epochs, "batch_size": 6}
        body = {
            "model": "gpt-4o-mini",
            "training_file": files[0]["id"],
            "validation_file": files[1]["id"],
            "suffix": suffix,
            "method": {"type": "supervised", "supervised": {"hyperparameters": chosen}},
        }
        return http.post("/v1/fine_tuning/jobs", json=body).json()["id"]


@pytest.fixture(scope="module")
def browser() -> Generator[Any]:
    program = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures go; AFINA_SHOTS keeps them."""
    folder = Path(os.environ.get("AFINA_SHOTS") or tmp_path_factory.mktemp("shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def visit(browser: Any, site: Server, shots: Path, request: pytest.FixtureRequest) -> Generator[Visit]:
    """A tab of a wide window, in English."""
    with visiting(browser, site.url, shots, request.node.name, key=site.key, locale="en-US") as opened:
        yield opened


LOOKS = [("wide", "light", "en-US"), ("wide", "dark", "pt-BR"), ("phone", "light", "pt-PT"), ("phone", "dark", "en-GB")]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme", "locale"), LOOKS)
def test_every_view_at_both_widths_light_and_dark(
    browser: Any, site: Server, shots: Path, width: str, scheme: Any, locale: str
) -> None:
    phone = width == "phone"
    options: dict[str, Any] = {"color_scheme": scheme, "locale": locale, "device_scale_factor": 2 if phone else 1}
    with visiting(browser, site.url, shots, f"{width}-{scheme}", key=None, phone=phone, **options) as visit:
        page = visit.page
        page.locator(".gate").wait_for()
        assert page.locator("html").get_attribute("lang") == ("pt-BR" if locale.startswith("pt") else "en")
        visit.shot("0-key")
        assert visit.check() >= 5
        page.fill(".gate input", site.key or "")
        page.click(".gate button")
        page.locator(".composer").wait_for()
        visit.shot("1-chat-empty")
        visit.check()
        visit.ask("What is The Lighthouse Keeper's Kite about?")
        page.locator(".source > summary").first.click()
        page.locator("mark").first.wait_for()
        visit.shot("2-sources", whole=True)
        visit.check()
        visit.ask("quantum toaster 9000")
        page.locator(".absent").wait_for()
        page.click(".toggle")
        visit.ask("Rope ladder, five metres")
        visit.shot("3-compared")
        boxes = [box.bounding_box() for box in page.locator(".turn:last-child .answer").all()]
        assert len(boxes) == 2
        assert (boxes[0]["x"] == boxes[1]["x"]) is phone  # below one another, or side by side
        visit.check()
        visit.go("form")
        page.fill("form.ask textarea", "O lucro dobrou e superou as previsões.")
        page.click("form.ask .primary")
        page.locator(".result .sure").first.wait_for()
        page.locator(".others summary").first.click()
        visit.shot("4-form", whole=True)
        visit.check()
        visit.go("jobs")
        page.locator(".curve .line.valid").wait_for(timeout=60_000)
        visit.shot("5-jobs", whole=True)
        visit.check()
        visit.go("reports")
        page.locator(".runs .card").first.wait_for()
        visit.shot("6-reports")
        visit.check()
        page.locator("a.card").first.click()
        page.frame_locator("iframe.report").locator("h1").wait_for()
        visit.shot("7-report")
        # The sandbox refuses the report's script, and the browser says so; that is what is wanted.
        visit.trouble = [line for line in visit.trouble if "sandboxed" not in line and "script-src" not in line]
        visit.check()


@pytest.mark.slow
def test_the_cited_sentence_is_marked_and_no_product_becomes_markup(visit: Visit, site: Server) -> None:
    page = visit.page
    page.locator(".composer").wait_for()
    cited: set[str] = set()
    # Each of the first two is found in one product alone; the third is hostile itself.
    for question in ("Lighthouse Keeper's Kite", "hammered copper kettle", f"Lighthouse? {XSS}"):
        visit.ask(question)
        with site.http as http:
            sent = http.post("/afina/api/ask", json={"model": "kiosk", "question": question})
        done = events_of(sent.text)[-1][1]
        cards = page.locator(".turn:last-child .sources .source")
        assert cards.count() == len(done["sources"]) >= 1
        for i, source in enumerate(done["sources"]):
            cards.nth(i).locator("summary").click()
            mark = cards.nth(i).locator("mark")
            mark.wait_for()
            assert mark.text_content() == source["quote"]
            assert source["title"] in cards.nth(i).text_content()
            assert source["uid"] in cards.nth(i).text_content()
            cited.add(source["uid"])
    assert cited >= {"0001360000", "000200000X"}
    assert XSS in page.locator(".asked").last.text_content()
    visit.go("reports")
    page.locator(".verdict").first.wait_for()
    assert XSS in page.locator(".verdict").first.text_content()
    assert page.locator("main img, main script").count() == 0
    assert "stolen" not in page.title()
    assert visit.trouble == []


@pytest.mark.slow
def test_streaming_and_stopping(visit: Visit) -> None:
    page = visit.page
    page.locator(".composer").wait_for()
    page.locator(".pair select").first.select_option("base:davinci-002")
    page.locator(".settings summary").click()
    page.get_by_label("Longest answer (tokens)").fill("2000")
    page.fill(".composer textarea", "Era uma vez")
    page.keyboard.press("Enter")
    text = page.locator(".answer .text")
    text.get_by_text(re.compile(r"\S")).wait_for()
    first = text.text_content()
    assert page.locator(".answer").get_attribute("aria-busy") == "true"
    page.locator(".composer .stop").click()
    page.locator(".answer.done").wait_for()
    assert "stopped" in page.locator(".answer .foot").text_content()
    ended = text.text_content()
    assert ended.startswith(first)
    time.sleep(0.5)
    assert text.text_content() == ended
    assert page.locator(".answer").get_attribute("aria-busy") == "false"
    assert visit.trouble == []


@pytest.mark.slow
def test_a_client_that_goes_away_stops_its_answer(site: Server) -> None:
    def begin() -> None:
        with site.http as http, http.stream("POST", "/afina/api/ask", json=body) as sent:
            for line in sent.iter_lines():
                if line.startswith("event: delta"):
                    return

    body = {"model": "kiosk", "question": "Tell me about the copper kettle"}
    with site.http as http:
        whole = events_of(http.post("/afina/api/ask", json=body).text)[-1][1]
        before = written(http)
        gone = [threading.Thread(target=begin) for _ in range(4)]
        for thread in gone:
            thread.start()
        for thread in gone:
            thread.join(60)
        again = events_of(http.post("/afina/api/ask", json=body).text)[-1][1]
        after = written(http)
    assert [again["text"], again["sources"]] == [whole["text"], whole["sources"]]
    # Only answers that were written to their end are counted.
    assert after - before == whole["usage"]["completion_tokens"]
    assert site.errors() == ""


def written(http: httpx.Client) -> float:
    """Tokens of all answers of the assistant so far."""
    found = re.search(r'afina_tokens_total\{kind="completion",model="kiosk"\} (\S+)', http.get("/metrics").text)
    assert found is not None
    return float(found[1])


@pytest.mark.slow
def test_jobs_are_paused_resumed_and_cancelled_when_confirmed(visit: Visit, site: Server) -> None:
    first, job = create_job(site, 40, "first"), create_job(site, 40, "waiting")
    page = visit.page
    visit.go(f"jobs/{job}")
    page.get_by_role("button", name="Pause").wait_for()
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("dialog").get_by_role("button", name="Leave it").click()
    assert status(site, job) in ("validating_files", "queued")
    for what, sure, then in (
        ("Pause", "Pause the job", "paused"),
        ("Resume", "Resume the job", "queued"),
        ("Cancel", "Cancel the job", "cancelled"),
    ):
        page.locator(".jobhead").get_by_role("button", name=what, exact=True).click()
        page.get_by_role("dialog").get_by_role("button", name=sure).click()
        page.locator(f".jobhead .chip.{then}").wait_for()
        assert status(site, job) == then
    with site.http as http:
        http.post(f"/v1/fine_tuning/jobs/{first}/cancel")
    assert visit.trouble == []


def status(site: Server, job: str) -> str:
    with site.http as http:
        return http.get(f"/v1/fine_tuning/jobs/{job}").json()["status"]


@pytest.mark.slow
def test_the_key_leaves_the_address_and_a_wrong_one_is_told(browser: Any, site: Server, shots: Path) -> None:
    with visiting(browser, site.url, shots, "key", key=site.key, locale="en-US") as visit:
        visit.page.locator(".composer").wait_for()
        assert visit.page.url == f"{site.url}/"
        assert visit.page.evaluate("sessionStorage.getItem('afina.key')") == site.key
        assert visit.page.evaluate("localStorage.length") == 0
    with visiting(browser, site.url, shots, "key", key="sk-afina-wrong-key", locale="en-US") as visit:
        visit.page.get_by_text("does not accept this key").wait_for()
        assert visit.page.evaluate("sessionStorage.length") == 0


@pytest.mark.slow
def test_trouble_is_one_clear_line(browser: Any, site: Server, shots: Path) -> None:
    made = afina("keys", "create", "limited", "--data-dir", site.data_dir, "--json")
    key = json.loads(made.out)["key"]
    with visiting(browser, site.url, shots, "trouble", key=key, locale="en-US") as visit:
        page = visit.page
        page.locator(".composer").wait_for()
        page.click(".composer .primary")
        assert page.locator(".composer .wrong").text_content() == "Write a question first."
        page.locator(".pair select").first.select_option("base:afina/nano")
        visit.ask("wort " * 10_000)
        assert "maximum context length" in page.locator(".answer .wrong").last.text_content()
        page.locator(".pair select").first.select_option("assistant:kiosk")
        visit.ask("kettle " * 7200)
        assert "characters were read" in page.locator(".answer").last.text_content()
        visit.check_errors(1)  # the refused question
        with httpx.Client(base_url=site.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as http:
            page.locator(".pair select").first.select_option("base:afina/nano")
            for _ in range(5):  # each second one more request is let in, which a slow machine may spend on the page
                asked = [http.post("/v1/chat/completions", json={}).status_code for _ in range(LIMIT_A_MINUTE + 3)]
                assert asked[-1] == 429
                visit.ask("Bom dia!")
                said = page.locator(".answer").last.text_content()
                if "Too many requests" in said:
                    break
        assert re.search(r"Too many requests for this key\. Try again in \d+ s\.", said)
        page.context.set_offline(True)
        visit.ask("Bom dia!")
        assert "does not answer" in page.locator(".answer .wrong").last.text_content()
        page.click("#views a[href='#/jobs']")
        page.locator("#notice").get_by_text("does not answer").wait_for()
        page.context.set_offline(False)
        page.locator(".joblist").wait_for()
        page.locator("#notice").wait_for(state="hidden")


@pytest.mark.slow
def test_language_can_be_switched_and_the_keyboard_reaches_everything(visit: Visit) -> None:
    page = visit.page
    page.locator(".composer").wait_for()
    page.get_by_role("button", name="Português (Brasil)").click()
    page.get_by_role("button", name="Perguntar").wait_for()
    assert page.locator("html").get_attribute("lang") == "pt-BR"
    page.reload()
    page.get_by_role("button", name="Perguntar").wait_for()
    page.evaluate("document.activeElement.blur()")
    reached: list[str] = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.textContent.trim().slice(0, 20) || document.activeElement.tagName")
        )
    assert {"Pular para o conteúd", "Conversa", "Treinos", "PT", "Comparar", "Perguntar"} <= set(reached), reached
    page.get_by_role("button", name="English").click()
    page.get_by_role("button", name="Ask", exact=True).wait_for()
    assert visit.trouble == []
