"""A hub that accepts connections and never answers: one bounded wait, and an error that names it."""

import socket
import threading

import pytest

from raysift.actors import hub
from raysift.actors.embedder import read_encoder_files
from raysift.actors.language_model import load_tokenizer, pinned_name
from raysift.errors import ModelError


@pytest.fixture
def connections(monkeypatch, tmp_path):
    """Those that a hub which never answers has seen."""
    from huggingface_hub import constants

    seen, server = [], socket.create_server(("127.0.0.1", 0))

    def accept():
        while True:
            try:
                seen.append(server.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HUB_S", 0.2)
    hub.why_offline.cache_clear()
    yield seen
    hub.why_offline.cache_clear()
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()
    for one in seen:
        one.close()


def test_a_hub_that_does_not_answer_is_asked_once_and_named(connections):
    with pytest.raises(
        ModelError, match=r"commit 'nobody/model' is: the hub is offline \(http://127.* does not answer \("
    ):
        pinned_name("nobody/model")
    with pytest.raises(ModelError, match=r"cannot load the tokenizer of 'nobody/model' .*http://127.* does not answer"):
        load_tokenizer("nobody/model")
    assert read_encoder_files("nobody/model").pooling == "mean"
    assert len(connections) == 1


def test_what_the_cache_holds_is_found_without_the_hub(connections, tmp_path):
    refs = tmp_path / "models--nobody--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("0" * 40)
    assert pinned_name("nobody/model") == f"nobody/model@{'0' * 40}"
    assert len(connections) == 1
