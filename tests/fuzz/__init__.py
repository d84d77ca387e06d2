# SPDX-License-Identifier: GPL-2.0-only
"""Damaged collectors, by the thousand; ``python -m tests.fuzz --help``."""
