# SPDX-License-Identifier: GPL-2.0-only
"""Where a collector's own programs run, and what follows from it.

Three things depend on it: whether a program can be attached at all, which engines it can update
with, and whether BPF will skip some of its runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .collectors import CollectorError
from .engines import ENGINES, Engine, EngineUnavailable
from .libbpf import Program

__all__ = ("attaches", "check")

# By what a section's name begins with: kinds of programs that know the kernel's types ...
_TRACING = {"tp_btf", "fentry", "fentry.s", "fexit", "fexit.s", "fmod_ret", "fmod_ret.s",
            "iter", "iter.s", "syscall"}  # fmt: skip
# ... that BPF also skips while user space is in a bpf() call on a map: what they take is
# bpf_prog_active, see bpf_disable_instrumentation() in include/linux/bpf.h, 6.12.
_SKIPPED = {"tp", "tracepoint", "kprobe", "kretprobe", "ksyscall", "kretsyscall", "uprobe",
            "uretprobe", "uprobe.s", "uretprobe.s", "usdt", "kprobe.multi", "kretprobe.multi"}  # fmt: skip
# ... that are run, not attached.
_RUN = {"iter", "iter.s", "syscall"}
_ATTACHED = _TRACING | _SKIPPED | {"raw_tp", "raw_tracepoint", "raw_tp.w", "raw_tracepoint.w",
                                   "lsm", "lsm.s"}  # fmt: skip

# ... that are of no use without a target.
_TARGETED = _ATTACHED - {"syscall", "iter", "iter.s"}

# Places where rstat's own locks are held, or may be. Until 6.15 cgroup_rstat_updated() takes one
# of them, a raw one of the cpu; later kernels are lockless there, but not when they flush. A guard
# in the header would not help, see cgstat_rstat_updated() in bpf/cgstat_entries.h.
_INSIDE_RSTAT = re.compile(
    "|".join(
        (
            r"_*(cgroup|css)_rstat_.*",
            # What a flush calls for each cgroup, of bpf, memcg, blkcg and others: in 6.1 with the
            # lock of the cpu held.
            r".*_rstat_flush(_.*)?|cgroup_base_stat_.*",
            # What takes a lock, waits for it or traces it
            r"contention_(begin|end)|lock_.*|(do_)?_*raw_spin_.*|(.*_)?queued_spin_.*",
            r"irq_(disable|enable)|preempt_(disable|enable)",
            # NMI, which no lock keeps away, and what perf does in one
            r"(.*_)?nmi(_.*)?|_*perf_.*|.*_pmu_.*|.*_overflow_(handler|callback)",
        )
    )
)


def _section(program: Program) -> tuple[str, str]:
    kind, _, target = program.section.removeprefix("?").partition("/")
    return kind, target


def attaches(program: Program) -> bool:
    """Whether the loader attaches it; iterators and syscall programs are for others to run."""
    return _section(program)[0] not in _RUN


def _check_kind(program: Program) -> None:
    """:raises CollectorError: it cannot be attached"""
    kind, target = _section(program)
    if kind not in _ATTACHED:
        raise CollectorError(
            f'program "{program.name}" ({program.section}) is of a kind that cannot be attached '
            "here; use tp_btf, raw_tp, fentry or fexit"
        )
    if kind in _TARGETED and not target:
        raise CollectorError(
            f'program "{program.name}" ({program.section}) does not say what it is for; '
            f"use {kind}/NAME, of a tracepoint or function"
        )
    if not program.is_autoloaded:
        raise CollectorError(
            f'program "{program.name}" ({program.section}) is optional, and nobody here would '
            "choose it; remove the question mark"
        )


def _refused_by(engine: type[Engine] | Engine, programs: list[Program]) -> str | None:
    """Why an engine cannot be used for a collector, if one of its programs updates."""
    for program in programs:
        kind, target = _section(program)
        what = f'program "{program.name}" ({program.section})'
        if engine.callers is not None and kind not in engine.callers:
            return f"{what} cannot call {engine.calls}"
        if not engine.inside_rstat and _INSIDE_RSTAT.fullmatch(target):
            return f"{what} runs inside of locks that rstat takes"
    return None


def _works(engine: type[Engine]) -> bool:
    try:
        engine().probe()
    except EngineUnavailable:
        return False
    return True


def check(programs: Iterable[Program], engine: Engine) -> tuple[Engine, list[str]]:
    """The engine for a collector, and notes on what its user should know.

    :param programs: the collector's own
    :param engine: that is to be used if it can; else the best of those after it
    :raises CollectorError: a program cannot be attached
    """
    programs, notes = list(programs), []
    for program in programs:
        _check_kind(program)
        if _section(program)[0] in _SKIPPED:
            notes.append(
                f'program "{program.name}" ({program.section}) may miss events: BPF skips such '
                "programs while user space uses maps; use tp_btf or fentry"
            )
    reason = _refused_by(engine, programs)
    if not reason:
        return engine, notes
    others = ENGINES[[kind.name for kind in ENGINES].index(engine.name) + 1 :]
    # The last one takes all programs, and works wherever one before it does.
    instead = next(
        (kind for kind in others[:-1] if not _refused_by(kind, programs) and _works(kind)),
        others[-1],
    )  # fmt: skip
    notes.append(f"engine {instead.name}: {reason}")
    return instead(), notes
