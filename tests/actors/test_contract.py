"""What every actor keeps, shown on actors of a few lines."""

import logging
import weakref

import numpy as np
import pyarrow as pa
import pytest

from raysift.actors.contract import Failed, RowActor
from raysift.errors import DeviceError, ModelError, StageError
from raysift.records import ERROR, ID


class Lengths(RowActor):
    """Length of `text`; a text of `bad` fails its row, one of `poison` raises for the whole batch."""

    inputs = ("text",)
    outputs = pa.schema([("n", pa.int64())])

    def __init__(self, breaker=200):
        self.max_failures_in_a_row = breaker
        self.batches = []

    def answer(self, rows):
        self.batches.append([row[ID] for row in rows])
        if any(row["text"] == "poison" for row in rows):
            raise ValueError("poisoned")
        return [Failed("bad row") if row["text"] == "bad" else {"n": len(row["text"])} for row in rows]


def batch(*texts):
    return pa.table({ID: pa.array(range(len(texts)), pa.int64()), "text": list(texts), "other": [0] * len(texts)})


def test_every_row_is_answered_once_in_order_with_the_declared_columns():
    answers = Lengths()(batch("a", "bad", "ccc"))
    assert answers.schema == Lengths.answer_schema()
    assert answers.to_pylist() == [
        {ID: 0, "n": 1, ERROR: None},
        {ID: 1, "n": None, ERROR: "bad row"},
        {ID: 2, "n": 3, ERROR: None},
    ]


def test_a_poisoned_batch_goes_row_by_row_and_only_the_poisoned_row_fails(caplog):
    actor = Lengths()
    with caplog.at_level(logging.WARNING):
        answers = actor(batch("a", "poison", "ccc")).to_pylist()
    assert [row["n"] for row in answers] == [1, None, 3]
    assert answers[1][ERROR] == "ValueError: poisoned"
    assert actor.batches == [[0, 1, 2], [0], [1], [2]]
    assert "Lengths: a batch of 3 rows failed" in caplog.text


def test_the_input_batch_is_left_as_it_was():
    given = batch("a", "bad", "poison")
    before = given.to_pydict()
    Lengths()(given)
    assert given.to_pydict() == before


def test_an_empty_batch_keeps_the_schema():
    answers = Lengths()(batch())
    assert (answers.num_rows, answers.schema) == (0, Lengths.answer_schema())


@pytest.mark.parametrize("text", ["bad", "poison"])
def test_breaker_raises_past_its_limit_and_over_batches(text):
    actor = Lengths(breaker=5)
    actor(batch(*[text] * 3))
    with pytest.raises(StageError, match="6 rows failed one after the other, the last with"):
        actor(batch(*[text] * 3))


def test_rows_at_fault_themselves_neither_trip_nor_reset_the_breaker():
    class Strict(Lengths):
        def answer(self, rows):
            return [Failed("no text", of_the_row=True) if row["text"] == "" else Failed("broken") for row in rows]

    actor = Strict(breaker=2)
    assert actor(batch(*[""] * 9))[ERROR].to_pylist() == ["no text"] * 9
    actor(batch("a", "", "b"))
    with pytest.raises(StageError, match="3 rows failed one after the other, the last with 'broken'"):
        actor(batch("", "c"))


def test_a_good_row_resets_the_breaker():
    actor = Lengths(breaker=2)
    for _ in range(5):
        actor(batch("bad", "bad", "fine"))


def test_missing_columns_are_named():
    with pytest.raises(StageError, match=r"Lengths: the batch lacks \['text'\] \(found: \['id'\]\)"):
        Lengths()(pa.table({ID: [1]}))


def test_an_actor_that_skips_rows_is_stopped():
    class Skipping(Lengths):
        def answer(self, rows):
            return [{"n": 1}]

    with pytest.raises(StageError, match="gave 1 answers for 2 rows"):
        Skipping()(batch("a", "b"))


class Small(Lengths):
    """Memory holds `room` rows, and none whose text is `huge`."""

    def __init__(self, room, words="CUDA out of memory. Tried to allocate 2.00 GiB"):
        super().__init__()
        self.room, self.words, self.told = room, words, []

    def answer(self, rows):
        self.batches.append(len(rows))
        if len(rows) > self.room or any(row["text"] == "huge" for row in rows):
            raise RuntimeError(self.words)
        return [{"n": len(row["text"])} for row in rows]

    def tell(self, text):
        self.told.append(text)


def test_out_of_memory_halves_the_batch_and_later_ones_are_no_larger():
    actor = Small(16)
    for _ in range(3):
        assert actor(batch(*["ab"] * 64))["n"].to_pylist() == [2] * 64
    assert actor.batches == [64, 32, 16, 16, 16, 16] + [16] * 8
    assert (actor.most_rows, actor.told) == (16, ["batches of 16 rows fit; out of memory with 32"])


def test_a_row_that_does_not_fit_alone_fails_and_makes_no_batch_smaller():
    actor = Small(64)
    answers = actor(batch(*["ab"] * 40, "huge", *["ab"] * 23))
    failed = {row[ID]: row[ERROR] for row in answers.to_pylist() if row[ERROR]}
    assert list(failed) == [40] and failed[40].startswith(
        "does not fit in memory even alone: RuntimeError: CUDA out of"
    )
    assert (actor.most_rows, actor.told) == (None, [])


def test_what_a_failed_batch_held_is_free_when_its_halves_are_answered():
    class Held:
        pass

    class Holding(Lengths):
        held = None

        def answer(self, rows):
            if self.held is not None:
                assert self.held() is None
            kept = Held()
            if len(rows) > 1:
                self.held = weakref.ref(kept)
                raise RuntimeError("CUDA out of memory")
            return [{"n": 1} for _ in rows]

    assert Holding()(batch("a", "b", "c"))[ERROR].null_count == 3


def test_the_host_s_memory_is_halved_for_too_but_not_made_a_row_s_fault():
    words = (
        "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    )
    actor = Small(2, words)
    assert actor(batch(*["ab"] * 4))[ERROR].null_count == 4
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        actor(batch("huge"))


class ByTokens(Lengths):
    """Passes of padded tokens, of which memory holds `room`."""

    def __init__(self, room, batch_tokens):
        super().__init__()
        self.room, self.batch_tokens, self.told = room, batch_tokens, []

    def answer(self, rows):
        lengths, found = [len(row["text"]) for row in rows], {}

        def work(members):
            tokens = len(members) * max(lengths[i] for i in members)
            self.batches.append(tokens)
            if tokens > self.room:
                raise RuntimeError("CUDA out of memory")
            found.update((i, {"n": lengths[i]}) for i in members)

        self.run_passes(lengths, work)
        return [found[i] for i in range(len(rows))]

    def tell(self, text):
        self.told.append(text)


def test_an_actor_that_batches_by_tokens_halves_these_for_good():
    actor, texts = ByTokens(100, 512), ["x" * (1 + i % 10) for i in range(60)]
    for _ in range(2):
        assert actor(batch(*texts))["n"].to_pylist() == [len(text) for text in texts]
    assert actor.batch_tokens <= 100 and actor.most_rows is None
    assert sum(tokens > 100 for tokens in actor.batches) == len(actor.told) <= 3
    long = actor(batch("x" * 90, "x" * 120, "x"))
    assert [row[ERROR] is not None for row in long.to_pylist()] == [False, True, False]


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: device-side assert triggered",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
        "NCCL error in: ProcessGroupNCCL.cpp:1970, unhandled system error",
        "CUDA error: uncorrectable ECC error encountered",
    ],
)
def test_an_error_of_the_device_is_no_row_s_fault(words):
    class Broken(Lengths):
        def answer(self, rows):
            self.batches.append(len(rows))
            try:
                raise RuntimeError(words)
            except RuntimeError as error:
                raise ModelError("model: cannot go on") from error

    actor = Broken()
    with pytest.raises(DeviceError, match=r"Broken: .*(CUDA|cuDNN|NCCL)") as caught:
        actor(batch("a", "b"))
    assert actor.batches == [2] and "\n" not in str(caught.value)


def test_a_column_of_arrays_needs_no_lists():
    class Vectors(Lengths):
        outputs = pa.schema([("v", pa.list_(pa.float32())), ("w", pa.list_(pa.float32(), 3))])

        def answer(self, rows):
            table = np.arange(3 * len(rows), dtype=np.float32).reshape(-1, 3)
            return [Failed("none") if i == 1 else {"v": one, "w": one} for i, one in enumerate(table)]

    answers = Vectors()(batch("a", "b", "c"))
    assert answers["v"].to_pylist() == answers["w"].to_pylist() == [[0, 1, 2], None, [6, 7, 8]]


def test_stage_errors_and_lack_of_memory_are_no_rows_fault():
    class Ending(Lengths):
        def __init__(self, error):
            super().__init__()
            self.error = error

        def answer(self, rows):
            raise self.error

    for error in (StageError("over"), MemoryError()):
        with pytest.raises(type(error)):
            Ending(error)(batch("a", "b"))
