# SPDX-License-Identifier: GPL-2.0-only
"""Load collectors that bcc compiles: ``NAME.bcc.c``, which includes ``cgstat.bcc.h``.

bcc compiles the updates and nothing else. The rest of each stats map is an instance of
generic.bpf.o. The two meet in the stats map's BPF maps: bcc's code names them by numbers of
descriptors, so numbers are reserved before it is compiled, and are made the descriptors of the
maps before it is loaded.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from . import btf, libbpf
from .bcc_module import PROGRAM, Module
from .bcc_source import ZERO, Declaration, Source
from .bcc_types import write_entry
from .btf_writer import BtfWriter
from .collectors import Collector, CollectorError
from .engines import Standalone
from .libbpf import lib
from .loading import Request, Stage, into_kernel, populate
from .objects import object_path
from .refusals import refusals

__all__ = ("load_bcc",)

_GENERIC = "generic"
# include/uapi/linux/bpf.h: BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC
_HASH, _NO_PREALLOC = 1, 1
# sizeof struct cgstat_pair, cgstat_slot
_PAIR, _SLOT = 16, 24


@dataclass(frozen=True)
class _Typed:
    """A declared stats map whose type is known. :ivar entries: descriptor"""

    declared: Declaration
    about: btf.Description
    entries: int


def _typed(module: Module, declared: Declaration) -> _Typed | None:
    """None if the preprocessor has left it out."""
    found = module.type_of(declared.prefix)
    if found is None:
        return None
    said, made = found
    with BtfWriter() as writer:
        key, entry = write_entry(writer, declared, said)
        writer.load()
        about = btf.describe(writer.id, entry.id)
        assert about is not None
        if about.value_type.size != made.value_size:
            raise CollectorError(
                f'value of stats map "{declared.file}" has more to it than bcc tells, as it is with '
                "arrays of arrays and typedefs of arrays; use structs, and arrays of u64"
            )
        entries = libbpf.create_map(
            _HASH, f"{declared.prefix}_entries", key.size, entry.size, made.max_entries,
            map_flags=_NO_PREALLOC, btf_fd=writer.fd, btf_key_type_id=key.id,
            btf_value_type_id=entry.id,
        )  # fmt: skip
        return _Typed(declared, about, entries)


# Loading


def _run(obj: libbpf.Object, root_id: int, prefix: str, into: Collector) -> None:
    """Attach the life cycle of a stats map's entries, make those there are, and keep it all."""
    for ending in into.engine.attached:
        program = obj.programs[f"{_GENERIC}_{ending}"]
        link = program.attach()
        into.links[f"{prefix}_{ending}"] = os.dup(link.fd)
        into.programs[f"{prefix}_{ending}"] = os.dup(program.fd)
        link.close()
    for ending in into.engine.served:
        into.programs[f"{prefix}_{ending}"] = os.dup(obj.programs[f"{_GENERIC}_{ending}"].fd)
    for part in into.engine.parts:
        into.maps[f"{prefix}_{part}"] = os.dup(obj.maps[f"{_GENERIC}_{part}"].fd)
    into.maps[f"{prefix}_config"] = os.dup(obj.maps[f".rodata.{_GENERIC}"].fd)
    if "config" not in into.maps:
        into.maps["config"] = os.dup(obj.maps[".rodata.cgstat"].fd)
    populate(
        obj.programs[f"{_GENERIC}_{into.engine.populate}"].fd, into.maps[f"{prefix}_entries"], root_id, is_root=True
    )


def _load_generic(typed: _Typed, request: Request, into: Collector) -> None:
    """All of a stats map but its updates; its maps get the descriptors that these name."""
    declared = typed.declared
    obj = libbpf.Object(object_path(_GENERIC))
    try:
        obj.maps[f"{_GENERIC}_entries"].reuse(typed.entries)
        for part, head in (("pairs", _PAIR), ("slots", _SLOT)):
            obj.maps[f"{_GENERIC}_{part}"].value_size = head + typed.about.value_type.size
        buffer = obj.maps[f"{_GENERIC}_buffers"].inner
        assert buffer
        buffer.value_size = 8 + typed.about.value_type.size
        standalone = replace(request, engine=into.engine, keep=None)
        into_kernel(obj, standalone, [Stage(_GENERIC, typed.about, 0)])
        _run(obj, request.root_id, declared.prefix, into)
        for part in into.engine.parts:
            os.dup2(into.maps[f"{declared.prefix}_{part}"], declared.numbers[part], inheritable=False)
        os.dup2(obj.maps[".rodata.zero"].fd, declared.numbers[ZERO], inheritable=False)
    finally:
        obj.close()


def _attach(name: str, into: Collector) -> None:
    target = name.removeprefix(PROGRAM)
    link = lib.bpf_raw_tracepoint_open(target.encode(), into.programs[name])
    if link == -errno.ENOENT:
        raise CollectorError(f'program "{name}": this kernel has no tracepoint "{target}"')
    if link < 0:
        why = "it uses more arguments than there are" if link == -errno.EINVAL else os.strerror(-link)
        raise CollectorError(f'program "{name}" cannot be attached: {why}')
    into.links[name] = link


def _load_compiled(
    module: Module, declarations: list[Declaration], request: Request, name: str
) -> Collector:
    programs = module.programs
    with ExitStack() as stack:
        found = []
        for declared in declarations:
            if typed := _typed(module, declared):
                stack.callback(os.close, typed.entries)
                found.append(typed)
        if not found:
            raise CollectorError("declares no stats map that is compiled; use CGSTAT_MAP")
        collector = stack.enter_context(_closed_unless_done(Collector(name, Standalone())))
        for typed in found:
            _load_generic(typed, request, collector)
        for program in programs:
            collector.programs[program] = module.load(program)
        for program in programs:
            _attach(program, collector)
    return collector


@contextmanager
def _closed_unless_done(collector: Collector) -> Iterator[Collector]:
    try:
        yield collector
    except BaseException:
        collector.close()
        raise


def _notes(request: Request) -> list[str]:
    notes = []
    if request.engine.calls:
        notes.append(f"engine standalone: what bcc compiles cannot call {request.engine.calls}")
    if request.keep:
        notes.append("counting began anew: a bcc collector cannot go on with what another counted")
    return notes


def load_bcc(request: Request) -> Collector:
    """Compile a collector, make its entries and attach it.

    :raises CollectorError: anything about it or this machine prevents that; nothing is left
    """
    name = request.name
    with refusals(request.path), ExitStack() as stack:
        if request.initials:
            raise CollectorError(
                "a collector that bcc compiles counts everywhere; write a NAME.bpf.c for an "
                "initial cgroup"
            )
        source = Source(request.read())
        declarations = source.declarations(stack)
        defines = [define for each in declarations for define in each.defines]
        module = Module(request.path, source.text, defines)
        stack.callback(module.end)
        collector = _load_compiled(module, declarations, request, name)
        collector.notes = _notes(request)
        return collector
