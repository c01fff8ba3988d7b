# SPDX-License-Identifier: GPL-2.0-or-later
"""Show what this machine and this user can do, what is missing, and the command that gets it.

doctor tries everything that it reports on, and needs no root. Exits with 1 if physical addresses,
the main job, are not available.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from physview.commands import _common
from physview.reporters import documents
from physview.runtime.version import __version__

if TYPE_CHECKING:
    from physview.system.checks import CheckResult

NAME = "doctor"
HELP = "what this machine can do, what is missing, and the command that gets it"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the findings."""
    from physview.system.checks import can_show_frames, examine

    findings = [_with_remedy(finding) for finding in examine()]
    if args.json:
        found = [finding._asdict() for finding in findings]
        documents.write({"version": __version__, "findings": found})
    else:
        from physview.reporters import doctor as reporter

        reporter.print_findings(findings)
    return int(not can_show_frames())


def _with_remedy(finding: CheckResult) -> CheckResult:
    if not finding.needs_root or finding.remedy:
        return finding
    return finding._replace(remedy=_common.root_remedy())
