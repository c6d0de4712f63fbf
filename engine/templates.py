"""Chat messages to token ids, and which of those tokens count for the loss: the assistant's words and their end token.

`auto` uses the tokenizer's own chat template. If that marks what the assistant says (`{% generation %}`), the marks
are used. Otherwise the spans are found by rendering prefixes of the conversation, since whatever follows a generation
prompt is what the model has to say itself. `chatml`, `alpaca` (Stanford's two prompts, with and without an input; a
message carries its input beside it) and `tulu` (LESS, ROSE) are ours, for base models. `auto` falls back on `tulu` if
a tokenizer has no template.

A prompt has the same tokens in training and in generation. Where a tokenizer would merge the end of the prompt with the
beginning of the answer (`:` and `(` to `:(`), the text is cut between them, so that every word of an answer counts.

Departures: the line break after an end token never counts (LESS counts it between turns); a token that would straddle the
beginning of an answer is cut (the official codes drop it from the loss); a repeated BOS or EOS, which data and template may
both add, is removed and reported in `doubled_special`.

Tokenizers are passed in as objects and must be fast ones, because labels are placed by character offsets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from raysift.errors import ConfigError, DataError, ModelError
from raysift.pool.given_input import INPUT, split_input
from raysift.records import ChatMessage

IGNORED = -100
FALLBACK = "tulu"
TODAY = datetime(2024, 7, 26)
"""Today, for templates that print the date: results must not depend on the day of the run. Llama 3.1's own default."""
ALPACA_PREAMBLE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
ALPACA_INPUT_PREAMBLE = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a response "
    "that appropriately completes the request."
)

Span = tuple[int, int]
MarkedText = tuple[str, bool]  # text, and whether it counts

# Noncharacters: valid in a Python string, but never part of a text.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


@dataclass(frozen=True)
class Encoded:
    """A conversation as a model reads it; `labels` repeats the ids that count and is -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]
    truncated: bool
    """Tokens that count were cut off at `max_length`."""
    doubled_special: bool
    """A BOS or EOS stood twice in a row; one of them was removed."""
    template: str
    """The template that was used; `auto` is resolved."""

    @property
    def has_labels(self) -> bool:
        """Whether any token is left to learn; the first does not count, as nothing precedes it to predict it from."""
        return any(label != IGNORED for label in self.labels[1:])


def encode_conversation(
    tokenizer: Any, messages: Sequence[ChatMessage], max_length: int, template: str = "auto"
) -> Encoded:
    """Token ids and labels of a whole conversation, cut off on the right after `max_length` tokens."""
    name = resolve_template(tokenizer, template)
    text, spans = _render(tokenizer, messages, name)
    ids, offsets = _tokenize(tokenizer, text, [start for start, _ in spans])
    counted = _counted_tokens(offsets, spans)
    keep = _without_doubles(tokenizer, ids)
    ids, counted = [ids[i] for i in keep], [counted[i] for i in keep]
    return Encoded(
        input_ids=ids[:max_length],
        labels=[token if counts else IGNORED for token, counts in zip(ids, counted, strict=True)][:max_length],
        truncated=any(counted[max_length:]),
        doubled_special=len(keep) < len(offsets),
        template=name,
    )


def encode_prompt(tokenizer: Any, messages: Sequence[ChatMessage], template: str = "auto") -> list[int]:
    """Token ids up to where the assistant begins to speak, for generating an answer."""
    text, spans = _render(tokenizer, messages, resolve_template(tokenizer, template), ask=True)
    ids, _ = _tokenize(tokenizer, text, [start for start, _ in spans])
    return [ids[i] for i in _without_doubles(tokenizer, ids)]


def resolve_template(tokenizer: Any, template: str) -> str:
    """`chat` for the tokenizer's own template, or the name of one of ours."""
    if template == "auto":
        return "chat" if getattr(tokenizer, "chat_template", None) else FALLBACK
    if template not in _TEMPLATES:
        raise ConfigError(f"template: unknown name '{template}'; known: auto, {', '.join(sorted(_TEMPLATES))}.")
    return template


def render_chat(tokenizer: Any, messages: Sequence[ChatMessage], **options: Any) -> str:
    """The text by the tokenizer's own template. If that refuses the conversation (`raise_exception`), only this row fails."""
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, strftime_now=TODAY.strftime, **options)
    except Exception as error:
        # Naming jinja2's exceptions would mean importing it for a message alone.
        roles = [message["role"] for message in messages]
        raise DataError(
            f"template: the tokenizer's chat template refuses roles {roles}: {type(error).__name__}: {error}. "
            "Name another template, or drop such rows."
        ) from error
    return str(text)


def _render(tokenizer: Any, messages: Sequence[ChatMessage], name: str, ask: bool = False) -> tuple[str, list[Span]]:
    """The text and the assistant's spans in it; with `ask` it ends where the assistant is to speak next."""
    return (_render_own if name == "chat" else _render_named)(tokenizer, messages, name, ask)


# --- the tokenizer's own template ------------------------------------------------------------------------------------


def _render_own(tokenizer: Any, messages: Sequence[ChatMessage], name: str, ask: bool) -> tuple[str, list[Span]]:
    template = tokenizer.get_chat_template() if hasattr(tokenizer, "get_chat_template") else tokenizer.chat_template
    asking = {"add_generation_prompt": True} if ask else {}
    if _TAG.search(template):
        marked = render_chat(tokenizer, messages, chat_template=_marked_template(template), **asking)
        text, spans = _strip_marks(marked)
    else:
        text = render_chat(tokenizer, messages, **asking)
        try:
            spans = _spans_by_prefix(tokenizer, messages, text, asking)
        except DataError:
            if not ask:
                raise
            spans = []  # a prompt can be asked without knowing its earlier answers
    specials = _special_pattern(tokenizer)
    return text, [(start, _through_end_token(text, start, end, specials)) for start, end in spans]


@lru_cache(maxsize=16)
def _marked_template(template: str) -> str:
    """The template with a mark printed where `{% generation %}` opens and closes.

    transformers' own mask loses a span that begins with a space, because offsets skip it. Each mark is in its own
    block, so that white space around the tag is trimmed as before.
    """

    def mark(tag: re.Match[str]) -> str:
        left, closing, right = tag.groups()
        return f"{{%{left} if true %}}{{{{ '{_CLOSE if closing else _OPEN}' }}}}{{% endif {right}%}}"

    return _TAG.sub(mark, template)


def _strip_marks(marked: str) -> tuple[str, list[Span]]:
    parts = re.split(f"([{_OPEN}{_CLOSE}])", marked)
    text, spans, start = "", [], 0
    for part in parts:
        if part == _OPEN:
            start = len(text)
        elif part == _CLOSE:
            spans.append((start, len(text)))
        else:
            text += part
    return text, spans


def _spans_by_prefix(
    tokenizer: Any, messages: Sequence[ChatMessage], text: str, asking: Mapping[str, bool]
) -> list[Span]:
    """Where each assistant turn begins and ends in `text`, for a template without marks.

    A turn begins where the rendering of the messages before it, generation prompt included, ends. That prefix does not
    fit if a template writes old turns unlike new ones (Qwen3 drops thoughts) or opens a new one with a thought
    (DeepSeek-R1). The turn then begins with its content, including leading white space, which shares a token with the
    first word.
    """
    spans: list[Span] = []
    for number, (content_start, end) in _content_spans(tokenizer, messages, text, asking):
        prefix = render_chat(tokenizer, messages[:number], add_generation_prompt=True) if number else ""
        fits = prefix and text.startswith(prefix) and (spans[-1][1] if spans else 0) <= len(prefix) <= content_start
        content = messages[number]["content"]
        blank = content[: len(content) - len(content.lstrip())]
        own_start = content_start - len(blank) if text[:content_start].endswith(blank) else content_start
        spans.append((len(prefix) if fits else own_start, end))
    return spans


def _content_spans(
    tokenizer: Any, messages: Sequence[ChatMessage], text: str, asking: Mapping[str, bool]
) -> list[tuple[int, Span]]:
    """Number of each assistant message, and the span of its content in `text` without outer white space.

    A second rendering with marks around the contents finds them exactly, unless the template inspects contents. Then
    the contents are searched for in order.
    """
    spoken = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not spoken:
        return []
    wrapped = [dict(m, content=_wrap(m["content"])) if m["role"] == "assistant" else m for m in messages]
    plain, spans = _strip_marks(render_chat(tokenizer, wrapped, **asking))
    if plain != text or len(spans) != len(spoken):
        spans, done = [], 0
        for number in spoken:
            content = messages[number]["content"].strip()
            found = text.find(content, done)
            if found < 0:
                raise DataError(
                    f"template: the tokenizer's chat template changes what the assistant says in message {number + 1} "
                    f"of {len(messages)}, so its tokens cannot be told from the others. Name another template "
                    "(chatml, alpaca, tulu)."
                )
            done = found + len(content)
            spans.append((found, done))
    return list(zip(spoken, spans, strict=True))


def _wrap(content: str) -> str:
    """The content with marks around it, inside the outer white space, which a template may trim."""
    core = content.strip()
    left = len(content) - len(content.lstrip()) if core else len(content)
    return f"{content[:left]}{_OPEN}{core}{_CLOSE}{content[left + len(core) :]}"


def _special_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Any special token's text. Kept for each tokenizer: listing hundreds of added tokens would take a third of a row's time."""
    state = (len(tokenizer), *tokenizer.all_special_tokens)
    known = _PATTERNS.get(tokenizer)
    if known is None or known[0] != state:
        names = {str(token) for token in tokenizer.all_special_tokens}
        names |= {str(t.content) for t in getattr(tokenizer, "added_tokens_decoder", {}).values() if t.special}
        longest_first = sorted(names - {""}, key=lambda name: (-len(name), name))
        known = state, re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        _PATTERNS[tokenizer] = known
    return known[1]


_PATTERNS: WeakKeyDictionary[Any, tuple[tuple[Any, ...], re.Pattern[str]]] = WeakKeyDictionary()
"""For each tokenizer, its number of tokens and special ones when the pattern was made, and the pattern."""


def _through_end_token(text: str, start: int, end: int, specials: re.Pattern[str]) -> int:
    """The end of the turn, including its end token: the special token that follows it.

    A span that already holds its end token stays as it is, lest the next turn's opening be taken for one.
    """
    held = [found.end() for found in specials.finditer(text, start, end)]
    if held and not text[held[-1] : end].strip():
        return held[-1]
    after = end
    while after < len(text) and text[after].isspace():
        after += 1
    found = specials.match(text, after)
    return found.end() if found else end


# --- our own templates -----------------------------------------------------------------------------------------------


def _render_named(tokenizer: Any, messages: Sequence[ChatMessage], name: str, ask: bool) -> tuple[str, list[Span]]:
    text, spans = _opening(tokenizer), []
    for piece, counts in _TEMPLATES[name](tokenizer, messages, ask):
        if counts:
            spans.append((len(text), len(text) + len(piece)))
        text += piece
    return text if ask else text.rstrip("\n"), spans


def _opening(tokenizer: Any) -> str:
    """The BOS, if the tokenizer writes one by itself; else empty."""
    bos = tokenizer.bos_token
    ids = tokenizer("a")["input_ids"]
    return str(bos) if bos is not None and ids and ids[0] == tokenizer.bos_token_id else ""


def _end_token(tokenizer: Any) -> str:
    if tokenizer.eos_token is None:
        raise ModelError("template: the tokenizer has no end-of-sequence token, so an answer could never end.")
    return str(tokenizer.eos_token)


def _chatml(tokenizer: Any, messages: Sequence[ChatMessage], ask: bool) -> list[MarkedText]:
    """`<|im_end|>` ends a turn if the vocabulary has it, else the EOS: generation must recognise the end."""
    known = tokenizer.convert_tokens_to_ids("<|im_end|>") not in (None, tokenizer.unk_token_id)
    end = "<|im_end|>" if known else _end_token(tokenizer)
    pieces: list[MarkedText] = []
    for message in messages:
        pieces += [
            (f"<|im_start|>{message['role']}\n", False),
            (message["content"] + end, message["role"] == "assistant"),
            ("\n", False),
        ]
    return [*pieces, ("<|im_start|>assistant\n", False)] if ask else pieces


def _tulu(tokenizer: Any, messages: Sequence[ChatMessage], ask: bool) -> list[MarkedText]:
    end = _end_token(tokenizer)
    pieces: list[MarkedText] = []
    for message in messages:
        content, spoken = message["content"].strip(), message["role"] == "assistant"
        pieces += [
            (f"<|{message['role']}|>\n", False),
            (content + end if spoken else content, spoken),
            ("\n", False),
        ]
    return [*pieces, ("<|assistant|>\n", False)] if ask else pieces


def _alpaca(tokenizer: Any, messages: Sequence[ChatMessage], ask: bool) -> list[MarkedText]:
    """A system message replaces the preamble; further turns repeat the headings."""
    end = _end_token(tokenizer)
    system = [message["content"] for message in messages if message["role"] == "system"]
    preamble = ALPACA_INPUT_PREAMBLE if any(message.get(INPUT) for message in messages) else ALPACA_PREAMBLE
    pieces: list[MarkedText] = [("\n\n".join(system) or preamble, False)]
    headings = {"user": "Instruction", "tool": "Input"}
    for message in messages:
        if message["role"] == "assistant":
            pieces += [("\n\n### Response:", False), (message["content"] + end, True)]
        elif message["role"] != "system":
            content, given = split_input(message)
            pieces.append((f"\n\n### {headings[message['role']]}:\n{content}", False))
            pieces += [(f"\n\n### {headings['tool']}:\n{given}", False)] if given else []
    return [*pieces, ("\n\n### Response:", False)] if ask else pieces


_TEMPLATES: dict[str, Callable[[Any, Sequence[ChatMessage], bool], list[MarkedText]]] = {
    "alpaca": _alpaca,
    "chatml": _chatml,
    "tulu": _tulu,
}


# --- text to tokens --------------------------------------------------------------------------------------------------


def _tokenize(tokenizer: Any, text: str, starts: Sequence[int]) -> tuple[list[int], list[Span]]:
    """Ids and offsets. The tokens before each start equal those of the text up to there, as in a prompt; if the tokenizer
    would merge across the start, the text is cut there."""
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"template: {type(tokenizer).__name__} gives no character offsets, without which the words of the "
            "assistant cannot be found. Use a model whose tokenizer has a tokenizer.json (a 'fast' tokenizer)."
        )
    encoding = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
    )
    ids, offsets = list(encoding["input_ids"]), [tuple(offset) for offset in encoding["offset_mapping"]]
    if not starts:
        return ids, offsets
    cut = starts[-1]
    before, places = _tokenize(tokenizer, text[:cut], starts[:-1])
    if ids[: len(before)] == before and all(start >= cut for start, end in offsets[len(before) :] if end > start):
        return ids, offsets
    after, others = _tokenize(tokenizer, text[cut:], [])
    return before + after, places + [(start + cut, end + cut) for start, end in others]


def _counted_tokens(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Whether each token begins inside a span."""
    counted = [False] * len(offsets)
    token = 0
    for start, end in spans:
        while token < len(offsets) and offsets[token][0] < start:
            token += 1
        while token < len(offsets) and offsets[token][0] < end:
            counted[token] = True
            token += 1
    return counted


def _without_doubles(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """Positions that remain after removing each BOS or EOS that directly follows the same token."""
    single = {tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
    return [i for i, token in enumerate(ids) if not (i and token in single and ids[i - 1] == token)]
