# SPDX-License-Identifier: GPL-2.0-or-later
"""The library: its functions answer with tables that hold what the commands say."""

import inspect
import json
import os
import subprocess
import sys

import numpy as np
import polars
import psutil
import pyarrow
import pytest
from every_table import every_table
from memory import PAGE, Region, kpageflags, raw_entry
from paths import ROOT
from users import AS_NOBODY

import physview
from physview import Table, pictures
from physview.analysis.changes import Change
from physview.model import PM_PFRAME_MASK

FUNCTIONS = [
    name
    for name in physview.__all__
    if inspect.isfunction(getattr(physview, name)) and name != "visit_probes"
]


OF_NO_PROCESS = (
    "processes",
    "groups",
    "frames",
    "select_frames",
    "file",
    "owners",
    "watch_processes",
)


def command(*words, exits=(0,)):
    """The JSON document of a command, asked for by another process."""
    run = [sys.executable, "-I", "-m", "physview", *map(str, words), "--json"]
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert result.returncode in exits, result.stderr
    return json.loads(result.stdout)


def test_dir_lists_what_is_public_and_all_of_it_is_typed_and_documented():
    assert set(physview.__all__) <= set(dir(physview))
    asked = "processes extents maps frames file walk compare watch tables owners diff snapshot"
    assert set(asked.split()) <= set(FUNCTIONS)
    for name in FUNCTIONS:
        function = getattr(physview, name)
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty, name
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, f"{name} {parameter}"
            documented = parameter.name in function.__doc__
            assert documented, f"{name} does not document {parameter.name}"
        assert "Raises:" in function.__doc__, name
        if function.__module__.startswith("physview.api"):
            assert (
                "Returns:" in function.__doc__
                or "Yields:" in function.__doc__
                or (name == "snapshot")
            ), name
            assert ">>> " in function.__doc__, name


def test_frames_is_a_function_whatever_was_imported_before():
    code = (
        "import physview, physview.frames.machine\n"
        "from physview.frames.owners import find_owners\n"
        "from physview import frames\n"
        "assert physview.frames is frames and callable(frames)\n"
        "assert physview.read_machine and physview.pictures.picture_process\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_importing_physview_imports_none_of_it():
    code = (
        "import sys, physview; dir(physview)\n"
        "heavy = {'numpy', 'ctypes', 'psutil', 'rich', 'pyarrow', 'physview.api',\n"
        " 'physview.memory.columns'}\n"
        "print(heavy & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert output == b"set()\n"


def test_every_table_is_taken_by_arrow_and_says_where_it_is_from(tmp_path):
    found = every_table()
    physview.snapshot("self", str(tmp_path / "a"))
    physview.snapshot("self", str(tmp_path / "b"))
    found["diff"] = physview.diff(str(tmp_path / "a"), str(tmp_path / "b"))
    found["changes"] = physview.changes(str(tmp_path / "a"), str(tmp_path / "b"))
    assert len(found) >= 8
    for name, result in found.items():
        table = result.table()
        taken = pyarrow.table(result)
        taken.validate(full=True)
        assert taken.num_rows == len(table), name
        assert taken.num_rows, name
        assert taken.to_pylist() == list(table), name
        assert polars.DataFrame(result).shape == taken.shape, name
        for column in table.columns.values():
            assert column.meaning, f"{name} {column.name}"
            if column.words is None and column.values.dtype != bool:
                arrow = taken.column(column.name).chunk(0).buffers()[1].address
                assert arrow == column.values.__array_interface__["data"][0], name
        assert table.source, name
        assert table.source in repr(result), name
        if name not in OF_NO_PROCESS:
            assert f"process {os.getpid()}" in repr(result), name
        html = result._repr_html_()
        assert html.count("<tr>") == min(len(table), 20) + 1, name


@pytest.mark.needs("nobody")
def test_an_unprivileged_user_gets_every_table_of_their_own():
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import pyarrow\n"
        "from every_table import every_table\n"
        "found = every_table()\n"
        "assert set(found) >= {'processes', 'extents', 'pages', 'maps', 'watch', 'translations'}\n"
        "extents = found['extents']\n"
        "assert not extents.valid('pfn').any() and set(extents['cause']) <= {'hidden', 'marker'}\n"
        "assert pyarrow.table(extents).column('pfn').null_count == len(extents)\n"
    )
    run = [*AS_NOBODY, sys.executable, "-B", "-c", code, str(ROOT / "tests/support")]
    subprocess.run(run, check=True)


def test_processes_are_those_of_psutil():
    table = physview.processes()
    by_pid = {row["pid"]: row for row in table}
    assert os.getpid() in by_pid
    for each in psutil.process_iter(["name", "uids"]):
        row = by_pid.get(each.pid)
        if row and each.info["uids"] and row["size_bytes"]:  # kernel threads change their names
            assert row["uid"] == each.info["uids"].effective
            assert each.info["name"].startswith(row["name"]) or "\\" in row["name"]
    own = physview.processes(["self", os.getppid()])
    assert own["pid"].tolist() == [os.getpid(), os.getppid()]
    assert abs(int(own["size_bytes"][0]) - psutil.Process().memory_info().vms) < 64 << 20
    with pytest.raises(physview.ProcessGone):
        physview.processes([(1 << 31) - 1])


def test_a_notebook_runs_nothing_that_the_name_of_a_process_says():
    name = "ctypes.CDLL(None).prctl(15, b'<script>\\x1b\\n')"
    code = f"import ctypes, sys; {name}; print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as hostile:
        hostile.stdout.readline()
        table = physview.processes([hostile.pid])
        hostile.stdin.close()
    assert table["name"][0] == "<script>\\x1b\\n"
    html = table._repr_html_()
    assert "&lt;script&gt;\\x1b\\n" in html
    assert "<script" not in html


@pytest.mark.needs("kthread")
def test_a_kernel_thread_has_no_sizes():
    (row,) = physview.processes([2])
    assert row["name"] == "kthreadd"
    assert row["size_bytes"] is row["resident_bytes"] is row["tables_bytes"] is None


@pytest.mark.needs("root", "pfn", "kpage")
def test_extents_are_those_of_the_kernel():
    region = Region(64).touch(*range(0, 64, 2))
    where = {"start": region.start, "end": region.end}
    table = physview.extents(**where, columns=["flags", "mapcount", "node"])
    assert int(table["nr_pages"].sum()) == 32
    assert table["pfn"].tolist() == [
        raw_entry(vaddr) & PM_PFRAME_MASK for vaddr in table["vaddr"].tolist()
    ]
    assert [kpageflags(pfn) & 1 << 12 for pfn in table["pfn"].tolist()] == [1 << 12] * len(table)
    each = physview.extents(**where, each_page=True)
    assert each["vaddr"].tolist() == [region.start + i * PAGE for i in range(0, 64, 2)]
    assert all("anon" in names.split("|") for names in table["flag_names"])
    assert not table.valid("swap_type").any()
    assert len(physview.extents(start=region.end, end=region.end)) == 0
    with pytest.raises(physview.UsageError, match="no column 'nodes'"):
        physview.extents(columns=["nodes"])


def test_maps_are_those_of_the_command():
    region = Region(256).touch(*range(100))
    table = physview.maps()
    row = next(each for each in table if each["start"] <= region.start < each["end"])
    assert row["resident_bytes"] >= 100 * PAGE
    vmas = command("maps", os.getpid())["processes"][0]["mappings"]
    said = next(each for each in vmas if each["mapping"]["start"] == f"{row['start']:#x}")
    for name in ("resident_bytes", "swapped_bytes", "zero_bytes", "exclusive_bytes"):
        assert abs(said[name] - row[name]) <= PAGE * 16, name
    assert len(table.answer) == len(table)


def test_maps_can_have_the_sizes_of_smaps():
    region = Region(64).touch(*range(10))
    table = physview.maps(with_smaps=True)
    row = next(each for each in table if each["start"] <= region.start < each["end"])
    assert 10 * PAGE <= row["pss_bytes"] <= row["rss_bytes"]
    assert row["private_dirty_bytes"] >= 10 * PAGE
    assert "rd" in row["vm_flags"].split(" ")
    assert not any(table.columns[name].meaning == "" for name in table.column_names)
    assert "and smaps" in repr(table)


@pytest.mark.needs("root", "pfn", "kpage")
def test_frames_and_owners_are_those_of_the_machine():
    table = physview.frames()
    assert int(table["nr_frames"].sum()) == table.answer.nr_frames
    assert {"free", "anon", "slab"} <= set(table["use"])
    region = Region(8).touch()
    pfns = physview.extents(start=region.start, end=region.end, each_page=True)["pfn"].tolist()
    owners = physview.owners(pfns, [os.getpid()])
    assert {row["pid"] for row in owners} == {os.getpid()}
    assert sorted(owners["vaddr"].tolist()) == sorted(set(owners["vaddr"].tolist()))
    assert int(owners["nr_frames"].sum()) == 8
    assert sum(row["nr_frames"] for row in physview.owners(pfns[0])) == 1
    assert len(physview.owners(np.uint64(pfns[0]))) == 1
    lonely = physview.owners(range(4), [os.getpid()])
    assert int(lonely["nr_frames"].sum()) == 4
    assert not lonely.valid("pid").any()


def test_frame_numbers_that_are_none_are_refused():
    for wrong in (-1, range(-4, 4), range(0, 8, 2), 1 << 70):
        with pytest.raises(physview.UsageError, match="is no"):
            physview.owners(wrong)


def test_files_are_those_of_the_command(tmp_path):
    (tmp_path / "a").write_bytes(bytes(3 * PAGE))
    (tmp_path / "b").write_bytes(bytes(1))
    os.link(tmp_path / "b", tmp_path / "c")
    os.mkfifo(tmp_path / "fifo")
    hostile = tmp_path / "<script>\n"
    hostile.write_bytes(bytes(1))
    table = physview.file(tmp_path)
    assert {row["path"]: row["nr_cached"] for row in table} == {
        f"{tmp_path}/a": 3,
        f"{tmp_path}/b": 1,
        f"{tmp_path}/<script>\\n": 1,
    }
    assert "<script" not in table._repr_html_()
    assert not table.errors
    for wrong in (tmp_path / "none", tmp_path / "fifo"):
        with pytest.raises(physview.PhysviewError, match="cannot look up"):
            physview.file(tmp_path, wrong)
    with pytest.raises(physview.UsageError, match="no file is named"):
        physview.file()


@pytest.mark.needs("nobody")
def test_a_file_that_cannot_be_examined_is_among_the_errors(tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "open").write_bytes(bytes(1))
    (tmp_path / "open").chmod(0o666)
    (tmp_path / "closed").write_bytes(bytes(1))
    (tmp_path / "closed").chmod(0)
    (tmp_path / "folder").mkdir(mode=0)
    code = (
        "import physview, sys; t = physview.file(sys.argv[1])\n"
        "assert [p.rpartition('/')[2] for p in t['path']] == ['open'], list(t)\n"
        "assert len(t.errors) == 2 and 'ermission' in t._repr_html_()\n"
        "try:\n physview.file(sys.argv[1] + '/folder')\n"
        "except physview.AccessDenied: pass\n"
        "else: raise SystemExit('not refused')\n"
    )
    for folder in [*tmp_path.parents][:-1]:
        if folder.stat().st_uid == os.geteuid() and folder != tmp_path.parents[-2]:
            folder.chmod(folder.stat().st_mode | 0o011)
    subprocess.run([*AS_NOBODY, sys.executable, "-B", "-c", code, str(tmp_path)], check=True)


@pytest.mark.needs("root", "pfn", "walk")
def test_a_walk_and_the_tables_and_a_comparison():
    region = Region(4).touch()
    table = physview.walk("self", region.start + 5)
    frame = physview.extents(start=region.start, end=region.start + PAGE)["pfn"][0]
    assert table.answer.paddr == int(frame) * PAGE + 5
    assert table["level"][0] == "pgd"
    assert table["is_leaf"].tolist()[-1]
    unmapped = physview.walk(os.getpid(), 0)
    assert unmapped.answer.paddr is None
    assert physview.compare().answer.nr_unexplained == 0


@pytest.mark.needs("bpf")
def test_page_tables_of_several_processes():
    child = subprocess.Popen(["sleep", "100"])
    try:
        table = physview.tables([os.getpid(), child.pid])
    finally:
        child.kill()
        child.wait()
    assert set(table["pid"].tolist()) == {os.getpid(), child.pid}
    assert table.pid is None
    own = physview.tables()
    sizes = own["size_bytes"][own["level"] == "pgd"]
    if os.uname().machine == "x86_64":
        assert sizes.tolist() == [PAGE]
    else:  # it may be smaller than a page
        assert len(sizes) == 1
        assert 0 < sizes[0] <= PAGE


def test_readings_count_what_changes():
    region = Region(400).touch(*range(100))
    readings = physview.watch(interval=0, nr_readings=2)
    first = next(readings)
    region.touch(*range(100, 150))
    second = next(readings)
    assert next(readings, None) is None
    inside = (second["start"] <= region.start) & (second["end"] > region.start)
    assert not first.valid("new_pages").any()
    assert second["new_pages"][inside].tolist()[0] >= 50
    assert second["resident_pages"][inside].tolist()[0] >= 150
    if not second.answer.knows_frames:
        assert not second.valid("moved_pages").any()


@pytest.mark.needs("no-soft-dirty")
def test_a_kernel_that_cannot_track_writes_says_so(tmp_path):
    with pytest.raises(physview.Unsupported):
        next(physview.watch(track_writes=True))
    with pytest.raises(physview.Unsupported):
        physview.snapshot("self", str(tmp_path / "a"), track_writes=True)


def test_differences_of_snapshots(tmp_path):
    before, after = str(tmp_path / "a"), str(tmp_path / "b\n")
    region = Region(100).touch(*range(10))
    physview.snapshot("self", before)
    region.touch(*range(10, 30))
    physview.snapshot("self", after)
    table = physview.diff(before, after)
    found = [row for row in table if row["start"] <= region.start < row["end"]]
    appeared = [row["nr_pages"] for row in found if row["change"] == "appeared"]
    assert sum(appeared) >= 20
    assert table.nr_changed == sum(n for change, n in table.counts.items() if not change.same)
    assert "\n" not in repr(table)
    each = physview.changes(before, after, only=["appeared"])
    assert set(each["change"]) == {"appeared"}
    assert int(each["nr_pages"].sum()) == table.counts[Change.APPEARED]
    inside = (each["vaddr"] >= region.start) & (each["vaddr"] < region.end)
    assert int(each["nr_pages"][inside].sum()) == 20
    assert not each.valid("frame_before").any()
    whole = physview.changes(before, after)
    assert int(whole["nr_pages"].sum()) == sum(table.counts.values())
    with physview.SnapshotFile(before) as one, physview.SnapshotFile(after) as two:
        assert physview.diff(one, two).counts == table.counts
        assert f"process {os.getpid()}" in repr(one)
        assert "\n" not in repr(two)
    with pytest.raises(physview.UsageError, match=r"no change 'gone'.*stayed"):
        physview.changes(before, after, only=["gone"])


def test_translations_are_a_table_with_causes():
    region = Region(8).touch(0, 1, 2)
    vaddrs = np.arange(region.start, region.end, PAGE, dtype=np.uint64)
    with physview.Process() as process:
        found = process.translate_array(np.append(vaddrs, np.uint64(0)))
        assert repr(process) == f"<Process {os.getpid()}, from {process.source}>"
        table = found.table()
        translations = list(found)
    assert table["vaddr"].__array_interface__ == found.vaddrs.__array_interface__
    causes = [each.cause.value if each.cause else None for each in translations]
    assert table["cause"].tolist() == causes
    assert causes[3:] == ["absent"] * 5 + ["unmapped"]
    assert [row["paddr"] for row in table] == [each.paddr for each in translations]
    assert repr(found).startswith(f"<Translations of process {os.getpid()}, from ")


def test_objects_say_their_process_and_source():
    with physview.Snapshot() as snapshot:
        text = repr(snapshot)
    assert text.startswith(f"<Snapshot of process {os.getpid()}, from pagemap: ")


def test_a_picture_shows_itself_in_a_notebook():
    html = pictures.picture_process("self")._repr_html_()
    assert html.startswith("<img ")
    assert html.count("<") == 1
    assert "data:image/svg+xml;base64," in html


def test_a_table_has_no_columns_of_its_own():
    assert len(Table("nothing", [], None)) == 0


@pytest.mark.needs("root", "pfn", "kpage")
def test_selected_frames_are_those_of_the_command():
    region = Region(300).touch()
    pfns = physview.extents(start=region.start, end=region.end, each_page=True)["pfn"].tolist()
    table = physview.select_frames(pfns, flags="anon,!thp")
    assert table["nr_frames"].sum() == 300
    assert set(table["use"]) == {"anon"}
    runs = zip(table["pfn"].tolist(), table["nr_frames"].tolist(), strict=True)
    assert sorted(pfns) == [pfn for first, nr in runs for pfn in range(first, first + nr)]
    words = [f"pfn:{pfn:#x}" for pfn in pfns[:50]]
    run = [sys.executable, "-I", "-m", "physview", "frames", *words, "--list", "--format", "csv"]
    theirs = subprocess.check_output(run, text=True).splitlines()
    assert len(theirs) - 1 == len(physview.select_frames(pfns[:50]))
    # Parts of the work end where others begin, and alike frames are one run all the same.
    everywhere = physview.select_frames(range(1 << 19))
    ends = everywhere["pfn"] + everywhere["nr_frames"]
    alike = everywhere["flags"][1:] == everywhere["flags"][:-1]
    assert not (alike & (ends[:-1] == everywhere["pfn"][1:])).any()
    assert len(physview.select_frames(pfns, flags="slab")) == 0
    for wrong in ({"flags": "no_such_flag"}, {"cgroup": "/no/such/cgroup"}):
        with pytest.raises(physview.UsageError, match=r"no (flag 'no_such|cgroup '/no/such)"):
            physview.select_frames(**wrong)


def test_processes_are_watched(python):
    several = [python("from memory import Region"), python("from memory import Region")]
    pids = [child.pid for child in several]
    tables = []
    for table in physview.watch_processes(lambda: pids, interval=0, nr_readings=3):
        tables.append(table)
        if len(tables) == 2:
            several[1].kill()
            several[1].wait()
    assert [table["pid"].tolist() for table in tables] == [sorted(pids)] * 2 + [pids[:1]]
    assert not tables[0].valid("new_pages").any()
    assert not tables[1].valid("written_pages").any()
    assert tables[1].valid("new_pages").all()
    assert (tables[0]["resident_pages"] > 100).all()
    assert (tables[0].answer.nr_new, tables[2].answer.nr_gone) == (2, 1)


def test_files_are_chosen_by_patterns(tmp_path):
    for name in ("a.so", "b.py", "old"):
        (tmp_path / name).write_bytes(bytes(1))
    assert [row["path"] for row in physview.file(tmp_path, include="*.so")] == [f"{tmp_path}/a.so"]
    left = physview.file(tmp_path, exclude=["old", "*.py"])
    assert [row["path"] for row in left] == [f"{tmp_path}/a.so"]


def test_what_is_no_list_of_frames_or_processes_is_said():
    for wrong in ("0x1000", [(1, 5)], [None], []):
        with pytest.raises(physview.UsageError, match=r"is no frame number|no frame is named"):
            physview.select_frames(wrong)
    for wrong in ("self", 1, os.getpid()):
        with pytest.raises(physview.UsageError, match="is no list of processes"):
            next(physview.watch_processes(wrong))
