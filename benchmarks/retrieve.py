"""How long does it take to index a catalogue, how fast is it asked, and how often is the right product first?

    python benchmarks/retrieve.py [--rows 1400000] [--questions 1000] [--rounds 1] [--quick]

Writes a catalogue of invented products as Parquet shards: words of a Zipf vocabulary of 400,000, titles and contents of
the lengths that LF-AmazonTitles-1.3MM has, words of the title again in the content. Rivals, each a process of its own:

  afina      `ProductIndex`: built, opened (every byte checked), asked
  sqlite     SQLite FTS5 (porter, unicode61), asked for the very words that Afina searches for, weighted alike

The questions are titles with words left out, inside "What is ... about?" and its Portuguese kin. The rival answers the
first --rival-questions of them. Where the shared data are, hetpqa too: question -> evidence among all candidates.
Prints ratios and targets last and keeps all of it under benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import BUILD, ROOT, Target, interleave, ratio, say, value_of, write_result

SHARD_ROWS = 20_000
VOCABULARY, ZIPF = 400_000, 1.05
COMMON_TITLES, COMMON_WORDS = 1 / 3, 5_000
FUNCTION_WORDS = """
the of and a to in is for this with that on it by from as are an you be or your at all can has will not have
more one book these its new which their most how about into life up world first story who time they been his
guide but use also her what when best set out was our an no work includes any over made great well
"""
QUESTIONS = (
    "What is {} about?",
    "Can you describe {}?",
    "Tell me about {}.",
    "Do que se trata {}?",
    "Descreva {}.",
    "O que é {}?",
)
LEFT_OUT = 0.25  # of a title's words
DEPTH = 5
WARM = 50  # questions asked before those that are timed
BUILD_S, P50_S, P95_S = 600.0, 0.005, 0.020  # targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_400_000)
    parser.add_argument("--questions", type=int, default=1_000)
    parser.add_argument("--rival-questions", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="60,000 rows, 200 questions: does it run?")
    parser.add_argument("--rivals", nargs="+", default=list(RIVALS), choices=RIVALS)
    parser.add_argument("--run", nargs=2, metavar=("RIVAL", "STEP"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.quick:
        asked.rows, asked.questions, asked.rival_questions = 60_000, 200, 50
    if asked.run:
        name, step = asked.run
        print(json.dumps(RIVALS[name][step](asked.folder, asked.questions, asked.rival_questions)))
        return
    folder = BUILD / f"retrieve-{asked.rows}"
    write_catalogue(folder, asked.rows, asked.questions)
    options = ["--folder", str(folder), "--questions", str(asked.questions)]
    options += ["--rival-questions", str(asked.rival_questions)]
    commands = {
        f"{name} {step}": [sys.executable, str(Path(__file__).resolve()), "--run", name, step, *options]
        for step in ("build", "ask")
        for name in asked.rivals
    }
    rows: list[dict[str, Any]] = []
    for step in ("build", "ask"):  # nothing can be asked before it is built
        these = {name: argv for name, argv in commands.items() if name.endswith(step)}
        rows += interleave(these, asked.rounds, timeout_s=7_200)
    rows += hetpqa(folder)
    ratios = {
        f"{step}: sqlite / afina, {what}": ratio(rows, key, f"sqlite {step}", f"afina {step}")
        for step, key, what in (
            ("build", "build_s", "seconds"),
            ("build", "index_bytes", "bytes"),
            ("ask", "query_p50_s", "p50"),
            ("ask", "query_p95_s", "p95"),
        )
    }
    targets = {
        f"build of {asked.rows:,} products, seconds": Target(
            value_of(rows, "afina build", "build_s"), at_most=BUILD_S * asked.rows / 1_400_000
        ),
        "query p50, warm, seconds": Target(value_of(rows, "afina ask", "query_p50_s"), at_most=P50_S),
        "query p95, warm, seconds": Target(value_of(rows, "afina ask", "query_p95_s"), at_most=P95_S),
    }
    notes = [
        f"{asked.rows:,} invented products; {asked.questions} questions, {asked.rival_questions} of them for SQLite.",
        "The recall of each rival is over the questions it was asked; in recall_same over the same ones.",
        "peak_rss_bytes of a build counts the files of the index that are mapped into memory; peak_own_bytes does not.",
        "query_cpu: processor time of the thread that asks, which other work on the machine does not add to.",
        "One question at a time. Words in many products only rank what rarer ones found (retrieval/index.py).",
    ]
    write_result("retrieve" if asked.rows >= 1_400_000 else f"retrieve-{asked.rows}", rows, ratios, targets, notes)


# -- the catalogue ---------------------------------------------------------------------------------


def write_catalogue(folder: Path, num_rows: int, num_questions: int) -> None:
    """folder/shards/*.parquet and folder/questions.jsonl, unless they are there already."""
    import numpy as np
    import polars as pl

    done = folder / "questions.jsonl"
    if done.exists() and sum(1 for _ in done.open(encoding="utf-8")) >= num_questions + WARM:
        return
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "shards").mkdir(parents=True)
    rng = np.random.default_rng(20)
    words = vocabulary(random.Random(20))
    share = 1 / np.arange(1, len(words) + 1) ** ZIPF
    edges = np.cumsum(share / share.sum())
    picked: list[tuple[str, str]] = []
    for number, start in enumerate(range(0, num_rows, SHARD_ROWS)):
        count = min(SHARD_ROWS, num_rows - start)
        uids = [f"{start + i:010d}" for i in range(count)]
        titles, contents = products(words, edges, rng, count)
        frame = pl.DataFrame({"uid": uids, "title": titles, "content": contents})
        frame.write_parquet(folder / "shards" / f"shard-{number:05d}.parquet")
        wanted = -(-(num_questions + WARM) * count // num_rows)
        picked += [(uids[i], titles[i]) for i in rng.choice(count, min(count, wanted + 1), replace=False)]
        if number % 10 == 0:
            say(f"catalogue: {start + count:,} of {num_rows:,} rows")
    draw = random.Random(21)
    draw.shuffle(picked)
    lines = [json.dumps({"uid": uid, "question": question_of(title, draw)}) for uid, title in picked]
    done.write_text("\n".join(lines[: num_questions + WARM]) + "\n", encoding="utf-8")


def vocabulary(draw: random.Random) -> Any:
    """VOCABULARY words, commonest first: function words, then invented ones of two to four syllables."""
    import numpy as np

    heads, middles, tails = [*"bcdfghjlmnprstv", "br", "cl", "gr", "st", "tr"], "aeiou", ["", "n", "r", "s", "l"]
    found = dict.fromkeys(FUNCTION_WORDS.split())
    while len(found) < VOCABULARY:
        size = draw.choice((2, 2, 3, 3, 4))
        found["".join(draw.choice(heads) + draw.choice(middles) + draw.choice(tails) for _ in range(size))] = None
    return np.array(list(found), dtype=object)


def products(words: Any, edges: Any, rng: Any, count: int) -> tuple[list[str], list[str]]:
    """Titles of about 8 words and contents of about 65 (lognormal, to some thousands), as the real ones are long."""
    import numpy as np

    # Every third title is of common words alone, as many are: no word of it finds the product by itself.
    top = np.where(rng.random(count) < COMMON_TITLES, edges[COMMON_WORDS - 1], 1.0)
    title_sizes = np.clip(rng.lognormal(2.0, 0.55, count), 1, 60).astype(int)
    content_sizes = np.clip(rng.lognormal(4.15, 0.9, count), 3, 8_000).astype(int)
    sizes = np.stack([title_sizes, content_sizes], axis=1).ravel()
    most = np.repeat(np.stack([top, np.ones(count)], axis=1).ravel(), sizes)
    drawn = words[np.searchsorted(edges, rng.random(int(sizes.sum())) * most).clip(0, len(words) - 1)]
    ends = np.cumsum(sizes)
    pieces = [drawn[end - size : end].tolist() for end, size in zip(ends, sizes, strict=True)]
    titles, contents = pieces[0::2], pieces[1::2]
    for title, content in zip(titles, contents, strict=True):
        for place, word in enumerate(title[::2]):  # half of the title's words stand in the content again
            content[(place * 7) % len(content)] = word
    return [" ".join(t).capitalize() for t in titles], [" ".join(c).capitalize() + "." for c in contents]


def question_of(title: str, draw: random.Random) -> str:
    kept = [word for word in title.split() if draw.random() >= LEFT_OUT] or title.split()
    return draw.choice(QUESTIONS).format(" ".join(kept))


def read_questions(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "questions.jsonl").open(encoding="utf-8")]


# -- rivals --------------------------------------------------------------------------------------------


def afina_build(folder: Path, *_: int) -> dict[str, Any]:
    from afina.retrieval.index import ProductIndex

    place = folder / "afina"
    shutil.rmtree(place, ignore_errors=True)
    own, stop = [0], threading.Event()
    threading.Thread(target=watch_memory, args=(own, stop), daemon=True).start()
    began = time.perf_counter()
    ProductIndex.build(place, sorted((folder / "shards").iterdir()), catalogue_key="benchmark", tell=say)
    took = time.perf_counter() - began
    stop.set()
    return {"build_s": took, "index_bytes": size_of(place), "peak_own_bytes": own[0]}


def watch_memory(peak: list[int], stop: threading.Event) -> None:
    """The most memory of this process without mapped files, looked at ten times a second (Linux; 0 elsewhere)."""
    status = Path("/proc/self/status")
    while status.exists() and not stop.wait(0.1):
        found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("RssAnon")]
        peak[0] = max(peak[0], int(found[0]) * 1024 if found else 0)


def afina_ask(folder: Path, num_questions: int, num_same: int) -> dict[str, Any]:
    from afina.retrieval.index import ProductIndex
    from afina.retrieval.support import support

    began = time.perf_counter()
    index = ProductIndex.open(folder / "afina")
    open_s = time.perf_counter() - began
    measured = ask(
        lambda question: [hit.passage.uid for hit in index.search(question, DEPTH)],
        read_questions(folder)[: num_questions + WARM],
        num_same,
    )
    times: list[float] = []
    for one in read_questions(folder)[:200]:
        hits = index.search(one["question"], DEPTH)
        began = time.perf_counter()
        support(index, one["question"], hits)
        times.append(time.perf_counter() - began)
    return {"open_s": open_s, **measured, "support_p50_s": sorted(times)[len(times) // 2]}


def sqlite_build(folder: Path, *_: int) -> dict[str, Any]:
    import polars as pl

    place = folder / "sqlite"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    began = time.perf_counter()
    database = sqlite3.connect(place / "index.db")
    database.execute("PRAGMA journal_mode=OFF")
    database.execute("PRAGMA synchronous=OFF")
    tokenizer = "porter unicode61 remove_diacritics 2"
    database.execute(f"CREATE VIRTUAL TABLE p USING fts5(uid UNINDEXED, title, content, tokenize='{tokenizer}')")
    for shard in sorted((folder / "shards").iterdir()):
        rows = pl.read_parquet(shard, columns=["uid", "title", "content"]).iter_rows()
        database.executemany("INSERT INTO p VALUES (?, ?, ?)", rows)
        database.commit()
    database.execute("INSERT INTO p(p) VALUES ('optimize')")
    database.commit()
    database.close()
    return {"build_s": time.perf_counter() - began, "index_bytes": size_of(place)}


def sqlite_ask(folder: Path, _: int, num_same: int) -> dict[str, Any]:
    from afina.retrieval.index import TITLE_WEIGHT
    from afina.retrieval.words import FRAME_WEIGHT, question_words

    database = sqlite3.connect(folder / "sqlite" / "index.db")
    rank = f"bm25(p, 0, {TITLE_WEIGHT}, 1)"
    query = f"SELECT uid FROM p WHERE p MATCH ? ORDER BY {rank} LIMIT {DEPTH}"

    def search(question: str) -> list[str]:
        words = [word for word, weight in question_words(question).items() if weight > FRAME_WEIGHT]
        quoted = " OR ".join(f'"{word}"' for word in words)
        return [row[0] for row in database.execute(query, (quoted,))]

    return ask(search, read_questions(folder)[: num_same + WARM], num_same)


def ask(search: Callable[[str], list[str]], asked: Sequence[dict[str, str]], num_same: int) -> dict[str, Any]:
    """Times and ranks of all questions but the first WARM; recall_same: over the first `num_same` of them."""
    from afina.evaluation.retrieval import Ranked, retrieval_scores

    times, work = list[float](), list[float]()
    ranked: list[Ranked] = []
    for one in asked:
        began, worked = time.perf_counter(), time.thread_time()
        found = search(one["question"])
        times.append(time.perf_counter() - began)
        work.append(time.thread_time() - worked)
        ranked.append(Ranked(found, {one["uid"]}))
    times, work, ranked = sorted(times[WARM:]), sorted(work[WARM:]), ranked[WARM:]
    scores = retrieval_scores(ranked)
    return {
        "num_questions": len(ranked),
        "query_p50_s": times[len(times) // 2],
        "query_p95_s": times[int(0.95 * len(times))],
        "query_max_s": times[-1],
        "query_cpu_p50_s": work[len(work) // 2],
        "query_cpu_p95_s": work[int(0.95 * len(work))],
        **{
            key: scores[key]
            for key in ("recall_at_1", "recall_at_1_ci", "recall_at_5", "recall_at_5_ci", "mrr", "mrr_ci")
        },
        "recall_same": retrieval_scores(ranked[:num_same])["recall_at_1"],
    }


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


RIVALS: dict[str, dict[str, Callable[..., dict[str, Any]]]] = {
    "afina": {"build": afina_build, "ask": afina_ask},
    "sqlite": {"build": sqlite_build, "ask": sqlite_ask},
}


# -- hetpqa ----------------------------------------------------------------------------------------------


def hetpqa(folder: Path) -> list[dict[str, Any]]:
    """One row: question -> evidence among all candidates of all products; none where the shared data are not."""
    from afina.evaluation.retrieval import Ranked, retrieval_scores
    from afina.retrieval.index import ProductIndex

    shared = Path(os.environ.get("AFINA_SHARED", ROOT.parent / "shared" / "data")) / "products"
    if not shared.is_dir():
        return []
    asked = list(hetpqa_rows(shared))
    index = ProductIndex.build(
        folder / "hetpqa", [write_candidates(folder, [row["candidate"] for row in asked])], catalogue_key="hetpqa"
    )
    ranked = [
        Ranked(
            [hit.passage.content for hit in index.search(row["question"], DEPTH)], {row["candidate"]}, row["product"]
        )
        for row in asked
    ]
    return [{"name": "hetpqa", "num_candidates": index.num_products, **retrieval_scores(ranked)}]


def hetpqa_rows(shared: Path) -> Iterator[dict[str, Any]]:
    """question, candidate, and a number for each product."""
    numbers: dict[str, int] = {}
    for name in ("train", "dev"):
        for line in (shared / f"hetpqa_{name}.tsv").read_text(encoding="utf-8").splitlines()[1:]:
            product, question, candidate, *_ = line.split("\t")
            yield {"question": question, "candidate": candidate, "product": numbers.setdefault(product, len(numbers))}


def write_candidates(folder: Path, candidates: Sequence[str]) -> Path:
    import polars as pl

    different = sorted(set(candidates))
    path = folder / "hetpqa.parquet"
    uids = [str(i) for i in range(len(different))]
    pl.DataFrame({"uid": uids, "title": [""] * len(different), "content": different}).write_parquet(path)
    return path


if __name__ == "__main__":
    main()
