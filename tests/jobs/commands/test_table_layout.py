"""Tables in a terminal of 80 columns: numbers, ids and words stay whole, nothing is left out."""

import io
import re

import pyarrow as pa
import pytest
from rich.console import Console as RichConsole

from raysift.jobs.commands.console import Console
from raysift.jobs.commands.show_selection import show_columns
from raysift.jobs.commands.table_layout import lay_out
from raysift.jobs.runs.run import Run

WIDTH = 80
ID = "-8701312519435136481"
RANKS = ["id", "rank", "score", "source", "quality", "necessity", "radius", "fate"]
TABLES = {
    "first ranks": (RANKS, [[ID, 1, 2.155, "scraped", 2.155, 2.155, None, "seed"], [ID, 2, 0.9757, "curated", 0, 1, 1.491, "x"]]),
    "histogram": (["score", "rows", ""], [["-10.4 to -9.5", 25_800, "#" * 24], ["-9.5 to -8.56", 629, "#" * 6]]),
    "verdict": (["", "value"], [["id", ID], ["verdict", "selected as number 2 of 12; rank 1 of 196 by score " * 3]]),
    "trials": (
        ["trial", "settings", "rounds", "criterion", "report", "seconds", "state"],
        [[6, "classes=2 hidden=128x128 temperature=0.5 actor_rate=0.001", 6, -0.4036, -0.4474, 81.99, "stopped early"]],
    ),
    "many subtasks": (["checkpoint", "weight", *(f"task_{i}" for i in range(57))], [["epoch-1", 0.5, *([0.12345] * 57)]]),
    "one column": (["id"], [[ID]]),
    "large numbers": (["stage", "rows/s"], [["ingest", 368_251.7], ["tune", 0.0371]]),
}  # fmt: skip


def printed(columns, rows, width=WIDTH):
    console = Console("plain")
    console.out = RichConsole(file=io.StringIO(), width=width, highlight=False)
    console.table("A title", columns, rows)
    return console.out.file.getvalue()


def cells_of(text):
    """The cells of each table, lines of a wrapped cell joined by a blank, by column head."""
    found = {}
    for block in re.split(r"└.*┘\n", text)[:-1]:
        lines = [re.split("[┃│]", line)[1:-1] for line in block.splitlines() if line[0] in "┃│"]
        bar = next(i for i, line in enumerate(re.findall(r"^[┃┡│]", block, re.MULTILINE)) if line == "┡")
        heads = [" ".join(" ".join(part).split()) for part in zip(*lines[:bar], strict=True)]
        for head, *cells in zip(heads, *lines[bar:], strict=True):
            found[head] = [cell.strip() for cell in cells]
    return found


@pytest.mark.parametrize("name", TABLES)
def test_no_cell_is_broken_and_no_column_left_out_at_80_columns(name):
    columns, rows = TABLES[name]
    text = printed(columns, rows)
    assert max(map(len, text.splitlines())) <= WIDTH
    shown = cells_of(text)
    assert set(shown) == set(columns)
    for place, head in enumerate(columns):
        whole = [str(cell) for row in rows if (cell := row[place]) is not None and isinstance(cell, str)]
        words = {word for cell in whole for word in cell.split()}
        assert words <= {word for cell in shown[head] for word in cell.split()}, head
        if not whole:  # numbers, each on one line
            assert len([cell for cell in shown[head] if cell]) == len(rows), head


def test_columns_that_find_no_room_come_below_beside_the_first():
    columns, _ = TABLES["many subtasks"]
    blocks = lay_out(columns, [["epoch-1", "0.5", *["0.1235"] * 57]], WIDTH)
    assert len(blocks) > 1 and all(block[0].place == 0 for block in blocks)
    assert [column.place for block in blocks for column in block[1:]] == list(range(1, len(columns)))
    assert len(lay_out(columns, [["epoch-1", "0.5", *["0.1235"] * 57]], 2000)) == 1


def test_numbers_stand_to_the_right_and_texts_and_bars_to_the_left():
    lines = printed(*TABLES["histogram"]).splitlines()
    assert lines[-2].startswith("│ -9.5 to -8.56 │    629 │ ######   ")
    assert "│ ingest │ 368,252 │" in printed(*TABLES["large numbers"])
    assert "│ tune   │  0.0371 │" in printed(*TABLES["large numbers"])


def test_a_path_longer_than_the_terminal_is_broken_and_whole_all_the_same():
    path = "/data/" + "x" * 200
    text = printed(["file", "rows"], [[path, 3]])
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "".join(cells_of(text)["file"]) == path


def test_markup_in_heads_and_cells_is_text():
    assert "[red]" in printed(["a", "[red]"], [["[bold]x[/]", 1]]) and "[bold]x[/]" in printed(["a"], [["[bold]x[/]"]])


@pytest.mark.parametrize("voice", ["rich", "plain", "json"])
def test_text_of_data_moves_no_terminal_whichever_way_it_is_said(voice, capsys):
    evil = "\x1b[2J\x1b]0;title\x07\x9b31m\u202e\r"
    console = Console(voice)
    console.table(f"title {evil}", [f"head {evil}"], [[f"cell {evil}"], [{evil: evil}], [[evil]]])
    console.event(f"event {evil}", f"stage {evil}", rejected={evil: 1}, files=[evil])
    console.note(f"note {evil}")
    console.error(f"error {evil}\nsecond line")
    said = "".join(capsys.readouterr())
    assert "second line" in said
    assert [c for c in said.replace("\n", "") if not c.isprintable()] == []


def test_a_failure_is_told_once_by_whoever_ends_the_command(capsys):
    Console("plain").event("failed", "choose", error="budget: too much")
    assert capsys.readouterr().err.split() == ["choose", "failed"]
    Console("json").event("failed", "choose", error="budget: too much")
    assert "budget: too much" in capsys.readouterr().err


def test_first_ranks_leave_out_columns_that_say_rank_and_score_again(tmp_path):
    run = Run(tmp_path / "run", Console("plain"))
    run.console.out = RichConsole(file=io.StringIO(), width=WIDTH, highlight=False)
    chosen = {"id": [7, 8, 9], "rank": [1, 2, 3], "score": [0.5, 0.4, 0.3], "source": ["a", "a", "b"]}
    chosen |= {"quality": [0.5, 0.4, 0.3], "necessity": [0.5, 0.4, 0.2], "order": [1, 2, 3]}
    show_columns(run, pa.table(chosen), run.console)
    shown = cells_of(run.console.out.file.getvalue())
    assert list(shown) == ["id", "rank", "score", "source", "necessity"]
