// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Takes the place of the course's module in the tests: the same name and device
 * and the one call that it has, without a word of its source. It knows small
 * pages only, lets everybody in and, having no owner, would be unloaded under
 * an open descriptor.
 *
 * It can also pretend to be a physview of another time: see abi_version.
 */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pgtable.h>
#include <linux/sched.h>
#include <linux/uaccess.h>

#define TRANSLATE 0xC0106B01
#define INFO 0x80206B02

static int unknown_errno = EINVAL;
module_param(unknown_errno, int, 0444);
MODULE_PARM_DESC(unknown_errno, "what an unknown call fails with");

static uint abi_version;
module_param(abi_version, uint, 0444);
MODULE_PARM_DESC(abi_version, "have INFO answer this; 0: do not know INFO");

struct query {
	unsigned long virt;
	unsigned long phys;
};

static unsigned long find_page(struct mm_struct *mm, unsigned long virt)
{
	pgd_t *pgd = pgd_offset(mm, virt);
	p4d_t *p4d;
	pud_t *pud;
	pmd_t *pmd;
	pte_t pte;

	/* A huge page is "bad", too. */
	if (virt >= TASK_SIZE_MAX || pgd_none(*pgd) || pgd_bad(*pgd))
		return 0;
	p4d = p4d_offset(pgd, virt);
	if (p4d_none(*p4d) || p4d_bad(*p4d))
		return 0;
	pud = pud_offset(p4d, virt);
	if (pud_none(*pud) || pud_bad(*pud))
		return 0;
	pmd = pmd_offset(pud, virt);
	if (pmd_none(*pmd) || pmd_bad(*pmd))
		return 0;
	pte = READ_ONCE(*pte_offset_kernel(pmd, virt));
	if (!pte_present(pte))
		return 0;
	return (pte_pfn(pte) << PAGE_SHIFT) | offset_in_page(virt);
}

static long course_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	void __user *argp = (void __user *)arg;
	u32 info[8] = { abi_version };
	struct query query;

	if (cmd == INFO && abi_version)
		return copy_to_user(argp, info, sizeof(info)) ? -EFAULT : 0;
	if (cmd != TRANSLATE)
		return -unknown_errno;
	if (copy_from_user(&query, argp, sizeof(query)))
		return -EFAULT;
	mmap_read_lock(current->mm);
	query.phys = find_page(current->mm, query.virt);
	mmap_read_unlock(current->mm);
	return copy_to_user(argp, &query, sizeof(query)) ? -EFAULT : 0;
}

static const struct file_operations course_fops = {
	.unlocked_ioctl = course_ioctl,
};

static struct miscdevice course_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "3000physicalview",
	.fops = &course_fops,
	.mode = 0666,
};

module_misc_device(course_device);

MODULE_DESCRIPTION("Answers as the course's module does, for physview's tests");
MODULE_LICENSE("GPL");
