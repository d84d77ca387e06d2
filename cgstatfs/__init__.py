# SPDX-License-Identifier: GPL-2.0-only
"""A file system that shows BPF-collected statistics per cgroup, hierarchically."""

__version__ = "0.1.0"
