"""Ray's workers as forks of one process that has imported the heavy libraries, for the Ray that tests share.

A worker that imports Ray, torch, transformers and PEFT by itself spends five seconds of CPU before its first row, and every
stage starts new ones. Ray starts a worker by running a script with the worker's arguments. Here this file is that script:
it hands its arguments, environment and output over to a server, which forks a worker and runs Ray's own file in it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SOCKET = "RAYSIFT_TEST_FORKS"
# What most workers import, but not Ray, which reads a worker's settings from the environment at import.
IMPORTED = (
    *("faiss", "pandas", "peft", "pyarrow.dataset", "pyarrow.parquet", "raysift.settings.config", "requests"),
    *("transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto"),
    *("transformers.models.llama.modeling_llama", "transformers.trainer"),
)
VLLM = ("vllm.entrypoints.llm", "vllm.v1.engine.async_llm", "vllm.v1.engine.core_client")  # ten seconds to import


@contextlib.contextmanager
def forked_workers(folder: Path, more: tuple[str, ...] = ()) -> Iterator[None]:
    """A Ray that is started inside the block gets its workers from a server with a socket in this folder.

    The server imports `more` modules besides the usual ones.
    """
    from ray._private.parameter import RayParams

    os.environ[SOCKET] = str(folder / "forks")
    command = [sys.executable, __file__, "serve", os.environ[SOCKET], *more]
    plain = RayParams.__init__
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin and server.stdout
        assert server.stdout.readline(), "the server of Ray's workers did not start; its output is above"
        RayParams.__init__ = functools.partialmethod(plain, setup_worker_path=__file__)
        try:
            yield
        finally:
            RayParams.__init__ = plain
            server.stdin.close()  # it ends itself
            del os.environ[SOCKET]


def start(arguments: list[str]) -> None:
    """Stay for as long as the worker with these arguments does; one that asks for more than variables starts as ever."""
    given = next((argument for argument in arguments if argument.startswith(_CONTEXT)), f"{_CONTEXT}={{}}")
    context = {name: value for name, value in json.loads(given.partition("=")[2]).items() if value}
    own = context.pop("env_vars", {})
    worker, *rest = [argument for argument in arguments if not argument.startswith((_CONTEXT, "--language"))]
    if context.pop("py_executable", sys.executable) != sys.executable or context or "PYTHONPATH" in own:
        os.execv(sys.executable, [sys.executable, str(Path(worker).with_name("setup_worker.py")), *arguments])
    told = json.dumps([worker, rest, os.environ | own, os.getcwd()]).encode()
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(os.environ[SOCKET])
        socket.send_fds(line, [len(told).to_bytes(4, "big")], [1, 2])
        line.sendall(told)
        line.recv(1)  # nothing comes, and the line ends with the worker


def serve(path: str, *more: str) -> None:
    """Import what workers need, then fork one for each request, until the standard input is closed."""
    import gc
    import importlib
    import select
    import signal

    for name in IMPORTED:
        importlib.import_module(name)
    sys.modules["ray"] = None  # type: ignore[assignment]  # vLLM would import it where it can
    for name in more:
        importlib.import_module(name)
    del sys.modules["ray"]
    gc.collect()
    gc.freeze()  # what is there stays shared between all forks
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended workers need no one to wait for them
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            ready, *_ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            line, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _work(line)
            line.close()


def _work(line: socket.socket) -> None:
    """Become the worker that is asked for; the open line tells its end to the process that Ray started."""
    import runpy

    import numpy as np

    size, outputs, *_ = socket.recv_fds(line, 4, 2)
    worker, arguments, environment, folder = json.loads(line.makefile("rb").read(int.from_bytes(size, "big")))
    for number, opened in enumerate([os.open(os.devnull, os.O_RDONLY), *outputs]):
        os.dup2(opened, number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    np.random.seed()  # as a process of its own would have it
    sys.argv = [worker, *arguments]
    runpy.run_path(worker, run_name="__main__")
    os._exit(0)


_CONTEXT = "--serialized-runtime-env-context"

if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    else:
        start(sys.argv[1:])
