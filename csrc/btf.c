// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Reads the kernel's description of its own types (BTF).
 * Format: Documentation/bpf/btf.rst
 */
#include "btf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define KERNEL_BTF "/sys/kernel/btf/vmlinux"

/* The size of a type's description; 0 for a kind that is not known. */
static size_t btf_type_bytes(const struct btf_type *type)
{
	size_t nr = BTF_INFO_VLEN(type->info), more;

	switch (BTF_INFO_KIND(type->info)) {
	case BTF_KIND_PTR:
	case BTF_KIND_FWD:
	case BTF_KIND_TYPEDEF:
	case BTF_KIND_VOLATILE:
	case BTF_KIND_CONST:
	case BTF_KIND_RESTRICT:
	case BTF_KIND_FUNC:
	case 16: /* BTF_KIND_FLOAT, 5.13 */
	case 18: /* BTF_KIND_TYPE_TAG, 5.17 */
		more = 0;
		break;
	case BTF_KIND_INT:
	case BTF_KIND_VAR:
	case 17: /* BTF_KIND_DECL_TAG, 5.16 */
		more = 4;
		break;
	case BTF_KIND_ARRAY:
		more = sizeof(struct btf_array);
		break;
	case BTF_KIND_STRUCT:
	case BTF_KIND_UNION:
		more = nr * sizeof(struct btf_member);
		break;
	case BTF_KIND_DATASEC:
	case 19: /* BTF_KIND_ENUM64, 6.0 */
		more = nr * 12;
		break;
	case BTF_KIND_ENUM:
	case BTF_KIND_FUNC_PROTO:
		more = nr * 8;
		break;
	default:
		return 0;
	}
	return sizeof(*type) + more;
}

void pv_btf_close(struct btf *btf)
{
	free(btf->places);
	if (btf->is_mapped)
		munmap((void *)btf->data, btf->size);
	else
		free((void *)btf->data);
}

/* Read or map the file: from 6.16 on it can be mapped. */
static int read_btf(struct btf *btf)
{
	int fd = open(KERNEL_BTF, O_RDONLY | O_CLOEXEC), error;
	struct stat status;
	size_t done = 0;
	char *data;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &status)) {
		error = -errno;
		close(fd);
		return error;
	}
	btf->size = (size_t)status.st_size;
	data = mmap(NULL, btf->size, PROT_READ, MAP_PRIVATE, fd, 0);
	btf->is_mapped = data != MAP_FAILED;
	if (!btf->is_mapped) {
		data = malloc(btf->size);
		if (!data) {
			close(fd);
			return -ENOMEM;
		}
		while (done < btf->size) {
			ssize_t nr = read(fd, data + done, btf->size - done);

			if (nr <= 0) {
				error = nr < 0 ? -errno : -EINVAL;
				free(data);
				close(fd);
				return error;
			}
			done += (size_t)nr;
		}
	}
	btf->data = data;
	close(fd);
	return 0;
}

int pv_btf_open(struct btf *btf)
{
	const struct btf_header *header;
	const char *at;
	int error = read_btf(btf);

	if (error)
		return error;
	header = (const void *)btf->data;
	if (btf->size < sizeof(*header) || header->magic != BTF_MAGIC ||
	    (uint64_t)header->hdr_len + header->type_off + header->type_len >
		    btf->size ||
	    (uint64_t)header->hdr_len + header->str_off + header->str_len >
		    btf->size)
		goto bad;
	btf->types = btf->data + header->hdr_len + header->type_off;
	btf->types_end = btf->types + header->type_len;
	btf->names = btf->data + header->hdr_len + header->str_off;
	btf->names_end = btf->names + header->str_len;
	/* A type has 12 bytes at least; number 0 is void. */
	btf->places = malloc((header->type_len / sizeof(struct btf_type) + 2) *
			     sizeof(*btf->places));
	if (!btf->places) {
		pv_btf_close(btf);
		return -ENOMEM;
	}
	btf->nr_types = 1;
	btf->places[0] = 0;
	for (at = btf->types; at < btf->types_end;) {
		size_t size = btf_type_bytes((const void *)at);

		if (!size || size > (size_t)(btf->types_end - at))
			goto bad;
		btf->places[btf->nr_types++] = (uint32_t)(at - btf->types);
		at += size;
	}
	return 0;
bad:
	pv_btf_close(btf);
	return -EINVAL;
}

/* The offset of a member in bits, also of one in a nameless struct; or -1. */
int64_t pv_btf_member_bits(const struct btf *btf, uint32_t id, const char *name,
			   int depth)
{
	const struct btf_type *type = btf_type(btf, id);
	const struct btf_member *members = (const void *)(type + 1);

	for (uint32_t i = 0; i < BTF_INFO_VLEN(type->info); i++) {
		int64_t bits =
			BTF_INFO_KFLAG(type->info)
				? BTF_MEMBER_BIT_OFFSET(members[i].offset)
				: members[i].offset;
		uint32_t kind;

		if (btf_is_named(btf, members[i].name_off, name))
			return bits;
		if (members[i].name_off || members[i].type >= btf->nr_types ||
		    !depth)
			continue;
		kind = BTF_INFO_KIND(btf_type(btf, members[i].type)->info);
		if (kind == BTF_KIND_STRUCT || kind == BTF_KIND_UNION) {
			int64_t inner = pv_btf_member_bits(btf, members[i].type,
							   name, depth - 1);

			if (inner >= 0)
				return bits + inner;
		}
	}
	return -1;
}
