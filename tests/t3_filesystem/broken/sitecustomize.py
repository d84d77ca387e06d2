# SPDX-License-Identifier: GPL-2.0-only
"""Python imports this when it starts: a daemon then has a file whose reading nobody foresaw to fail."""

import sys

if "serve" in sys.orig_argv:
    from cgstatfs import registry

    reader = registry._reader

    def broken(stats_map, lookups):
        if stats_map.file == "mm.reclaim":
            return lambda cgroup_id: 1 // 0
        return reader(stats_map, lookups)

    registry._reader = broken
