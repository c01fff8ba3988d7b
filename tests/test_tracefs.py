# SPDX-License-Identifier: GPL-2.0-or-later
"""tracefs is found by the kernel's own data: the names of mount points deceive nobody."""

import json
import os

import pytest
from failures import one_line


@pytest.mark.needs("mountns", "tracefs")
class TestFakeTracefs:
    r""" "/x/mal\vtracefs" was once parsed as a tracefs at /x/mal, and root wrote there."""

    @pytest.fixture
    def fake(self, tmp_path):
        """A folder that a user made to look like tracefs, with a probe of a tracer that ended."""
        folder = tmp_path / "mal"
        (folder / "instances").mkdir(parents=True)
        namespace = os.stat("/proc/self/ns/pid").st_ino
        self.probe = f"p:physview_{namespace}_4194304_1_0/chosen_by_the_user x\n"
        (folder / "kprobe_events").write_text(self.probe)
        return folder

    def run(self, physview, setup, *words):
        hide = f'umount -a -t tracefs,debugfs; {setup} && exec "$@"'
        return physview(*words, prefix=["unshare", "-m", "sh", "-c", hide, "sh"])

    def untouched(self, fake):
        assert (fake / "kprobe_events").read_text() == self.probe
        assert sorted(os.listdir(fake)) == ["instances", "kprobe_events"]
        assert os.listdir(fake / "instances") == []

    @pytest.mark.parametrize("separator", ["\v", "\f", "\r"])
    def test_by_its_name(self, fake, physview, separator):
        point = fake.with_name(f"mal{separator}tracefs")
        point.mkdir()
        setup = f"mount -t tmpfs t '{point}'"
        result = self.run(physview, setup, "trace", "kmalloc", "--", "true")
        self.untouched(fake)
        assert "tracefs is not mounted" in one_line(result, 1)
        findings = json.loads(self.run(physview, setup, "doctor", "--json").stdout)["findings"]
        (finding,) = (each for each in findings if each["name"] == "tracefs")
        assert finding["value"] == "not mounted"

    def test_mounted_over_the_real_one(self, fake, physview):
        setup = f"mount -t tracefs t /mnt && mount --bind '{fake}' /mnt"
        result = self.run(physview, setup, "trace", "kmalloc", "--", "true")
        self.untouched(fake)
        assert "tracefs is not mounted" in one_line(result, 1)

    def test_the_real_one_is_found_behind_it(self, fake, physview):
        real = fake.with_name("re al\v\\")
        point = fake.with_name("mal\vtracefs")
        for folder in (real, point):
            folder.mkdir()
        setup = f"mount -t tmpfs t '{point}' && mount -t tracefs t '{real}'"
        result = self.run(physview, setup, "doctor", "--json")
        (finding,) = (
            each for each in json.loads(result.stdout)["findings"] if each["name"] == "tracefs"
        )
        assert finding["details"]["path"] == str(real)
        self.untouched(fake)


@pytest.mark.needs("tracefs")
@pytest.mark.parametrize("name", ["\udcff\r", "\udcff:\udcfe", "../\v"])
def test_an_event_whose_name_is_no_text_is_not_there(physview, tracefs, name):
    assert "no event" in one_line(physview("trace", name, "--", "true"), 2)
