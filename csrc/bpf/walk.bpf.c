// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A walk of page tables by a BPF program: what csrc/kmod/walk.c does, in a
 * kernel that was not prepared for it.
 *
 * Whose page tables? The core has /proc/PID/pagemap open. The kernel keeps the
 * address space in the private data of that file, and whoever could open it may
 * look into the process. So the program takes it from there: no search by pid,
 * no pid namespace, and the same address space that pagemap shows.
 *
 * Nothing is locked. The program runs in an RCU read section, and x86 and arm64
 * free page tables after one (CONFIG_MMU_GATHER_RCU_TABLE_FREE). When memory is
 * short they free at once, so each entry on the way is read again afterwards:
 * if it still leads to the table that was copied, the copy is good.
 *
 * The program also copies the kernel's own descriptions of frames (struct
 * page): see csrc/bpf_frames.c.
 *
 * scripts/build_bpf.py makes walk_program.h of this file.
 */
#include <linux/bpf.h>

#include "walk.h"

#define SECTION(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

static long (*probe_read_kernel)(void *to, __u32 size, const void *from) =
	(void *)BPF_FUNC_probe_read_kernel;
static __u64 (*get_current_task)(void) = (void *)BPF_FUNC_get_current_task;
static long (*loop)(__u32 nr, long (*each)(__u64 i, void *arg), void *arg,
		    __u64 flags) = (void *)BPF_FUNC_loop;

/* The only map, which is in the core's memory, too. */
struct bpf_walk_area area;

INLINE __u64 read_word(__u64 address)
{
	__u64 word = 0;

	probe_read_kernel(&word, sizeof(word), (void *)address);
	return word;
}

INLINE __u32 read_count(__u64 address)
{
	__u32 count = 0;

	probe_read_kernel(&count, sizeof(count), (void *)address);
	return count;
}

/* The address space behind a file descriptor of this process. */
INLINE __u64 find_mm(void)
{
	__u64 files = read_word(get_current_task() + area.offsets.task_files);
	__u64 table = read_word(files + area.offsets.files_fdt);
	__u64 fds = read_word(table + area.offsets.fdt_fd);
	__u64 file = read_word(fds + sizeof(__u64) * area.fd);

	area.file = file;
	return read_word(file + area.offsets.file_private_data);
}

/* Copy the kernel's own memory. */
INLINE void copy_memory(struct bpf_walk_request *request, __u64 *to,
			struct bpf_walk_answer *answer)
{
	const void *from = (const void *)request->vaddr;
	__u32 size = request->offset & (sizeof(area.tables[0]) - 1);
	long error;

	if (size)
		error = probe_read_kernel(to, size, from);
	else
		error = probe_read_kernel(to, sizeof(area.tables[0]), from);
	answer->state = error ? BPF_WALK_FAULT : BPF_WALK_COPIED;
}

/* One request. */
static long walk_one(__u64 i, void *arg)
{
	struct bpf_walk_request *request;
	struct bpf_walk_answer *answer;
	__u64 table = area.pgd;
	__u32 state = 0;
	__u32 level;

	i += area.first;
	if (i >= BPF_WALK_REQUESTS)
		return 1;
	request = &area.requests[i];
	answer = &area.answers[i];
	if (request->copy == BPF_WALK_MEMORY) {
		copy_memory(request, area.tables[i], answer);
		return 0;
	}
	for (level = 0; level < BPF_WALK_LEVELS; level++) {
		__u64 index, address, entry;

		if (level >= request->nr_levels)
			break;
		index = request->vaddr >> (area.shifts[level] & 63);
		address = table + sizeof(entry) * (index & area.index_mask);
		entry = read_word(address);
		answer->address[level] = address;
		answer->entry[level] = entry;
		table = 0;
		if ((entry & area.table_mask) != area.table_value) {
			level++;
			break;
		}
		table = area.direct_map +
			((entry & area.frame_mask) |
			 (entry & area.high_mask) << (area.high_shift & 63));
	}
	answer->nr_read = level;
	if (request->copy && table) {
		/* A small root table begins somewhere within a part. */
		table += request->offset;
		table &= ~(__u64)(sizeof(area.tables[i]) - 1);
		state = probe_read_kernel(area.tables[i],
					  sizeof(area.tables[i]), (void *)table)
				? BPF_WALK_FAULT
				: BPF_WALK_COPIED;
	}
	for (__u32 k = 0; k < BPF_WALK_LEVELS; k++) {
		if (k >= level)
			break;
		if (read_word(answer->address[k]) != answer->entry[k])
			state |= BPF_WALK_UNSTABLE;
	}
	answer->state = state;
	return 0;
}

SECTION("raw_tp") int walk(void *context)
{
	__u64 mm = find_mm();

	area.pgd = read_word(mm + area.offsets.mm_pgd);
	area.nr_users = read_count(mm + area.offsets.mm_users);
	if (area.word_at)
		area.word = read_word(area.word_at);
	loop(area.nr, walk_one, 0, 0);
	area.nr_users_after = read_count(mm + area.offsets.mm_users);
	return 0;
}
