# SPDX-License-Identifier: GPL-2.0-only
"""The file system's request handlers: cgroups as directories, stats maps as files in them.

Knows nothing of BPF: it is given a hierarchy, a way to bring it up to date, and for each
file a function that reads it. What handlers follow:

- Every handler first drains the cgroup events, so it answers with what had happened when it
  was asked; but those whose answer says nothing. No handler awaits anything: requests are
  answered one at a time, in order.
- Directories are cached by the kernel for as long as they live, and invalidated when they go
  or change. Files are not: each path walk asks for them, and is told their length.
- Who opens what the kernel let them come to, by an owner or mode that has changed and may not
  let them, gets ``ESTALE``, too: once, and then the kernel checks anew.
- In ``.tree`` the kernel does not check who may see what; we do, by who opened the file.
- What names a removed cgroup gets ``ESTALE`` if the path leads to another one by now (the
  kernel then walks it anew), else ``ENOENT``.
"""

from __future__ import annotations

import bisect
import errno
import functools
import inspect
import itertools
import logging
import operator
import os
import stat
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext

from . import nodes
from .attributes import Attributes
from .hierarchy import Cgroup, Hierarchy
from .invalidation import Invalidator
from .journal import Seldom
from .known import Known
from .openfiles import UNKNOWN, OpenFiles
from .requester import Requester
from .subtree import MakeText, Subtree, SubtreeText

__all__ = ("FileSystem",)

log = logging.getLogger(__name__)

# The kernel drops what we invalidate; the rest may stay.
_FOREVER = 86400.0
# Where a change would go unnoticed.
_UNWATCHED = 1.0
# A file's length is that of its text now. Just long enough for the fstat() that follows an
# open().
_FILE_ATTRIBUTES = 0.01

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC

# In the root, for who asks for it by name.
ABOUT = b".cgstatfs"
# In every directory, likewise.
TREE = b".tree"

# In cgroupfs, by which we reach it, in bytes: PATH_MAX without its NUL.
_LONGEST_PATH = 4095

# From the names of the files in it to their texts.
About = Callable[[], dict[bytes, Callable[[], bytes]]]

# From a cgroup id to the text. Raises OSError: ENOENT if the cgroup is gone.
ReadFile = Callable[[int], bytes]


class _File:
    """A stats map, as a file.

    :ivar node: its part of a file's node id; the rest is the cgroup's
    :ivar subtree: of the file of its name in ``.tree``; None: there is none
    :ivar about: it is one in ``.cgstatfs`` instead, and of no cgroup
    :ivar gone: it was unloaded
    """

    __slots__ = ("name", "tag", "node", "read", "subtree", "about", "gone")

    def __init__(
        self, name: bytes, tag: int, read: ReadFile, subtree: MakeText | None = None,
        about: bool = False,
    ) -> None:  # fmt: skip
        self.name = name
        self.tag = tag
        self.node = nodes.about_node(tag) if about else nodes.file_node(0, tag)
        self.read = read
        self.subtree = subtree
        self.about = about
        self.gone = False


def _no_text(_: int) -> bytes:
    """Of a file that was unloaded while no daemon served."""
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


class _OpenFile:
    """An open file.

    :ivar tree: it is the one in ``.tree``
    :ivar opener: who opened it, for those; None: an earlier daemon knew
    :ivar snapshot: the text that its last read at offset 0 gave
    :ivar memory: that it takes
    :ivar length: of the text that an earlier daemon gave, and which ended with it
    :ivar slot: where the next daemon finds it
    """

    __slots__ = (
        "cgroup", "file", "user", "slot", "tree", "opener", "snapshot", "memory", "length",
    )  # fmt: skip

    def __init__(
        self, cgroup: Cgroup, file: _File, user: int, slot: int, tree: bool,
        opener: Requester | None = None, length: int | None = None,
    ) -> None:  # fmt: skip
        self.cgroup = cgroup
        self.file = file
        self.user = user
        self.slot = slot
        self.tree = tree
        self.opener = opener
        self.snapshot: bytes | SubtreeText | None = None
        self.memory = 0
        self.length = length


# Source, so that each handler's wrapper has code of its own: the interpreter specialises code by
# what it meets (PEP 659), and what all of them shared would meet all of them.
_WRAPPER = """
async def guarded(self, {arguments}):
    try:
        self._drain()
        return handler(self, {arguments})
    except FUSEError:
        raise
    except Exception:
        log.exception("%s%r failed", handler.__name__, ({arguments},))
        raise FUSEError(errno.EIO) from None
"""


def _guarded(handler: Callable[..., object]) -> Callable[..., Awaitable]:
    """What pyfuse3 awaits. An unexpected exception is this request's EIO, and logged; never the
    mount's end.
    """
    _, *arguments = inspect.signature(handler).parameters
    source = _WRAPPER.format(arguments=", ".join(arguments))
    scope = {"handler": handler, "FUSEError": FUSEError, "errno": errno, "log": log}
    exec(compile(source, f"<guarded {handler.__name__}>", "exec"), scope)
    return functools.wraps(handler)(scope["guarded"])


class FileSystem(pyfuse3.Operations):
    """Request handlers.

    :param hierarchy: the cgroups
    :param attributes: of their directories
    :param drain: brings *hierarchy* up to date
    :param invalidator: has the kernel told of what it has cached and changed
    :param known: what the kernel has been told of
    :param slots: the open files, as the next daemon finds them
    :param open_files_per_user: how many files a user other than root can have open; fewer than
        there are handles for one file (:data:`nodes.SERIALS`)
    :param snapshot_memory: bytes that the texts of all open files may take together. Root's
        count, but root is not refused, as with the kernel's ``file-max``: who watches the
        machine reads on when others have used it up.
    :ivar limits_hit: how often one of the two was reached
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self, hierarchy: Hierarchy, attributes: Attributes, drain: Callable[[], None],
        invalidator: Invalidator, known: Known, slots: OpenFiles, *,
        open_files_per_user: int, snapshot_memory: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self._hierarchy = hierarchy
        self._attributes = attributes
        self._drain = drain
        self._invalidator = invalidator
        self._known = known
        self._slots = slots
        self._files: dict[bytes, _File] = {}
        self._file_of_tag: dict[int, _File] = {}
        self._open: dict[int, _OpenFile] = {}
        # But root's, of which there can be any number.
        self._open_of_user: Counter[int] = Counter()
        self._open_files_per_user = open_files_per_user
        self._snapshot_memory = snapshot_memory
        # What the snapshots of all in _open take.
        self._snapshot_bytes = 0
        self._says_full = Seldom()
        self.limits_hit = 0
        self._serial = 0
        # The file that was looked up last, which is mostly what is opened next: its node, and what
        # that stands for.
        self._looked_up: tuple[int, Cgroup, _File] | tuple[None, None, None] = None, None, None
        self._file_entry = self._new_file_entry()
        # The directory's attributes of which it has a part.
        self._file_entry_of: os.stat_result | None = None
        self._about: About = dict
        # Removed cgroups that the kernel still refers to.
        self._removed: dict[int, Cgroup] = {}
        hierarchy.on_change(self._on_change)

    def add_file(self, name: bytes, read: ReadFile, subtree: MakeText | None = None) -> None:
        """Show a stats map in every directory.

        :param subtree: makes the text of its file in ``.tree``; None: there is none
        :raises ValueError: the name is taken, or cannot be told from one that is
        """
        file = _File(name, nodes.tag(name), read, subtree)
        other = self._file_of_tag.get(file.tag)
        if other:
            raise ValueError(
                f'stats map name "{os.fsdecode(name)}" '
                + ("is taken" if other.name == name else
                   f'collides with "{os.fsdecode(other.name)}" in 14 bits')
                + "; rename one of them"
            )  # fmt: skip
        self._files[name] = self._file_of_tag[file.tag] = file

    def remove_file(self, name: bytes) -> None:
        """Show a stats map no more; reading files of it that are open gives ``ENODEV``."""
        file = self._files.pop(name, None)
        if file is not None:
            del self._file_of_tag[file.tag]
            file.gone = True
        # It may be of that one, which is held by nothing else.
        self._looked_up = None, None, None

    def show_about(self, about: About) -> None:
        """Show what the file system says of itself, in ``.cgstatfs``."""
        self._about = about

    def recover(self) -> list[Cgroup]:
        """Go on where earlier daemons ended; to be called when all files are there.

        :returns: removed cgroups that the kernel has been told of
        """
        gone = self._known.recover()
        self._removed |= {cgroup.id: cgroup for cgroup in gone}
        for slot in self._slots.recover():
            cgroup = self._hierarchy.by_id.get(slot.cgroup) or self._removed.get(slot.cgroup)
            file = self._file_of_tag.get(slot.tag)
            if not slot.cgroup:
                cgroup, file = self._hierarchy.root, self._about_file(slot.tag)
            if cgroup is None:
                cgroup = Cgroup(slot.cgroup, self._hierarchy.root, b"")
                cgroup.alive = False
            if file is None:
                file = _File(b"", slot.tag, _no_text)
                file.gone = True
            opener = Requester.passing_all(slot.user) if slot.searches_all else None
            self._open[slot.handle] = _OpenFile(
                cgroup, file, slot.user, slot.index, slot.tree, opener, slot.length,
            )  # fmt: skip
            if slot.user:
                self._open_of_user[slot.user] += 1
        return gone

    # What node ids and handles stand for.

    def _on_change(self, cgroup: Cgroup) -> None:
        if cgroup.alive:
            return
        if cgroup.lookups:
            self._removed[cgroup.id] = cgroup
        elif cgroup.uncounted:
            self._known.forget(cgroup)

    def _cgroup(self, node: int) -> Cgroup:
        """The cgroup of a directory, which may have been removed."""
        id = self._hierarchy.root.id if node == nodes.ROOT else node
        cgroup = self._hierarchy.by_id.get(id) or self._removed.get(id)
        if cgroup is None:
            raise FUSEError(errno.ESTALE)
        return cgroup

    def _node(self, cgroup: Cgroup) -> int:
        return nodes.ROOT if cgroup is self._hierarchy.root else cgroup.id

    def _about_file(self, tag: int) -> _File | None:
        for name, text in self._about().items():
            if nodes.tag(name) == tag:
                return _File(name, tag, lambda _: text(), about=True)
        return None

    def _cgroup_and_file(self, node: int, *, unloaded: bool = False) -> tuple[Cgroup, _File]:
        """:param unloaded: also a file that is open and was unloaded"""
        in_tree = False
        if nodes.is_file(node):
            id, tag = nodes.split_file_node(node)
        elif nodes.is_tree(node):
            id, tag = nodes.split_tree_node(node)
            in_tree = True
        else:
            file = self._about_file(nodes.about_tag(node))
            if file is None:
                raise FUSEError(errno.ESTALE)
            return self._hierarchy.root, file
        file = self._file_of_tag.get(tag)
        if file is None and unloaded:
            file = next((each.file for each in self._open.values() if each.file.tag == tag), None)
        if file is None or (in_tree and not file.subtree):
            raise FUSEError(errno.ESTALE)
        return self._cgroup(id), file

    def _tree_cgroup(self, node: int) -> Cgroup:
        """Of a ``.tree``, or of what is in one."""
        return self._cgroup(nodes.split_tree_node(node)[0])

    def _gone(self, cgroup: Cgroup) -> FUSEError:
        """The answer to a path walk that came to a removed cgroup."""
        other = self._hierarchy.resolve(cgroup.names)
        return FUSEError(errno.ESTALE if other else errno.ENOENT)

    def _check_walk(self, cgroup: Cgroup, ctx: RequestContext) -> None:
        """Before a directory, or a file in it, is opened."""
        if not cgroup.alive:
            raise self._gone(cgroup)
        self._attributes.drain()
        invalidator = self._invalidator
        if invalidator.permissions:
            recent = invalidator.recent(cgroup)
            doubtful = [each for each in recent if not self._lets_in(each, ctx.uid)]
            if doubtful and invalidator.turns_back(doubtful, ctx.pid):
                raise FUSEError(errno.ESTALE)

    def _lets_in(self, cgroup: Cgroup, user: int) -> bool:
        """Whether a user may pass and list a directory, whatever their groups and capabilities."""
        status, _ = self._stat(cgroup)
        bits = 0o500 if user == status.st_uid else 0o055
        return status.st_mode & bits == bits

    # Attributes.

    def _stat(self, cgroup: Cgroup) -> tuple[os.stat_result, bool]:
        """A directory's attributes, and whether changes are noticed: the last known if it is removed."""
        if cgroup.alive:
            try:
                return self._attributes.get(cgroup)
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    raise FUSEError(errno.ENAMETOOLONG) from None
                if error.errno not in (errno.ENOENT, errno.ENODEV):
                    raise
            if cgroup.stat is None:
                raise self._gone(cgroup)
        elif cgroup.stat is None:
            # Removed before this daemon began: who has it open is told what is so of its parent.
            assert cgroup.parent
            cgroup.stat, _ = self._stat(cgroup.parent)
        return cgroup.stat, True

    def _directory_attributes(self, cgroup: Cgroup) -> EntryAttributes:
        status, watched = self._stat(cgroup)
        entry = EntryAttributes()
        entry.st_ino = self._node(cgroup)
        entry.st_mode = stat.S_IFDIR | stat.S_IMODE(status.st_mode)
        entry.st_nlink = status.st_nlink
        entry.st_uid = status.st_uid
        entry.st_gid = status.st_gid
        entry.st_atime_ns = status.st_atime_ns
        entry.st_mtime_ns = status.st_mtime_ns
        entry.st_ctime_ns = status.st_ctime_ns
        entry.st_blksize = 4096
        entry.entry_timeout = _FOREVER
        entry.attr_timeout = _FOREVER if watched else _UNWATCHED
        return entry

    @staticmethod
    def _new_file_entry() -> EntryAttributes:
        """What all files have in common."""
        entry = EntryAttributes()
        entry.st_mode = stat.S_IFREG | 0o444
        entry.st_blksize = 4096
        entry.entry_timeout = 0
        entry.attr_timeout = _FILE_ATTRIBUTES
        return entry

    def _file_attributes(self, cgroup: Cgroup, file: _File) -> EntryAttributes:
        """Good until the next are asked for: see :meth:`_plain_attributes`."""
        entry = self._plain_attributes(cgroup)
        entry.st_ino = file.node if file.about else file.node | cgroup.id & nodes.FILE_ID
        there = cgroup.alive and not file.gone
        entry.st_nlink = 1 if there else 0
        entry.st_size = self._length(cgroup, file) if there else 0
        return entry

    def _plain_attributes(self, cgroup: Cgroup) -> EntryAttributes:
        """What files in a directory have in common.

        It is one object for all, since to fill in a new one takes longer than the rest: pyfuse3
        has written it into the answer before another request is looked at.
        """
        status = cgroup.stat if cgroup.stat_current else self._stat(cgroup)[0]
        entry = self._file_entry
        if status is not self._file_entry_of:
            self._file_entry_of = status
            entry.st_uid = status.st_uid
            entry.st_gid = status.st_gid
            entry.st_atime_ns = entry.st_ctime_ns = status.st_ctime_ns
        # What rsync and cp -u go by: the text is of now.
        entry.st_mtime_ns = time.time_ns()
        return entry

    def _tree_attributes(self, cgroup: Cgroup) -> EntryAttributes:
        """Of ``.tree``: who can search the directory can search it; never in the kernel's cache."""
        entry = self._directory_attributes(cgroup)
        entry.st_ino = nodes.tree_node(cgroup.id)
        entry.st_nlink = 2
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    def _tree_file_attributes(self, cgroup: Cgroup, file: _File) -> EntryAttributes:
        """Without the length, which it would take the whole text to know."""
        entry = self._plain_attributes(cgroup)
        entry.st_ino = nodes.tree_file_node(cgroup.id, file.tag)
        entry.st_nlink = 1 if cgroup.alive and not file.gone else 0
        entry.st_size = 0
        return entry

    def _length(self, cgroup: Cgroup, file: _File) -> int:
        try:
            return len(file.read(cgroup.id))
        except FileNotFoundError:
            raise FUSEError(errno.ENOENT) from None
        except OSError:
            # Reading it will say so; listing its directory should not fail.
            log.exception("%s of cgroup %d", os.fsdecode(file.name), cgroup.id)
            return 0

    @_guarded
    def getattr(self, node: int, ctx: RequestContext) -> EntryAttributes:
        if node == nodes.ABOUT:
            return self._about_attributes()
        if nodes.is_tree_file(node):
            return self._tree_file_attributes(*self._cgroup_and_file(node, unloaded=True))
        if nodes.is_tree(node):
            return self._tree_attributes(self._tree_cgroup(node))
        if nodes.is_file(node) or nodes.is_about(node):
            return self._file_attributes(*self._cgroup_and_file(node, unloaded=True))
        # Who may not pass by what the kernel has cached is let ask, and should know.
        self._attributes.drain()
        entry = self._directory_attributes(self._cgroup(node))
        if node == nodes.ROOT:
            entry.st_ino = self._hierarchy.root.id
        return entry

    @_guarded
    def lookup(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if parent >= nodes.NO_CGROUP:
            if parent == nodes.ABOUT:
                return self._look_up_about(name)
            return self._look_up_in_tree(self._tree_cgroup(parent), name)
        # As _cgroup() does, without the call, but for the root's node. That is in there only if it is
        # also the root's id.
        directory = self._hierarchy.by_id.get(parent) or self._cgroup(parent)
        if not directory.alive:
            raise self._gone(directory)
        child = directory.children.get(name)
        if child is not None:
            entry = self._directory_attributes(child)
            self._known.add(child)
            child.lookups += 1
            return entry
        if name == ABOUT and parent == nodes.ROOT:
            return self._about_attributes()
        if name == TREE:
            return self._tree_attributes(directory)
        file = self._files.get(name)
        if file is None:
            raise FUSEError(errno.ENOENT)
        entry = self._file_attributes(directory, file)
        self._looked_up = entry.st_ino, directory, file
        return entry

    def _look_up_in_tree(self, directory: Cgroup, name: bytes) -> EntryAttributes:
        if not directory.alive:
            raise self._gone(directory)
        file = self._files.get(name)
        if file is None or not file.subtree:
            raise FUSEError(errno.ENOENT)
        return self._tree_file_attributes(directory, file)

    def _look_up_about(self, name: bytes) -> EntryAttributes:
        file = self._about_file(nodes.tag(name))
        if file is None or file.name != name:
            raise FUSEError(errno.ENOENT)
        return self._file_attributes(self._hierarchy.root, file)

    def _about_attributes(self) -> EntryAttributes:
        """Of ``.cgstatfs``: for all to read, and never in the kernel's cache."""
        entry = self._directory_attributes(self._hierarchy.root)
        entry.st_ino = nodes.ABOUT
        entry.st_mode = stat.S_IFDIR | 0o555
        entry.st_nlink = 2
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    async def forget(self, inode_list: list[tuple[int, int]]) -> None:
        # No answer is expected, so there is none to put an error into; nothing here raises.
        for node, count in inode_list:
            if node == nodes.ROOT or node >= nodes.NO_CGROUP:
                continue
            cgroup = self._hierarchy.by_id.get(node) or self._removed.get(node)
            if cgroup is None:
                continue
            cgroup.lookups = max(0, cgroup.lookups - count)
            if not cgroup.lookups:
                self._removed.pop(node, None)
                # What it forgets may be what an earlier daemon told, which was not counted, with
                # an answer of ours on its way to it.
                if not (cgroup.uncounted and cgroup.alive):
                    self._known.forget(cgroup)

    # Directories.

    @_guarded
    def opendir(self, node: int, ctx: RequestContext) -> int:
        if node == nodes.ABOUT:
            return node
        cgroup = self._tree_cgroup(node) if nodes.is_tree(node) else self._cgroup(node)
        self._check_walk(cgroup, ctx)
        return node

    @_guarded
    def readdir(self, handle: int, start: int, token: ReaddirToken) -> None:
        if handle == nodes.ABOUT:
            self._list_about(start, token)
            return
        if nodes.is_tree(handle):
            self._list_tree(self._tree_cgroup(handle), start, token)
            return
        directory = self._cgroup(handle)
        if start < nodes.COOKIE_DOTDOT and not self._list_dots(directory, start, token):
            return
        if directory.alive and self._list_children(directory, start, token):
            self._list_files(directory, start, token)

    def _list_dots(self, directory: Cgroup, start: int, token: ReaddirToken) -> bool:
        parent = directory.parent or directory
        dots = ((b".", nodes.COOKIE_DOT, directory), (b"..", nodes.COOKIE_DOTDOT, parent))
        for name, cookie, target in dots:
            if cookie <= start:
                continue
            entry = self._directory_attributes(target)
            if not pyfuse3.readdir_reply(token, name, entry, cookie):
                return False
        return True

    def _list_children(self, directory: Cgroup, start: int, token: ReaddirToken) -> bool:
        children = directory.ordered
        last = start - nodes.COOKIE_DOTDOT
        first = bisect.bisect_right(children, last, key=operator.attrgetter("id"))
        for child in itertools.islice(children, first, None):
            try:
                entry = self._directory_attributes(child)
            except FUSEError:
                continue
            cookie = nodes.directory_cookie(child.id)
            self._known.add(child)
            if not pyfuse3.readdir_reply(token, child.name, entry, cookie):
                return False
            child.lookups += 1
        return True

    def _list_about(self, start: int, token: ReaddirToken) -> None:
        root = self._hierarchy.root
        entries = [
            (nodes.COOKIE_DOT, b".", self._about_attributes),
            (nodes.COOKIE_DOTDOT, b"..", lambda: self._directory_attributes(root)),
        ]
        for tag in sorted(map(nodes.tag, self._about())):
            file = self._about_file(tag)
            entries.append((
                nodes.file_cookie(tag), file.name,
                functools.partial(self._file_attributes, root, file),
            ))  # fmt: skip
        self._list(entries, start, token)

    def _list_tree(self, directory: Cgroup, start: int, token: ReaddirToken) -> None:
        if not directory.alive:
            return
        entries = [
            (nodes.COOKIE_DOT, b".", functools.partial(self._tree_attributes, directory)),
            (nodes.COOKIE_DOTDOT, b"..", functools.partial(self._directory_attributes, directory)),
        ]
        for tag, file in sorted(self._file_of_tag.items()):
            if file.subtree:
                attributes = functools.partial(self._tree_file_attributes, directory, file)
                entries.append((nodes.file_cookie(tag), file.name, attributes))
        self._list(entries, start, token)

    @staticmethod
    def _list(
        entries: Iterable[tuple[int, bytes, Callable[[], EntryAttributes]]], start: int,
        token: ReaddirToken,
    ) -> None:  # fmt: skip
        """Entries of a directory: cookies, in order, names, and what gives the attributes."""
        for cookie, name, attributes in entries:
            if cookie > start and not pyfuse3.readdir_reply(token, name, attributes(), cookie):
                return

    def _list_files(self, directory: Cgroup, start: int, token: ReaddirToken) -> None:
        for tag, file in sorted(self._file_of_tag.items()):
            cookie = nodes.file_cookie(tag)
            # A cgroup of that name goes before the file.
            if cookie <= start or file.name in directory.children:
                continue
            try:
                entry = self._file_attributes(directory, file)
            except FUSEError:
                continue
            if not pyfuse3.readdir_reply(token, file.name, entry, cookie):
                return

    # Files.

    @_guarded
    def open(self, node: int, flags: int, ctx: RequestContext) -> FileInfo:
        last, cgroup, file = self._looked_up
        tree = False
        if node != last:
            cgroup, file = self._cgroup_and_file(node)
            tree = nodes.is_tree(node)
        self._check_walk(cgroup, ctx)
        if flags & _WRITING:
            raise FUSEError(errno.EROFS)
        user = ctx.uid
        if user and self._open_of_user[user] >= self._open_files_per_user:
            self.limits_hit += 1
            raise FUSEError(errno.EMFILE)
        id = 0 if file.about else cgroup.id
        self._serial += 1
        handle = nodes.file_handle(id, file.tag, self._serial)
        if handle in self._open:
            handle = self._free_handle(id, file)
        opener = Requester.of(user, ctx.gid, ctx.pid) if tree else None
        slot = self._slots.add(
            handle, id, user, file.tag, tree, opener is not None and opener.searches_all,
        )  # fmt: skip
        if slot is None:
            raise FUSEError(errno.ENFILE)
        self._open[handle] = _OpenFile(cgroup, file, user, slot, tree, opener)
        if user:
            self._open_of_user[user] += 1
        return FileInfo(fh=handle, direct_io=True, keep_cache=False)

    def _free_handle(self, id: int, file: _File) -> int:
        for _ in range(nodes.SERIALS):
            self._serial += 1
            handle = nodes.file_handle(id, file.tag, self._serial)
            if handle not in self._open:
                return handle
        raise FUSEError(errno.ENFILE)

    @_guarded
    def read(self, handle: int, offset: int, size: int) -> bytes:
        file = self._open.get(handle)
        if file is None:
            raise FUSEError(errno.ESTALE)
        current = file.cgroup.alive and not file.file.gone
        if offset == 0 and not current:
            raise FUSEError(errno.ENODEV)
        if offset and file.length is not None:
            # The rest of that text is lost, unless there is none.
            if offset < file.length:
                raise FUSEError(errno.ESTALE)
            if current:
                return b""
        elif current and (offset == 0 or file.snapshot is None):
            # As a kernel seq file does: what precedes the offset is made, and passed over.
            self._take_snapshot(file)
        if file.snapshot is None:
            part = b""
        elif file.tree:
            part = file.snapshot.read(offset, size)
            self._account(file, file.snapshot.memory, file.snapshot.length)
        else:
            part = file.snapshot[offset : offset + size]
        if not current and not part:
            raise FUSEError(errno.ENODEV)
        return part

    def _take_snapshot(self, file: _OpenFile) -> None:
        """Look up, and keep the text in place of the one before."""
        try:
            if file.tree:
                text = self._subtree_text(file)
                memory, length = text.memory, text.length
            else:
                text = file.file.read(file.cgroup.id)
                memory = length = len(text)
        except FileNotFoundError:
            raise FUSEError(errno.ENODEV) from None  # As it was looked up.
        more = memory - file.memory
        if file.user and more > 0 and self._snapshot_bytes + more > self._snapshot_memory:
            self._say_full()
            raise FUSEError(errno.ENFILE)
        file.snapshot, file.length = text, None
        self._account(file, memory, length)

    def _account(self, file: _OpenFile, memory: int, length: int | None) -> None:
        """Write down what a text takes, and how long it is, as it was made or went on."""
        self._snapshot_bytes += memory - file.memory
        file.memory = memory
        self._slots.read(file.slot, UNKNOWN if length is None else length)

    def _subtree_text(self, file: _OpenFile) -> SubtreeText:
        opener, make = file.opener, file.file.subtree
        if opener is None or make is None:
            # An earlier daemon knew who opened it, or had it.
            raise FUSEError(errno.ESTALE)
        self._attributes.drain()

        def may(cgroup: Cgroup) -> tuple[bool, bool]:
            try:
                directory = self._attributes.get(cgroup)[0]
            except OSError:
                return False, False  # Removed just now, or so deep that no path leads there.
            return opener.may_search(directory), opener.may_list(directory)

        longest = _LONGEST_PATH - len(self._hierarchy.directory(file.cgroup))
        subtree = Subtree(file.cgroup, None if opener.searches_all else may, longest)
        return make(subtree)

    def _say_full(self) -> None:
        """Seldom: whoever reads on would fill the log."""
        self.limits_hit += 1
        if self._says_full():
            log.warning(
                "the texts of %d open files take all of limits.snapshot-memory, %d bytes; users "
                "other than root get ENFILE until some are closed",
                len(self._open), self._snapshot_memory,
            )  # fmt: skip

    async def release(self, handle: int) -> None:
        # Whatever has happened to cgroups, there is nothing to say of it; and nothing here raises.
        file = self._open.pop(handle, None)
        if file is None:
            return  # Closed by a daemon that was killed before it had answered.
        self._slots.remove(file.slot)
        self._snapshot_bytes -= file.memory
        if user := file.user:
            self._open_of_user[user] -= 1
            if not self._open_of_user[user]:
                del self._open_of_user[user]

    @_guarded
    def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_namemax = 255
        return data


async def _refuse(self: FileSystem, *_: object) -> None:
    """All that would change something, for root and after remount,rw as well."""
    raise FUSEError(errno.EROFS)


for _name in (
    "create", "link", "mkdir", "mknod", "removexattr", "rename", "rmdir", "setattr",
    "setxattr", "symlink", "unlink", "write",
):  # fmt: skip
    setattr(FileSystem, _name, _refuse)
