# SPDX-License-Identifier: GPL-2.0-or-later
"""The questions of the course's ten experiments that students answer in their own words.

docs/labs.md asks them, docs/worksheet.md has room for the answers, and docs/key.md has the answers.
The questions with answers to choose from are in physview/labs, as each lab's QUESTIONS.
"""

from __future__ import annotations

from typing import NamedTuple


class OpenQuestion(NamedTuple):
    """A question without answers to choose from.

    Args:
        text: The question, as docs/labs.md asks it.
        answer: What a good answer says.
    """

    text: str
    answer: str


class Experiment(NamedTuple):
    """One of the course's experiments.

    Args:
        title: The heading of its section in docs/labs.md.
        questions: Its questions, in the order of docs/labs.md.
    """

    title: str
    questions: tuple[OpenQuestion, ...]


EXPERIMENTS = {
    1: Experiment(
        "Build the module, load it, see it",
        (
            OpenQuestion(
                "Who may open the device?",
                "Only root. The file of the device has the mode 0600, and the module also checks"
                " CAP_SYS_ADMIN when the device is opened. The course's own module gives the mode"
                " 0666, so everybody may open it. Our module does so with the parameter insecure=1,"
                " but then it walks only memory of the process that asks.",
            ),
            OpenQuestion(
                "What could happen if everybody could open it?",
                "Everybody could find out physical addresses. They help attacks: with Rowhammer, an"
                " attacker who knows which frames are neighbours in the RAM chips can flip bits in"
                " the memory of others. For this reason the kernel hides frame numbers from"
                " unprivileged users since Linux 4.2; see the lab hidden.",
            ),
            OpenQuestion(
                "What does `module unload` do while a program has the device open, and why is this"
                " right?",
                "It fails: the module is in use. If the kernel removed the module, the open file"
                " would still refer to functions of the module, and the next ioctl would run code"
                " that is gone. The kernel counts the users of a module, and removes it only when"
                " there are none.",
            ),
        ),
    ),
    2: Experiment(
        "Read how the ioctl is made",
        (
            OpenQuestion(
                "How does `copy_to_user()` differ from `put_user()`?",
                "`put_user()` writes one simple value, and the value's type gives the size."
                " `copy_to_user()` writes a block of any size, and returns how many bytes it could"
                " not write. Both check the address, and both survive page faults.",
            ),
            OpenQuestion(
                "Why does the kernel not simply write to the address that the program gave?",
                "The address could be one of the kernel's own, and the program would make the"
                " kernel overwrite itself. The address could be invalid or not resident: the page"
                " fault would happen in kernel code that cannot handle it. And SMAP (on arm64: PAN)"
                " forbids the kernel plain accesses to user memory.",
            ),
        ),
    ),
    3: Experiment(
        "Run it",
        (
            OpenQuestion(
                "Are the mappings what you expected?",
                "The arguments, the environment and the local variables are on the stack, at the"
                " highest addresses. The buffers are in the heap. The strings, the global variable"
                " and main are in the mappings of a file: here a library, because physview is a"
                " Python program; in the course's program its own file. Addresses that are"
                " neighbours in virtual memory can be far apart in physical memory.",
            ),
        ),
    ),
    4: Experiment(
        "With physical addresses, and without",
        (
            OpenQuestion(
                "Which part of a virtual address is equal in its physical address, and which part"
                " is not?",
                "The offset within the page is equal: the last 12 bits (the last three hexadecimal"
                " digits) with pages of 4 KiB. The rest is the number of the page. It is translated"
                " to the number of a frame, which has nothing to do with it.",
            ),
        ),
    ),
    5: Experiment(
        "Thirty buffers",
        (
            OpenQuestion(
                "Is there a pattern in the virtual addresses of `buf[0]` to `buf[29]`? In the"
                " physical ones? Why?",
                "In the virtual ones, yes: each buffer begins 0x1010 = 4112 bytes after the one"
                " before, 16 more than the program requested. malloc() takes the blocks from the"
                " heap in order, and keeps the size of each block in front of it. In the physical"
                " ones, no: steps forward and backward of any size occur, and another run has other"
                " steps. The kernel hands out frames one at a time, when the program first touches"
                " a page, and takes any frame that is free at this moment.",
            ),
        ),
    ),
    6: Experiment(
        "Run it again, and again",
        (
            OpenQuestion(
                "Which virtual addresses change?",
                "All, because of address space layout randomization (ASLR). Without ASLR all stay.",
            ),
            OpenQuestion(
                "Which physical addresses change?",
                "Those of anonymous memory: the stack, the heap, and private copies of pages of"
                " files. Each process gets new frames for them.",
            ),
            OpenQuestion(
                "Some physical addresses stay: which ones, and why?",
                "Those in pages of files to which the process has not written: `main`, `lmsg`,"
                " `gmsg`, `malloc`. The page cache keeps each page of a file in one frame, and all"
                " processes that map the file share this frame, also after the first has ended.",
            ),
            OpenQuestion(
                "`&gmsg` is in the same file as `gmsg`. Why does its physical address change?",
                "`&gmsg` is a variable. The dynamic linker writes to its page when it relocates the"
                " library, so the process gets a private copy of this page (copy on write). `gmsg`"
                " is a string constant in a page to which nobody writes.",
            ),
        ),
    ),
    7: Experiment(
        "Drop the caches, and run it again",
        (
            OpenQuestion(
                "The physical addresses that stayed before have now changed. What happened?",
                "The pages of the file were clean and no process mapped them, so the kernel could"
                " drop them. The next process reads the file from the disk again, into any free"
                " frames.",
            ),
            OpenQuestion(
                "Why has the address of `malloc()` not changed?",
                "It is in the C library, which running processes map. The kernel does not drop a"
                " page that a process maps.",
            ),
        ),
    ),
    8: Experiment(
        "Trace copies to the user, and from the user",
        (
            OpenQuestion(
                "How do the stacks of `copy_to_user` and `copy_from_user` differ?",
                "In the stack of the ioctl they differ only in the innermost function: the module"
                " reads the request with the one, and writes the answer with the other, and both"
                " calls come from the same system call. In other stacks they differ by the system"
                " call: those that return data copy to the user, those that take data copy from"
                " the user.",
            ),
            OpenQuestion(
                "How do both differ from the stacks of `put_user`?",
                "put_user writes single values. Its stacks are those of system calls that store one"
                " number, and of the way back to user mode (rseq, restartable sequences). The"
                " compiler may put put_user into its caller; then the trace cannot see it.",
            ),
            OpenQuestion(
                "Which system call is near the bottom of each stack?",
                "The function above `do_syscall_64` names it on x86-64: `__x64_sys_ioctl` is"
                " ioctl(). On arm64 its name begins with `__arm64_sys_`. Stacks without a system"
                " call begin with an interrupt or a page fault.",
            ),
        ),
    ),
    9: Experiment(
        "Trace kmalloc",
        (
            OpenQuestion(
                "How do the kernel's virtual addresses differ from those of a program?",
                "Their highest bits are 1, those of a program's addresses are 0. A kernel address"
                " means the same in every process. kmalloc's memory is in the direct map, where"
                " virtual and physical address differ by a constant. On x86-64 the direct map"
                " begins at 0xffff888000000000 (with four levels of page tables), or elsewhere with"
                " KASLR; on arm64 at the lowest kernel address.",
            ),
        ),
    ),
    10: Experiment(
        "Trace mm_page_alloc",
        (
            OpenQuestion(
                "Does the allocation of pages differ from the allocation of slabs? How?",
                "Yes. The page allocator hands out 2^order whole pages (1, 2, 4, …), and"
                " tells the number of the first frame. kmalloc hands out pieces of any size, which"
                " it rounds up, and tells an address. kmalloc gets slabs from the page allocator"
                " and cuts them into pieces of one size, so most calls of kmalloc need no new page."
                " Most pages are allocated in page faults of programs.",
            ),
        ),
    ),
}
"""The course's experiments, by their numbers."""
