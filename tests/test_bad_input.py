"""What a user can do wrong: one clear message, exit code 2, nothing half-written, never a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from command_line import Outcome, afina, news, recipe_text, untrained_specialist, write_csv

NUM_ROWS = 30


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a good table and a good recipe, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "news.csv", news(NUM_ROWS))
    (tmp_path / "recipe.yaml").write_text(recipe_text(), encoding="utf-8")
    return tmp_path


def change(rows: Sequence[int], column: str, value: str) -> Callable[[], None]:
    """The table with other values in some rows (from 0) of a column."""

    def make() -> None:
        table = news(NUM_ROWS)
        for row in rows:
            table[row][column] = value
        write_csv(Path("news.csv"), table)

    return make


def content(path: str, text: str | bytes) -> Callable[[], None]:
    return lambda: (Path(path).write_bytes(text if isinstance(text, bytes) else text.encode()), None)[1]


def folder(path: str, *files: str) -> Callable[[], None]:
    def make() -> None:
        Path(path).mkdir()
        for name in files:
            (Path(path) / name).write_text("mine")

    return make


def nothing() -> None:
    """The input is good."""


def tree(root: Path) -> dict[str, int]:
    """Every path below a folder, with its size."""
    return {str(p.relative_to(root)): p.stat().st_size if p.is_file() else -1 for p in sorted(root.rglob("*"))}


def assert_refused(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 2, outcome
    assert outcome.err.count("afina: ") == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    for word in words:
        assert word in outcome.err, outcome.err


ALL = range(NUM_ROWS)
PREPARE = ("prepare", "recipe.yaml")
# name -> how it comes about, the command, what the message must say
CASES: dict[str, tuple[Callable[[], None], Sequence[str], Sequence[str]]] = {
    # the table
    "missing file": (nothing, (*PREPARE, "data.path=no.csv"), ("no.csv: no such file", "Check the path")),
    "folder for a table": (folder("d"), (*PREPARE, "data.path=d"), ("d: found a folder", "Name a file")),
    "empty file": (content("news.csv", ""), PREPARE, ("news.csv: the file is empty", "Export")),
    "header only": (content("news.csv", "news_id,f1\n"), PREPARE, ("news.csv", "no rows")),
    "binary file": (content("news.csv", bytes(range(256)) * 8), PREPARE, ("news.csv:1", "NUL", "Expected a table")),
    "a workbook": (content("news.csv", b"PK\x03\x04" + b"x" * 50), PREPARE, ("Excel", "Export the sheet as CSV")),
    "missing input column": (
        nothing, (*PREPARE, "task.inputs={texto: frase1}"),
        ("no column 'frase1'", "task input 'texto'", "write task.inputs"),
    ),
    "missing label column": (
        nothing, (*PREPARE, "data.columns.polaridade=f1_polarity"),
        ("no column 'f1_polarity'", "nearest is 'f1_polaridade'", "data.columns: {polaridade: f1_polaridade}"),
    ),
    "many unknown labels": (
        change(range(6), "f1_polaridade", "bom"), PREPARE,
        ("6 of 30 rows (20.0%)", "6 × unknown label", "line 2: 'polaridade' is 'bom'", "data.max_rejected: 0.21"),
    ),
    "all ids equal": (change(ALL, "news_id", "7"), PREPARE, ("29 × duplicate id", "line 3: the id '7'")),
    "all inputs empty": (change(ALL, "f1", " "), PREPARE, ("none is usable: 30 × empty input",)),
    "all rows duplicates": (
        change(ALL, "f1", "A mesma frase de sempre."), PREPARE, ("news.csv: all 30 usable rows are near-duplicates",),
    ),
    "an example too long": (
        nothing, (*PREPARE, "train.max_length=60"), ("longer than train.max_length 60", "news.csv:", "on_too_long"),
    ),
    "a test table of the same rows": (
        lambda: (shutil.copy("news.csv", "test.csv"), None)[1], (*PREPARE, "data.test_path=test.csv"),
        ("news.csv: the split train", "near-duplicates of rows in test.csv", "Name a test table with other rows"),
    ),
    # the recipe
    "no recipe": (nothing, ("run", "no.yaml"), ("no.yaml: no such recipe", "afina init")),
    "folder for a recipe": (folder("d"), ("run", "d"), ("d: found a folder", "Name the file")),
    "no YAML": (content("recipe.yaml", "a: [1,\n b: }"), ("run", "recipe.yaml"), ("recipe.yaml:2: is no valid YAML",)),
    "not a mapping": (content("recipe.yaml", "hello"), ("run", "recipe.yaml"), ("found a single value", "task, data")),
    "empty recipe": (content("recipe.yaml", ""), ("run", "recipe.yaml"), ("found an empty file",)),
    "binary recipe": (content("recipe.yaml", b"\x00\xff\xfe"), ("run", "recipe.yaml"), ("is no UTF-8 text",)),
    "a key twice": (
        content("recipe.yaml", recipe_text() + "compare: [tfidf]\n"), ("run", "recipe.yaml"),
        ("the key 'compare' stands twice",),
    ),
    "misspelt key": (
        nothing, (*PREPARE, "train.max_step=2"), ("unknown key train.max_step. Did you mean train.max_steps?",),
    ),
    "another tool's key": (nothing, (*PREPARE, "train.lora_rank=2"), ("Did you mean train.lora_r?",)),
    "unknown key": (nothing, (*PREPARE, "train.banana=2"), ("unknown key train.banana. Known here: base_model,",)),
    "wrong type": (nothing, (*PREPARE, "train.lora_r=abc"), ("train.lora_r: found 'abc', expected a whole number",)),
    "wrong type in a union": (
        nothing, (*PREPARE, "train.load_in_4bit=maybe"), ("found 'maybe', expected true or false or 'auto'",),
    ),
    "a value for a group": (nothing, (*PREPARE, "train=5"), ("train: found 5, expected a group of settings",)),
    "a value for a list": (nothing, (*PREPARE, "compare=tfidf"), ("compare: found 'tfidf', expected a list",)),
    "out of range": (nothing, (*PREPARE, "train.learning_rate=-1"), ("found -1, expected more than 0",)),
    "no override": (nothing, (*PREPARE, "train.lora_r"), ("expected KEY=VALUE",)),
    "a system twice": (nothing, (*PREPARE, "compare=[tfidf, tfidf]"), ("a system stands twice",)),
    "constant with warm-up": (
        nothing, (*PREPARE, "train.lr_scheduler_type=constant", "train.warmup_ratio=0.1"), ("constant_with_warmup",),
    ),
    "4 bit and all weights": (
        nothing, (*PREPARE, "train.load_in_4bit=true", "train.finetuning_type=full"), ("finetuning_type: lora",),
    ),
    "4 bit and 8 bit": (
        nothing, (*PREPARE, "train.load_in_4bit=true", "train.load_in_8bit=true"), ("Keep one of them",),
    ),
    "steps and epochs": (nothing, (*PREPARE, "train.num_train_epochs=2"), ("max_steps and num_train_epochs",)),
    "a test table and a test size": (
        nothing, (*PREPARE, "data.test_path=news.csv", "data.test_size=0.3"), ("so test_size has no effect",),
    ),
    "nothing left to train on": (
        nothing, (*PREPARE, "data.test_size=0.6", "data.validation_size=0.5"), ("leave nothing to train on",),
    ),
    "a schema that cannot be kept": (
        nothing, (*PREPARE, "task.output={type: object, properties: {a: {type: string, contains: x}}}"),
        ("'contains'",),
    ),
    # the base model
    "no such hub model": (
        nothing, (*PREPARE, "train.base_model=nobody/nothing-7b"), ("nobody/nothing-7b", "the hub cannot be reached"),
    ),
    "misspelt model folder": (
        nothing, (*PREPARE, "train.base_model=./models/nano"), ("./models/nano", "Check the path"),
    ),
    "a file for a model": (nothing, (*PREPARE, "train.base_model=news.csv"), ("found a file", "model folder")),
    "a folder without a model": (folder("m", "a"), (*PREPARE, "train.base_model=m"), ("lacks config.json",)),
    # the output folder
    "output under a file": (nothing, (*PREPARE, "output_dir=news.csv/run"), ("a file stands where a folder",)),
    "output is a file": (nothing, (*PREPARE, "output_dir=news.csv"), ("a file stands where a folder",)),
    "output with files of others": (
        folder("run", "thesis.doc"), (*PREPARE, "--yes"), ("run: is not empty and holds no run", "output_dir=..."),
    ),
    # init, predict, report
    "init over a recipe": (nothing, ("init", "news.csv", "-o", "recipe.yaml"), ("exists already", "--yes")),
    "init of nothing": (nothing, ("init", "no.csv", "-o", "new.yaml"), ("no.csv: no such file",)),
    "predict without a run": (nothing, ("predict", "no", "-i", "news.csv", "-o", "o.csv"), ("no: no such folder",)),
    "predict on any folder": (
        folder("d", "a"), ("predict", "d", "-i", "news.csv", "-o", "o.csv"), ("d: holds no specialist", "afina run"),
    ),
    "report of any folder": (folder("d", "a"), ("report", "d"), ("d: found no report.json", "afina evaluate")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str, here: Path) -> None:
    make, command, words = CASES[name]
    make()
    before = tree(here)
    assert_refused(afina(*command), *words)
    assert tree(here) == before, "something was left behind"


def test_all_cases_were_there() -> None:
    assert len(CASES) == 50


def test_a_label_of_one_example_is_named_with_its_line(here: Path) -> None:
    change(ALL, "f1_polaridade", "positivo")()
    table = news(NUM_ROWS)
    for number, row in enumerate(table):
        row["f1_polaridade"] = "neutro" if number == 3 else "positivo"
    write_csv(here / "news.csv", table)
    outcome = afina(*PREPARE)
    assert_refused(outcome, "news.csv: the label 'neutro' of 'polaridade' stands in 1 example (line 5)")
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            change([3], "f1_polaridade", "possitivo"),
            "1 × unknown label (first: news.csv:5, 'polaridade' is 'possitivo'",
        ),
        (change([3], "news_id", "1"), "1 × duplicate id (first: news.csv:5, the id '1' already stands in line 2"),
        (change([3], "f1", ""), "1 × empty input (first: news.csv:5, texto is empty"),
    ],
)
def test_one_bad_row_is_counted_and_left_out(here: Path, make: Callable[[], None], reason: str) -> None:
    make()
    outcome = afina(*PREPARE)
    assert outcome.code == 0
    assert "30 rows read (csv, UTF-8), 29 usable, 1 rejected" in outcome.out
    assert reason in outcome.out
    assert len((here / "run/data/rejected.jsonl").read_text(encoding="utf-8").splitlines()) == 1


def test_a_ragged_row_and_latin_1_are_said(here: Path) -> None:
    lines = (here / "news.csv").read_text(encoding="utf-8").splitlines()
    lines[5] += ",one cell more"
    (here / "news.csv").write_bytes("\n".join(lines).encode("latin-1", "replace"))
    outcome = afina(*PREPARE)
    assert outcome.code == 0
    assert "wrong number of cells (first: news.csv:6, found 17 cells, expected 16)" in outcome.out
    assert "read as Latin-1: byte 0x" in outcome.out


def test_a_folder_that_the_system_refuses(here: Path) -> None:
    if not Path("/proc").is_dir():
        pytest.skip("there is no /proc here, where nobody may write")
    assert_refused(afina(*PREPARE, "output_dir=/proc/run"), "/proc/run: cannot write")


def test_a_failed_first_try_does_not_occupy_the_folder(here: Path) -> None:
    assert_refused(afina(*PREPARE, "data.columns.polaridade=nope"), "no column 'nope'")
    assert not (here / "run").exists()
    assert afina(*PREPARE).code == 0


def test_the_run_of_another_recipe_stays(here: Path) -> None:
    assert afina(*PREPARE).code == 0
    before = tree(here)
    assert_refused(afina(*PREPARE, "seed=7"), "run: holds the run of another recipe", "--yes")
    # Even with consent nothing is lost before the new recipe's data are good.
    assert_refused(afina(*PREPARE, "seed=7", "data.columns.polaridade=nope", "--yes"), "no column 'nope'")
    assert tree(here) == before
    (here / "run" / "notes.txt").write_text("mine")
    assert afina(*PREPARE, "seed=7", "--yes").code == 0
    assert (here / "run" / "notes.txt").exists()
    assert json.loads((here / "run/recipe.json").read_text(encoding="utf-8"))["seed"] == 7


def test_prepared_data_serve_other_training_settings(here: Path) -> None:
    assert afina(*PREPARE).code == 0
    assert afina(*PREPARE, "train.lora_r=8").code == 0
    assert json.loads((here / "run/recipe.json").read_text(encoding="utf-8"))["train"]["lora_r"] == 8


def test_two_processes_do_not_share_a_run_folder(here: Path) -> None:
    pytest.importorskip("fcntl", reason="no file locks on this system")
    assert afina(*PREPARE).code == 0
    held = "import fcntl, sys; f = open('run/.lock', 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", held + "; sys.stdin.read()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=here
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert_refused(afina(*PREPARE), "run: another process is working in this run folder")
        other.communicate(timeout=10)
    assert afina(*PREPARE).code == 0


# -- a full disk ---------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    """A file system of its own with so much space; skips where this user may not mount one."""
    place.mkdir()
    mounted = shutil.which("mount") and os.name == "posix"
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if not mounted or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("this user may not mount a small file system; the limit on a file's size is tested instead")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_the_disk_is_full_while_preparing(here: Path) -> None:
    with small_disk(here / "disk", "16k"):
        assert_refused(afina(*PREPARE, "output_dir=disk/run"), "disk/run", "the disk is full", "Free some space")
        assert tree(here / "disk") == {}


def test_a_file_grows_beyond_what_is_allowed(here: Path) -> None:
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        outcome = afina(*PREPARE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert_refused(outcome, "cannot write: the disk is full, or a limit is reached")
    assert not (here / "run").exists()


# -- a specialist that is not what it was ----------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_specialist(tmp_path_factory.mktemp("whole") / "specialist")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def swap_tokens(path: Path) -> None:
    """Two rare tokens change places: everything loads, and some texts become other tokens."""
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    one, other = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


DAMAGE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "weights cut off": ("model.safetensors", cut, "model.safetensors is damaged"),
    "no weights": ("model.safetensors", Path.unlink, "lacks model.safetensors"),
    "another tokenizer": ("tokenizer.json", swap_tokens, "prompts would be rendered otherwise than in training"),
    "tokenizer cut off": ("tokenizer.json", cut, "cannot be loaded"),
    "no tokenizer": ("tokenizer.json", Path.unlink, "has no tokenizer.json"),
    "manifest cut off": ("afina.json", cut, "afina.json: is damaged"),
    "no manifest": ("afina.json", Path.unlink, "holds no specialist"),
    "configuration cut off": ("config.json", cut, "cannot be loaded"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_specialist_is_refused(name: str, whole: Path, here: Path) -> None:
    file, damage, words = DAMAGE[name]
    shutil.copytree(whole, here / "specialist")
    damage(here / "specialist" / file)
    before = tree(here)
    assert_refused(afina("predict", "specialist", "-i", "news.csv", "-o", "out/answers.csv"), words)
    assert tree(here) == before


def test_what_predict_refuses(whole: Path, here: Path) -> None:
    (here / "old.csv").write_text("mine")
    (here / "other.csv").write_text("a,b\n1,2\n")
    before = tree(here)

    def predict(source: str, output: str, *more: str) -> Outcome:
        return afina("predict", whole, "-i", source, "-o", output, *more)

    assert_refused(predict("news.csv", "old.csv"), "old.csv: exists already", "--yes")
    assert_refused(predict("news.csv", "news.csv", "--yes"), "news.csv: is the input itself")
    assert_refused(predict("news.csv", "o.xlsx"), "written as .csv, .jsonl or .parquet")
    assert_refused(predict("no.csv", "o.csv"), "no.csv: no such file")
    assert_refused(predict("other.csv", "o.csv"), "other.csv: no column 'f1'", "rename it to 'f1'")
    assert_refused(predict("news.csv", "o.csv", "--id-column", "newsid"), "The nearest is 'news_id'")
    assert_refused(predict("news.csv", "news.csv/o.csv"), "a file stands where a folder is needed")
    assert tree(here) == before


def test_the_disk_is_full_while_predicting(whole: Path, here: Path) -> None:
    write_csv(here / "few.csv", news(8))
    with small_disk(here / "disk", "4k"):  # room for the answers as they come, not for the output beside them
        assert_refused(afina("predict", whole, "-i", "few.csv", "-o", "disk/o.csv"), "the disk is full", "Free some")
        assert list(tree(here / "disk")) == [".o.csv.partial.jsonl"]
        lines = (here / "disk/.o.csv.partial.jsonl").read_bytes().splitlines()
        assert [list(json.loads(line)) for line in lines[:2]] == [["key"], ["id", "output", "confidence", "error"]]
        assert len(lines) == 9  # whole lines only, to go on from
