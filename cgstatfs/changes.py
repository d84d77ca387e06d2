# SPDX-License-Identifier: GPL-2.0-only
"""What commands and SIGHUP have done to the collectors of a running mount.

Slow parts run in a thread, so that the file system goes on answering; changes are made one at a
time, in the order in which they were asked for.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import trio

from .about import About
from .collectors import CollectorError
from .control import Refused
from .registry import CollectorStopped, Registry

__all__ = ("Changes",)

log = logging.getLogger(__name__)


def _text(question: dict, key: str) -> str:
    value = question.get(key)
    if not isinstance(value, str) or "\0" in value:
        raise Refused(f'the question has no text as "{key}"')
    return value


def _initials(question: dict) -> dict[str, str]:
    value = question.get("initials", {})
    if not isinstance(value, dict) or not all(
        isinstance(each, str) and "\0" not in each for each in value.values()
    ):
        raise Refused('the question has no cgroups by stats maps as "initials"')
    return value


class Changes:
    """Changes to a registry.

    :param cgroupfs: where cgroup v2 is mounted
    """

    def __init__(self, registry: Registry, cgroupfs: Path, about: About) -> None:
        self._about = about
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
                    self._registry.unload(name, stays=True)
                    return [f"{name}: unloaded"]
                if do == "reload":
                    return await self._reload(bool(question.get("keep")))
                if do == "status":
                    return self._about.lines()
                if do == "adopt":
                    name, path = _text(question, "name"), Path(_text(question, "path"))
                    adopted = await trio.to_thread.run_sync(self._registry.open_adopted, name, path)
                    self._registry.adopt(name, path, adopted)
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
            except Exception:
                log.exception("the collectors could not be read anew")

    def _initial(self, path: str) -> int:
        """Id of the cgroup at a path from the root of the hierarchy."""
        directory = self._cgroupfs / path.strip("/")
        try:
            # Before it is looked at: it may lead out of cgroupfs.
            if ".." not in directory.parts:
                status = os.stat(directory / "cgroup.procs")
                if status.st_dev == os.stat(self._cgroupfs).st_dev:
                    return os.stat(directory).st_ino
        except OSError:
            pass
        raise CollectorError(f"{directory}: no such cgroup, to be the initial one")

    async def _initial_ids(self, cgroups: dict[str, str]) -> dict[str, int]:
        return {
            file: await trio.to_thread.run_sync(self._initial, cgroup)
            for file, cgroup in cgroups.items()
        }

    async def _load(self, question: dict) -> list[str]:
        path, cgroups = Path(_text(question, "path")), _initials(question)
        initials = await self._initial_ids(cgroups)
        try:
            return await self._load_one(path, initials, bool(question.get("keep")))
        except CollectorStopped as stopped:
            self._registry.failed(stopped.name, stopped)
            raise
        except CollectorError:
            # Removed meanwhile, it is known by its number alone; by its path this says so.
            await self._initial_ids(cgroups)
            raise

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
        for name in registry.stale(wanted):
            registry.unload(name)
            done.append(f"{name}: unloaded")
        for name, path in wanted.items():
            try:
                if await trio.to_thread.run_sync(registry.is_current, name, path):
                    registry.forget_failure(name)
                    continue
                done += await self._load_one(path, {}, keep)
            except Exception as error:
                wrong.append(registry.failed(name, error))
        if wrong:
            raise Refused("\n".join(wrong), done)
        return done or ["nothing has changed"]
