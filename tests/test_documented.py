# SPDX-License-Identifier: GPL-2.0-or-later
"""The documentation is complete, its links work, and its commands run and exit as shown."""

import ast
import os
import re
import shlex
import shutil
import struct
import subprocess

import documented
import psutil
import pytest
from kmod_calls import insert_module, wait_for
from paths import ROOT
from shown_commands import run_as_shown

import physview
from physview import pictures
from physview.commands import COMMANDS, make_parser, parse, subparsers
from physview.sources import kmod
from physview.system import module

COMMAND_PAGES = {name: ROOT / f"docs/commands/{name}.md" for name in COMMANDS}
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")
RUN = re.compile(r"(?:\./scripts/run|(?<![\w/.-])physview) ([a-z][^|;&)`]*)")
VARIABLE = re.compile(r"\$\([^)]*\)|\$!|\$\w+")
ONLY_IN_A_VM = {"hugetlb", "kmod", "kmods", "kprobes", "swap"}


def blocks(*, in_vm):
    """The blocks of commands for the host, or those for a VM only, with their needs."""
    found = []
    for page in documented.PAGES:
        for block in documented.blocks(page.read_text()):
            needs = {*block.needs, *({"swap"} if "--swap" in block.where else ())}
            if any("setpriv --reuid" in command for command in block.commands):
                needs.add("nobody")
            # Not those that start VMs (test_vm_documented.py) or never end (test_watch_screen.py).
            if "vm" in needs or block.seconds is not None or bool(needs & ONLY_IN_A_VM) != in_vm:
                continue
            command = "-".join(block.commands[-1].replace("./scripts/run ", "").split()[:4])
            marks = [pytest.mark.needs("root", "pfn", "kpage", *needs)]
            if any(" lab " in command for command in block.commands):
                why = "labs drop caches and compact, and mind who else maps what they look at"
                marks.append(pytest.mark.alone(why))
            name = f"{page.relative_to(ROOT)}-{command}"
            found.append(pytest.param(block, marks=marks, id=name))
    return found


def experiments(*, in_vm):
    """The blocks of the course's ten experiments that run physview, as `blocks()`."""
    text = (ROOT / "docs/labs.md").read_text().partition("## More experiments")[0]
    shown = {b for b in documented.blocks(text) if any("scripts/run" in c for c in b.commands)}
    return [param for param in blocks(in_vm=in_vm) if param.values[0] in shown]


@pytest.mark.parametrize("block", blocks(in_vm=False))
def test_documented_commands_run_and_end_as_shown(block, prepared, client):
    run_as_shown(block, client=client)


@pytest.mark.parametrize("block", blocks(in_vm=True))
def test_documented_commands_that_need_a_vm_run_there(block, prepared):
    run_as_shown(block)


@pytest.mark.parametrize("block", experiments(in_vm=False))
def test_the_experiments_run_in_a_checkout_as_printed(block, prepared):
    run_as_shown(block, as_printed=True)


@pytest.mark.parametrize("block", experiments(in_vm=True))
def test_the_experiments_that_need_a_vm_run_in_a_checkout_there(block, prepared):
    run_as_shown(block, as_printed=True)


@pytest.fixture(scope="session")
def client(compiled, tmp_path_factory):
    """A folder whose `physview` is the client of the command server."""
    folder = tmp_path_factory.mktemp("client")
    if shutil.which("cc"):
        (folder / "physview").symlink_to(compiled("command_client"))
    return folder


@pytest.fixture
def prepared(block, request):
    """The machine is as the block needs it."""
    if "--module none" in block.where:
        request.getfixturevalue("no_module")
    if "tracefs" in block.needs:
        request.getfixturevalue("tracefs")


@pytest.fixture
def no_module():
    """Unloads the module for a test, and loads it again."""
    module.unload()
    yield
    if not module.status().loaded:
        insert_module(os.environ["PHYSVIEW_KMOD"])


def test_every_command_has_a_page_with_a_real_run_and_a_picture():
    readme = (ROOT / "README.md").read_text()
    assert sorted(COMMAND_PAGES.values()) == sorted((ROOT / "docs/commands").glob("*.md"))
    for name, page in COMMAND_PAGES.items():
        text = page.read_text()
        assert text.startswith(f"# physview {name}")
        assert f"(docs/commands/{name}.md)" in readme
        commands = [command for block in documented.blocks(text) for command in block.commands]
        assert any(f"run {name}" in command for command in commands), name
        assert re.search(r"^!\[.*\]\(.*\.svg\)$", text, re.MULTILINE), name


def test_every_option_is_on_its_command_s_page():
    parser = make_parser()
    commands = next(action.choices for action in parser._actions if action.choices)
    assert isinstance(commands, dict)
    assert list(commands) == list(COMMANDS)
    for name, subparser in commands.items():
        text = COMMAND_PAGES[name].read_text()
        for action in subparser._actions:
            for option in action.option_strings:
                if option.startswith("--") and option != "--help":
                    assert f"`{option}" in text, f"{name} {option}"


@pytest.mark.parametrize("page", documented.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall(page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert anchor[1:] in [_anchor(heading) for heading in headings], target + anchor


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_and_the_help_say_the_same_of_sources(name):
    """The choices of --source, in this order, and what auto means."""
    for action in subparsers(make_parser())[name]._actions:
        if "--source" not in action.option_strings:
            continue
        text = " ".join(COMMAND_PAGES[name].read_text().split())
        assert f"- `--source {'|'.join(action.choices)}`: " in text
        meaning = action.help.partition("or auto: ")[2]
        assert meaning
        assert f"auto is the default: {meaning}." in text.replace("`", "")


def _anchor(heading):
    """The anchor of a heading, by GitHub's rule."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", documented.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_documented_command_lines_parse(page):
    parser = make_parser()
    fenced = re.findall(r"^```(?:sh)?\n(.*?)^```$", page.read_text(), re.M | re.S)
    typed = [line for text in fenced for line in commands_in(text)]
    screens = [c for b in documented.blocks(page.read_text()) if b.size for c in b.commands]
    for line in [*typed, *screens]:
        for words in RUN.findall(VARIABLE.sub("1", line.partition("  #")[0])):
            if words.split()[0] in COMMANDS:
                parse(shlex.split(words.replace("'", "").replace('"', "").rstrip()), parser)


def commands_in(fenced):
    """The commands in a block: the lines behind a prompt, or without prompts, physview's lines."""
    prompt = (
        r"\$ " if re.search(r"^\$ ", fenced, re.MULTILINE) else r"(?=sudo|\./scripts|physview )"
    )
    return re.findall(rf"^{prompt}(.*)$", fenced, re.MULTILINE)


def test_no_transcript_is_without_its_run():
    """Commands that are shown with a prompt are in blocks that scripts/transcripts renews."""
    for page in [ROOT / "README.md", *COMMAND_PAGES.values()]:
        text = page.read_text()
        for match in re.finditer(r"^```\n\$ ", text, re.MULTILINE):
            head = text[: match.start()].rstrip().splitlines()[-1]
            assert head.startswith("<!-- transcript: "), f"{page}: {match.start()}"


def test_the_page_on_the_ioctl_has_the_numbers_that_are_used():
    text = (ROOT / "docs/ioctl.md").read_text()
    for name in ("TRANSLATE", "INFO", "WALK", "BATCH", "RANGE"):
        number, layout = getattr(kmod, f"IOCTL_{name}"), getattr(kmod, name)
        assert isinstance(layout, struct.Struct)
        row = next(line for line in text.splitlines() if f"`PHYSICALVIEW_{name}`" in line)
        assert f"`0x{number:X}`" in row
        assert f"{layout.size} bytes" in row
    header = (ROOT / "csrc/kmod/uapi/physicalview.h").read_text()
    for kind, number in re.findall(r"PHYSICALVIEW_KIND_(\w+)\s*=\s*(\d+)", header):
        assert f"| `{kind}` | {number} |" in text


@pytest.mark.needs("cc")
def test_documented_c_compiles():
    (program,) = re.findall(r"^```c\n(.*?)^```$", (ROOT / "docs/ioctl.md").read_text(), re.M | re.S)
    warnings = ["-Wall", "-Wextra", "-Werror"]
    command = ["cc", *warnings, "-I", ROOT / "csrc/kmod/uapi", "-x", "c", "-fsyntax-only", "-"]
    subprocess.run(command, input=program, text=True, check=True)


@pytest.mark.parametrize("page", documented.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_documented_python_is_what_there_is(page):
    """All names that it imports from physview exist."""
    for code in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                of = {"physview": physview, "pictures": pictures}.get(node.value.id)
                assert of is None or hasattr(of, node.attr), node.attr


def test_blocks_are_found_and_filled():
    page = (
        "a\n<!-- transcript: --kernel 6.1; lines=2; exits=1; needs=kmod,swap -->\n```\n"
        "$ sudo ./scripts/run lab x\nold\n```\nb\n<!-- transcript: here; folder=checkout -->\n```\n"
        "$ one\n$ two\n```\n```\n$ no transcript\n```\n"
        "<!-- screen: here; size=80x24; seconds=3\none\ntwo\n-->\n![A screen](pictures/x.svg)\n"
    )
    first, second, screen = documented.blocks(page)
    assert first == ("--kernel 6.1", ("sudo ./scripts/run lab x",), (1,), ("kmod", "swap"), 2,
                     None, None, "", False)  # fmt: skip
    assert second == ("here", ("one", "two"), (0, 0), (), None, None, None, "", True)
    assert screen == (
        "here",
        ("one", "two"),
        (0, 0),
        (),
        None,
        (80, 24),
        3.0,
        "pictures/x.svg",
        False,
    )
    assert documented.as_run(first.commands[0]) == "physview lab x"
    filled = documented.fill(page, {first: [documented.Result("1\n2\n3\n", 1)]})
    assert filled == page.replace("old\n", "1\n2\n…\n")
    results = [documented.Result("", 0), documented.Result("3\n", 1)]
    filled = documented.fill(page, {second: results})
    assert filled == page.replace("$ two\n", "$ two\n3\n")


def test_a_session_is_one_shell_and_leaves_nothing_behind():
    lines = ("sleep 1000 &", "echo $! > pid; cat pid", "sh -c 'exit 3'", "kill -0 $(cat pid)")
    block = documented.Block("here", lines, (0, 0, 3, 0))
    results = documented.run(block)
    assert [result.code for result in results] == [0, 0, 3, 0]
    pid = int(results[1].output)
    wait_for(lambda: has_ended(pid), "the end of sleep", 10)


def has_ended(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # nobody may have reaped it
    except psutil.NoSuchProcess:
        return True
