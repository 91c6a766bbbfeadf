"""A small catalogue of invented products, as shards and as an index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

Row = tuple[str, str, str]
ROWS: tuple[Row, ...] = (
    ("0000000011", "Pip's Lanterns", "A small fox called Pip lights the lanterns of a sleeping harbour. Ages 3 to 5."),
    ("000000012X", "Pip's Winter", "Pip the fox looks for snow. Ages 3 to 5. A picture book in verse."),
    ("0000000013", "What Is Rain?", "A first book of weather, with experiments for the kitchen table."),
    ("0000000014", "The Clockmaker of Évora", "A novel about a clockmaker, his daughter and a stolen bell."),
    ("0000000015", "Coração de Pedra", "Romance sobre duas irmãs que herdam uma pedreira no Alentejo."),
    ("0000000016", "Brontec 450 Cordless Drill", "Cordless drill with two batteries. Torque of 45 Nm. Keyless chuck."),
    ("0000000017", "Brontec 650 Cordless Drill", "Cordless drill with two batteries. Torque of 65 Nm. Metal gears."),
    (
        "0000000018",
        "Brontec Drill Bit Set, 19 Pieces",
        "Nineteen bits of hardened steel for wood and metal, in a case.",
    ),
    ("0000000019", "L'Orvelle Face Cream 50 ml", "A light cream for dry skin, without perfume."),
    ("0000000020", "Trail Runner Shoes for Women", "Light shoes for rough paths. Sizes 35 to 42."),
    ("0000000021", "Stainless Steel Kettle 1.7 L", "Boils 1.7 litres of water in four minutes. Switches itself off."),
    ("0000000022", "Kettle Descaler", "Removes lime from kettles and coffee machines. Four doses."),
    ("0000000023", "Garden Hose 20 m", "A hose that does not kink, with a brass nozzle."),
    ("0000000024", "Notebook, Ruled", "A notebook with 120 ruled pages and a ribbon."),
    ("0000000025", "Notebook, Ruled", "A notebook with 240 ruled pages and no ribbon."),
    ("0000000026", "The Book of Small Repairs", "How to mend a tap, a chair and a torn coat. With drawings."),
    ("0000000027", "Chess for Two Evenings", "The rules, six openings and forty puzzles for beginners."),
    ("0000000028", "Mapa dos Rios", "Mapa dobrável com todos os rios do país. Escala 1:500.000."),
    ("0000000029", "Wool Blanket, Grey", "Woven of new wool. 130 x 170 cm. Wash by hand."),
    ("0000000030", "Bicycle Lamp with Dynamo", "A lamp that needs no battery. Fits most forks."),
)


def write_shard(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(list(rows), schema=["uid", "title", "content"], orient="row").write_parquet(path)
    return path


def write_shards(folder: Path, rows: Sequence[Row] = ROWS, per_shard: int = 5) -> list[Path]:
    """folder/shard-00000.parquet and so on."""
    starts = range(0, len(rows), per_shard)
    return [
        write_shard(folder / f"shard-{number:05d}.parquet", rows[start : start + per_shard])
        for number, start in enumerate(starts)
    ]


def many_rows(count: int) -> list[Row]:
    """Products with words of their own, and many that tie."""
    kinds = ("lamp", "chair", "novel", "kettle", "drill")
    return [
        (f"{number:010d}", f"{kinds[number % 5]} model {number // 5:05d}", f"One {kinds[number % 5]} of many.")
        for number in range(count)
    ]
