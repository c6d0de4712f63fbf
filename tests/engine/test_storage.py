"""Local disk and object stores behave alike; a write is whole or not at all."""

import io
import pickle
from itertools import pairwise

import pytest
from slow_store import CUT, FAIL, HANG

from raysift import storage
from raysift.errors import ConfigError, DataError, StageError, find_cause
from raysift.storage import Location, extend_name, open_location, refuse_passwords


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    uri = request.getfixturevalue("s3_uri") if request.param == "s3" else tmp_path / "runs"
    place = open_location(uri) / request.node.name.replace("[", "-").rstrip("]")
    return place.make_folder()


def test_what_is_written_is_read_back(folder):
    (folder / "deep/er.json").write("grüße")
    assert (folder / "deep/er.json").exists()
    assert (folder / "deep/er.json").read_text() == "grüße"
    assert (folder / "deep/er.json").size() == len("grüße".encode())
    assert not (folder / "missing").exists()


def test_files_are_listed_in_order_of_their_paths(folder):
    for name in ("b.parquet", "a.parquet", "c.json", "sub/d.parquet"):
        (folder / name).write("x")
    assert [f.name for f in folder.files(".parquet")] == ["a.parquet", "b.parquet"]
    assert [f.name for f in folder.files(".parquet", recursive=True)] == ["a.parquet", "b.parquet", "d.parquet"]
    assert (folder / "nowhere").files() == []


def test_deleting_takes_the_whole_folder_and_nothing_twice(folder):
    (folder / "sub/one").write("x")
    (folder / "sub").delete()
    (folder / "sub").delete()
    assert (folder / "sub").files() == []


def test_a_place_travels_to_another_process(folder):
    (folder / "x").write("1")
    assert pickle.loads(pickle.dumps(folder / "x")).read_text() == "1"


def test_a_copy_is_the_same_bytes_whatever_its_size_and_where_it_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "COPIED_BYTES", 7)
    places = [open_location(tmp_path / "a"), open_location(f"file://{tmp_path}/b"), open_location("memory://copies/c")]
    for content in (b"", bytes(range(256))):
        places[0].write(content)
        for source, target in pairwise([*places, places[0]]):
            target.copy_from(source)
            assert target.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    place = open_location(tmp_path / "manifest.json")
    place.write("old")

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("raysift.storage.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        place.write("new")
    assert place.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_an_unknown_filesystem_is_named():
    with pytest.raises(DataError, match="carrier-pigeon"):
        open_location("carrier-pigeon://roof/pool.jsonl")


@pytest.mark.parametrize(
    ("name", "longer"),
    [
        ("runs/a", "runs/a-2"),
        ("runs/a/", "runs/a-2"),
        ("runs/is it?", "runs/is it?-2"),
        ("s3://bucket/a", "s3://bucket/a-2"),
        ("s3://bucket/a/?region=x&scheme=http", "s3://bucket/a-2?region=x&scheme=http"),
    ],
)
def test_a_name_is_extended_before_the_query_of_a_uri(name, longer):
    assert extend_name(name, "-2") == longer


@pytest.mark.parametrize(
    "uri", ["s3://KEY:secret@bucket/runs?region=x", "https://me:secret@host/pool.jsonl", "ftp://:secret@h"]
)
def test_a_password_in_a_name_is_refused_and_not_said(uri):
    for refuse in (open_location, refuse_passwords):
        with pytest.raises(ConfigError, match=r"holds a password.*environment") as error:
            refuse(uri)
        assert "secret" not in str(error.value)
    with pytest.raises(ConfigError, match="holds a password"):
        refuse_passwords(f"pool:\n- {uri}\n")


@pytest.mark.parametrize(
    "uri",
    [
        "gs://anonymous@bucket/x",
        "abfs://container@account.dfs.core.windows.net/x",
        "s3://bucket/a:b@c?endpoint_override=127.0.0.1:80",
        "http://host:80/me:you@x",
        "github://owner:repository@main/pool.jsonl",
        "meta: me@host",
    ],
)
def test_a_name_without_a_password_is_let_through(uri):
    refuse_passwords(uri)


def test_a_copy_that_breaks_off_leaves_what_was_there_wherever_it_goes(tmp_path):
    class Broken(Location):
        """A source whose reading fails halfway."""

        def open_input(self):
            class Stream(io.BytesIO):
                def read(self, size=-1):
                    if self.tell():
                        raise OSError("connection lost")
                    return super().read(2000)

            return Stream(bytes(4000))

    source = Broken(open_location(tmp_path).fs, str(tmp_path / "source"))
    for target in (open_location("memory://broken/target"), open_location(tmp_path / "target")):
        with pytest.raises(OSError, match="connection lost"):
            target.copy_from(source)
        assert not target.exists()
        target.write("old")
        with pytest.raises(OSError, match="connection lost"):
            target.copy_from(source)
        assert target.read_text() == "old"


# --- a store that answers slowly, fails and breaks off -----------------------------------------------------------------


def test_small_files_are_one_request_to_write_and_waits_travel_with_a_place(slow_store, monkeypatch):
    place = open_location(slow_store.uri("travels")) / "x"
    place.write("1")
    assert slow_store.count("PUT", "POST") == 1
    for fs in (place.fs, pickle.loads(pickle.dumps(place)).fs):
        options = fs.__reduce__()[1][0]
        assert (options["connect_timeout"], options["request_timeout"]) == (storage.CONNECT_S, storage.SILENT_S)
    assert pickle.loads(pickle.dumps(place)).fs is open_location(slow_store.uri("other")).fs
    monkeypatch.setenv("RAYSIFT_S3_TIMEOUT", "7")
    sent = pickle.dumps(open_location(slow_store.uri("travels")))
    monkeypatch.delenv("RAYSIFT_S3_TIMEOUT")
    assert pickle.loads(sent).fs.__reduce__()[1][0]["request_timeout"] == 7


@pytest.mark.parametrize("fault", [FAIL, CUT])
def test_a_store_that_fails_or_breaks_off_is_asked_again(slow_store, fault):
    place = open_location(slow_store.uri("breaks")) / fault
    content = bytes(range(256)) * 1000
    place.write(content)
    asked = []

    def first_two(method, path, number):
        if method == "GET" and "breaks" in path:
            asked.append(path)
            return fault if len(asked) < 3 else None
        return None

    slow_store.fault = first_two
    assert place.read_bytes() == content
    assert len(asked) >= 3


def test_a_store_that_stays_silent_or_broken_ends_with_its_object_and_the_settings(slow_store, monkeypatch):
    monkeypatch.setenv("RAYSIFT_S3_TIMEOUT", "1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    place = open_location(slow_store.uri("silent")) / "scores.parquet"
    place.write("x")
    for fault in (HANG, FAIL):
        slow_store.fault = lambda method, path, number, fault=fault: fault if "scores" in path else None
        slow_store.requests.clear()
        with pytest.raises(OSError, match="AWS Error") as error:
            place.read_bytes()
        found = find_cause(error.value)
        assert isinstance(found, StageError) and "silent/scores.parquet" in str(found)
        assert "RAYSIFT_S3_TIMEOUT" in str(found) and "AWS_MAX_ATTEMPTS" in str(found)
        assert 1 <= slow_store.count("HEAD", "GET") <= 2  # a body that fails is not always asked for again


def test_what_is_refused_is_not_asked_for_again(slow_store):
    with pytest.raises(OSError, match="AWS Error") as error:
        open_location(slow_store.uri("x").replace("s3://bucket", "s3://no-such-bucket")).write("x")
    assert isinstance(find_cause(error.value), DataError)


@pytest.mark.parametrize("given", ["0", "soon"])
def test_a_wait_that_is_no_number_is_refused(monkeypatch, given):
    monkeypatch.setenv("RAYSIFT_S3_TIMEOUT", given)
    with pytest.raises(ConfigError, match=f"RAYSIFT_S3_TIMEOUT={given}"):
        open_location("s3://bucket/x?region=us-east-1")


def test_an_upload_that_fails_leaves_nothing(slow_store, monkeypatch):
    """Sent whole or in parts; parts without an object are the store's to remove, see docs/cluster.md."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for size in (1000, 30 * 2**20):
        place = open_location(slow_store.uri("upload")) / f"{size}"
        slow_store.fault = lambda method, path, number: FAIL if method == "PUT" else None
        with pytest.raises(OSError, match="AWS Error"):
            place.write(bytes(size))
        slow_store.fault = lambda method, path, number: None
        assert not place.exists()


def test_sizes_of_files_side_by_side_are_one_request(slow_store):
    folder = open_location(slow_store.uri("sizes"))
    names = [f"answers/{number:03d}" for number in range(40)]
    for name in names:
        (folder / name).write(name)
    slow_store.requests.clear()
    infos = folder.infos([*names, "answers", "answers/none", "gone/none"])
    assert [info and info.size for info in infos] == [11] * 40 + [infos[40].size, None, None]
    assert slow_store.count("GET") <= 3 and slow_store.count("HEAD") <= 3
