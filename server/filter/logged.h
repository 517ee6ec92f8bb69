/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * An image that logs what its guests change, in front of any other image (`--log-writes`).
 *
 * What replays: at every entry of the log (io/writelog.h), replaying all before it onto a copy of
 * the image as it was at the mark "start" gives a state that the image has had, as far as clients
 * can tell; at the end, with nothing in flight, it gives the image byte for byte. So
 *
 * - an entry is appended when the image has done the request, and before the client is told. What
 *   was acknowledged stands in the log before whatever is sent after, flushes included;
 * - requests that touch a common sector are done one after another, from before the image changes
 *   until the entry has its place: the log's order of overlapping requests is the image's own. Only
 *   conflicts wait. Reads hold nothing and see what they would see without a log;
 * - requests that are not made of whole sectors are logged with what the image then holds in the
 *   sectors they touch, read back while nobody else can change them;
 * - WRITE_ZEROES is logged as data, all zero, and TRIM as discard, which replays as zeroes;
 * - a request that failed may have changed part of its range: what the range then holds is logged;
 * - a log that cannot be written, or does not know what to say, ends all writing with an error, and
 *   says so: it never goes on with a gap.
 */
#ifndef QCOWD_FILTER_LOGGED_H
#define QCOWD_FILTER_LOGGED_H

#include <stdbool.h>

#include "image.h"
#include "io/world.h"

struct logged_options {
    bool trim_ignored; /* the image takes no notice of TRIM, so there is nothing to log */
};

/*
 * Puts a log in a new file `path` in front of the image, begun with the mark "start". On success
 * the image belongs to *out, whose co_close ends the log with the mark "stop" and closes both. On
 * failure it stays the caller's, and err says what to do. May suspend.
 */
int co_logged_open(struct world *world, struct image *inner, const char *path,
                   const struct logged_options *options, struct image **out, struct errtext *err);

/* Adds a mark to the log of an image from co_logged_open(), after all that was acknowledged. */
int co_logged_mark(struct image *image, const char *text);

#endif
