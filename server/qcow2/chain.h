/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Names of files that a header brings along, resolved as QEMU resolves them, and cut down to what
 * O10 allows: a plain path. This is the one place that says whether a name is allowed and which
 * file it means.
 */
#ifndef QCOWD_QCOW2_CHAIN_H
#define QCOWD_QCOW2_CHAIN_H

#include <stdbool.h>

#include "base/errtext.h"

struct json_name;

/* What a backing file is. Never guessed from what is in it: a guest may have written that. */
enum backing_format { BACKING_FORMAT_UNNAMED, BACKING_FORMAT_RAW, BACKING_FORMAT_QCOW2 };

/* "raw", "qcow2"; NULL for BACKING_FORMAT_UNNAMED. */
const char *backing_format_name(enum backing_format format);

/* The format of that name; BACKING_FORMAT_UNNAMED if it is none of the two. */
enum backing_format backing_format_find(const char *name);

/*
 * Whether a backing file may have this name: 0, or -EINVAL with err. A ':' before the first '/'
 * makes it a protocol ("nbd://host"), which is refused; "file:" alone is let through, and
 * "json:{...}" where it describes a local file and nothing else (json_name.h). A plain file whose
 * name has a ':' is written ./name or with its full path. -ENOMEM. Does not suspend.
 */
int backing_name_check(const char *name, struct errtext *err);

/* The same for a plain name, of whatever `what` is: "backing file", "data file". */
int plain_name_check(const char *what, const char *name, struct errtext *err);

/*
 * The path that a plain name means: relative names are relative to the directory of the image that
 * names them, not to the current one; after "file:" a name is taken as it stands (QEMU's rule:
 * relative to the current directory). "json:" is refused as every protocol is. *path is malloc'ed.
 * -EINVAL (see above), -ENOMEM; err names the image. Does not suspend.
 */
int plain_path_resolve(const char *what, const char *image_path, const char *name, char **path,
                       struct errtext *err);

/* A backing file as its image's header, or whoever opens the chain, describes it. */
struct backing_file {
    char *path; /* owned: free() */
    enum backing_format format;
    bool format_assumed; /* no header says so */
    /* The name said what is below this file, too: that counts, and not its header. */
    bool below_given;
    struct json_name *below; /* owned: json_name_free(); NULL: nothing */
};

void backing_file_free(struct backing_file *file);

/*
 * What an image's backing name means. `named_format` is the header's, NULL if it has none;
 * `assumed` is what is taken for granted then, BACKING_FORMAT_UNNAMED for nothing. A "json:" name
 * brings its own format, which must agree with the header's; the path in it is taken as it stands.
 * On success *out is the caller's and out->format one of the two. -EINVAL (a name that is not
 * allowed, formats that differ, no format at all), -ENOTSUP (another format), -ENOMEM; err names
 * the image. Does not suspend.
 */
int backing_resolve(const char *image_path, const char *name, const char *named_format,
                    enum backing_format assumed, struct backing_file *out, struct errtext *err);

/*
 * The same for what the name of a file above has said is below this one. *described is taken over,
 * also on failure. Its own format counts, then the header's, then what is assumed.
 */
int backing_resolve_described(const char *image_path, struct json_name *described,
                              const char *named_format, enum backing_format assumed,
                              struct backing_file *out, struct errtext *err);

#endif
