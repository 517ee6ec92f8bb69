/* SPDX-License-Identifier: BSD-2-Clause */
/* The server's own stdin and stdout as a stream to one client. */
#ifndef QCOWD_LISTEN_STDIO_STREAM_H
#define QCOWD_LISTEN_STDIO_STREAM_H

#include "base/errtext.h"
#include "io/stream.h"
#include "sched/loop.h"

/*
 * Takes descriptors 0 and 1 away and leaves /dev/null there, so that nothing strays into the
 * protocol. 0, or -errno with err. Does not suspend.
 */
int stdio_take(struct loop *loop, struct stream **out, struct errtext *err);

#endif
