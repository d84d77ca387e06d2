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

__all__ = ("load_apart", "load_any")

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


def _encode(request: Request, directory: Path) -> str:
    return json.dumps({
        "path": str(request.path),
        "engine": request.engine.name,
        "root_id": request.root_id,
        "initials": request.initials,
        "keep": str(request.keep) if request.keep else None,
        "directory": str(directory),
    })  # fmt: skip


def _decode(text: str) -> tuple[Request, Path]:
    data = json.loads(text)
    engine = next(kind for kind in ENGINES if kind.name == data["engine"])()
    keep = Path(data["keep"]) if data["keep"] else None
    request = Request(Path(data["path"]), engine, data["root_id"], data["initials"], keep)
    return request, Path(data["directory"])


def _why_died(number: int) -> str:
    if number == signal.SIGXCPU:
        return f"loading it took more than {_CPU_SECONDS} s of cpu time"
    if number == signal.SIGKILL:
        return "the loader was killed, by somebody or for want of memory; try again"
    return f"the loader died of it ({signal.Signals(number).name}); the file is damaged"


def load_apart(request: Request, directory: Path) -> list[str]:
    """Load a collector in a process of its own, and pin it.

    :param directory: where to pin it
    :returns: what its user should know
    :raises CollectorError: it cannot be loaded; what was pinned there before goes on
    """
    path = request.path
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__], input=_encode(request, directory),
            capture_output=True, text=True, errors="replace", timeout=_SECONDS,
            env=environment, cwd="/", start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CollectorError(f"{path}: loading it took more than {_SECONDS} s") from None
    finally:
        remove_pins(directory.with_name(f"new~{directory.name}"))
    if done.returncode < 0:
        raise CollectorError(f"{path}: {_why_died(-done.returncode)}")
    try:
        answer = json.loads(done.stdout[:_OUTPUT].splitlines()[-1])
    except (IndexError, ValueError):
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise CollectorError(f"{path}: the loader failed: {reason[0][:400]}") from None
    if "error" in answer:
        raise CollectorError(answer["error"])
    return answer["notes"]


def _limit_itself() -> None:
    # Or it would pin what nobody is there to serve, or to end.
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
    request, directory = _decode(sys.stdin.read())
    try:
        collector = load_any(request)
        collector.pin(directory)
        answer: dict[str, object] = {"notes": collector.notes}
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
