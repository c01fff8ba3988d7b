// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Lends columns to other programs by Arrow's C data interface, without copying
 * them: https://arrow.apache.org/docs/format/CDataInterface.html
 *
 * The consumer may move each child of an array away from its parent, and
 * release it later, in any thread. So every schema, array and stream holds the
 * owner of the columns by a reference of its own, and points to nothing else
 * that is freed with another of them.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "physview.h"

/* Arrow's ARROW_FLAG_NULLABLE. */
#define NULLABLE 2

/*
 * The columns, and how often they are held. The only state of the core is
 * here: how to tell Python that its object is not needed any more. Capsules and
 * arrays are released by programs that pass no pointer of ours but their own.
 */
struct hold {
	atomic_long nr;
	const struct pv_columns *columns;
};

static struct pv_python python;

/*
 * Written once, before the first array is made: without the GIL two threads may
 * be the first, and arrays are released while others are made.
 */
void pv_arrow_use(const struct pv_python *functions)
{
	static pthread_mutex_t first = PTHREAD_MUTEX_INITIALIZER;

	pthread_mutex_lock(&first);
	if (!python.is_initialized)
		python = *functions;
	pthread_mutex_unlock(&first);
}

static struct hold *get(struct hold *hold)
{
	atomic_fetch_add(&hold->nr, 1);
	return hold;
}

static void put(struct hold *hold)
{
	int state;

	if (atomic_fetch_sub(&hold->nr, 1) != 1)
		return;
	/* After the end of the interpreter there is nothing to give back. */
	if (python.is_initialized()) {
		state = python.lock();
		python.drop(hold->columns->owner);
		python.unlock(state);
	}
	free(hold);
}

/* What a schema owns. A child's dictionary moves with the child. */
struct schema_data {
	struct hold *hold;
	struct ArrowSchema dictionary;
	struct ArrowSchema **children;
};

static void release_schema(struct ArrowSchema *schema)
{
	struct schema_data *data = schema->private_data;

	for (int64_t i = 0; i < schema->n_children; i++)
		if (schema->children[i]->release)
			schema->children[i]->release(schema->children[i]);
	if (schema->dictionary && schema->dictionary->release)
		schema->dictionary->release(schema->dictionary);
	put(data->hold);
	free(data->children);
	free(data);
	schema->release = NULL;
}

static struct schema_data *make_schema(struct ArrowSchema *out,
				       struct hold *hold, const char *format)
{
	struct schema_data *data = calloc(1, sizeof(*data));

	*out = (struct ArrowSchema){ .format = format };
	if (!data)
		return NULL;
	data->hold = get(hold);
	out->private_data = data;
	out->release = release_schema;
	return data;
}

static int column_schema(struct ArrowSchema *out, struct hold *hold,
			 const struct pv_column *column)
{
	struct schema_data *data = make_schema(out, hold, column->format);

	if (!data)
		return ENOMEM;
	out->name = column->name;
	out->metadata = column->metadata;
	out->flags = column->validity ? NULLABLE : 0;
	if (!column->word_offsets)
		return 0;
	if (!make_schema(&data->dictionary, hold, "u"))
		return ENOMEM;
	out->dictionary = &data->dictionary;
	return 0;
}

/* Room for the pointers to the children, and for the children behind them. */
static void *room_for_children(int64_t nr, size_t size)
{
	char *room = calloc(nr ? nr : 1, sizeof(void *) + size);
	void **pointers = (void **)room;

	for (int64_t i = 0; room && i < nr; i++)
		pointers[i] = room + nr * sizeof(void *) + i * size;
	return room;
}

static int table_schema(struct ArrowSchema *out, struct hold *hold)
{
	const struct pv_columns *columns = hold->columns;
	struct schema_data *data = make_schema(out, hold, "+s");
	int error = ENOMEM;

	if (!data)
		return ENOMEM;
	data->children = room_for_children(columns->nr, sizeof(*out));
	if (!data->children)
		goto fail;
	out->name = "";
	out->metadata = columns->metadata;
	out->children = data->children;
	for (int64_t i = 0; i < columns->nr; i++) {
		out->n_children = i + 1;
		error = column_schema(out->children[i], hold,
				      &columns->columns[i]);
		if (error)
			goto fail;
	}
	return 0;
fail:
	release_schema(out);
	return error;
}

/* What an array owns. */
struct array_data {
	struct hold *hold;
	const void *buffers[3];
	struct ArrowArray dictionary;
	struct ArrowArray **children;
};

static void release_array(struct ArrowArray *array)
{
	struct array_data *data = array->private_data;

	for (int64_t i = 0; i < array->n_children; i++)
		if (array->children[i]->release)
			array->children[i]->release(array->children[i]);
	if (array->dictionary && array->dictionary->release)
		array->dictionary->release(array->dictionary);
	put(data->hold);
	free(data->children);
	free(data);
	array->release = NULL;
}

static struct array_data *make_array(struct ArrowArray *out, struct hold *hold,
				     int64_t length, int64_t nr_buffers)
{
	struct array_data *data = calloc(1, sizeof(*data));

	*out = (struct ArrowArray){ .length = length, .n_buffers = nr_buffers };
	if (!data)
		return NULL;
	data->hold = get(hold);
	out->buffers = data->buffers;
	out->private_data = data;
	out->release = release_array;
	return data;
}

static int column_array(struct ArrowArray *out, struct hold *hold,
			const struct pv_column *column)
{
	struct array_data *data, *words;

	data = make_array(out, hold, hold->columns->nr_rows, 2);
	if (!data)
		return ENOMEM;
	out->null_count = column->nr_null;
	data->buffers[0] = column->validity;
	data->buffers[1] = column->values;
	if (!column->word_offsets)
		return 0;
	words = make_array(&data->dictionary, hold, column->nr_words, 3);
	if (!words)
		return ENOMEM;
	words->buffers[1] = column->word_offsets;
	words->buffers[2] = column->words;
	out->dictionary = &data->dictionary;
	return 0;
}

static int table_array(struct ArrowArray *out, struct hold *hold)
{
	const struct pv_columns *columns = hold->columns;
	struct array_data *data = make_array(out, hold, columns->nr_rows, 1);
	int error = ENOMEM;

	if (!data)
		return ENOMEM;
	data->children = room_for_children(columns->nr, sizeof(*out));
	if (!data->children)
		goto fail;
	out->children = data->children;
	for (int64_t i = 0; i < columns->nr; i++) {
		out->n_children = i + 1;
		error = column_array(out->children[i], hold,
				     &columns->columns[i]);
		if (error)
			goto fail;
	}
	return 0;
fail:
	release_array(out);
	return error;
}

/* A stream of one array. */
struct stream_data {
	struct hold *hold;
	int is_done;
};

static int stream_schema(struct ArrowArrayStream *stream,
			 struct ArrowSchema *out)
{
	struct stream_data *data = stream->private_data;

	return table_schema(out, data->hold);
}

static int stream_next(struct ArrowArrayStream *stream, struct ArrowArray *out)
{
	struct stream_data *data = stream->private_data;
	int error;

	if (data->is_done) {
		*out = (struct ArrowArray){ .release = NULL };
		return 0;
	}
	error = table_array(out, data->hold);
	data->is_done = !error;
	return error;
}

static const char *stream_error(struct ArrowArrayStream *stream)
{
	(void)stream;
	return "out of memory";
}

static void release_stream(struct ArrowArrayStream *stream)
{
	struct stream_data *data = stream->private_data;

	put(data->hold);
	free(data);
	stream->release = NULL;
}

static struct hold *hold_columns(const struct pv_columns *columns)
{
	struct hold *hold = malloc(sizeof(*hold));

	if (!hold)
		return NULL;
	atomic_init(&hold->nr, 1);
	hold->columns = columns;
	return hold;
}

/*
 * Both return memory of malloc() for a capsule, whose destructor frees it; or
 * NULL if there is no memory, and the owner is not held.
 */
struct ArrowArrayStream *pv_arrow_stream(const struct pv_columns *columns)
{
	struct ArrowArrayStream *stream = malloc(sizeof(*stream));
	struct stream_data *data = calloc(1, sizeof(*data));
	struct hold *hold = hold_columns(columns);

	if (!stream || !data || !hold) {
		free(stream);
		free(data);
		free(hold);
		return NULL;
	}
	data->hold = hold;
	*stream = (struct ArrowArrayStream){
		.get_schema = stream_schema,
		.get_next = stream_next,
		.get_last_error = stream_error,
		.release = release_stream,
		.private_data = data,
	};
	return stream;
}

struct ArrowSchema *pv_arrow_schema(const struct pv_columns *columns)
{
	struct ArrowSchema *schema = malloc(sizeof(*schema));
	struct hold *hold = hold_columns(columns);

	if (!schema || !hold) {
		free(schema);
		free(hold);
		return NULL;
	}
	if (table_schema(schema, hold)) {
		free(schema);
		free(hold);
		return NULL;
	}
	put(hold);
	return schema;
}

/* A capsule points to its name, so the name must outlive all of Python. */
static const char stream_name[] = "arrow_array_stream";
static const char schema_name[] = "arrow_schema";

const char *pv_arrow_stream_name(void)
{
	return stream_name;
}

const char *pv_arrow_schema_name(void)
{
	return schema_name;
}

/* The destructors of the capsules: what no consumer took is released here. */
void pv_arrow_end_stream(void *capsule)
{
	struct ArrowArrayStream *stream;

	stream = python.pointer_of(capsule, stream_name);
	if (stream && stream->release)
		stream->release(stream);
	free(stream);
}

void pv_arrow_end_schema(void *capsule)
{
	struct ArrowSchema *schema;

	schema = python.pointer_of(capsule, schema_name);
	if (schema && schema->release)
		schema->release(schema);
	free(schema);
}
