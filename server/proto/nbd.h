/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The protocol floor's front door: what a connection may choose from, and serving one connection
 * from greeting to goodbye. doc/proto.md of NetworkBlockDevice/nbd.
 *
 * Memory is bounded three times: requests and payload bytes of one connection, and payload bytes of
 * all together. Every connection has a small reserve of its own beside the common budget, so that
 * clients that hold the budget and do not read cannot stop small requests of others; and while
 * somebody waits for the budget, connections whose peer has stopped moving bytes are cut.
 */
#ifndef QCOWD_PROTO_NBD_H
#define QCOWD_PROTO_NBD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/errtext.h"
#include "image.h"
#include "io/stream.h"
#include "io/world.h"
#include "proto/counters.h"
#include "proto/limits.h"
#include "proto/rate.h"
#include "sched/sync.h"

/*
 * One export. It lives as long as somebody holds a reference: the list that offers it, connections
 * that chose it. References are counted on the thread of the handshakes only.
 */
struct nbd_export {
    /* Constant while it is offered or used. */
    const char *name; /* UTF-8, at most LIMIT_NBD_STRING_BYTES; "" is the default export */
    struct image *image;
    bool read_only;
    bool multi_conn;
    /*
     * The service on whose loop the image lives, and all transmission with it; NULL: the one that
     * the connection came to.
     */
    struct nbd_service *home;
    /* May change between two turns: nobody looks at them but handshakes, each time afresh. */
    const char *description; /* may be NULL; as long as the name at most */
    bool tls_only;           /* without TLS it is not there */
    /*
     * Whether the client behind this stream (its origin and identity) may use it; for others it is
     * not there. NULL: everybody may. Does not suspend.
     */
    bool (*admits)(const struct nbd_export *export, const struct stream *stream);
    /* The last reference has gone. NULL: nothing is to be done. Does not suspend. */
    void (*released)(struct nbd_export *export);
    struct rate_limit *rate; /* NULL: as fast as it can; what it says may change at any time */
    struct nbd_counters *counters; /* NULL: nothing is counted; of the home's loop */

    /* The protocol floor's own. */
    unsigned references;
    struct list users; /* connections that chose it; by the first of them */
};

void nbd_export_hold(struct nbd_export *export);
/* NULL is fine. */
void nbd_export_release(struct nbd_export *export);

/* Whether a connection has chosen it and is not gone. */
bool nbd_export_is_used(const struct nbd_export *export);

/*
 * What is on offer, in the order in which it is listed; never changed, but replaced by another one.
 * Holds its exports. Names differ.
 */
struct nbd_export_list {
    unsigned references;
    unsigned count;
    struct nbd_export *exports[];
};

/* With one reference, the caller's. NULL: out of memory. */
struct nbd_export_list *nbd_export_list_create(struct nbd_export *const *exports, unsigned count);
void nbd_export_list_hold(struct nbd_export_list *list);
/* NULL is fine. */
void nbd_export_list_release(struct nbd_export_list *list);

enum nbd_tls_mode {
    NBD_TLS_OFF,
    NBD_TLS_ON,      /* the client's choice */
    NBD_TLS_REQUIRE, /* nothing without it */
};

/*
 * Shared by the connections of one loop, and constant while any is served, except for the last
 * part. A server of several loops has one for each: a connection says hello and goodbye at the
 * service that it came to, and is handed to the home of its export for the time between.
 */
struct nbd_service {
    /* Filled by the server floor after nbd_service_init(). */
    struct world *world;
    struct budget *bytes_in_flight; /* payload bytes of all connections together */
    /*
     * Calls fn(hook_arg) once, on the loop's stack, at the end of the loop's present turn, so that
     * replies of one turn leave in one send. fn makes coroutines ready: the loop runs them before
     * it sleeps. At most one call is outstanding for a service. NULL sends at once (tests).
     */
    void (*at_end_of_turn)(struct nbd_service *service, void (*fn)(void *arg), void *arg);
    enum nbd_tls_mode tls_mode;
    /*
     * The server's side of a TLS handshake over `plain`: *secure is a stream that takes it over.
     * -errno leaves plain as it is; err says why. Aborting plain ends it. Needed when tls_mode is
     * not NBD_TLS_OFF.
     */
    int (*co_start_tls)(struct nbd_service *service, struct stream *plain, struct stream **secure,
                        struct errtext *err);
    /*
     * Runs fn(arg) on the loop of `home`, in a coroutine, and returns 0 when it has returned;
     * -errno: it has not been called. Called on the loop of `here`. Needed when an export has a
     * home.
     */
    int (*co_call)(struct nbd_service *here, struct nbd_service *home, void (*fn)(void *arg),
                   void *arg);
    void *context;            /* the server floor's own */
    struct nbd_limits limits; /* the defaults unless changed */

    /* The protocol floor's own. */
    struct nbd_export_list *exports; /* see nbd_service_offer() */
    bool draining;                   /* set by co_nbd_drain() */
    struct list connections;
    struct wait_queue gone; /* woken whenever a connection has gone */
    struct list to_send;    /* connections with replies for the end of the turn */
    bool turn_end_asked;
    struct list spare_commands; /* recycled while any connection is served */
    unsigned spare_count;
    unsigned budget_waiters;
    struct world_timer stall_timer;    /* armed while there are budget waiters */
    struct world_timer grace_timer;    /* armed while draining; */
    struct world_timer progress_timer; /* and so is this one */
    uint64_t grace_deadline_ns;
};

void nbd_service_init(struct nbd_service *service);

/*
 * From now on this is what clients choose from; the service holds the list, and lets go of the one
 * of before. Connections that have chosen stay with what they chose. NULL: nothing is on offer,
 * which is also how a service ends.
 */
void nbd_service_offer(struct nbd_service *service, struct nbd_export_list *list);
/* The same for who has his exports in an array that outlives the service. -ENOMEM: as before. */
int nbd_service_offer_array(struct nbd_service *service, struct nbd_export *exports,
                            unsigned count);

/*
 * Serves one connection: greeting, options, transmission, until the peer leaves, breaks the
 * protocol, or the service drains. Closes the stream. Takes over `stream`, always. May suspend; one
 * coroutine a connection, which makes more for the requests.
 */
void co_nbd_serve(struct nbd_service *service, struct stream *stream);

/*
 * The same for a connection that is one too many: it gets the greeting, each of its options is
 * answered with NBD_REP_ERR_POLICY and `why`, a constant, until the client leaves; it is closed
 * after LIMIT_REFUSAL_MS at the latest.
 */
void co_nbd_refuse(struct nbd_service *service, struct stream *stream, const char *why);

/*
 * Stops taking requests on all connections that are with this service, lets those in flight finish
 * and their replies leave, then closes (O9). Who has none goes at once. Who is waited for and moves
 * no byte for LIMIT_SHUTDOWN_STILL_MS is cut, and so are all that are not gone after grace_ns.
 * Suspends until none is left here. Connections that come in after that leave at once.
 */
void co_nbd_drain(struct nbd_service *service, uint64_t grace_ns);

/*
 * The same for the connections that have chosen one export, which is no longer on offer: they are
 * told to leave, and cut when they have not within the grace. `service` is the one that connections
 * come to. Does not wait for them, but may suspend.
 */
void co_nbd_dismiss(struct nbd_service *service, struct nbd_export *export, uint64_t grace_ns);
/*
 * Suspends until no connection has chosen it any more: true. Or until deadline_ns: false.
 * UINT64_MAX: no deadline.
 */
bool co_nbd_wait_unused(struct nbd_service *service, struct nbd_export *export,
                        uint64_t deadline_ns);

/*
 * The rules of an export have changed: connections that have chosen it and may not use it any more
 * are told to leave in the same way. Returns how many.
 */
unsigned co_nbd_dismiss_unadmitted(struct nbd_service *service, struct nbd_export *export,
                                   uint64_t grace_ns);

#endif
