"""The card of an export: what was chosen from what and how, and how trainers load it. What comes from data is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raysift.records import TOOLS

SHOWN_SOURCES, SHOWN_NAMES, SHOWN_CHARACTERS = 20, 20, 120
# Without the types, `datasets` takes those of the first ten megabytes, where no row may have tools.
_FEATURES = """dataset_info:
  features:
  - name: id
    dtype: string
  - name: source
    dtype: string
  - name: messages
    list:
    - name: role
      dtype: string
    - name: content
      dtype: string
  - name: meta
    dtype: string
  - name: tools
    dtype: string
"""


@dataclass(frozen=True)
class Card:
    """What a card tells of a selection, beside what the export itself knows."""

    method: str
    settings: Mapping[str, str | int | list[str]]
    """Model, budget, seed, pool and target, as the run was given them."""
    by_source: Mapping[str, Mapping[str, float]]
    """`pool` and `selected` rows of each source."""
    scores: tuple[float, float]
    """Lowest and highest score of a chosen row."""
    pool_rows: int


def code(text: str) -> str:
    """Text of any origin as code in Markdown: nothing in it can end the code, a table's cell or the line."""
    plain = "".join(c if c.isprintable() and c not in "`|" else f"\\u{ord(c):04x}" for c in text)
    shown = plain if len(plain) <= SHOWN_CHARACTERS else plain[: SHOWN_CHARACTERS - 3] + "..."
    return f"`{shown or ' '}`"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(map(code, names[:SHOWN_NAMES])) + more


def write_card(
    card: Card, file: str, shape: str, rows: int, columns: list[str], entry: Mapping[str, Any] | None
) -> str:
    """A README.md that tells `datasets.load_dataset(FOLDER)` which file holds the data, and people what it is."""
    told = {name: value if isinstance(value, list) else [str(value)] for name, value in card.settings.items()}
    settings = "".join(f"| {name} | {_listed(values)} |\n" for name, values in told.items() if values)
    by_count = sorted(card.by_source.items(), key=lambda item: (-item[1]["selected"], item[0]))
    sources = "".join(
        f"| {code(source)} | {line['pool']:,} | {line['selected']:,} |\n" for source, line in by_count[:SHOWN_SOURCES]
    )
    more = (
        f"\n{len(by_count) - SHOWN_SOURCES:,} more sources are in the run.\n" if len(by_count) > SHOWN_SOURCES else ""
    )
    low, high = card.scores
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: {file}
{_FEATURES if TOOLS in columns and shape == "messages" else ""}# license: fill in what the sources below allow
tags:
- instruction-tuning
- raysift
---

# Rows selected by raysift {card.method}

{rows:,} of {card.pool_rows:,} rows, the best first, with scores from {low:.6g} to {high:.6g}. The file `{file}` is in the
`{shape}` format, with the columns {_listed(columns)}.

| setting | value |
|---|---|
{settings}
`raysift {card.method} --config run.yaml --run NEW` repeats the run; `run.yaml` lies in the run's folder, beside the score of
every row and the reason of every choice.

| source | rows in the pool | selected |
|---|---:|---:|
{sources}{more}
## Licence

Not known to raysift: the rows keep the licence of their sources. Fill it in here and in the first lines of this file.

## Training on it

{_trainers(file, shape, entry)}"""


def _trainers(file: str, shape: str, entry: Mapping[str, Any] | None) -> str:
    """How trainers load the file; each gets the lines that differ from its own examples."""
    name = file.rpartition(".")[0]
    lines = ['- datasets: `load_dataset("FOLDER", split="train")`, with the name of this folder.']
    if shape in ("messages", "parquet"):
        lines.append("- TRL: `SFTTrainer(model, train_dataset=...)` takes that dataset as it is.")
    if entry:
        lines.append(f"- LLaMA-Factory: `dataset_dir: FOLDER` and `dataset: {name}`, as in `dataset_info.json`.")
    else:
        lines.append(
            "- LLaMA-Factory cannot read these records as they are: `dataset_info.json` has no entry for them."
        )
    axolotl = {
        "messages": "type: chat_template",
        "parquet": "type: chat_template",
        "alpaca": "type: alpaca",
        "sharegpt": (
            "type: chat_template, field_messages: conversations, message_property_mappings: {role: from, content: value}"
        ),
    }
    if shape in axolotl:
        kind = "parquet" if shape == "parquet" else "json"
        lines.append(f"- axolotl: `datasets: [{{path: FOLDER/{file}, ds_type: {kind}, {axolotl[shape]}}}]`")
    return "\n".join(lines) + "\n"
