# SPDX-License-Identifier: GPL-2.0-or-later
"""Text from outside and to the outside: taken apart, quoted, measured and printed."""
