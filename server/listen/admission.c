/* SPDX-License-Identifier: BSD-2-Clause */
#include "listen/admission.h"

#include <assert.h>
#include <errno.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/limits.h"

/* An address with connections; none of it is kept when they have gone. */
struct admitted_origin {
    struct list link;
    struct origin origin;
    unsigned connections;
};

static struct origin origin_of_ipv6(const struct in6_addr *address)
{
    if (IN6_IS_ADDR_V4MAPPED(address)) {
        return (struct origin){AF_INET, get_be32(address->s6_addr + 12)};
    }
    return (struct origin){AF_INET6, get_be64(address->s6_addr)};
}

struct origin origin_of_address(const struct sockaddr *address, uid_t uid)
{
    struct sockaddr_in ipv4;
    struct sockaddr_in6 ipv6;
    struct sockaddr_vm machine;

    switch (address->sa_family) {
    case AF_INET:
        memcpy(&ipv4, address, sizeof(ipv4));
        return (struct origin){AF_INET, ntohl(ipv4.sin_addr.s_addr)};
    case AF_INET6:
        memcpy(&ipv6, address, sizeof(ipv6));
        return origin_of_ipv6(&ipv6.sin6_addr);
    case AF_VSOCK:
        memcpy(&machine, address, sizeof(machine));
        return (struct origin){AF_VSOCK, machine.svm_cid};
    case AF_UNIX:
        return (struct origin){AF_UNIX, uid};
    default:
        return (struct origin){AF_UNSPEC, 0};
    }
}

struct origin origin_of_socket(int fd)
{
    struct sockaddr_storage address = {.ss_family = AF_UNSPEC};
    socklen_t len = sizeof(address);
    struct ucred peer = {.uid = (uid_t)-1};

    if (getpeername(fd, (struct sockaddr *)&address, &len) < 0) {
        return (struct origin){AF_UNSPEC, 0};
    }
    len = sizeof(peer);
    if (address.ss_family == AF_UNIX && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0) {
        return (struct origin){AF_UNSPEC, 0};
    }
    return origin_of_address((const struct sockaddr *)&address, peer.uid);
}

void admission_init(struct admission *admission, unsigned most, unsigned most_per_address,
                    uint64_t secret)
{
    assert(most > 0);
    *admission = (struct admission){
        .most = most, .most_per_address = most_per_address, .secret = secret | 1};
    for (unsigned i = 0; i < ADMISSION_BUCKETS; i++) {
        list_init(&admission->buckets[i]);
    }
}

/* The finalizer of MurmurHash3, over a number that nobody outside knows. */
static struct list *bucket_of(struct admission *admission, const struct origin *origin)
{
    uint64_t mixed = (origin->number ^ origin->family ^ admission->secret) * admission->secret;
    mixed = (mixed ^ mixed >> 33) * 0xff51afd7ed558ccdULL;
    mixed = (mixed ^ mixed >> 33) * 0xc4ceb9fe1a85ec53ULL;
    return &admission->buckets[(mixed ^ mixed >> 33) % ADMISSION_BUCKETS];
}

static struct admitted_origin *find(struct list *bucket, const struct origin *origin)
{
    list_for_each(link, bucket) {
        struct admitted_origin *known = list_entry(link, struct admitted_origin, link);
        if (known->origin.family == origin->family && known->origin.number == origin->number) {
            return known;
        }
    }
    return NULL;
}

static struct admitted_origin *find_or_add(struct admission *admission, const struct origin *origin)
{
    struct list *bucket = bucket_of(admission, origin);
    struct admitted_origin *known = find(bucket, origin);

    if (!known) {
        known = calloc(1, sizeof(*known));
        if (known) {
            known->origin = *origin;
            list_push_back(bucket, &known->link);
        }
    }
    return known;
}

const char *admission_enter(struct admission *admission, const struct origin *origin,
                            struct place *place)
{
    place->origin = NULL;
    if (admission->admitted == admission->most) {
        return "as many clients are connected as this server takes (--max-connections)";
    }
    if (admission->most_per_address > 0 && origin->family != AF_UNSPEC) {
        struct admitted_origin *known = find_or_add(admission, origin);
        if (!known) {
            return "out of memory";
        }
        if (known->connections == admission->most_per_address) {
            return "as many clients are connected from there as this server takes "
                   "(--max-connections-per-address)";
        }
        known->connections++;
        place->origin = known;
    }
    admission->admitted++;
    return NULL;
}

void admission_leave(struct admission *admission, struct place *place)
{
    struct admitted_origin *origin = place->origin;

    assert(admission->admitted > 0);
    admission->admitted--;
    if (origin && --origin->connections == 0) {
        list_remove(&origin->link);
        free(origin);
    }
    place->origin = NULL;
}

bool admission_may_tell(struct admission *admission)
{
    if (admission->refusing == LIMIT_REFUSALS) {
        return false;
    }
    admission->refusing++;
    return true;
}

void admission_told(struct admission *admission)
{
    assert(admission->refusing > 0);
    admission->refusing--;
}
