# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast physview is, as ratios against peers that run in turn with it.

The benchmark runs physview and a peer by turns. A ratio is the median of the pairs' ratios, so
that a machine whose speed drifts does not change it. Every row names its limit. Needs root.
"""

from __future__ import annotations

import argparse
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

from measure import GIB, PAGE, paired, readloop, report, start_target, timed

PEERS = """\
With --whole, --machine and --peers, the peers (page-types, thpmaps, vmtouch, smem, pmap, fincore)
must be on PATH, or sudo ./scripts/fetch-peers must have fetched them. --peers compares CPU seconds.
"""

# Translates a range in chunks of constant size, and prints its peak memory.
PEAK = """
import resource, sys
import numpy as np, physview
pid, start, size, chunk = map(int, sys.argv[1:])
with physview.Process(pid) as process:
    for at in range(start, start + size, chunk):
        vaddrs = np.arange(at, at + chunk, physview.PAGE_SIZE, dtype=np.uint64)
        assert process.translate_array(vaddrs).known.all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def bench_startup(nr: int) -> bool:
    physview = str(Path(sys.executable).with_name("physview"))
    ratio, detail = paired(
        timed(physview, "memview"), timed(sys.executable, "-I", "-c", "pass"), nr
    )
    return report("start-up: physview memview / python3 -I -c pass", ratio, 4, detail)


def bench_dense(nr: int) -> bool:
    """A dense gigabyte of small pages, through the public API and through a plain C loop."""
    import numpy as np

    import physview

    target, start = start_target(GIB, "write")
    with readloop(target.pid, start, GIB) as peer:
        vaddrs = np.arange(start, start + GIB, PAGE, dtype=np.uint64)
        with physview.Process(target.pid) as process:

            def ours() -> float:
                begin = time.perf_counter()
                process.translate_array(vaddrs)
                return time.perf_counter() - begin

            assert process.translate_array(vaddrs).known.all(), "frames are hidden: run as root"
            ratio, detail = paired(ours, peer, nr)
    target.kill()
    target.communicate()
    return report("dense 1 GiB: translate_array / plain C loop of preads", ratio, 1.1, detail)


def bench_memory() -> bool:
    """Peak memory must not grow with the range: chunks of one size, in 1 GiB and in 8 GiB."""
    peaks = []
    for size in (GIB, 8 * GIB):
        target, start = start_target(size, "read")
        command = [
            *(sys.executable, "-I"),
            "-c",
            PEAK,
            str(target.pid),
            str(start),
            str(size),
            str(GIB // 4),
        ]
        peaks.append(int(subprocess.run(command, capture_output=True, check=True).stdout))
        target.kill()
        target.communicate()
    detail = f"{peaks[1] / 1024:.1f} and {peaks[0] / 1024:.1f} MiB"
    return report(
        "peak memory: 8 GiB / 1 GiB, in constant chunks", peaks[1] / peaks[0], 1.1, detail
    )


def bench_batch(nr: int) -> bool:
    """One call for 10,000 addresses, compared with one call per address."""
    import fcntl

    import numpy as np

    from physview.sources import kmod as abi
    from physview.sources.procfs import ProcDir

    target = mmap.mmap(-1, 10_000 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    target.madvise(mmap.MADV_NOHUGEPAGE)
    column = np.frombuffer(target, dtype=np.uint8)
    column[::PAGE] = 1
    vaddrs = np.arange(10_000, dtype=np.uint64) * np.uint64(PAGE) + np.uint64(column.ctypes.data)
    proc = ProcDir()
    kmod = abi.Kmod(proc)
    singles = [bytearray(abi.TRANSLATE.pack(int(vaddr), 0)) for vaddr in vaddrs]

    def batch() -> float:
        # Ten batches take about as long as the peer, so both are interrupted equally often.
        start = time.perf_counter()
        for _ in range(10):
            kmod.pages(vaddrs)
        return (time.perf_counter() - start) / 10

    def single() -> float:
        with open(abi.DEVICE, "rb", buffering=0) as device:
            fd = device.fileno()
            start = time.perf_counter()
            for buffer in singles:
                fcntl.ioctl(fd, abi.IOCTL_TRANSLATE, buffer)
            return time.perf_counter() - start

    ratio, detail = paired(batch, single, nr)
    kmod.close()
    proc.close()
    return report("10,000 small pages: one batch / an ioctl each", ratio, 1 / 20, detail)


def bench_range(nr: int) -> bool:
    """512 MiB of small pages: the walk compared with reading pagemap, and compare with both."""
    from physview.analysis.compare import Comparer
    from physview.sources.kmod import Kmod
    from physview.sources.procfs import ProcDir

    size = GIB // 2
    target, start = start_target(size, "write")
    proc = ProcDir(target.pid)
    kmod, comparer = Kmod(proc), Comparer(proc)
    with readloop(target.pid, start, size) as peer:

        def walk() -> float:
            begin = time.perf_counter()
            found = sum(int(e["length"].sum()) for e in kmod.iter_extents(start, start + size))
            assert found == size
            return time.perf_counter() - begin

        def compare() -> float:
            begin = time.perf_counter()
            assert comparer.compare().nr_unexplained == 0
            return time.perf_counter() - begin

        ratio, detail = paired(walk, peer, nr)
        kept = report("512 MiB: a walk of the range / reading pagemap", ratio, 0.5, detail)
        ratio, detail = paired(compare, lambda: walk() + peer(), max(3, nr // 4))
        kept &= report("512 MiB: compare / a walk and a reading", ratio, 3, detail)
    for thing in (comparer, kmod, proc):
        thing.close()
    target.kill()
    target.communicate()
    return kept


def bench_in_vm(kernel: str, nr: int) -> int:
    """Run the benchmarks of the module in a VM."""
    program = [sys.executable, __file__, "--module", "-n", str(nr)]
    options = ["--kernel", kernel, "--memory", "2048"]
    command = [sys.executable, "-I", "-m", "physview", "vm", *options, "--", *program]
    return subprocess.run(command, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=PEERS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-n", type=int, default=31, metavar="PAIRS", help="pairs to run (31)")
    parser.add_argument(
        "--whole", action="store_true", help="whole processes: maps, pages, extents"
    )
    parser.add_argument("--gib", type=int, default=8, metavar="N", help="how large a process (8)")
    parser.add_argument("--machine", action="store_true", help="the machine: frames, owners")
    parser.add_argument("--fleet", action="store_true", help="questions to 100 generated hosts")
    parser.add_argument("--picture", action="store_true", help="pictures of a dense process")
    parser.add_argument("--walk", action="store_true", help="the walk by BPF")
    parser.add_argument(
        "--peers", action="store_true", help="each command against the tool that users know"
    )
    parser.add_argument(
        "--only", metavar="WORD", default="", help="with --peers: the rows whose names contain WORD"
    )
    parser.add_argument("--module", action="store_true", help="what needs the kernel module")
    parser.add_argument("--vm", metavar="KERNEL", help="the same, in a VM with this kernel")
    args = parser.parse_args()
    from physview.kernels import cache_dir

    os.environ["PATH"] += f":{cache_dir('peers')}"
    if args.vm:
        return bench_in_vm(args.vm, args.n)
    if args.whole:
        import bench_whole

        return int(not bench_whole.run(args.n, args.gib * GIB))
    if args.fleet:
        import bench_fleet

        return 0 if bench_fleet.run(args.n) else 1
    if args.machine:
        import bench_machine

        return int(not bench_machine.run(args.n))
    if args.picture:
        import bench_picture

        return int(not bench_picture.run(args.n))
    if args.walk:
        import bench_walk

        return int(not bench_walk.run(args.n))
    if args.peers:
        import bench_peers

        return int(not bench_peers.run(args.n, args.only))
    if args.module:
        kept = [bench_batch(args.n), bench_range(args.n)]
    else:
        kept = [bench_startup(args.n), bench_dense(args.n), bench_memory()]
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())
