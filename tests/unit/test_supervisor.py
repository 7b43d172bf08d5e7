"""Whole processes: a verdict in time whatever the solver does, interruptions at any moment, streams that are closed or full, a lack of memory."""
from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.small_models import IN_UNIT, absolute_value, vnnlib
from verifier import supervisor

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 6.0  # long enough for a busy machine to load the model
STUCK = """
import ctypes, os, signal, sys, time, types
signal.signal(signal.SIGINT, signal.default_int_handler)  # a runner in the background has it ignored
fake = types.ModuleType("verifier.solve")
def verify(graph, spec, config, listener, certificate):
    from verifier.bab.budget import Progress
    listener(Progress("branch and bound", 1.0, -0.5, 4, 9))
    print("started", file=sys.stderr, flush=True)
    {0}
fake.verify = verify
sys.modules["verifier.solve"] = fake
import verifier
verifier.solve = fake
from verifier.cli import main
main()
"""
# What a solver can do for a minute: nothing, compute, or hold the interpreter in a call of another library.
LONG = {"asleep": "time.sleep(60)", "busy": "\n    while True: pass", "in a library": "ctypes.PyDLL(None).sleep(60)"}
COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from verifier.start import main
print("started", file=sys.stderr, flush=True)
main()
"""


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A network and a property that it has, as command-line arguments."""
    return [str(absolute_value(tmp_path / "abs.onnx")), str(vnnlib(tmp_path / "p.vnnlib", *IN_UNIT, "(<= Y_0 -0.5)"))]


def start(code: str, *arguments: object, **more: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **more)


def stuck(body: str, *arguments: object) -> subprocess.Popen:
    return start(textwrap.dedent(STUCK).format(body), "verify", *arguments)


def wait_for(child: subprocess.Popen, word: str = "started") -> None:
    assert any(word in line for line in iter(child.stderr.readline, ""))


@pytest.mark.slow
@pytest.mark.parametrize("body", LONG.values(), ids=LONG)
def test_a_verdict_within_two_seconds_after_the_time_whatever_the_solver_does(files, tmp_path, body: str) -> None:
    begin = time.monotonic()
    child = stuck(body, *files, "--timeout", LIMIT_S, "--results-file", tmp_path / "out.txt", "--json")
    wait_for(child)
    out, err = child.communicate(timeout=30)
    assert time.monotonic() - begin < LIMIT_S + 2
    said = json.loads(out)
    assert (child.returncode, said["verdict"], said["lower_bound"], said["domains"]) == (0, "timeout", -0.5, 9)
    assert LIMIT_S <= said["seconds"] < LIMIT_S + 2
    assert (tmp_path / "out.txt").read_text() == "timeout\n"
    assert len(err.splitlines()) == 1 and "lower bound -0.5" in err


def test_a_verdict_in_time_while_the_model_is_loaded(files) -> None:
    code = "import time, verifier.graph.load as load; load.load_onnx = lambda path: time.sleep(60)\nfrom verifier.start import main; main()"
    begin = time.monotonic()
    child = start(code, "verify", *files, "--timeout", "0.5")
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (0, "timeout\n") and "0.5 s is over" in err
    assert time.monotonic() - begin < 0.5 + 2 + 2  # two more for the interpreter of a busy machine to get there


@pytest.mark.parametrize("command", ["check", "bounds", "info"])
def test_a_deadline_of_commands_without_a_verdict(files, command: str) -> None:
    code = (
        "import time, verifier.certificate.check as check, verifier.graph.load as load; load.load_onnx = lambda path: time.sleep(60)\n"
        "check.check = lambda *a: time.sleep(60)\nfrom verifier.start import main; main()"
    )
    arguments = {"check": [*files, files[0]], "bounds": files, "info": files[:1]}[command]
    child = start(code, command, *arguments, "--timeout", "0.5")
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (2, "")
    assert err == "verifier: the time of 0.5 s is over: give more with --timeout.\n"


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "soon"])
def test_a_deadline_that_is_none(files, given: str) -> None:
    child = start(COMMAND, "info", files[0], "--timeout", given)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (2, "") and "timeout" in err and len(err.splitlines()) == 2


@pytest.mark.parametrize("body", LONG.values(), ids=LONG)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_answers_unknown(files, body: str, number: int) -> None:
    child = stuck(body, *files, "--timeout", "50")
    wait_for(child)
    begin = time.monotonic()
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (0, "unknown\n") and time.monotonic() - begin < 4
    assert len(err.splitlines()) == 1 and "Interrupted" in err and "lower bound -0.5" in err


def test_a_second_interruption_ends_it_at_once(files) -> None:
    deaf = "\n    while True:\n        try: time.sleep(60)\n        except KeyboardInterrupt: print('again', file=sys.stderr, flush=True)"
    child = stuck(deaf, *files)
    wait_for(child)
    time.sleep(0.3)  # it is in its loop
    child.send_signal(signal.SIGINT)
    wait_for(child, "again")
    begin = time.monotonic()
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=30)
    assert (child.returncode, out) == (0, "unknown\n") and time.monotonic() - begin < 1.5


def check_interrupted(arguments: list[str], delay_s: float, number: int = signal.SIGINT) -> None:
    """One sentence and a code that fits, with what was reached where a solver was at work, and never a traceback."""
    child = start(COMMAND, *arguments)
    wait_for(child)
    time.sleep(delay_s)
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    shown = f"{arguments[0]}, {delay_s:.3f} s: {child.returncode}, {out!r}, {err!r}"
    assert child.returncode in (0, 130 if number == signal.SIGINT else 143), shown
    assert len(err.splitlines()) <= 1 and "Traceback" not in err and (out == "") == (child.returncode != 0), shown
    assert child.returncode != 0 or arguments[0] != "verify" or out in ("unsat\n", "unknown\n"), shown


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.05, 0.2, 0.5])
def test_ctrl_c_at_the_start(files, delay_s: float) -> None:
    check_interrupted(["verify", *files], delay_s)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_ctrl_c_at_any_moment(files, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(10):
        arguments = chance.choice([["verify", *files], ["bounds", *files], ["info", files[0]]])
        check_interrupted(arguments, 4 * chance.random() ** 2, chance.choice([signal.SIGINT, signal.SIGTERM]))


def test_a_worker_that_the_system_kills_is_a_lack_of_memory(files, tmp_path) -> None:
    child = stuck("os.kill(os.getpid(), signal.SIGKILL)", *files, "--results-file", tmp_path / "out.txt", "--json")
    out, err = child.communicate(timeout=30)
    said = json.loads(out)
    assert (child.returncode, said["verdict"], said["reason"]) == (0, "unknown", "out of memory")
    assert (tmp_path / "out.txt").read_text() == "unknown\n" and "memory" in err


def test_a_library_that_crashes_is_one_sentence(files) -> None:
    child = stuck("os.kill(os.getpid(), signal.SIGSEGV)", *files)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (2, "") and len(err.splitlines()) == 2 and f"signal {signal.SIGSEGV.value}" in err


def test_a_fault_of_the_program_is_one_sentence_and_no_rejection(files) -> None:
    code = "import verifier.certificate.check as check\ncheck.check = lambda *a: 1 / 0\nfrom verifier.start import main; main()"
    child = start(code, "check", *files, files[0])
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (2, "") and len(err.splitlines()) == 1 and "ZeroDivisionError at" in err


@pytest.mark.skipif(sys.platform != "linux", reason="the system ends a worker with its supervisor on Linux only")
def test_no_worker_stays_behind_a_supervisor_that_is_killed(files) -> None:
    child = stuck("time.sleep(60)", *files)
    wait_for(child)
    child.kill()
    child.communicate(timeout=10)  # ends only when nobody has its streams open any more
    assert child.returncode == -signal.SIGKILL


MORE_COMMANDS = [pytest.param(words.split(), marks=pytest.mark.slow) for words in ("verify --json", "bounds", "--help", "--version")]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("command", [["verify"], ["info"], ["verify", "--help"], *MORE_COMMANDS])
@pytest.mark.parametrize("way", ["> /dev/full", ">&-", "| true"])
def test_a_stdout_that_takes_nothing(files, command: list[str], way: str) -> None:
    if command[-1] not in ("--help", "--version"):
        command = [*command, *(files[:1] if command == ["info"] else files)]
    line = f'set -o pipefail; "$0" -m verifier.cli "$@" {"| (exec <&-; sleep 5)" if way == "| true" else way}'
    child = subprocess.run(["bash", "-c", line, sys.executable, *command], capture_output=True, text=True, cwd=ROOT)
    assert (child.returncode, child.stdout) == (2, "")
    assert child.stderr.startswith("verifier: Cannot write to stdout: ") and len(child.stderr.splitlines()) == 1


@pytest.mark.parametrize("way", ["2>&-", "2> /dev/full"])
def test_a_stderr_that_takes_nothing(files, tmp_path, way: str) -> None:
    line = f'"$0" -m verifier.cli verify "$@" {way}'
    command = ["bash", "-c", line, sys.executable, *files, "--results-file", str(tmp_path / "out.txt")]
    child = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (child.returncode, child.stdout, child.stderr) == (0, "unsat\n", "")
    assert (tmp_path / "out.txt").read_text() == "unsat\n"


@pytest.mark.parametrize("option", ["--results-file", "--certificate"])
def test_a_disk_that_is_full(files, tmp_path, option: str) -> None:
    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    path = tmp_path / "out"
    path.write_bytes(b"sat\n" if option == "--results-file" else b"")
    command = [sys.executable, "-m", "verifier.cli", "verify", *files, option, str(path)]
    child = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, preexec_fn=no_room)
    assert child.returncode == 2 and len(child.stderr.splitlines()) == 1 and "File too large" in child.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["abs.onnx", *(["out"] if option == "--results-file" else []), "p.vnnlib"]
    assert option == "--certificate" or path.read_bytes() == b"sat\n"


def test_a_pipe_and_a_device_as_results_file(files) -> None:
    verify = '"$0" -m verifier.cli verify "$@" --results-file'
    line = f"{verify} /dev/stdout; {verify} >(cat >&2) 2> /dev/null; sleep 0.2"
    child = subprocess.run(["bash", "-c", line, sys.executable, *files], capture_output=True, text=True, cwd=ROOT)
    assert child.stdout == "unsat\n" * 3 and "unsat\n" in child.stderr


def test_the_clock_starts_with_the_process_but_not_with_another_program_before_it() -> None:
    code = "import time; from verifier import supervisor; print(time.monotonic() - supervisor._process_start())"

    def age(line: str) -> float:
        return float(subprocess.run(["bash", "-c", line, sys.executable, code], capture_output=True, text=True, cwd=ROOT, check=True).stdout)

    assert 0.01 < age('"$0" -c "$1"; true') < 3
    assert age('sleep 3.2; exec "$0" -c "$1"') < 3


def test_no_supervision_in_the_process_of_a_caller() -> None:
    """Messages go nowhere, and the clock starts with the question."""
    supervisor.last_words(0.0, {}, [])
    supervisor.speaking()
    supervisor.spoken(0)
    supervisor.interruptible()
    assert supervisor.began() == pytest.approx(time.monotonic(), abs=1.0)
