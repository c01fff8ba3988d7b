# SPDX-License-Identifier: GPL-2.0-or-later
"""physview walk --picture: a valid file that says what the walk says, or one line and no file."""

import itertools
import json
import os
import re
import stat

import numpy as np
import pytest
from colours import CONES, brightness, lab
from drawings import words_of
from drawn_walks import WALKS
from failures import one_line
from memory import PAGE, Region, raw_entry
from paths import ROOT
from users import AS_NOBODY

from physview.analysis.entry_bits import LINUX, MEANINGS, bit_names, meaning
from physview.model import PM_PFRAME_MASK, Cause, Level
from physview.pictures.shapes import PAPER
from physview.pictures.svg import to_svg
from physview.pictures.walk_captions import describe_walk
from physview.pictures.walk_layout import lay_out_walk
from physview.pictures.walk_output import write_walks
from physview.pictures.walk_shapes import WALK_KINDS

KERNEL = "0xffff800000000000"


def words_of_walk(name, folder):
    """The texts of the drawing of a made walk."""
    walks = WALKS[name]
    path = folder / "walk.svg"
    path.write_text(to_svg(lay_out_walk(walks, walks.first).drawing()))
    return words_of(path)


@pytest.mark.needs("root", "pfn", "walk")
class TestCommand:
    def test_the_drawing_says_what_the_walk_says(self, physview, stopped, tmp_path):
        path = tmp_path / "walk.svg"
        with open(f"/proc/{stopped.pid}/maps") as maps:
            start = next(line.split("-")[0] for line in maps if "[heap]" in line)
        vaddr = int(start, 16) + 0x123
        result = physview("walk", str(stopped.pid), hex(vaddr), "--picture", str(path))
        assert (result.returncode, result.stderr) == (0, "")
        frame = (raw_entry(vaddr & -PAGE, stopped.pid) & PM_PFRAME_MASK) * PAGE
        paddr = f"{frame + 0x123:#018x}"
        said = f"{path}: {vaddr:#018x} -> {paddr}  a page, {PAGE >> 10} KiB\n"
        assert result.stdout.startswith(said)
        words = words_of(path)
        assert f"{vaddr:#018x}  ->  {paddr}" in words
        assert any(word.endswith("rw-p [heap]") for word in words)
        walk = json.loads(physview("walk", str(stopped.pid), hex(vaddr), "--json").stdout)
        for level in walk["levels"]:
            if not level["folded"]:
                assert f"{int(level['entry'], 16):#018x}" in words
                assert set(level["bits"]) <= set(words)
                assert level["name"] in words
        assert f"= offset {0x123:#x}" in words
        assert f"pfn:{frame // PAGE:#x}" in words

    def test_the_kernels_levels_are_the_same_wherever_a_walk_ends(self, physview, stopped):
        with open(f"/proc/{stopped.pid}/maps") as maps:
            start = f"0x{maps.readline().split('-')[0]}"
        texts = [physview("walk", str(stopped.pid), each).stdout for each in (start, "0x0")]
        uses = [re.findall(r"this kernel uses (\d) levels", text) for text in texts]
        assert uses[0] == uses[1]
        assert not uses[0] or f"{uses[0][0]} levels" == f"{texts[0].count('└─')} levels"
        document = json.loads(physview("walk", str(stopped.pid), "0x0", "--json").stdout)
        assert (document["kind"], document["page_size_bytes"]) == ("none", None)

    def test_the_document_and_its_description(self, physview, stopped, tmp_path):
        path = tmp_path / "walk.html"
        with open(f"/proc/{stopped.pid}/maps") as maps:
            start = f"0x{maps.readline().split('-')[0]}"
        result = physview("walk", str(stopped.pid), start, "--picture", str(path), "--json")
        assert (result.returncode, result.stderr) == (0, "")
        document = json.loads(result.stdout)
        assert document["file"] == str(path)
        assert document["size_bytes"] == path.stat().st_size
        asked = document["walks"][document["asked"]]
        assert asked["vaddr"] == hex(int(start, 16))
        names = [level["name"] for level in document["geometry"]["levels"]]
        assert [table["level"] for table in asked["tables"]] == names
        for table in asked["tables"]:
            assert table["uses"]["table"] + table["uses"]["page"] > 0
        text = (ROOT / "docs/json.md").read_text()
        members = [*document, *document["geometry"], *asked, *asked["tables"][0]]
        for member in [*members, *asked["tables"][0]["uses"]]:
            assert re.search(f'[`"]{member}[`"]', text), member

    def test_a_picture_of_itself_has_the_addresses_of_the_report(self, physview, tmp_path):
        path = tmp_path / "walk.html"
        result = physview("walk", "self", "--picture", str(path), "--json")
        assert (result.returncode, result.stderr) == (0, "")
        document = json.loads(result.stdout)
        labels = [walk["label"] for walk in document["walks"]]
        report = physview("memview", "--virtual").stdout.splitlines()[1:]
        assert labels == [line.partition(":  ")[0] for line in report]
        assert document["walks"][document["asked"]]["label"] == "buf[00]"
        assert all(walk["paddr"] for walk in document["walks"])

    @pytest.mark.parametrize("suffix", ["svg", "png", "html"])
    def test_a_hole_is_drawn_and_only_its_owner_may_read_the_file(self, physview, tmp_path, suffix):
        if suffix == "png":
            pytest.importorskip("PIL.Image")
        path = tmp_path / f"hole.{suffix}"
        result = physview("walk", "self", "0x1000", "--picture", str(path))
        assert result.returncode == 1
        assert "-> UNKNOWN  nothing is mapped at this address" in result.stdout
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        if suffix == "svg":
            assert "the walk ends here" in words_of(path)

    def test_absent_is_told_from_unmapped(self, tmp_path, physview, python):
        child = python(
            "from memory import *\nkept = Region(4)\n"
            "with open('/proc/self/comm', 'w') as comm: comm.write(hex(kept.start))"
        )
        with open(f"/proc/{child.pid}/comm") as comm:
            vaddr = comm.read().strip()
        path = tmp_path / "absent.svg"
        result = physview("walk", str(child.pid), vaddr, "--picture", str(path))
        assert (result.returncode, result.stderr) == (1, "")
        assert Cause.ABSENT.text in result.stdout
        assert "a mapping is here" in " ".join(words_of(path))

    @pytest.mark.parametrize(
        ("words", "code", "message"),
        [
            (
                [KERNEL],
                1,
                "kernel's half, and only user addresses are walked; give an address below",
            ),
            pytest.param(
                ["0x42007fff12345678"],
                1,
                "with a tag, or no address; without these bits it is 0x7fff",
                marks=pytest.mark.needs("x86_64"),  # elsewhere tags are ignored
            ),
            (["0xfffffffffffffffff"], 2, "more than 64 bits"),
            (["1000"], 2, "may be 0x1000 or, as decimal"),
        ],
    )
    def test_addresses_that_are_not_drawn(self, physview, tmp_path, words, code, message):
        path = tmp_path / "walk.svg"
        result = physview("walk", str(os.getpid()), *words, "--picture", str(path))
        assert message in one_line(result, code)
        assert os.listdir(tmp_path) == []

    def test_processes_that_are_not_drawn(self, physview, zombie, tmp_path):
        path = str(tmp_path / "walk.html")
        assert "2 is a kernel thread" in one_line(
            physview("walk", "2", "0x1000", "--picture", path), 1
        )
        refused = physview("walk", str(zombie.pid), "0x1000", "--picture", path)
        one_line(refused, 1)
        refused = physview("walk", "4194304", "0x1000", "--picture", path)
        assert "no process 4194304" in one_line(refused, 1)
        assert os.listdir(tmp_path) == []

    def test_the_theme_and_a_file_that_exists(self, physview, tmp_path):
        path = tmp_path / "walk.svg"
        assert physview("walk", "self", "--picture", str(path), "--theme", "dark").returncode == 0
        assert ".paper{fill:#14181d}" in path.read_text()
        assert "prefers-color-scheme" not in path.read_text()
        again = physview("walk", "self", "--picture", str(path))
        assert "it is there already" in one_line(again, 1)
        assert ".paper{fill:#14181d}" in path.read_text()
        forced = physview("walk", "self", "--picture", str(path), "--force")
        assert (forced.returncode, forced.stderr) == (0, "")
        assert "prefers-color-scheme:dark" in path.read_text()


def test_wrong_paths_and_options_are_refused_before_anything_is_read(physview, tmp_path):
    for name, code, message in (
        ("walk.gif", 2, "'.gif' is no kind of picture; end it in .svg, .png, .html"),
        ("walk", 2, "the name has no suffix"),
        ("nowhere/walk.svg", 1, "there is no folder"),
    ):
        refused = physview("walk", "self", "--picture", str(tmp_path / name))
        assert message in one_line(refused, code)
    assert os.listdir(tmp_path) == []
    assert "no address is given" in one_line(physview("walk", "self"), 2)
    picture = ["--picture", str(tmp_path / "walk.svg")]
    assert "no address is given" in one_line(physview("walk", str(os.getpid()), *picture), 2)
    assert "need a picture" in one_line(physview("walk", "self", "0x0", "--theme", "dark"), 2)


@pytest.mark.needs("nobody")
def test_without_root_nothing_is_written(physview, open_folder):
    path = open_folder / "walk.html"
    refused = physview("walk", "self", "--picture", str(path), prefix=AS_NOBODY)
    one_line(refused, 1)
    assert os.listdir(open_folder) == []


@pytest.mark.parametrize("name", WALKS)
@pytest.mark.parametrize("suffix", ["svg", "png", "html"])
def test_every_walk_can_be_drawn(tmp_path, name, suffix):
    if suffix == "png":
        pytest.importorskip("PIL.Image")
    path = tmp_path / f"walk.{suffix}"
    assert write_walks(WALKS[name], str(path)) == path.stat().st_size > 5000


def test_what_is_drawn_of_a_walk_that_ends_early(tmp_path):
    assert {"2 MiB page", "bits 20-0", "= offset 0x1e0b78"} <= set(words_of_walk("2 MiB", tmp_path))
    words = words_of_walk("1 GiB", tmp_path)
    assert {"1 GiB page", "bits 29-0"} <= set(words)
    assert not {"pmd", "pte"} & set(words)
    words = " ".join(words_of_walk("unmapped", tmp_path))
    assert "nothing is mapped at this address" in words
    assert "no mapping" in words
    assert words.count("not used") == 4  # three indices and the offset
    assert "swapped out (type 21, offset 0x3ffffffffffff)" in " ".join(
        words_of_walk("swapped", tmp_path)
    )
    words = " ".join(words_of_walk("guard", tmp_path))
    assert "a guard region, which kills" in words
    words = " ".join(words_of_walk("unstable", tmp_path))
    assert "changed during each of several walks" in words


def test_what_is_hidden_or_changed_is_said_and_not_guessed(tmp_path):
    words = words_of_walk("hidden", tmp_path)
    assert words.count("hidden from this user") == 4
    assert any(word.startswith("hidden: addresses and entries") for word in words)
    assert not any(word.endswith(" used") and word != "not used" for word in words)
    assert not {"empty", "a table", "a page"} & set(words)
    words = " ".join(words_of_walk("tables changed", tmp_path))
    assert words.count("not shown: it changed") == 4
    assert "empty" not in words


def test_folded_levels_and_every_level_that_is_used(tmp_path):
    assert {"p4d", "folded", "no bits", "bits 47-39"} <= set(words_of_walk("4 levels", tmp_path))
    words = words_of_walk("5 levels", tmp_path)
    assert "folded" not in words
    assert {"bits 56-48", "p4d", "7 zeros", "copies of bit 56"} <= set(words)
    words = words_of_walk("arm64, 64K", tmp_path)
    assert words.count("folded") == 2
    assert {"TTBR0", "bits 51-42", "bits 28-16", "bits 15-0", "zero: user space"} <= set(words)


def test_every_bit_has_a_meaning():
    for machine in ("x86_64", "aarch64"):
        for name in ("pte", "pmd"):
            for entry in ((1 << 64) - 1, (1 << 64) - 2):
                names = bit_names(Level(name, 0, entry, PAGE, False, True), machine)
                assert all(each.partition("=")[0] in MEANINGS for each in names)
                assert names or machine == "aarch64"


@pytest.mark.parametrize("name", ["4 levels", "arm64, 16K", "arm64, 64K"])
def test_the_step_to_the_page_names_the_bits_of_the_walks_machine(name):
    walks = WALKS[name]
    names = bit_names(walks.first.levels[-1].read, walks.machine)
    wanted = [words for words in map(meaning, names) if words != LINUX]
    told = describe_walk(walks, walks.first).steps[len(walks.first.levels)]
    assert told.endswith(f" Its bits: {', '.join(wanted)}.")


def test_the_sentences_of_a_walk():
    walks = WALKS["2 MiB"]
    steps = describe_walk(walks, walks.first).steps
    assert len(steps) == 5
    assert "cut into 4 indices of 9 bits" in steps[0]
    assert "p4d is folded" in steps[0]
    assert steps[1].startswith("CR3 says where the root table, the pgd, is. Bits 47-39 are 255")
    assert "0xfedcba0000000 + 255 * 8 = 0xfedcba00007f8" in steps[1]
    assert "maps a page of 2 MiB" in steps[3]
    assert "a huge page" in steps[3]
    assert steps[4].startswith("The last 21 bits are the offset. The huge page of 2 MiB begins")


@pytest.mark.parametrize("cones", CONES)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_told_apart(theme, cones):
    """Kinds of entries differ from each other and from the paper; lines from what they touch."""
    colours = {kind.slug: lab(getattr(kind, theme), cones) for kind in WALK_KINDS}
    colours["paper"] = lab(PAPER["paper"][theme == "dark"], cones)
    entries = [slug for slug in colours if slug.startswith("entry")]
    for one, other in itertools.combinations([*entries, "paper"], 2):
        least = 5 if {"entry_empty", "entry_kernel"} & {one, other} else 9
        assert np.linalg.norm(colours[one] - colours[other]) >= least, (one, other)
    pairs = [(line, other) for line in ("path", "offset") for other in ("paper", "entry_empty")]
    pairs += [("path", "path_tint"), ("offset", "offset_tint"), ("path", "offset")]
    for one, other in [*pairs, ("path", "entry_page"), ("path", "entry_table")]:
        assert np.linalg.norm(colours[one] - colours[other]) >= 20, (one, other)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_kinds_of_entries_differ_in_lightness(theme):
    """So that they differ in black and white."""
    entries = [kind for kind in WALK_KINDS if kind.slug.startswith("entry")]
    levels = sorted(lab(getattr(kind, theme), "all")[0] for kind in entries)
    assert all(np.diff(levels) >= 5), levels


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_enough_contrast(theme):
    """At least 4.5 to 1, as WCAG 2 asks of small text."""
    colours = lay_out_walk(WALKS["4 levels"], WALKS["4 levels"].first).drawing().colours(theme)
    texts = [("ink", "paper"), ("ink", "path_tint"), ("ink", "panel"), ("muted", "paper")]
    texts += [("muted", "panel"), ("path", "paper"), ("path", "path_tint"), ("offset", "paper")]
    for text, ground in [*texts, ("offset", "offset_tint"), ("paper", "path"), ("paper", "offset")]:
        dark, light = sorted(brightness(colours[name]) for name in (text, ground))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_names_from_outside_are_text(tmp_path):
    from drawn_walks import made_walks

    evil = "</script><img src=x onerror=alert(1)>\x1b[31m&"
    walks = made_walks(0x1000, path=f"/{evil}", name=evil)
    for suffix in ("svg", "html"):
        path = tmp_path / f"walk.{suffix}"
        write_walks(walks, str(path))
        text = path.read_text()
        assert "<img" not in text
        assert "\x1b" not in text
    assert any("<img" in word for word in words_of(tmp_path / "walk.svg"))


@pytest.mark.needs("root", "pfn", "bpf")
def test_a_walk_of_a_page_that_faults(physview, tmp_path):
    faulting = Region(1).touch()
    faulting.mprotect(0)
    path = tmp_path / "walk.svg"
    pid = str(os.getpid())
    result = physview("walk", pid, hex(faulting.start), "--picture", str(path))
    assert (result.returncode, result.stderr) == (0, "")
    assert "PROT_NONE" in words_of(path) or os.uname().machine != "x86_64"
