"""Every kind of rows gives what their file gives, and what comes out can go in again."""

import json
from html.parser import HTMLParser

import pandas
import pyarrow as pa
import pytest

import raysift
from raysift.jobs.runs.reuse import read_events
from raysift.nano.world import examples, generate_pool

HOSTILE = "<script>alert(1)</script>&lt;\x1b[31m" + "<b>x" * 200
ROWS = [
    *generate_pool(40, 0),
    {
        "messages": [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": HOSTILE}],
        "source": "<img src=x>",
    },
]
SETTINGS = {"unit": "chars", "budget": "20%", "log": "quiet"}


def longest(pool, run, **settings):
    return raysift.longest(pool, run=run, **SETTINGS | settings)


@pytest.fixture(scope="module")
def folder(ray_local, tmp_path_factory):
    place = tmp_path_factory.mktemp("rows")
    (place / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return place


@pytest.fixture(scope="module")
def of_file(folder):
    return longest(folder / "pool.jsonl", folder / "file")


def from_ray():
    import ray

    return ray.data.from_items(ROWS)


def from_hub():
    import datasets

    return datasets.Dataset.from_list(ROWS)


KINDS = {
    "a list": lambda: ROWS,
    "pandas": lambda: pandas.DataFrame(ROWS),
    "pyarrow": lambda: pa.Table.from_pylist(ROWS),
    "datasets": from_hub,
    "ray": from_ray,
}


@pytest.mark.ray
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_kind_give_what_their_file_gives(kind, of_file, folder):
    given = {"pool_name": "mine"} if kind == "ray" else {}
    found = longest(KINDS[kind](), folder / kind, **given)
    place = {"file", "position"} & set(found.table().column_names)
    assert found.table().drop_columns(place).equals(of_file.table().drop_columns(place))
    assert [row["messages"] for row in found.rows()] == [row["messages"] for row in of_file.rows()]
    before = len(read_events(found.run.opened.folder))
    again = longest(KINDS[kind](), folder / kind, **given)
    events = read_events(found.run.opened.folder)[before:]
    assert events and {event["event"] for event in events} == {"skipped"}
    assert again.ids == found.ids


@pytest.mark.ray
def test_another_run_with_the_same_rows_reuses_what_was_done(of_file, folder):
    first = longest(pandas.DataFrame(ROWS), folder / "first")
    second = longest(pandas.DataFrame(ROWS), folder / "second", budget="40%", reuse=first)
    assert second.run.stages["ingest"].reused_from == first.run.name
    assert second.ids[: len(first)] == first.ids


@pytest.mark.ray
def test_what_comes_out_is_the_same_in_every_kind_and_goes_in_again(of_file, folder):
    table = of_file.to_arrow()
    assert table["id"].to_pylist() == of_file.ids
    assert table.column_names == ["id", "rank", "score", "source", "messages", "meta"]
    assert of_file.to_pandas()["id"].tolist() == of_file.ids
    hub = of_file.to_datasets()
    assert list(hub["id"]) == of_file.ids and hub.column_names == table.column_names
    assert [row["id"] for row in of_file.dataset().take_all()] == of_file.ids
    rows = list(of_file.rows())
    assert [row["rank"] for row in rows] == [*range(1, len(of_file) + 1)]
    assert all(isinstance(row["meta"], dict) for row in rows)
    for number, out in enumerate((of_file.to_pandas(), hub, of_file)):
        again = raysift.uniform(out, budget="100%", run=folder / f"again-{number}", log="quiet")
        assert sorted(again.ids) == sorted(of_file.ids)


@pytest.mark.ray
def test_scores_are_those_of_the_whole_pool(of_file):
    scores, chosen = of_file.scores(), of_file.table()
    assert len(scores) == of_file.manifest.counts["rows_in"]
    by_id = dict(zip(scores["id"].to_pylist(), scores["score"].to_pylist(), strict=True))
    assert [by_id[one] for one in of_file.ids] == chosen["score"].to_pylist()


@pytest.mark.ray
def test_a_run_opened_again_tells_the_same(of_file):
    run = raysift.load_run(of_file)
    assert (run.method, run.settings["budget"]) == ("longest", "20%")
    assert list(run.stages) == ["ingest", "lengths", "score", "choose"]
    assert run.selection.ids == of_file.ids and run.selection.by_source == of_file.by_source
    assert run.training is None and run.evaluation is None and run.comparison is None
    found = raysift.explain(of_file, of_file.ids[0])
    assert found.id == of_file.ids[0]
    assert len(repr(run)) < 250 and len(repr(of_file)) < 250


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.text = set(), ""

    def handle_starttag(self, tag, attrs):
        self.found.add(tag)

    def handle_data(self, data):
        self.text += data


@pytest.mark.ray
def test_a_call_leaves_a_report_unless_told_not_to(of_file, folder):
    record = folder / "file" / "report.json"
    assert "alert(1)" in record.read_text()
    page = of_file.run.report(text=False)
    assert page == str(folder / "file" / "report.html") and "alert(1)" not in record.read_text()
    longest(folder / "pool.jsonl", folder / "no report", report=False, reuse=of_file)
    assert not (folder / "no report" / "report.html").exists()


def test_hostile_rows_stay_text_and_are_cut_short(of_file):
    for record in (of_file, of_file.run):
        page = Tags()
        page.feed(record._repr_html_())
        assert page.found <= {"div", "b", "table", "tr", "th", "td"}
    page = Tags()
    page.feed(of_file._repr_html_())
    assert "<script>alert(1)</script>" in page.text and "<img src=x>" in page.text
    assert len(page.text) < 5_000
    head = of_file.head(2)
    assert len(head) == 2 and head["answer"].str.len().max() <= 160
    assert "<script>" not in head.to_html() and head["rank"].tolist() == [1, 2]


@pytest.mark.ray
def test_a_target_in_memory_is_that_of_its_file_and_known_again(folder):
    records = list(examples(4, 0, ["add"], "test"))
    (folder / "target.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    common = {"budget": "5", "log": "quiet", "resources": {"workers": 1}}
    of_path = raysift.rds(folder / "pool.jsonl", folder / "target.jsonl", run=folder / "t1", **common)
    of_rows = raysift.rds(folder / "pool.jsonl", records, run=folder / "t2", reuse=of_path, **common)
    assert of_rows.ids == of_path.ids
    again = raysift.rds(folder / "pool.jsonl", [dict(one) for one in records], run=folder / "t2", **common)
    assert read_events(again.run.opened.folder)[-1]["event"] == "skipped"


@pytest.mark.ray
def test_texts_do_not_reach_messages_when_rows_cannot_be_used(folder):
    secret = "a text that nobody may see"
    rows = [{"unknown": secret, "other": 3} for _ in range(5)]
    for pool in (rows, pandas.DataFrame(rows), [{"instruction": secret, "output": 7}]):
        with pytest.raises(raysift.RaysiftError) as caught:
            raysift.uniform(pool, run=folder / "refused", log="quiet", fresh=True)
        assert secret not in str(caught.value)
