"""Generation with the caches that models keep: whole, sliding, recurrent and mixed, against transformers' `generate`."""

import pytest

from raysift.actors.generator import Generator
from raysift.actors.loaded import LoadedModel
from raysift.templates import encode_prompt

from ..tiny_models import byte_tokenizer  # noqa: TID252
from .test_generator import by_id, prompts, table

ENDS = [2, *range(60, 90)]
SHAPE = {
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,  # tied, a random Gemma repeats itself
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS = {
    "sliding": ("Gemma3Text", {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "convolution": ("Lfm2", {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}),
    "mamba": (
        "FalconH1",
        {"mamba_d_ssm": 32, "mamba_n_heads": 2, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8},
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def loaded(request) -> LoadedModel:
    import torch
    import transformers

    kind, more = KINDS[request.param]
    config = getattr(transformers, f"{kind}Config")(**SHAPE | more)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config).eval()
    model.generation_config.eos_token_id = ENDS  # random weights hardly ever end an answer
    return LoadedModel(model, byte_tokenizer())


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_those_of_transformers_generate(loaded, beams, caplog):
    import torch
    from transformers import GenerationConfig

    texts = prompts(8)
    answers = by_id(Generator(loaded, max_new_tokens=12, beams=beams, batch_tokens=2**20)(table(texts)))
    settings = GenerationConfig(
        max_new_tokens=12, num_beams=beams, do_sample=False, eos_token_id=ENDS, pad_token_id=0, use_cache=True
    )
    for i, text in enumerate(texts):
        ids = torch.tensor([encode_prompt(loaded.tokenizer, [{"role": "user", "content": text}])])
        found = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        expected = found[0, ids.shape[1] :].tolist()
        while len(expected) > 1 and expected[-1] == 0:  # transformers pads answers that are over
            expected.pop()
        assert answers[i]["error"] is None
        assert (answers[i]["finished"], answers[i]["n_new_tokens"]) == (expected[-1] in ENDS, len(expected))
        words = expected[:-1] if expected[-1] in ENDS else expected
        assert answers[i]["answer"] == loaded.tokenizer.decode(words, skip_special_tokens=True).strip()
    assert len({row["n_new_tokens"] for row in answers.values()}) > 1, "no row leaves the batch before the others"
    own = [record.message for record in caplog.records if record.name.startswith("raysift")]
    assert not own, "a batch failed and went row by row"
