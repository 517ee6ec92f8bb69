/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * How many connections there may be, in all and from one address, so that nobody can take the
 * places of all others. An address is an IPv4 address, a /64 network of IPv6 (what one site has), a
 * user of this machine (Unix sockets), or a virtual machine (vsock). Who is one too many is told
 * why; but no more than LIMIT_REFUSALS at once, so that refusing costs less than serving.
 */
#ifndef QCOWD_LISTEN_ADMISSION_H
#define QCOWD_LISTEN_ADMISSION_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "base/list.h"

#define ADMISSION_BUCKETS 1024U

struct origin {
    sa_family_t family; /* AF_UNSPEC: not known, and counted in all only */
    uint64_t number;
};

/* Of what is connected to fd. */
struct origin origin_of_socket(int fd);
/* `uid` matters for AF_UNIX only. */
struct origin origin_of_address(const struct sockaddr *address, uid_t uid);

struct admission {
    unsigned most;             /* at least 1 */
    unsigned most_per_address; /* 0: as many as there may be */
    unsigned admitted;
    unsigned refusing;
    uint64_t secret; /* peers choose their addresses, and must not choose their bucket */
    struct list buckets[ADMISSION_BUCKETS];
};

/* One connection's place; the holder's memory. */
struct place {
    struct admitted_origin *origin; /* NULL: not counted by address */
};

void admission_init(struct admission *admission, unsigned most, unsigned most_per_address,
                    uint64_t secret);
/* NULL, and *place is to be given back; or why it is one too many, for people, a constant. */
const char *admission_enter(struct admission *admission, const struct origin *origin,
                            struct place *place);
void admission_leave(struct admission *admission, struct place *place);

/* Whether one more may be told that it is refused; to be followed by admission_told(). */
bool admission_may_tell(struct admission *admission);
void admission_told(struct admission *admission);

#endif
