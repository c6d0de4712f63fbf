"""The nano models' tokenizer: bytes, plus the whole words of the question templates; and their chat template.

No merges, so the content of a problem stays single letters and digits, and any text survives a round trip.
"""

from __future__ import annotations

from typing import Any

from raysift.nano.noise import RAMBLING_ENDS, RAMBLING_STARTS
from raysift.nano.skills import SKILLS
from raysift.nano.styles import SENTENCE_START
from raysift.nano.words import NOUNS

SPECIAL_TOKENS = ("<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<|assistant|>' -}}{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
{%- else -%}
{{- '<|' + message['role'] + '|>' + message['content'] -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def build_tokenizer() -> Any:
    """A byte-level tokenizer whose only longer tokens are whole words of the templates.

    `ignore_merges` looks a whole word up first and falls back to bytes, so a payload word is never cut into odd
    pieces, which keeps letter skills learnable.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
    for token in [*sorted(pre_tokenizers.ByteLevel.alphabet()), *_template_words()]:
        vocabulary.setdefault(token, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|begin|>",
        eos_token="<|end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def _template_words() -> list[str]:
    """Words of questions and of rambling, as the pre-tokenizer splits them, except those that problems use."""
    from tokenizers import pre_tokenizers

    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [phrasing.format("7", "7", "7") for skill in SKILLS.values() for phrasing in skill.phrasings]
    texts += [*RAMBLING_STARTS, *RAMBLING_ENDS, SENTENCE_START]
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(text)}
    bare = {word: word.removeprefix("Ġ") for word in words}
    return sorted(word for word in words if len(bare[word]) > 1 and bare[word].isalpha() and bare[word] not in NOUNS)
