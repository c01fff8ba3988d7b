# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab nested: what a VM calls physical is virtual on its host."""

from __future__ import annotations

from physview.labs import requirements
from physview.labs.model import Evidence, Lab, Question
from physview.labs.nested_findings import explain
from physview.labs.nested_look import look, nr_moved, visit_first
from physview.labs.nested_vm import MEMORY_MIB, visit_vm

NAME = "nested"
TITLE = 'a "physical" address in a VM'
PLAN = (
    f"Boots a VM of {MEMORY_MIB} MiB and runs memview's report in it. One more page in it has a"
    " secret, which only the guest has chosen. The report tells guest virtual and guest-physical"
    " addresses. The lab asks QEMU where these are in its own process (host virtual), and the"
    " kernel of the host where they are in RAM (host-physical), and reads the secret there. Then it"
    " makes the host collapse pages into huge pages and compact its memory, and looks again. If"
    " nothing has moved, the lab boots the VM a second time, and looks for the same guest-physical"
    " addresses."
)
QUESTIONS = (
    Question(
        "A program in a VM finds the physical address of its buffer in its own pagemap. Where in"
        " the RAM of the host is the buffer?",
        (
            "at the same physical address: RAM is RAM",
            "elsewhere: the guest's physical address is an offset into memory of QEMU's process",
            "nowhere: a VM has no RAM of the host",
        ),
        1,
        "The guest's page tables lead to guest-physical addresses only. QEMU has mapped the guest's"
        " memory into its own address space, and the host's page tables lead to the frame.",
    ),
    Question(
        "The same guest-physical address is looked up again: after the host has worked on its"
        " memory, or in the next boot of the same VM. In which frame of the host is it?",
        (
            "always in the same one: the guest's frame is fixed",
            "it can be in another one, and the guest does not notice",
        ),
        1,
        "The host maps the memory of a VM as that of any process, and it may swap, migrate, merge"
        " or collapse its pages. In the next boot QEMU is another process with other frames.",
    ),
    Question(
        "Guest and host both have 4 levels of page tables, and all pages are small. With KVM the"
        " processor walks both. How many entries does it read for one translation that no TLB has?",
        ("8: 4 of the guest and 4 of the host", "16: 4 times 4", "24: 5 times 5, less 1"),
        2,
        "Each of the guest's 4 tables is at a guest-physical address, which takes a walk of 4"
        " entries on the host before the guest's entry can be read: 4 times 5. The address that the"
        " guest's last entry names takes another walk of 4. With 5 levels on both sides it is 35.",
    ),
)


def run() -> Evidence:
    """Boot a VM, follow its addresses on the host, and look for them again."""
    first = visit_vm(visit_first)
    looks = list(first.looks)
    if not nr_moved(looks[0], looks[-1]):
        gpas = [one.gpa for one in looks[0].found]
        looks.append(visit_vm(lambda _, memory: look("in the second boot", memory, gpas)))
    evidence = Evidence(NAME)
    explain(evidence, first, looks)
    return evidence


LAB = Lab(
    NAME,
    TITLE,
    (),
    PLAN,
    QUESTIONS,
    requirements.checker(
        NAME,
        requirements.compiled_core,
        requirements.frame_numbers_of_host,
        requirements.virtual_machine,
    ),
    run,
)
