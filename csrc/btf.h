/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The kernel's description of its own types (BTF). Python does not see it. */
#ifndef PV_BTF_H
#define PV_BTF_H

#include <linux/btf.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The kernel's description of its own types, in its memory or in a copy. */
struct btf {
	const char *data;
	size_t size;
	bool is_mapped;
	const char *types, *types_end, *names, *names_end;
	uint32_t *places; /* of each type, from types on */
	uint32_t nr_types;
};

static inline const struct btf_type *btf_type(const struct btf *btf,
					      uint32_t id)
{
	return (const void *)(btf->types + btf->places[id]);
}

static inline bool btf_is_named(const struct btf *btf, uint32_t name,
				const char *wanted)
{
	size_t length = strlen(wanted) + 1;

	return name < (size_t)(btf->names_end - btf->names) &&
	       btf->names[name] == *wanted &&
	       (size_t)(btf->names_end - btf->names) - name >= length &&
	       !memcmp(btf->names + name, wanted, length);
}

int pv_btf_open(struct btf *btf);
void pv_btf_close(struct btf *btf);
int64_t pv_btf_member_bits(const struct btf *btf, uint32_t id, const char *name,
			   int depth);

#endif
