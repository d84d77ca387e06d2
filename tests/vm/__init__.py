# SPDX-License-Identifier: GPL-2.0-only
"""Run commands under other kernels, stock ones and one's own, booted with QEMU."""
