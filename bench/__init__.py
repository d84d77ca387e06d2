# SPDX-License-Identifier: GPL-2.0-only
"""What things cost, side by side with what else one could use. See README.md."""
