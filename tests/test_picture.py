# SPDX-License-Identifier: GPL-2.0-or-later
"""physview picture and frames --picture: they write a valid file, or fail with one line."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import detect
import pytest
from children import processes, start_stopped
from drawings import words_of
from failures import notes, one_line
from memory import PAGE
from users import AS_NOBODY

from physview import PhysviewError, pictures


@pytest.fixture(scope="module")
def drawn():
    """The picture of a stopped process. All frames of the machine are read for it."""
    with processes() as start:
        yield pictures.picture_process(start_stopped(start).pid)


def test_overwrite_also_by_its_earlier_name(drawn, tmp_path):
    path = str(tmp_path / "p.svg")
    pictures.write_picture(drawn, path)
    for options in ({"overwrite": True}, {"force": True}):
        pictures.check_path(path, **options)
        assert pictures.write_picture(drawn, path, **options) == os.path.getsize(path)
    with pytest.raises(PhysviewError, match="it is there already"):
        pictures.write_picture(drawn, path)


@pytest.fixture
def many(python):
    """A process with some 60,000 mappings, as many as the kernel allows by default."""
    code = """
import mmap
from memory import NORESERVE, PAGE, PRIVATE, Region, libc
region = Region(60_000, flags=PRIVATE | NORESERVE).touch(*range(0, 60_000, 4))
for i in range(0, 60_000, 2):
    libc.mprotect(region.start + i * PAGE, PAGE, mmap.PROT_READ)
"""
    return python(code)


@pytest.mark.needs("pfn", "kpage")
def test_svg_tells_what_it_is(stopped, physview, tmp_path):
    path = tmp_path / "a picture.svg"
    result = physview("picture", str(stopped.pid), "-o", str(path))
    assert (result.returncode, notes(result)) == (0, "")
    assert result.stdout.startswith(f"{path}: python")
    words = "\n".join(words_of(path))
    host = os.uname()
    assert f"process {stopped.pid}" in words
    assert f"{host.nodename}  ·  Linux {host.release}  ·  20" in words
    assert "Each cell is" in words
    assert "Each connector bundles" in words
    ram = re.findall(r"^(\w+)-(\w+) : System RAM$", Path("/proc/iomem").read_text(), re.MULTILINE)
    has_gap = any(int(end, 16) + 1 < int(start, 16) for (_, end), (start, _) in pairwise(ram))
    assert "without RAM" in words or not has_gap
    for label in ("anonymous", "files", "shared memory", "page cache", "kernel", "free"):
        assert label in words.split("\n")
    text = path.read_text()
    assert "prefers-color-scheme:dark" in text
    assert len(text) < 300_000


@pytest.mark.needs("pfn", "kpage")
def test_a_theme_is_one(drawn, tmp_path):
    for theme, paper in (("light", "#ffffff"), ("dark", "#14181d")):
        path = tmp_path / f"{theme}.svg"
        pictures.write_picture(drawn, str(path), theme=theme)
        assert "prefers-color-scheme" not in path.read_text()
        assert f".paper{{fill:{paper}}}" in path.read_text()


@pytest.mark.needs("pfn", "kpage")
@pytest.mark.parametrize(("theme", "paper"), [("light", (255,) * 3), ("dark", (20, 24, 29))])
def test_png_opens_and_has_all_colours(drawn, tmp_path, theme, paper):
    image_module = pytest.importorskip("PIL.Image")
    path = tmp_path / "picture.PNG"
    pictures.write_picture(drawn, str(path), theme=theme)
    with image_module.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert image.width == 2880
        colours = {colour for _, colour in image.getcolors(1 << 24)}
        assert image.getpixel((5, 5)) == paper
    from physview.pictures import PROCESS_KINDS

    for slug in ("own_anon", "own_huge", "own_file", "own_shared", "free", "kernel"):
        kind = next(kind for kind in PROCESS_KINDS if kind.slug == slug)
        value = getattr(kind, theme)
        assert tuple(int(value[i : i + 2], 16) for i in (1, 3, 5)) in colours, slug


@pytest.mark.needs("kpage")
def test_the_machine(physview, tmp_path):
    path = tmp_path / "machine.png"
    result = physview("frames", "--picture", str(path), "--json")
    assert (result.returncode, notes(result)) == (0, "")
    document = json.loads(result.stdout)
    assert document["size_bytes"] == path.stat().st_size > 10_000
    assert document["pid"] is None
    frames = json.loads(physview("frames", "--json").stdout)
    assert sum(kind["nr_frames"] for kind in document["kinds"]) == frames["nr_frames"]
    picture = pictures.picture_machine()
    for suffix in (".svg", ".html"):
        assert pictures.write_picture(picture, str(tmp_path / f"machine{suffix}")) > 10_000


@pytest.mark.needs("pfn", "kpage")
def test_the_document(stopped, physview, tmp_path):
    path = tmp_path / "p.svg"
    words = ["--theme", "dark", "--json"]
    result = physview("picture", str(stopped.pid), "-o", str(path), *words)
    assert ".paper{fill:#14181d}" in path.read_text()
    document = json.loads(result.stdout)
    assert document["pid"] == stopped.pid
    assert document["missing"] is None
    with open(f"/proc/{stopped.pid}/statm") as file:
        nr_resident = int(file.read().split()[1])
    status = Path(f"/proc/{stopped.pid}/status").read_text()
    hugetlb_kib = int(re.search(r"^HugetlbPages:\s+(\d+) kB$", status, re.MULTILINE)[1])
    nr_resident += hugetlb_kib * 1024 // PAGE  # statm leaves them out
    pages = [band["pages"] for band in document["bands"]]
    nr_own = sum(nr for each in pages for slug, nr in each.items() if slug.startswith("own"))
    assert abs(nr_own - nr_resident) < 64 * os.cpu_count()  # statm lags behind
    documented = (Path(__file__).parent.parent / "docs/json.md").read_text()
    for member in [*document, *document["kinds"][0], *document["cell"], *document["bands"][0]]:
        assert re.search(f'[`"]{member}[`"]', documented), member


def test_wrong_output_paths_and_options_are_refused(physview, tmp_path):
    there = tmp_path / "there.svg"
    there.write_text("mine")
    cases = {
        "picture.gif": (2, "'.gif' is no kind of picture; end it in .svg, .png, .html"),
        "picture": (2, "the name has no suffix; end it in .svg, .png, .html"),
        "there.svg": (1, "it is there already; choose another name, or add --force"),
        "nowhere/p.svg": (1, f"there is no folder {tmp_path}/nowhere; make it"),
    }
    (tmp_path / "folder.svg").mkdir()
    cases["folder.svg"] = (1, "it is a folder; name a file in it")
    for name, (code, message) in cases.items():
        for command in (["picture", "self", "-o"], ["frames", "--picture"]):
            assert message in one_line(physview(*command, str(tmp_path / name)), code)
    assert there.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["folder.svg", "there.svg"]
    one_line(physview("picture", "self"), 2)
    assert "name its file with --picture" in one_line(physview("frames", "--theme", "dark"), 2)


def test_force_writes_over_and_modes_are_those_of_files(physview, tmp_path):
    there = tmp_path / "there.svg"
    there.write_text("mine")
    code = "import os, sys; os.umask(0o027); os.execv(sys.argv[1], sys.argv[1:])"
    result = physview(
        *["picture", "self", "-o", str(there), "--force"], prefix=[sys.executable, "-c", code]
    )
    assert result.returncode == 0, result
    assert words_of(there)
    assert there.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["there.svg"]


def test_what_has_no_memory_leaves_no_file(physview, tmp_path, zombie):
    path = tmp_path / "p.svg"
    assert "a zombie" in one_line(physview("picture", str(zombie.pid), "-o", str(path)), 1)
    assert "no process" in one_line(physview("picture", "999999999", "-o", str(path)), 1)
    assert not os.listdir(tmp_path)


@pytest.mark.needs("kthread")
def test_a_kernel_thread(physview, tmp_path):
    path = tmp_path / "p.svg"
    assert "is a kernel thread" in one_line(physview("picture", "2", "-o", str(path)), 1)
    assert not os.listdir(tmp_path)


@pytest.mark.needs("pfn", "kpage")
def test_one_that_ends_while_it_is_drawn(python, tmp_path):
    size = 1200 << 20
    child = python(f"from memory import PAGE, Region\nregion = Region({size} // PAGE).touch()")
    path = tmp_path / "p.svg"
    command = [sys.executable, "-m", "physview", "picture", str(child.pid), "-o", str(path)]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    pagemap = f"/proc/{child.pid}/pagemap"
    while pagemap not in opened_by(reader.pid):
        assert reader.poll() is None
    os.kill(reader.pid, signal.SIGSTOP)  # it has opened the pagemap, and hardly read of it
    child.kill()
    child.wait()
    os.kill(reader.pid, signal.SIGCONT)
    stdout, stderr = reader.communicate()
    assert (reader.returncode, stdout) == (1, "")
    assert "it ended while it was read" in stderr or "has ended" in stderr
    assert stderr.count("\n") == 1
    assert not os.listdir(tmp_path)


def opened_by(pid):
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(fd))
        except OSError:
            continue
    return found


def test_no_room_leaves_no_file(physview, tmp_path):
    code = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        " os.execv(sys.argv[1], sys.argv[1:])"
    )
    prefix = [sys.executable, "-c", code]
    result = physview("picture", "self", "-o", str(tmp_path / "p.svg"), prefix=prefix)
    assert "File too large" in one_line(result, 1)
    assert not os.listdir(tmp_path)


def test_without_pillow_it_says_how_to_get_it(tmp_path):
    code = (
        "import sys\n"
        "sys.modules['PIL'] = None\n"  # as if it were not installed
        "from physview.commands import main\n"
        "sys.exit(main(['picture', 'self', '-o', sys.argv[1]]))"
    )
    path = tmp_path / "p.png"
    result = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=False
    )
    line = one_line(result, 1)
    missing = "cannot write a PNG: the Python package pillow (extra 'picture') is missing; "
    assert line.startswith(f"physview: {missing}")
    remedy = line.partition("; ")[2]
    if sys.prefix == sys.base_prefix and detect.forbids_pip():
        assert "pipx install 'physview[" in remedy
    else:
        assert remedy == f"{sys.executable} -I -m pip install pillow\n"
    assert not os.listdir(tmp_path)


@pytest.mark.needs("nobody")
@pytest.mark.parametrize("suffix", [".svg", ".png", ".html"])
def test_an_unprivileged_user_gets_the_virtual_half(physview, open_folder, suffix):
    path = open_folder / f"p{suffix}"
    result = physview("picture", "self", "-o", str(path), prefix=AS_NOBODY)
    assert result.returncode == 0, result
    assert result.stderr.count("\n") == 1
    why = "physical memory is not drawn: only root may see frame numbers; run "
    assert why in result.stderr
    if suffix == ".svg":
        words = words_of(path)
        assert "Physical memory is not drawn" in words
        assert any("only root may see frame numbers" in word for word in words)
        assert any("shared memory is shown as files" in word for word in words)
        assert "libc.so.6" in words or any("mappings" in word for word in words)
    refused = physview("frames", "--picture", str(open_folder / f"m{suffix}"), prefix=AS_NOBODY)
    assert "run as root" in one_line(refused, 1)
    assert os.listdir(open_folder) == [f"p{suffix}"]


@pytest.mark.needs("pfn", "kpage")
def test_sixty_thousand_mappings(many, physview, tmp_path):
    path = tmp_path / "p.svg"
    document = json.loads(physview("picture", str(many.pid), "-o", str(path), "--json").stdout)
    assert sum(band["nr_mappings"] for band in document["bands"]) > 60_000
    assert len(document["bands"]) <= 16
    anon = max(document["bands"], key=lambda band: band["nr_mappings"])
    assert anon["pages"]["own_anon"] >= 15_000
    assert path.stat().st_size < 300_000


def test_names_that_are_no_text_do_not_break_it(physview, tmp_path):
    name = b"<&\"'>\n\xff\x07.bin"
    code = (
        "import mmap, os, sys\n"
        "fd = os.open(os.fsencode(sys.argv[1]), os.O_RDWR | os.O_CREAT)\n"
        f"os.ftruncate(fd, {PAGE})\n"
        f"held = mmap.mmap(fd, {PAGE})\n"
        "held[0] = 1\n"
        "open('/proc/self/comm', 'w').write('a\"<i>')\n"
        "print(flush=True)\n"
        "input()\n"
    )
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
    with subprocess.Popen(
        ["<b>&\udcff\n", "-c", code, odd],
        executable=sys.executable,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        child.stdout.readline()
        result = physview("picture", str(child.pid), "-o", str(tmp_path / "p.svg"))
        assert result.returncode == 0, result.stderr
        picture = pictures.picture_process(child.pid)
        for suffix in (".html", ".png"):  # of one reading
            pictures.write_picture(picture, str(tmp_path / f"p{suffix}"))
        child.communicate(b"\n")
    assert any("<b>" in word for word in words_of(tmp_path / "p.svg"))
    assert 'aria-label="a&quot;&lt;i&gt;, process' in (tmp_path / "p.html").read_text()
    assert "<b>" not in re.sub("(?s)<script.*?</script>", "", (tmp_path / "p.html").read_text())


def test_the_pillow_of_the_tests_draws_text():
    """Without this check, a picture without text would pass the other tests."""
    image_module = pytest.importorskip("PIL.Image")
    from physview.pictures.kinds import PROCESS_KINDS
    from physview.pictures.png import to_png
    from physview.pictures.shapes import Drawing, Text

    drawing = Drawing(200, 50, "t", PROCESS_KINDS, [Text(10, 30, "physview", 20)])
    with image_module.open(io.BytesIO(to_png(drawing))) as image:
        left, top, right, bottom = image_module.eval(
            image.convert("L"), lambda v: 255 - v
        ).getbbox()
    assert (left >= 18, right <= 250, top >= 20, bottom <= 76) == (True,) * 4
    assert right - left > 100
