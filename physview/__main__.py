# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts physview, as `python -m physview` or as `python -I PATH_OF_THIS_FILE`.

Started by its path, this file imports the package that it is part of, wherever sys.path leads. So
it works in a checkout, in an environment and in a user's own site-packages, and nothing is
imported from the working directory. `runtime.child_python` starts children in this way.
"""

import os
import sys


def _load_package() -> None:
    """Import the package that this file is part of, even if another package has the same name."""
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    place = __file__.rpartition("/")[0].rpartition("/")[0] or "/"
    spec = PathFinder.find_spec("physview", [place])
    if spec is None or spec.loader is None:
        sys.exit(f"physview: there is no package in {place!r}: install physview again")
    # At the end of the path: modules beside the package must not hide the standard library. What
    # scripts/zipapp made has all that it needs beside it, in versions that fit.
    if os.path.exists(f"{place}/self-contained"):
        sys.path[:] = [
            path for path in sys.path if not path.endswith(("site-packages", "dist-packages"))
        ]
    sys.path.append(place)
    package = module_from_spec(spec)
    sys.modules["physview"] = package
    spec.loader.exec_module(package)


def _become_child() -> object:
    """Run as a child: call main() of the module that `child_python.command()` named."""
    import json
    from importlib import import_module

    from physview.runtime import invocation

    encoded, module, *args = sys.argv[2:]
    context = json.loads(encoded)
    sys.path += context["folders"]
    invocation.remember_typed(context["typed"])
    sys.argv[1:] = args
    from physview.runtime import resource_limits

    try:
        return import_module(module).main()
    except Exception as error:
        limit = resource_limits.reached(error)
        if limit is None:
            raise
        print(f"physview: {limit.why}; {limit.remedy}", file=sys.stderr)
        return 1


def _run() -> object:
    if not __package__:
        _load_package()
    from physview.runtime import invocation

    if sys.argv[1:2] == [invocation.CHILD_OPTION]:
        return _become_child()
    from physview.commands._start import start

    return start()


if __name__ == "__main__":
    sys.exit(_run())  # type: ignore[arg-type]
