/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The page that Prometheus reads. A small reader of HTTP of our own: what a library brings
 * (threads, descriptors, its own event loop) would have to be let into the sandbox, and what is
 * needed here is the first line of a request. Who connects is not trusted: so many clients, so long
 * a head, so much time, and one answer.
 */
#ifndef QCOWD_METRICS_METRICS_H
#define QCOWD_METRICS_METRICS_H

#include "base/errtext.h"
#include "base/list.h"
#include "config/options.h"
#include "export/desired.h"
#include "listen/doorway.h"
#include "listen/listen.h"
#include "sched/sync.h"

struct metrics {
    struct doorway doorway;
    struct desired *desired;
    const struct listeners *listeners;
    struct list clients;
    unsigned client_count;
    struct group serving;
    bool stopping;
};

/* co_metrics_stop() ends what is begun from here on. Does not suspend. */
void metrics_init(struct metrics *metrics, struct loop *loop, struct world *world,
                  struct desired *desired, const struct listeners *listeners);
/* Listens where *config says. -errno with err. */
int metrics_listen(struct metrics *metrics, const struct metrics_config *config,
                   struct errtext *err);
/* Starts accepting, if there is a socket. -ENOMEM. */
int metrics_start(struct metrics *metrics);
/* Accepts nobody any more, and cuts who is there. May suspend. */
void co_metrics_stop(struct metrics *metrics);

#endif
