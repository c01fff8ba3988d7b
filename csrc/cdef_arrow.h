/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The core's interface for Arrow. See cdef.h. */

/* arrow.c: the structures of Arrow's C data and C stream interfaces. */
struct ArrowSchema {
	const char *format;
	const char *name;
	const char *metadata;
	int64_t flags;
	int64_t n_children;
	struct ArrowSchema **children;
	struct ArrowSchema *dictionary;
	void (*release)(struct ArrowSchema *schema);
	void *private_data;
};

struct ArrowArray {
	int64_t length;
	int64_t null_count;
	int64_t offset;
	int64_t n_buffers;
	int64_t n_children;
	const void **buffers;
	struct ArrowArray **children;
	struct ArrowArray *dictionary;
	void (*release)(struct ArrowArray *array);
	void *private_data;
};

struct ArrowArrayStream {
	int (*get_schema)(struct ArrowArrayStream *stream,
			  struct ArrowSchema *out);
	int (*get_next)(struct ArrowArrayStream *stream,
			struct ArrowArray *out);
	const char *(*get_last_error)(struct ArrowArrayStream *stream);
	void (*release)(struct ArrowArrayStream *stream);
	void *private_data;
};

/*
 * A column: numbers, or numbers of words if word_offsets is set. validity is a
 * bitmap of the rows that have a value; NULL if all have one.
 */
struct pv_column {
	const char *name;
	const char *format;
	const char *metadata;
	const void *validity;
	int64_t nr_null;
	const void *values;
	int64_t nr_words;
	const int32_t *word_offsets;
	const char *words;
};

/* Columns of one length. owner keeps them, and all that they point to. */
struct pv_columns {
	int64_t nr_rows;
	int64_t nr;
	const struct pv_column *columns;
	const char *metadata;
	void *owner;
};

/*
 * Functions of Python's C interface, by their addresses: Py_IsInitialized,
 * PyGILState_Ensure, PyGILState_Release, Py_DecRef, PyCapsule_GetPointer.
 */
struct pv_python {
	int (*is_initialized)(void);
	int (*lock)(void);
	void (*unlock)(int state);
	void (*drop)(void *object);
	void *(*pointer_of)(void *capsule, const char *name);
};

void pv_arrow_use(const struct pv_python *functions);
struct ArrowArrayStream *pv_arrow_stream(const struct pv_columns *columns);
struct ArrowSchema *pv_arrow_schema(const struct pv_columns *columns);
const char *pv_arrow_stream_name(void);
const char *pv_arrow_schema_name(void);
void pv_arrow_end_stream(void *capsule);
void pv_arrow_end_schema(void *capsule);
