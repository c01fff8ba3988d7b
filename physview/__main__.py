# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m physview"""

import sys

from physview.commands import main

if __name__ == "__main__":
    sys.exit(main())
