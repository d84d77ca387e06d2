# SPDX-License-Identifier: GPL-2.0-only
"""The set of collectors of a mount: loaded, unloaded, replaced and adopted while it serves.

Each change has a slow part, which knows nothing of the file system and may run in a thread, and
a part that takes no time, which shows or hides files. One change is made at a time.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from . import loader, loading, nodes
from .adoption import AdoptedMap
from .available import wanted
from .collectors import Collector, CollectorError, StatsMap, remove_pins
from .engines import Engine
from .files import read_collector
from .filesystem import FileSystem
from .hierarchy import Cgroup, Hierarchy
from .libbpf import printable
from .objects import OBJECTS
from .runtime import State
from .subtree import MakeText, Subtree, SubtreeText, make_text

__all__ = ("CollectorStopped", "Registry", "request_for")

log = logging.getLogger(__name__)

_CHANGED = "its file has changed since it was loaded; cgstatfs reload --keep replaces it"


class CollectorStopped(CollectorError):
    """One was to be replaced and its counts to be kept, and now neither it nor the other runs.

    :ivar name: of the collector
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def request_for(path: Path, engine: Engine, root_id: int) -> loading.Request:
    """What is to be loaded, read: a file that is changed after it was checked changes nothing.

    :raises CollectorError: it is no file of root's
    """
    with loading.refusals(path):
        data = read_collector(path, trusted=path.parent != OBJECTS)
    return loading.Request(path, engine, root_id, data=data)


@dataclass
class _Loaded:
    """A collector that is served.

    :ivar digest: of what it was loaded from
    :ivar dropped_in: whether that is in one of the directories
    :ivar links: names of its programs that are attached
    """

    collector: Collector
    maps: list[StatsMap]
    path: Path
    digest: bytes
    dropped_in: bool
    links: set[str]


def _digest(request: loading.Request) -> bytes:
    return hashlib.sha256(request.read()).digest()


def _links(pins: Path) -> set[str]:
    return {path.name for path in (pins / "links").glob("*")}


class Registry:
    """The collectors of a mount.

    :param root_id: id of the root of the v2 hierarchy, as far up as we see it
    :param pins: directory in bpffs for their pins
    :param directories: for drop-ins
    :param changed: called when *state* changed
    :ivar lookups: how many each file was the reason for, since this daemon began
    :param off: collectors that are loaded only when it is asked for by name
    """

    def __init__(
        self, engine: Engine, root_id: int, pins: Path, directories: tuple[Path, ...],
        hierarchy: Hierarchy, file_system: FileSystem, state: State, changed: Callable[[], None],
        off: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        self._engine = engine
        self._root_id = root_id
        self._pins = pins
        self._directories = directories
        self._hierarchy = hierarchy
        self._file_system = file_system
        self._state = state
        self._changed = changed
        self._off = off
        self._loaded: dict[str, _Loaded] = {}
        self._adopted: dict[str, AdoptedMap] = {}
        self._gone: list[str] = []
        self.lookups: Counter[str] = Counter()
        self.on_gone: Callable[[], None] = lambda: None
        hierarchy.on_change(self._on_change)

    # The slow part: knows nothing of the file system.

    def wanted(self) -> dict[str, Path]:
        """What is to be loaded at start and by a reload."""
        found = wanted(self._directories)
        return {name: path for name, path in found.items() if name not in self._off}

    def prepare(self, path: Path, initials: dict[str, int], keep: bool) -> _Loaded:
        """Load a collector, pin it beside one of its name that is loaded, and open its pins.

        :raises CollectorError: it cannot be loaded; nothing has changed
        """
        request = request_for(path, self._engine, self._root_id)
        name = request.name
        directory, current = self._pins / f"next~{name}", self._pins / name
        old = current if keep and current.exists() else None
        request = replace(request, initials=initials, keep=old)
        try:
            notes = loader.load_pinned(request, directory)
        except CollectorError as error:
            if old and name in self._loaded and _links(old) != self._loaded[name].links:
                raise CollectorStopped(
                    name,
                    f"{error}\nThe one that it was to replace counts no more, either; load it "
                    "again, with --keep to go on with its counts"
                ) from None
            raise
        try:
            with loading.refusals(path):
                opened = Collector.from_pins(directory, to_serve=True)
                opened.name, opened.notes = name, notes
                dropped_in = path.parent in self._directories
                return _Loaded(
                    opened, opened.stats_maps, path, _digest(request), dropped_in, _links(directory)
                )
        except CollectorError:
            remove_pins(directory)
            raise

    # What earlier daemons loaded.

    def take_over(self) -> None:
        """Serve the collectors that are pinned; to be called first."""
        for path in sorted(self._pins.iterdir()):
            # A collector is pinned as "next" when it is complete and runs, and may by then have
            # ended the one that it replaces. What is "new" is not complete.
            if path.name.startswith("next~"):
                current = path.with_name(path.name.removeprefix("next~"))
                remove_pins(current)
                path.rename(current)
            elif path.name.startswith("new~"):
                remove_pins(path)
        for path in sorted(self._pins.iterdir()):
            try:
                self._take_over(path)
            except Exception as error:
                self.failed(path.name, error)
        for name, about in list(self._state.adopted.items()):
            try:
                self.adopt(name, Path(about["path"]), self.open_adopted(name, Path(about["path"])))
            except Exception as error:
                self._state.adopted.pop(name)
                self.failed(name, error)

    def _take_over(self, pins: Path) -> None:
        name = pins.name
        about = self._state.loaded.get(name, {})
        path = Path(about.get("path", ""))
        opened = Collector.from_pins(pins, to_serve=True)
        opened.name, opened.notes = name, self._state.notes.get(name, [])
        self._show(_Loaded(
            opened, opened.stats_maps, path, bytes.fromhex(about.get("digest", "")),
            path.parent in self._directories, _links(pins),
        ))  # fmt: skip

    # The other part.

    def _taken(self, name: str, files: Iterable[str]) -> None:
        """:raises CollectorError: another one shows a file of that name, or it does itself"""
        taken = {
            nodes.tag(stats_map.file.encode()): (stats_map.file, f"collector {other}")
            for other, loaded in self._loaded.items()
            if other != name
            for stats_map in loaded.maps
        } | {nodes.tag(each.encode()): (each, "an adopted map") for each in self._adopted}
        for file in files:
            tag = nodes.tag(file.encode())
            if tag in taken:
                other, by = taken[tag]
                how = "is taken" if file == other else f'collides with "{other}" in 14 bits'
                raise CollectorError(f'stats map name "{file}" {how}, by {by}; rename one of them')
            taken[tag] = file, "the same collector"

    def install(self, loaded: _Loaded) -> None:
        """Show a prepared collector's files, in place of those that it replaces.

        :raises CollectorError: another shows such a file; what was loaded before goes on
        """
        name = loaded.collector.name
        directory = self._pins / f"next~{name}"
        try:
            self._taken(name, [m.file for m in loaded.maps])
        except CollectorError as error:
            loaded.collector.close()
            remove_pins(directory)
            raise CollectorError(f"{loaded.path}: {error}") from None
        self._hide(name)
        remove_pins(self._pins / name)
        directory.rename(self._pins / name)
        self._state.failed.pop(name, None)
        self._state.notes[name] = loaded.collector.notes
        self._state.loaded[name] = {"path": str(loaded.path), "digest": loaded.digest.hex()}
        if name in self._state.unloaded:
            self._state.unloaded.remove(name)
        for note in loaded.collector.notes:
            log.warning("collector %s: %s", name, note)
        self._show(loaded)
        self._changed()

    def _show(self, loaded: _Loaded) -> None:
        name = loaded.collector.name
        for stats_map in loaded.maps:
            self._file_system.add_file(
                stats_map.file.encode(), _reader(stats_map, self.lookups),
                _subtree(stats_map, self.lookups),
            )  # fmt: skip
        self._loaded[name] = loaded
        # Removed while it was loaded. (In a part of the hierarchy one need not see it.)
        if self._hierarchy.root.id == self._root_id:
            for stats_map in loaded.maps:
                if stats_map.initial and stats_map.initial not in self._hierarchy.by_id:
                    self._end_map(name, stats_map)

    def failed(self, name: str, error: Exception) -> str:
        """A collector could not be loaded: the log and the list say so.

        :returns: why, for who asked
        """
        # What a file is called is not checked yet.
        name = printable(name)
        bug = None if isinstance(error, CollectorError) else error
        reason = f"collector {name}: the daemon failed at it ({bug!r})" if bug else str(error)
        log.error("collector %s is not available: %s", name, reason, exc_info=bug)
        self._state.failed[name] = reason
        self._changed()
        return reason

    def forget_failure(self, name: str) -> None:
        """What could not be loaded is again what is loaded."""
        if self._state.failed.pop(name, None):
            self._changed()

    def _hide(self, name: str) -> None:
        loaded = self._loaded.pop(name, None)
        if loaded:
            for stats_map in loaded.maps:
                self._file_system.remove_file(stats_map.file.encode())
            loaded.collector.close()

    def unload(self, name: str, stays: bool = False) -> None:
        """End a collector, or show an adopted map no more.

        :param stays: later daemons of the mount do not load it, either
        :raises CollectorError: there is no such collector
        """
        if name in self._adopted:
            self._file_system.remove_file(name.encode())
            self._adopted.pop(name).close()
            self._state.adopted.pop(name, None)
        elif name in self._loaded:
            self._hide(name)
            remove_pins(self._pins / name)
            self._state.notes.pop(name, None)
            self._state.loaded.pop(name, None)
        elif name not in self._state.failed:
            known = ", ".join(sorted([*self._loaded, *self._adopted])) or "none"
            raise CollectorError(f'no collector "{printable(name)}" is loaded; there are: {known}')
        self._state.failed.pop(name, None)
        if stays and name not in self._state.unloaded:
            self._state.unloaded.append(name)
        self._changed()

    def stale(self, wanted: Iterable[str]) -> list[str]:
        """Loaded collectors that are not among those that are wanted, though of the directories."""
        return [
            name for name, loaded in self._loaded.items()
            if name not in wanted and (loaded.dropped_in or name in self._off)
        ]  # fmt: skip

    def _runs(self, name: str) -> bool:
        loaded = self._loaded.get(name)
        return loaded is not None and loaded.links == _links(self._pins / name)

    def goes_on(self, name: str, path: Path) -> bool:
        """Whether a collector of an earlier daemon runs: then it is left alone.

        Also if its file is another by now, as with another version of the package: while one
        replaces the other events are missed, and a daemon may come at any time. A note says so.
        """
        if not self._runs(name):
            return False
        before = self._state.notes.get(name, [])
        notes = [note for note in before if note != _CHANGED]
        if not self.is_current(name, path):
            notes.append(_CHANGED)
        if notes != before:
            self._state.notes[name] = self._loaded[name].collector.notes = notes
            self._changed()
        return True

    def is_current(self, name: str, path: Path) -> bool:
        """Whether a collector was loaded from that file as it is now, and runs."""
        loaded = self._loaded.get(name)
        if loaded is None or loaded.path != path or not self._runs(name):
            return False
        try:
            return loaded.digest == _digest(request_for(path, self._engine, self._root_id))
        except CollectorError:
            return False

    def files(self) -> list[str]:
        """The names of the stats maps' files."""
        return [each.file for loaded in self._loaded.values() for each in loaded.maps]

    def usage(self) -> dict[str, dict[str, int]]:
        """What each map takes, and says of its updates and lookups, by the name of its file."""
        found = {}
        for loaded in self._loaded.values():
            skipped = sum(loaded.collector.misses().values())
            for stats_map in loaded.maps:
                usage = loaded.collector.usage(stats_map.prefix)
                found[stats_map.file] = {
                    "entries": usage.entries, "memory": usage.memory,
                    "updates_spilled": usage.spilled, "updates_displaced": usage.displaced,
                    "updates_lost": usage.lost,
                    "lookups": self.lookups[stats_map.file],
                    # Of the collector's programs, so once.
                    "runs_skipped": skipped,
                }  # fmt: skip
                skipped = 0
        return found

    @property
    def is_empty(self) -> bool:
        return not self._loaded

    # Maps of others

    def open_adopted(self, name: str, path: Path) -> AdoptedMap:
        """Of the slow part: a map that somebody else pinned, to be shown by :meth:`adopt`.

        :raises CollectorError: it cannot be shown
        """
        if Path(os.path.realpath(path)).is_relative_to(self._pins.parent):
            raise CollectorError(f"{path}: is a part of a collector of cgstatfs; adopt what others pin")
        return AdoptedMap(name, path, self._hierarchy)

    def adopt(self, name: str, path: Path, adopted: AdoptedMap) -> None:
        """Show a map that somebody else pinned.

        :raises CollectorError: its name is taken; the map is closed
        """
        try:
            if name in self._loaded:
                raise CollectorError(f'"{name}" is the name of a collector; choose another')
            self._taken("", [name])
            subtree = make_text(adopted.snapshot, adopted.value_type)
            self._file_system.add_file(name.encode(), adopted.read, subtree)
        except CollectorError as error:
            adopted.close()
            raise CollectorError(f"{path}: {error}") from None
        self._adopted[name] = adopted
        self._state.adopted[name] = {"path": str(path), "description": adopted.description}
        self._changed()

    # Initial cgroups

    def _on_change(self, cgroup: Cgroup) -> None:
        if cgroup.alive:
            return
        for name, loaded in self._loaded.items():
            for stats_map in loaded.maps:
                if stats_map.initial == cgroup.id:
                    self._end_map(name, stats_map)

    def _end_map(self, name: str, stats_map: StatsMap) -> None:
        """The initial cgroup is destroyed: so is the map."""
        self._file_system.remove_file(stats_map.file.encode())
        loaded = self._loaded[name]
        loaded.maps = [each for each in loaded.maps if each is not stats_map]
        if not loaded.maps:
            self._gone.append(name)
            self.on_gone()

    def end_gone(self) -> None:
        """End collectors that have no stats map any more."""
        while self._gone:
            name = self._gone.pop()
            if name in self._loaded and not self._loaded[name].maps:
                log.info("collector %s: its initial cgroup was removed; it ends", name)
                self.unload(name)

    def close(self) -> None:
        for loaded in self._loaded.values():
            loaded.collector.close()
        for adopted in self._adopted.values():
            adopted.close()


def _reader(stats_map: StatsMap, lookups: Counter[str]) -> Callable[[int], bytes]:
    look_up, format_value, file = stats_map.lookup, stats_map.value_type.format, stats_map.file
    last: tuple[int, ...] = ()
    text = b""

    def read(cgroup_id: int) -> bytes:
        nonlocal last, text
        lookups[file] += 1
        value = look_up(cgroup_id)
        # Who opens a file asks twice, first for its length; and in most cgroups little happens.
        if value != last:
            last, text = value, format_value(value)
        return text

    return read


def _subtree(stats_map: StatsMap, lookups: Counter[str]) -> MakeText | None:
    if stats_map.snapshot is None:
        return None
    make, file = make_text(stats_map.snapshot, stats_map.value_type), stats_map.file

    def counted(subtree: Subtree) -> SubtreeText:
        lookups[file] += 1
        return make(subtree)

    return counted
