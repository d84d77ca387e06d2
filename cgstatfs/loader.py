# SPDX-License-Identifier: GPL-2.0-only
"""Load a collector in a process of its own, which pins it and ends.

libbpf trusts object files, and a compiler is a lot to have in a daemon: what either of them
does with a damaged file stays in there.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

from .collectors import Collector, CollectorError, remove_pins
from .engines import ENGINES
from .loading import Request, load
from .objects import OBJECTS
from .processes import environment, python
from .refusals import refusals

__all__ = ("load_any", "load_apart", "load_pinned")

# Of a compilation, or a large program's verification, on a slow machine.
_SECONDS = 900
_CPU_SECONDS = 600
_ADDRESS_SPACE = 8 << 30
_OUTPUT = 64 << 10
# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1


def load_any(request: Request) -> Collector:
    """Load a collector of either kind, in this process.

    :raises CollectorError: it cannot be loaded
    """
    if request.path.name.endswith(".bcc.c"):
        # Nothing else needs bcc, and not everybody has it.
        from .bcc_loading import load_bcc

        return load_bcc(request)
    return load(request)


def load_pinned(request: Request, directory: Path) -> list[str]:
    """Load a collector and pin it: in a process of its own, unless it comes with the package.

    :param directory: where to pin it; its parent is there
    :returns: what its user should know
    :raises CollectorError: it cannot be loaded
    """
    if request.path.parent != OBJECTS:
        return load_apart(request, directory)[1]
    collector = load(request)
    try:
        collector.pin(directory)
    finally:
        collector.close()
    return collector.notes


def _encode(request: Request, directory: Path | None) -> bytes:
    """A line of JSON, and then what the collector's file has."""
    line = json.dumps({
        "daemon": os.getpid(),
        "path": str(request.path),
        "engine": request.engine.name,
        "root_id": request.root_id,
        "initials": request.initials,
        "keep": str(request.keep) if request.keep else None,
        "directory": str(directory) if directory else None,
    })  # fmt: skip
    return line.encode() + b"\n" + request.read()


def _decode(data: bytes) -> tuple[Request, Path | None]:
    line, _, file = data.partition(b"\n")
    asked = json.loads(line)
    if os.getppid() != asked["daemon"]:
        raise SystemExit("the daemon ended before its loader had begun")
    engine = next(kind for kind in ENGINES if kind.name == asked["engine"])()
    keep = Path(asked["keep"]) if asked["keep"] else None
    request = Request(Path(asked["path"]), engine, asked["root_id"], asked["initials"], keep, file)
    return request, Path(asked["directory"]) if asked["directory"] else None


def _why_died(number: int) -> str:
    if number == signal.SIGXCPU:
        return f"loading it took more than {_CPU_SECONDS} s of cpu time"
    if number == signal.SIGKILL:
        return "the loader was killed, by somebody or for want of memory; try again"
    return f"the loader died of it ({signal.Signals(number).name}); the file is damaged"


def load_apart(request: Request, directory: Path | None) -> tuple[list[str], list[str]]:
    """Load a collector in a process of its own, and pin it.

    :param directory: where to pin it; its parent is there. None: only find out whether it works
    :returns: the files of its stats maps, and what its user should know
    :raises CollectorError: it cannot be loaded; what was pinned there before goes on
    """
    path = request.path
    with refusals(path):
        question = _encode(request, directory)
    try:
        done = subprocess.run(
            python(__name__), input=question, capture_output=True,
            timeout=_SECONDS, env=environment(), cwd="/", start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CollectorError(f"{path}: loading it took more than {_SECONDS} s") from None
    finally:
        if directory:
            remove_pins(directory.with_name(f"new~{directory.name}"))
    if done.returncode < 0:
        raise CollectorError(f"{path}: {_why_died(-done.returncode)}")
    try:
        answer = json.loads(done.stdout[:_OUTPUT].splitlines()[-1])
    except (IndexError, ValueError):
        said = done.stderr.decode("utf-8", "replace")
        reason = said.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise CollectorError(f"{path}: the loader failed: {reason[0][:400]}") from None
    if "error" in answer:
        raise CollectorError(answer["error"])
    return answer["files"], answer["notes"]


def _limit_itself() -> None:
    # Or it would pin what nobody is there to serve, or to end. Who had ended before does not
    # send it: see _decode().
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # At the hard limit it would be SIGKILL, which can have other reasons.
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS + 10))
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> int:
    """Load what standard input asks for, and answer on standard output."""
    _limit_itself()
    # Whatever libraries print is not the answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    request, directory = _decode(sys.stdin.buffer.read())
    try:
        collector = load_any(request)
        if directory:
            collector.pin(directory)
        files = [stats_map.file for stats_map in collector.stats_maps]
        answer: dict[str, object] = {"files": files, "notes": collector.notes}
    except CollectorError as error:
        answer = {"error": str(error)}
    except OSError as error:
        answer = {"error": f"{request.path}: {error.filename}: {error.strerror}"}
    except MemoryError:
        answer = {"error": f"{request.path}: no memory to load it"}
    print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    # What bcc leaves to be done at exit is of no use to us.
    status = main()
    sys.stdout.flush()
    os._exit(status)
