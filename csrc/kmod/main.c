// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * /dev/3000physicalview: the device, who may use it, and the copying of
 * arguments to and from user space. walk.c reads the page tables.
 *
 * How a program's ioctl() gets here: misc_register() gives the device its
 * number and its node in /dev and ties it to physicalview_fops; open() on the
 * node finds these, and ioctl() on the descriptor calls their unlocked_ioctl
 * with the command number and one argument, which here is always an address in
 * the program's memory.
 *
 * That address is never used as a pointer. It may be wrong, may belong to the
 * kernel, and may be unmapped by another thread while we look. copy_from_user()
 * and copy_to_user() check it and survive the fault; they return how many bytes
 * they could not copy. And they copy once: what is checked is the copy, which
 * the program can no longer change.
 */
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pid.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/user_namespace.h>

#include "compat.h"
#include "walk.h"

static bool insecure;
module_param(insecure, bool, 0444);
MODULE_PARM_DESC(insecure, "let every user look at memory of their own");

#define MAX_BATCH 65536

/* How many pages or extents are gathered before they are copied out. */
#define NR_GATHERED 256

/* How many addresses are looked up before interrupts may come again. */
#define NR_WITHOUT_INTERRUPTS 64

/* How many lowest tables are read before the mmap lock is let go. */
#define TABLES_PER_LOCK 64

/* What an open descriptor keeps, so that no call has to allocate. */
struct physicalview_file {
	/* The buffers: several threads may call on one descriptor. */
	struct mutex lock;
	u64 vaddrs[NR_GATHERED];
	union {
		struct physicalview_page pages[NR_GATHERED];
		struct physicalview_extent extents[NR_GATHERED];
	};
};

/*
 * Whether both have a capability: who opened the descriptor, as pagemap asks,
 * and who calls. A descriptor that root passed on, or left open in a process
 * that is no longer root's, gives away nothing that its new holder may not see;
 * nor does one that a user opened and had a program of root's call on.
 */
static bool both_capable(const struct file *filp, int cap)
{
	return file_ns_capable(filp, &init_user_ns, cap) && capable(cap);
}

/*
 * The address space that a call is about; to be given back with mmput().
 */
static struct mm_struct *get_mm(const struct file *filp, s32 pid_nr)
{
	struct task_struct *task;
	struct mm_struct *mm;
	struct pid *pid;

	if (!pid_nr) {
		mm = get_task_mm(current);
		return mm ?: ERR_PTR(-ESRCH);
	}
	if (!both_capable(filp, CAP_SYS_ADMIN) ||
	    !both_capable(filp, CAP_SYS_PTRACE))
		return ERR_PTR(-EPERM);
	/* The number is one of the caller's pid namespace. */
	pid = find_get_pid(pid_nr);
	task = get_pid_task(pid, PIDTYPE_PID);
	put_pid(pid);
	if (!task)
		return ERR_PTR(-ESRCH);
	/* Kernel threads have none, and tasks that have begun to exit. */
	mm = get_task_mm(task);
	put_task_struct(task);
	return mm ?: ERR_PTR(-ESRCH);
}

static long do_translate(void __user *argp)
{
	struct physicalview_translate arg;
	struct physicalview_page page = {};

	if (copy_from_user(&arg, argp, sizeof(arg)))
		return -EFAULT;
	if (!current->mm)
		return -ESRCH;
	if (mmap_read_lock_killable(current->mm))
		return -EINTR;
	physicalview_walk_pages(current->mm, &arg.virt, &page, 1);
	mmap_read_unlock(current->mm);
	arg.phys = page.paddr;
	if (copy_to_user(argp, &arg, sizeof(arg)))
		return -EFAULT;
	return 0;
}

static long do_info(void __user *argp)
{
	struct physicalview_info info = {
		.abi_version = PHYSICALVIEW_ABI_VERSION,
		.nr_levels = physicalview_nr_levels(),
		.page_shift = PAGE_SHIFT,
		.max_batch = MAX_BATCH,
		.user_end = physicalview_user_end(),
	};

	return copy_to_user(argp, &info, sizeof(info)) ? -EFAULT : 0;
}

/* Keep which levels there are, but not where the tables lie. */
static void hide_levels(struct physicalview_walk *walk)
{
	u32 i;

	for (i = 0; i < walk->nr_levels; i++) {
		walk->levels[i].address = 0;
		walk->levels[i].entry = 0;
		walk->levels[i].flags |= PHYSICALVIEW_LEVEL_HIDDEN;
	}
	walk->page.entry = 0;
}

static long do_walk(const struct file *filp, void __user *argp)
{
	struct physicalview_walk walk;
	struct mm_struct *mm;

	if (copy_from_user(&walk, argp, sizeof(walk)))
		return -EFAULT;
	if (walk.reserved)
		return -EINVAL;
	mm = get_mm(filp, walk.pid);
	if (IS_ERR(mm))
		return PTR_ERR(mm);

	walk.nr_levels = 0;
	memset(walk.levels, 0, sizeof(walk.levels));
	if (mmap_read_lock_killable(mm)) {
		mmput(mm);
		return -EINTR;
	}
	physicalview_walk_levels(mm, &walk);
	mmap_read_unlock(mm);
	mmput(mm);
	if (!both_capable(filp, CAP_SYS_ADMIN))
		hide_levels(&walk);
	return copy_to_user(argp, &walk, sizeof(walk)) ? -EFAULT : 0;
}

/* Look up to NR_GATHERED addresses up. */
static long walk_pages(struct mm_struct *mm, struct physicalview_file *file,
		       u32 nr)
{
	u32 done, now;

	if (mmap_read_lock_killable(mm))
		return -EINTR;
	for (done = 0; done < nr; done += now) {
		now = min_t(u32, nr - done, NR_WITHOUT_INTERRUPTS);
		physicalview_walk_pages(mm, file->vaddrs + done,
					file->pages + done, now);
	}
	mmap_read_unlock(mm);
	return 0;
}

static void hide_entries(struct physicalview_page *pages, u32 nr)
{
	while (nr--)
		pages[nr].entry = 0;
}

static long do_batch(const struct file *filp, void __user *argp)
{
	const bool hide = !both_capable(filp, CAP_SYS_ADMIN);
	struct physicalview_file *file = filp->private_data;
	struct physicalview_page __user *upages;
	struct physicalview_batch batch;
	u64 __user *uvaddrs;
	struct mm_struct *mm;
	long ret = 0;
	u32 done, nr;

	if (copy_from_user(&batch, argp, sizeof(batch)))
		return -EFAULT;
	if (batch.reserved || batch.nr > MAX_BATCH)
		return -EINVAL;
	mm = get_mm(filp, batch.pid);
	if (IS_ERR(mm))
		return PTR_ERR(mm);
	if (mutex_lock_killable(&file->lock)) {
		mmput(mm);
		return -EINTR;
	}

	uvaddrs = u64_to_user_ptr(batch.vaddrs);
	upages = u64_to_user_ptr(batch.pages);
	for (done = 0; done < batch.nr && !ret; done += nr) {
		nr = min_t(u32, batch.nr - done, NR_GATHERED);
		if (copy_from_user(file->vaddrs, uvaddrs + done,
				   nr * sizeof(*uvaddrs))) {
			ret = -EFAULT;
			break;
		}
		ret = walk_pages(mm, file, nr);
		if (hide)
			hide_entries(file->pages, nr);
		if (!ret && copy_to_user(upages + done, file->pages,
					 nr * sizeof(*upages)))
			ret = -EFAULT;
		cond_resched();
	}

	mutex_unlock(&file->lock);
	mmput(mm);
	return ret;
}

/* Gather extents from start on, until the room, the range or a bound ends. */
static long walk_range(struct mm_struct *mm, u64 start, u64 end,
		       struct physicalview_extents *extents, u64 *next)
{
	int i;

	*next = start;
	if (mmap_read_lock_killable(mm))
		return -EINTR;
	for (i = 0; i < TABLES_PER_LOCK && *next < end; i++) {
		*next = physicalview_walk_table(mm, *next, end, extents);
		if (extents->nr == extents->room)
			break;
	}
	mmap_read_unlock(mm);
	return 0;
}

static long copy_range(const struct file *filp, struct mm_struct *mm,
		       struct physicalview_range *range)
{
	const bool hide = !both_capable(filp, CAP_SYS_ADMIN);
	struct physicalview_file *file = filp->private_data;
	struct physicalview_extent __user *uextents;
	u32 room = range->nr;
	long ret = 0;

	uextents = u64_to_user_ptr(range->extents);
	range->nr = 0;
	range->next = range->start;
	while (range->next < range->end && range->nr < room) {
		struct physicalview_extents gathered = {
			.at = file->extents,
			.room = min_t(u32, room - range->nr, NR_GATHERED),
		};
		u64 next;
		u32 i;

		/* Progress is kept; without any, the call starts again. */
		if (signal_pending(current)) {
			if (range->next == range->start)
				ret = -EINTR;
			break;
		}
		ret = walk_range(mm, range->next, range->end, &gathered, &next);
		if (ret)
			break;
		for (i = 0; hide && i < gathered.nr; i++)
			gathered.at[i].entry = 0;
		if (copy_to_user(uextents + range->nr, gathered.at,
				 gathered.nr * sizeof(*gathered.at))) {
			ret = -EFAULT;
			break;
		}
		range->nr += gathered.nr;
		range->next = next;
		cond_resched();
	}
	return ret;
}

static long do_range(const struct file *filp, void __user *argp)
{
	struct physicalview_file *file = filp->private_data;
	struct physicalview_range range;
	struct mm_struct *mm;
	long ret;

	if (copy_from_user(&range, argp, sizeof(range)))
		return -EFAULT;
	if (range.reserved || !range.nr || range.start > range.end ||
	    !PAGE_ALIGNED(range.start) || !PAGE_ALIGNED(range.end) ||
	    range.end > physicalview_user_end())
		return -EINVAL;
	mm = get_mm(filp, range.pid);
	if (IS_ERR(mm))
		return PTR_ERR(mm);
	if (mutex_lock_killable(&file->lock)) {
		mmput(mm);
		return -EINTR;
	}
	ret = copy_range(filp, mm, &range);
	mutex_unlock(&file->lock);
	mmput(mm);
	if (ret)
		return ret;
	return copy_to_user(argp, &range, sizeof(range)) ? -EFAULT : 0;
}

static long physicalview_ioctl(struct file *filp, unsigned int cmd,
			       unsigned long arg)
{
	void __user *argp = (void __user *)arg;

	/* open() has asked the same, but maybe of somebody else. */
	if (!insecure && !both_capable(filp, CAP_SYS_ADMIN))
		return -EPERM;
	switch (cmd) {
	case PHYSICALVIEW_TRANSLATE:
		return do_translate(argp);
	case PHYSICALVIEW_INFO:
		return do_info(argp);
	case PHYSICALVIEW_WALK:
		return do_walk(filp, argp);
	case PHYSICALVIEW_BATCH:
		return do_batch(filp, argp);
	case PHYSICALVIEW_RANGE:
		return do_range(filp, argp);
	default:
		return -ENOTTY;
	}
}

static int physicalview_open(struct inode *inode, struct file *filp)
{
	struct physicalview_file *file;

	/* The node's mode says the same, but a chmod must not be enough. */
	if (!insecure && !capable(CAP_SYS_ADMIN))
		return -EPERM;
	/* Charged to the caller's cgroup: a user may open many. */
	file = kmalloc(sizeof(*file), GFP_KERNEL_ACCOUNT);
	if (!file)
		return -ENOMEM;
	mutex_init(&file->lock);
	filp->private_data = file;
	return 0;
}

static int physicalview_release(struct inode *inode, struct file *filp)
{
	kfree(filp->private_data);
	return 0;
}

static const struct file_operations physicalview_fops = {
	/* While a descriptor is open, the module cannot be removed. */
	.owner = THIS_MODULE,
	.open = physicalview_open,
	.release = physicalview_release,
	.unlocked_ioctl = physicalview_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice physicalview_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = PHYSICALVIEW_DEVICE,
	.fops = &physicalview_fops,
};

static int __init physicalview_init(void)
{
	physicalview_device.mode = insecure ? 0666 : 0600;
	return misc_register(&physicalview_device);
}

static void __exit physicalview_exit(void)
{
	misc_deregister(&physicalview_device);
}

module_init(physicalview_init);
module_exit(physicalview_exit);

MODULE_DESCRIPTION("Shows which physical addresses virtual ones have");
MODULE_LICENSE("GPL");
MODULE_VERSION("0.1.0");
