"""What does it cost to prepare a catalogue, beside unpacking it, and beside the script that a student would write?

    python benchmarks/prepare.py [--rows 300000] [--rounds 3] [--quick]

The file is made by `catalogue_file.py` and has the shape and dirt of LF-AmazonTitles-1.3MM (2,250,000 rows: --rows).
Systems, each a process of its own, interleaved:
  zcat         unpacks the file and throws it away
  reading      Afina: read, reject what cannot be used, write shards
  cleaning     the same with every text cleaned; repetitions are not looked for
  whole        Afina's preparation, the search for near duplicates included
  pandas       `rivals/prepare_pandas.py`: the same cleaning; left out above 300,000 rows unless --pandas is given
The whole is also run on a third of the rows, to see that time is linear and memory flat. Prints ratios and targets last
and keeps all of it under benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from catalogue_file import truth_path, write_catalogue
from harness import BUILD, RESULTS, Target, interleave, ratio, say, value_of, write_result

HERE = Path(__file__).resolve()
RIVALS = HERE.parent / "rivals"
SYSTEMS = ("zcat", "reading", "cleaning", "whole", "pandas")
PANDAS_ROWS, QUICK_ROWS = 300_000, 3000
SHARES = {"train": 0.9, "validation": 0.05, "test": 0.05}
THIRD = "whole, a third"
PANDAS, READING = "pandas / whole, time", "reading / zcat, time"
SEARCH, LINEAR = "search for repetitions / all else, time", "whole / its third, time of one row"
FLAT = "whole / its third, peak memory"


# -- inside a system's process -------------------------------------------------------------------


def run_system(system: str, path: Path, out: Path) -> dict[str, Any]:
    """One of Afina's three. out: what an earlier round left there is removed."""
    shutil.rmtree(out, ignore_errors=True)
    from afina.catalogue.prepare import Extent, prepare_catalogue
    from afina.core.catalogue_config import CatalogueConfig

    began = time.perf_counter()
    extent = Extent(cleaning=system != "reading", duplicates=system == "whole")
    prepare_catalogue(CatalogueConfig(path=path), out, seed=0, shares=SHARES, extent=extent)
    work_s = time.perf_counter() - began
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {**{name: report["rows"][name] for name in ("read", "kept")}, "work_s": work_s}


# -- outside -------------------------------------------------------------------------------------


def catalogue_of(rows: int, folder: Path) -> Path:
    """The generated file, made if it is not there."""
    path = folder / f"catalogue-{rows}.jsonl.gz"
    if not truth_path(path).exists():
        say(f"making {path.name}")
        write_catalogue(path, rows)
    path.read_bytes()  # every system finds it in memory
    return path


def command(system: str, path: Path, out: Path) -> list[str]:
    """The system's process, watched."""
    watch = [sys.executable, str(RIVALS / "watch.py")]
    if system == "zcat":
        return [*watch, "sh", "-c", 'zcat "$0" > /dev/null', str(path)]
    script = [str(RIVALS / "prepare_pandas.py")] if system == "pandas" else [str(HERE), "--system", system]
    return [*watch, sys.executable, *script, str(path), str(out)]


def agreement(ours: Path, theirs: Path) -> dict[str, Any]:
    """How far two outputs are the same rows: shares of all products that either kept."""
    import polars

    columns = ["uid", "title", "content"]
    a = polars.read_parquet(ours / "shards" / "*.parquet", columns=columns)
    b = polars.read_parquet(theirs / "*.parquet", columns=columns)
    both = a.join(b, on="uid", how="full", suffix="_b", coalesce=False)
    kept = both.filter(polars.col("uid").is_not_null() & polars.col("uid_b").is_not_null())
    equal = kept.filter(
        (polars.col("title") == polars.col("title_b")) & (polars.col("content") == polars.col("content_b"))
    )
    return {"kept_by_both": kept.height / both.height, "same_text": equal.height / max(1, kept.height)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pandas", action="store_true", help="however many rows there are")
    parser.add_argument("--quick", action="store_true", help="a few thousand rows, once: does it run?")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.system:
        print(json.dumps(run_system(asked.system, *asked.paths)))
        return
    rows, rounds = (QUICK_ROWS, 1) if asked.quick else (asked.rows, asked.rounds)
    folder = BUILD / "catalogues"
    folder.mkdir(parents=True, exist_ok=True)
    path, part = catalogue_of(rows, folder), catalogue_of(rows // 3, folder)
    systems = [name for name in SYSTEMS if name != "pandas" or asked.pandas or rows <= PANDAS_ROWS]
    commands = {name: command(name, path, folder / name) for name in systems}
    commands[THIRD] = command("whole", part, folder / "third")
    found = interleave(commands, rounds)
    for row in found:
        if row.get("run_s") and row["name"] != THIRD:
            row["rows_per_s"] = rows / row["run_s"]
    notes = [
        f"{path.name}: {path.stat().st_size / 1e6:,.0f} MB packed. Processes are timed from start to end.",
        "pandas does not look for near duplicates or clusters; whole does.",
    ]
    if "pandas" in systems and not any(row.get("failed") for row in found):
        same = agreement(folder / "whole", folder / "pandas")
        notes.append(
            f"whole and pandas: {same['kept_by_both']:.2%} of the products that either kept were kept by both, "
            f"{same['same_text']:.2%} of these with the same title and content, character by character."
        )
    ratios = compared(found, rows)
    bounds = targets(found, ratios)
    name = "prepare-quick" if asked.quick else f"prepare-{rows}"
    write_result(name, found, ratios, bounds, notes, folder=asked.results)


def compared(found: Sequence[Mapping[str, Any]], rows: int) -> dict[str, float | None]:
    """Ratios of one round's processes, as medians over rounds."""

    def time_of(over: str, under: str) -> float | None:
        return ratio(found, "run_s", over, under)

    whole = time_of("whole", "cleaning")
    linear = time_of("whole", THIRD)
    return {
        PANDAS: time_of("pandas", "whole"),
        "pandas / cleaning, time": time_of("pandas", "cleaning"),
        READING: time_of("reading", "zcat"),
        SEARCH: None if whole is None else whole - 1,
        LINEAR: None if linear is None else linear * (rows // 3) / rows,
        FLAT: ratio(found, "tree_peak_bytes", "whole", THIRD),
    }


def targets(found: Sequence[Mapping[str, Any]], ratios: Mapping[str, float | None]) -> dict[str, Target]:
    bounds = {
        READING: Target(ratios[READING], at_most=2.0),
        SEARCH: Target(ratios[SEARCH], at_most=1.0),
        LINEAR: Target(ratios[LINEAR], at_most=1.2),
        FLAT: Target(ratios[FLAT], at_most=1.2),
        "whole, peak memory of all processes, bytes": Target(value_of(found, "whole", "tree_peak_bytes"), at_most=1e9),
    }
    if value_of(found, "pandas", "name") or value_of(found, "pandas", "failed"):
        bounds = {PANDAS: Target(ratios[PANDAS], at_least=4.0), **bounds}
    return bounds


if __name__ == "__main__":
    main()
