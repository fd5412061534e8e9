"""Slow clients, connections that speak no HTTP, and how a service ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from hicache_compile.errors import HiCacheError
from hicache_compile.serving.http import Limits
from hicache_compile.serving.http.server import address_of, bind
from tests.serving.http.fake_service import SECONDS_OF_A_TEST
from tests.serving.http.live import GENERATIONS, Live, live
from tests.serving.http.test_bad_requests import told

ROOT = Path(__file__).parents[3]
HEAD = f"POST {GENERATIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 400\r\n"


def said(running: Live, *pieces: bytes) -> str:
    """What the service answers to ``pieces`` until it closes the connection."""
    url = httpx.URL(running.url)
    with socket.create_connection((url.host, url.port), SECONDS_OF_A_TEST) as connection:
        for piece in pieces:
            connection.sendall(piece)
        answer = b""
        while more := connection.recv(65536):
            answer += more
    return answer.decode()


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"", 408, "slow_head"),
        (HEAD[:30].encode(), 408, "slow_head"),
        (f"{HEAD}\r\n{{".encode(), 408, "slow_body"),
        (HEAD.replace("400", f"{10**15}").encode() + b"\r\n", 413, "body_too_long"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "invalid_http"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000, 400, "invalid_http"),
    ],
)
def test_clients_that_are_slow_or_speak_another_protocol(sent: bytes, status: int, code: str) -> None:
    with live(limits=Limits(body_seconds=0.2)) as running:
        answer = said(running, sent)
        assert answer.startswith(f"HTTP/1.1 {status} ")
        head, _, body = answer.partition("\r\n\r\n")
        assert "connection: close" in head.lower()
        assert json.loads(body)["error"]["code"] == code
        assert running.post().status_code == 200


def test_a_client_that_leaves_while_it_sends_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    with live() as running:
        url = httpx.URL(running.url)
        with socket.create_connection((url.host, url.port), SECONDS_OF_A_TEST) as connection:
            connection.sendall(f"{HEAD}\r\n{{".encode())
            assert running.post().status_code == 200  # the head has arrived
        left = f'hicache_requests_total{{path="{GENERATIONS}",status="499"}}'
        assert any(running.metric(left) for _ in range(1000))
        assert running.metric(f'hicache_requests_total{{path="{GENERATIONS}",status="500"}}') == 0
    assert "Traceback" not in caplog.text


def test_the_head_of_a_later_request_has_to_come_too() -> None:
    with live(limits=Limits(body_seconds=0.2)) as running:
        answer = said(running, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /hea")
        assert answer.startswith("HTTP/1.1 200 ")
        assert "slow_head" in answer


def test_what_runs_is_finished_and_nothing_else_is_taken() -> None:
    with live(grace=SECONDS_OF_A_TEST) as running:
        first: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: first.append(running.post(prompt="wait for it")))
        asking.start()
        running.batcher.until(lambda batcher: batcher.running == 1)
        running.server.should_exit = True
        while running.http.get("/healthz").status_code == 200:  # until it was noticed
            pass
        answer = running.post()
        assert told(answer, 503)["code"] == "closing"
        assert "retry-after" in answer.headers
        running.batcher.release()
        asking.join(SECONDS_OF_A_TEST)
        assert first[0].status_code == 200


def test_what_runs_for_too_long_is_told_so() -> None:
    answers: list[httpx.Response] = []
    with live(grace=0.1) as running:
        asking = threading.Thread(target=lambda: answers.append(running.post(prompt="wait for it")))
        asking.start()
        running.batcher.until(lambda batcher: batcher.running == 1)
        running.server.should_exit = True
        asking.join(SECONDS_OF_A_TEST)
        running.batcher.until(lambda batcher: batcher.ended == 1)
    assert told(answers[0], 503)["code"] == "closing"


def test_ctrl_c_ends_it() -> None:
    command = [sys.executable, "-m", "tests.serving.http.fake_service", "0"]
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"listening\n"
        process.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in process.stderr.read()  # the command makes exit status 130 of it
        assert process.wait(SECONDS_OF_A_TEST) != 0


def test_an_address_that_is_taken() -> None:
    with bind("127.0.0.1", 0) as listening:
        listening.listen()
        port = int(address_of(listening).rpartition(":")[2])
        with pytest.raises(HiCacheError, match=f"127.0.0.1:{port}: must be a free address"):
            bind("127.0.0.1", port)
    with pytest.raises(HiCacheError, match="must be a free address"):
        bind("no.such.host.invalid", 80)
