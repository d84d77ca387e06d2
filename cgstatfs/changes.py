# SPDX-License-Identifier: GPL-2.0-only
"""What commands and SIGHUP have done to the collectors of a running mount.

Slow parts run in a thread, so that the file system goes on answering; changes are made one at a
time, in the order in which they were asked for.
"""

from __future__ import annotations

import os
from pathlib import Path

import trio

from .collectors import CollectorError
from .control import Refused
from .registry import Registry

__all__ = ("Changes",)


def _text(question: dict, key: str) -> str:
    value = question.get(key)
    if not isinstance(value, str) or "\0" in value:
        raise Refused(f'the question has no text as "{key}"')
    return value


def _initials(question: dict) -> dict[str, str]:
    value = question.get("initials", {})
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise Refused('the question has no cgroups by stats maps as "initials"')
    return value


class Changes:
    """Changes to a registry.

    :param cgroupfs: where cgroup v2 is mounted
    """

    def __init__(self, registry: Registry, cgroupfs: Path) -> None:
        self._registry = registry
        self._cgroupfs = cgroupfs
        self._one = trio.Lock()

    async def answer(self, question: dict) -> list[str]:
        """Do what a command asks for.

        :returns: what was done, in lines
        :raises Refused: it was not
        """
        do = question.get("do")
        try:
            async with self._one:
                if do == "load":
                    return await self._load(question)
                if do == "unload":
                    name = _text(question, "name")
                    self._registry.unload(name)
                    return [f"{name}: unloaded"]
                if do == "reload":
                    return await self._reload(bool(question.get("keep")))
                if do == "adopt":
                    name = _text(question, "name")
                    self._registry.adopt(name, Path(_text(question, "path")))
                    return [f"{name}: adopted"]
        except CollectorError as error:
            raise Refused(str(error)) from None
        raise Refused(f'"{do}" is unknown to this version of the daemon')

    async def reload(self) -> None:
        """As SIGHUP asks for; what goes wrong is logged, collector by collector."""
        async with self._one:
            try:
                await self._reload(False)
            except Refused:
                pass  # It is in the log, and in the list.

    def _initial(self, path: str) -> int:
        """Id of the cgroup at a path from the root of the hierarchy."""
        directory = self._cgroupfs / path.strip("/")
        try:
            status = os.stat(directory / "cgroup.procs")
            same = status.st_dev == os.stat(self._cgroupfs).st_dev and ".." not in directory.parts
        except OSError:
            same = False
        if not same:
            raise CollectorError(f"{directory}: no such cgroup, to be the initial one")
        return os.stat(directory).st_ino

    async def _load(self, question: dict) -> list[str]:
        path, cgroups = Path(_text(question, "path")), _initials(question)
        initials = {file: self._initial(cgroup) for file, cgroup in cgroups.items()}
        return await self._load_one(path, initials, bool(question.get("keep")))

    async def _load_one(self, path: Path, initials: dict[str, int], keep: bool) -> list[str]:
        loaded = await trio.to_thread.run_sync(self._registry.prepare, path, initials, keep)
        self._registry.install(loaded)
        name = loaded.collector.name
        files = ", ".join(stats_map.file for stats_map in loaded.maps)
        return [f"{name}: loaded; {files}", *(f"{name}: {note}" for note in loaded.collector.notes)]

    async def _reload(self, keep: bool) -> list[str]:
        """Make the collectors those of the directories: new, changed and removed ones."""
        registry, done, wrong = self._registry, [], []
        try:
            wanted = await trio.to_thread.run_sync(registry.wanted)
        except OSError as error:
            raise Refused(f"{error.filename}: {error.strerror}") from None
        for name in registry.stale():
            registry.unload(name)
            done.append(f"{name}: unloaded")
        for name, path in wanted.items():
            if registry.is_current(name, path):
                registry.forget_failure(name)
                continue
            try:
                done += await self._load_one(path, {}, keep)
            except CollectorError as error:
                registry.failed(name, error)
                wrong.append(str(error))
        if wrong:
            raise Refused("\n".join(wrong), done)
        return done or ["nothing has changed"]
