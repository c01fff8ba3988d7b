# SPDX-License-Identifier: GPL-2.0-or-later
"""The functions of the library that answer with tables. `physview` itself re-exports them."""
