# SPDX-License-Identifier: GPL-2.0-or-later
"""physview doctor, run as a command."""

import json
import re

import pytest
from users import AS_NOBODY


@pytest.mark.needs("nobody")
def test_nobodys_doctor_tells_the_truth(physview):
    result = physview("doctor", "--json", prefix=AS_NOBODY)
    assert (result.returncode, result.stderr) == (1, "")
    found = {finding["name"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert found["user"]["details"] == {
        "uid": 65534,
        "capabilities": [],
        "first_user_namespace": True,
    }
    assert found["pagemap"]["state"] == "part"
    assert found["pagemap"]["details"]["frames"] is False
    assert found["pagemap"]["remedy"].startswith("run ")
    assert "as root: " in found["pagemap"]["remedy"]
    assert found["kpage files"]["state"] == "no"


@pytest.mark.needs("pfn")
def test_doctor_finds_the_main_job_possible(physview):
    result = physview("doctor")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert any(re.match(r"yes +pagemap +frame numbers are shown", line) for line in lines)
    assert all(line == line.rstrip() for line in lines)


def test_doctor_names_remedies_for_what_is_missing(physview):
    findings = json.loads(physview("doctor", "--json").stdout)["findings"]
    for finding in findings:
        assert finding["state"] in ("yes", "part", "no")
        assert finding["value"]
    assert len({finding["name"] for finding in findings}) == len(findings) == 17
