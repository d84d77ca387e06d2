# SPDX-License-Identifier: GPL-2.0-only
"""The cases, in the order they run. Each is a module with

TITLE       what it measures
QUICK       whether `bench-quick` has it
GUESTS      whether it boots guests
run()       measures it, in a setting; gives the tables
"""

from types import ModuleType

from . import daemon, flush, guests, lookup, memory, paths, read, subtree, update, victim

__all__ = ("ALL",)

ALL: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module for module in (update, read, paths, lookup, flush, subtree, memory, daemon, victim, guests)
}
