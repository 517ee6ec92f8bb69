/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Who may use an export: rules about where a client comes from, and rules about who it has proved
 * to be. Pure, but for names of users and groups, which are looked up when a rule is parsed: a
 * server that has shut itself in cannot do it later, and nobody is locked out by a directory
 * service that is down.
 *
 * A client must match one rule of each kind that there is; no rule of a kind means that everybody
 * does.
 */
#ifndef QCOWD_CONFIG_ACCESS_H
#define QCOWD_CONFIG_ACCESS_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/errtext.h"
#include "io/stream.h"

/* Rules of a kind that one export may have. */
#define ACCESS_RULES_MAX 1024U

enum origin_rule_kind {
    ALLOW_STDIO,
    ALLOW_UNIX,
    ALLOW_USER,
    ALLOW_GROUP,
    ALLOW_PREFIX,
    ALLOW_VSOCK,
};

/* Bytes that mean nothing are zero, so that equal rules compare equal. */
struct origin_rule {
    enum origin_rule_kind kind;
    uint32_t id; /* user, group, vsock CID; for a prefix its bits, IPv4 counted as mapped */
    struct in6_addr address;
};

struct access {
    struct origin_rule *origins;
    unsigned origin_count;
    char **identities; /* as identity_is() takes them */
    unsigned identity_count;
};

/*
 * "unix", "user:NAME", "user:UID", "group:NAME", "group:GID" (supplementary ones count), an IPv4 or
 * IPv6 address or prefix ("10.0.0.0/8"), "vsock:CID", "stdio". -EINVAL, -ENOENT (no such user or
 * group), or what looking it up failed with.
 */
int origin_rule_parse(struct origin_rule *rule, const char *text, struct errtext *err);
bool origin_rule_matches(const struct origin_rule *rule, const struct stream_origin *origin);

/* All zero is a struct access without rules. */
int access_allow_origin(struct access *access, const char *text, struct errtext *err);
int access_allow_identity(struct access *access, const char *text, struct errtext *err);
/* Makes *to, which is overwritten, a copy. -ENOMEM: *to is without rules. */
int access_copy(struct access *to, const struct access *from);
bool access_equal(const struct access *a, const struct access *b);
void access_free(struct access *access);

/* origin and identity may be NULL: nothing is known. */
bool access_admits(const struct access *access, const struct stream_origin *origin,
                   const char *identity);

#endif
