# SPDX-License-Identifier: GPL-2.0-only
"""Run commands under stock distribution kernels, booted with QEMU."""
