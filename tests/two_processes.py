"""Runs commands in two processes of one DDP group, as an external launcher such as torchrun would start them."""

import contextlib
import io
import multiprocessing
import os
import socket
import traceback
from collections.abc import Sequence

from lightning_edit.cli import main


def start_method() -> str:
    """Returns how to start children: a fork has everything imported, but threads of OpenMP must not be forked."""
    return "fork" if os.environ.get("OMP_NUM_THREADS") == "1" else "spawn"


def run_in_two_processes(*commands: Sequence[str], timeout: float = 300.0) -> list[str]:
    """Runs commands one after the other in two processes; returns what each process printed.

    Raises:
        AssertionError: If a command failed or did not end in time, with the output of both processes.
    """
    context = multiprocessing.get_context(start_method())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = context.SimpleQueue()
    children = [context.Process(target=_run, args=(rank, port, commands, queue)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout)
        if child.is_alive():
            child.kill()
            child.join()
    outcomes = dict.fromkeys(range(2), (None, f"did not end within {timeout} s"))
    while not queue.empty():
        rank, *outcome = queue.get()
        outcomes[rank] = tuple(outcome)
    report = "\n".join(f"process {rank}, exit status {code}:\n{text}" for rank, (code, text) in outcomes.items())
    assert all(code == 0 for code, _ in outcomes.values()), report
    return [text for _, text in outcomes.values()]


def _run(rank: int, port: int, commands: Sequence[Sequence[str]], queue: "multiprocessing.SimpleQueue") -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    printed, code = io.StringIO(), 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            for command in commands:
                code = code or main(list(command))
        except BaseException:
            # Whatever ends a child has to reach the test.
            traceback.print_exc()
            code = -1
    queue.put((rank, code, printed.getvalue()[-3000:]))
