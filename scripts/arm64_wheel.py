# SPDX-License-Identifier: GPL-2.0-or-later
"""Installs the aarch64 wheel in an emulated arm64 VM as a user does, and runs it there as root.

    arm64_wheel.py FOLDER

FOLDER has the wheel, all that it needs, and pip, as wheels for the Python of the root folder of
`physview vm --arch arm64`. scripts/ci/arm64-wheel --vm calls this.
"""

from __future__ import annotations

import sys
from pathlib import Path

from physview import kernels, vm
from physview.system import module
from physview.vm.foreign import arm64_root

SERIES = "6.12"
# $0 is the folder. Debian's Python has venv, but no pip.
IN_GUEST = """set -e
cd /
python3 -m venv --without-pip /tmp/user
set -- "$0"/pip-*.whl
python3 "$1/pip" --python /tmp/user/bin/python install -q --no-compile --no-index \\
    --find-links "$0" physview
/tmp/user/bin/python -c 'import physview; print(physview.__file__)'
/tmp/user/bin/physview --version
/tmp/user/bin/physview memview
/tmp/user/bin/physview memview --source kmod
/tmp/user/bin/physview compare self
"""


def main(wheels: Path) -> int:
    """Run it, and return the exit code of what ran in the VM."""
    foreign = arm64_root(say)
    kernel = kernels.find_kernel(SERIES, say, architecture="arm64")
    built = kernels.build_module(kernel, module.source_dir())
    result = vm.run(
        kernel,
        ["sh", "-c", IN_GUEST, str(wheels)],
        modules=[built],
        foreign=foreign,
        shares=[built.parent, wheels],
        memory_mib=1536,
        say=say,
    )
    return result.exit_code


def say(message: str) -> None:
    """Print a message."""
    print(f"ci: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
