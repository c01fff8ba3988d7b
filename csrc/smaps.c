// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Parses /proc/PID/maps and /proc/PID/smaps into columns. Names in these files
 * are any bytes but "\n", so only blanks at known places and "\n" separate.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "physview.h"

/* Lines of smaps whose column is remembered, by their place in a mapping. */
#define NR_PLACES 64

struct line {
	const char *at, *end; /* without the "\n" */
};

/* Read until the buffer is full or the file ends. Returns bytes or -errno. */
int64_t pv_read_more(int fd, char *buffer, uint64_t room)
{
	uint64_t done = 0;

	while (done < room) {
		ssize_t got = read(fd, buffer + done, room - done);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (!got)
			break;
		done += (uint64_t)got;
	}
	return (int64_t)done;
}

/* Read a number up to the first other character. */
static uint64_t number(struct line *line, unsigned int base)
{
	uint64_t value = 0;

	for (; line->at < line->end; line->at++) {
		char letter = *line->at;
		unsigned int digit;

		if (letter >= '0' && letter <= '9')
			digit = (unsigned int)(letter - '0');
		else if (letter >= 'a' && letter <= 'f')
			digit = (unsigned int)(letter - 'a') + 10;
		else
			break;
		if (digit >= base)
			break;
		value = value * base + digit;
	}
	return value;
}

static void skip(struct line *line, char letter)
{
	while (line->at < line->end && *line->at == letter)
		line->at++;
}

/* Parse the line of a mapping; show_map_vma() in fs/proc/task_mmu.c. */
static int parse_head(const char *text, struct line line, uint64_t *row,
		      uint64_t stride)
{
	uint64_t major;

	row[PV_MAP_START * stride] = number(&line, 16);
	if (line.at == line.end || *line.at++ != '-')
		return -EINVAL;
	row[PV_MAP_END * stride] = number(&line, 16);
	skip(&line, ' ');
	if (line.end - line.at < 5)
		return -EINVAL;
	row[PV_MAP_PERMS * stride] = 0;
	for (int i = 0; i < 4; i++)
		row[PV_MAP_PERMS * stride] |= (uint64_t)(uint8_t)*line.at++
					      << 8 * i;
	skip(&line, ' ');
	row[PV_MAP_OFFSET * stride] = number(&line, 16);
	skip(&line, ' ');
	major = number(&line, 16);
	if (line.at == line.end || *line.at++ != ':')
		return -EINVAL;
	row[PV_MAP_DEVICE * stride] = major << 32 | number(&line, 16);
	skip(&line, ' ');
	row[PV_MAP_INODE * stride] = number(&line, 10);
	/* No path begins with a blank: the kernel pads with blanks. */
	skip(&line, ' ');
	row[PV_MAP_NAME * stride] = (uint64_t)(line.at - text);
	row[PV_MAP_NAME_LENGTH * stride] = (uint64_t)(line.end - line.at);
	return 0;
}

/* The column of a line "Name: ", or -1. names: 24 bytes for each. */
static int find_name(struct line name, const char *names, uint64_t nr_names)
{
	uint64_t length = (uint64_t)(name.end - name.at);

	for (uint64_t i = 0; i < nr_names; i++) {
		const char *known = names + i * PV_SMAPS_NAME;

		if (strnlen(known, PV_SMAPS_NAME) == length &&
		    !memcmp(known, name.at, length))
			return (int)i;
	}
	return -1;
}

/*
 * Where a line of smaps has its name's end, ':'. NULL: it is the line of a
 * mapping, which begins with small hexadecimal digits and "-".
 */
static const char *colon_of(struct line line)
{
	if (line.at == line.end || *line.at < 'A' || *line.at > 'Z')
		return NULL;
	return memchr(line.at, ':', (size_t)(line.end - line.at));
}

struct place {
	struct line name;
	int column;
};

static void parse_size(struct line line, const char *colon, struct place *place,
		       const char *names, uint64_t nr_names, const char *text,
		       uint64_t *row, uint64_t stride)
{
	struct line name = { line.at, colon };
	size_t length = (size_t)(colon - line.at);

	line.at = colon + 1;
	skip(&line, ' ');
	if (length == 7 && !memcmp(name.at, "VmFlags", 7)) {
		row[PV_MAP_FLAGS * stride] = (uint64_t)(line.at - text);
		row[PV_MAP_FLAGS_LENGTH * stride] =
			(uint64_t)(line.end - line.at);
		return;
	}
	/* In every mapping the same lines come in the same order. */
	if (!place->name.at ||
	    (size_t)(place->name.end - place->name.at) != length ||
	    memcmp(place->name.at, name.at, length)) {
		place->name = name;
		place->column = find_name(name, names, nr_names);
	}
	if (place->column >= 0)
		row[(PV_MAP_SIZES + (uint64_t)place->column) * stride] =
			number(&line, 10);
}

/*
 * Parse the mappings of a text. A mapping of smaps is complete if another one
 * follows, or if is_last says that the text ends the file.
 *
 * columns has PV_MAP_SIZES + nr_names columns of stride values. Values of names
 * are as the kernel prints them; names that do not occur are PV_NO_ENTRY.
 * *used is the length of the text that has been parsed. last_end is the end of
 * the mapping before the text: a mapping that grows or is merged while the file
 * is read comes again, and is left out as far as it overlaps. Returns the
 * number of mappings, at most stride, or -errno.
 */
int64_t pv_parse_mappings(const char *text, uint64_t length, int is_last,
			  uint64_t last_end, const char *names,
			  uint64_t nr_names, uint64_t *columns, uint64_t stride,
			  uint64_t *used)
{
	struct place places[NR_PLACES] = { 0 };
	const char *at = text, *end = text + length;
	uint64_t nr = 0, nr_lines = 0;
	int is_known = 0; /* the last mapping came before */

	*used = 0;
	while (at < end) {
		const char *stop = memchr(at, '\n', (size_t)(end - at));
		struct line line = { at, stop };
		const char *colon;

		if (!stop)
			break;
		colon = colon_of(line);
		if (!colon) {
			*used = (uint64_t)(at - text);
			if (nr == stride)
				return (int64_t)nr;
			for (uint64_t i = 0; i < nr_names; i++)
				columns[(PV_MAP_SIZES + i) * stride + nr] =
					UINT64_MAX;
			columns[PV_MAP_FLAGS_LENGTH * stride + nr] = 0;
			if (parse_head(text, line, columns + nr, stride))
				return -EINVAL;
			is_known =
				columns[PV_MAP_END * stride + nr] <= last_end;
			if (columns[PV_MAP_START * stride + nr] < last_end)
				columns[PV_MAP_START * stride + nr] = last_end;
			if (!is_known)
				last_end = columns[PV_MAP_END * stride + nr++];
			nr_lines = 0;
		} else if (nr && !is_known && nr_lines < NR_PLACES) {
			parse_size(line, colon, &places[nr_lines++], names,
				   nr_names, text, columns + nr - 1, stride);
		}
		at = stop + 1;
		if (!nr_names)
			*used = (uint64_t)(at - text);
	}
	if (is_last)
		*used = (uint64_t)(at - text);
	else if (nr && nr_names && !is_known)
		nr--; /* its lines may go on */
	return (int64_t)nr;
}
