# SPDX-License-Identifier: GPL-2.0-only
"""The daemon, with a file whose reading fails in a way that nobody foresaw."""

import sys

from cgstatfs import cli, registry

reader = registry._reader


def broken(stats_map):
    if stats_map.file == "mm.reclaim":
        return lambda cgroup_id: 1 // 0
    return reader(stats_map)


registry._reader = broken
sys.exit(cli.main(sys.argv[1:]))
