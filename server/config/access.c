/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * IPv4 addresses are handled as IPv6 ones of the mapped kind, so that a client counts the same by
 * whichever socket it comes; yet a rule for IPv6 never means an IPv4 client, not even "::/0".
 */
#include "config/access.h"

#include <arpa/inet.h>
#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "io/identity.h"

#define MAPPED_BITS 96U
/* What a look-up of a user or group may need: a group's members are part of its entry. */
#define LOOKUP_BYTES_MAX (1U << 20)

static const char forms[] =
    "unix, user:NAME, group:NAME, an IP address or prefix (10.0.0.0/8), vsock:CID or stdio";

struct shown {
    char text[100];
};

static const char *show(struct shown *shown, const char *text)
{
    return err_sanitise(shown->text, sizeof(shown->text), text, strlen(text));
}

/* Decimal digits and nothing else. */
static bool parse_u32(const char *text, uint32_t *out)
{
    uint64_t value = 0;
    const char *digit = text;
    for (; *digit >= '0' && *digit <= '9' && value <= UINT32_MAX; digit++) {
        value = value * 10 + (uint64_t)(*digit - '0');
    }
    if (digit == text || *digit != '\0' || value > UINT32_MAX) {
        return false;
    }
    *out = (uint32_t)value;
    return true;
}

/* ---- Users and groups ---- */

/* 0 with *id set; ENOENT; ERANGE: a larger buffer, please; or another errno. */
static int look_up_user(const char *name, char *buffer, size_t len, uint32_t *id)
{
    struct passwd entry, *found;
    int error = getpwnam_r(name, &entry, buffer, len, &found);
    if (error == 0 && found) {
        *id = entry.pw_uid;
    }
    return error == 0 && !found ? ENOENT : error;
}

static int look_up_group(const char *name, char *buffer, size_t len, uint32_t *id)
{
    struct group entry, *found;
    int error = getgrnam_r(name, &entry, buffer, len, &found);
    if (error == 0 && found) {
        *id = entry.gr_gid;
    }
    return error == 0 && !found ? ENOENT : error;
}

/* 0, or an errno. */
static int look_up(enum origin_rule_kind kind, const char *name, uint32_t *id)
{
    int error = ERANGE;
    for (size_t len = 4096; error == ERANGE && len <= LOOKUP_BYTES_MAX; len *= 4) {
        char *buffer = malloc(len);
        if (!buffer) {
            return ENOMEM;
        }
        error = kind == ALLOW_USER ? look_up_user(name, buffer, len, id)
                                   : look_up_group(name, buffer, len, id);
        free(buffer);
    }
    return error;
}

static int parse_account(struct origin_rule *rule, enum origin_rule_kind kind, const char *name,
                         struct errtext *err)
{
    const char *what = kind == ALLOW_USER ? "user" : "group";
    struct shown shown;
    rule->kind = kind;
    if (*name == '\0') {
        return err_set(err, EINVAL, "allow '%s:': the name or number of a %s is missing", what,
                       what);
    }
    if (parse_u32(name, &rule->id)) {
        return 0;
    }
    int error = look_up(kind, name, &rule->id);
    switch (error) {
    case 0:
        return 0;
    case ENOENT: /* and how other name services say the same */
    case ESRCH:
    case EBADF:
    case EPERM:
        return err_set(err, ENOENT, "allow '%s:%s': this machine has no such %s", what,
                       show(&shown, name), what);
    default:
        return err_set(err, error, "allow '%s:%s': cannot look up the %s: %s", what,
                       show(&shown, name), what, strerror(error));
    }
}

/* ---- Addresses ---- */

static bool is_mapped(const struct in6_addr *address)
{
    return IN6_IS_ADDR_V4MAPPED(address);
}

/* IPv4 comes out mapped. */
static bool parse_address(const char *text, struct in6_addr *out, bool *ipv4)
{
    struct in_addr v4;
    *ipv4 = inet_pton(AF_INET, text, &v4) == 1;
    if (!*ipv4) {
        return inet_pton(AF_INET6, text, out) == 1;
    }
    memset(out, 0, sizeof(*out));
    out->s6_addr[10] = out->s6_addr[11] = 0xff;
    memcpy(&out->s6_addr[12], &v4, sizeof(v4));
    return true;
}

/* The byte as it is when what is behind the first `bits` bits of the whole address is zero. */
static uint8_t masked(const struct in6_addr *address, unsigned byte, unsigned bits)
{
    unsigned kept = bits > byte * 8 ? MIN_OF(bits - byte * 8, 8U) : 0;
    return (uint8_t)(address->s6_addr[byte] & (0xff00U >> kept));
}

static bool same_prefix(const struct in6_addr *a, const struct in6_addr *b, unsigned bits)
{
    for (unsigned byte = 0; byte < sizeof(a->s6_addr); byte++) {
        if (masked(a, byte, bits) != masked(b, byte, bits)) {
            return false;
        }
    }
    return true;
}

static bool is_whole_prefix(const struct in6_addr *address, unsigned bits)
{
    for (unsigned byte = 0; byte < sizeof(address->s6_addr); byte++) {
        if (masked(address, byte, bits) != address->s6_addr[byte]) {
            return false;
        }
    }
    return true;
}

/* -EINVAL without a message when it is nothing like an address. */
static int parse_prefix(struct origin_rule *rule, const char *text, struct errtext *err)
{
    char address[INET6_ADDRSTRLEN];
    const char *slash = strchr(text, '/');
    size_t len = slash ? (size_t)(slash - text) : strlen(text);
    struct shown shown;
    bool ipv4;
    if (len >= sizeof(address)) {
        return -EINVAL;
    }
    memcpy(address, text, len);
    address[len] = '\0';
    rule->kind = ALLOW_PREFIX;
    if (!parse_address(address, &rule->address, &ipv4)) {
        return -EINVAL;
    }
    unsigned most = ipv4 ? 32 : 128;
    rule->id = most;
    if (slash && (!parse_u32(slash + 1, &rule->id) || rule->id > most)) {
        return err_set(err, EINVAL, "allow '%s': the length of the prefix must be 0 to %u",
                       show(&shown, text), most);
    }
    rule->id += ipv4 ? MAPPED_BITS : 0;
    if (!is_whole_prefix(&rule->address, rule->id)) {
        return err_set(err, EINVAL,
                       "allow '%s': the address has bits set behind the prefix: zeroes there, or "
                       "a longer prefix",
                       show(&shown, text));
    }
    if (is_mapped(&rule->address) && rule->id < MAPPED_BITS) {
        return err_set(err, EINVAL, "allow '%s': write IPv4 addresses as such", show(&shown, text));
    }
    return 0;
}

/* ---- Rules ---- */

int origin_rule_parse(struct origin_rule *rule, const char *text, struct errtext *err)
{
    struct shown shown;
    memset(rule, 0, sizeof(*rule));
    if (strcmp(text, "unix") == 0) {
        rule->kind = ALLOW_UNIX;
        return 0;
    }
    if (strcmp(text, "stdio") == 0) {
        rule->kind = ALLOW_STDIO;
        return 0;
    }
    if (strncmp(text, "user:", 5) == 0) {
        return parse_account(rule, ALLOW_USER, text + 5, err);
    }
    if (strncmp(text, "group:", 6) == 0) {
        return parse_account(rule, ALLOW_GROUP, text + 6, err);
    }
    if (strncmp(text, "vsock:", 6) == 0) {
        rule->kind = ALLOW_VSOCK;
        if (!parse_u32(text + 6, &rule->id)) {
            return err_set(err, EINVAL, "allow '%s': the CID behind vsock: must be a number",
                           show(&shown, text));
        }
        return 0;
    }
    struct errtext why = {.text = ""};
    int result = parse_prefix(rule, text, &why);
    if (result < 0 && why.text[0] != '\0') {
        return err_set(err, EINVAL, "%s", why.text);
    }
    if (result < 0) {
        return err_set(err, EINVAL, "allow '%s': must be %s", show(&shown, text), forms);
    }
    return 0;
}

static bool is_member(const struct stream_origin *origin, gid_t group)
{
    bool member = origin->local.group == group;
    for (unsigned i = 0; i < origin->local.more_count && !member; i++) {
        member = origin->local.more[i] == group;
    }
    return member;
}

bool origin_rule_matches(const struct origin_rule *rule, const struct stream_origin *origin)
{
    switch (rule->kind) {
    case ALLOW_STDIO:
        return origin->kind == ORIGIN_STDIO;
    case ALLOW_UNIX:
        return origin->kind == ORIGIN_UNIX;
    case ALLOW_USER:
        return origin->kind == ORIGIN_UNIX && origin->local.user == rule->id;
    case ALLOW_GROUP:
        return origin->kind == ORIGIN_UNIX && is_member(origin, rule->id);
    case ALLOW_PREFIX:
        return origin->kind == ORIGIN_IP &&
               is_mapped(&origin->address) == is_mapped(&rule->address) &&
               same_prefix(&origin->address, &rule->address, rule->id);
    case ALLOW_VSOCK:
        return origin->kind == ORIGIN_VSOCK && origin->vsock_cid == rule->id;
    }
    return false;
}

static int refuse_more(struct errtext *err)
{
    return err_set(err, EINVAL, "an export takes %u rules of a kind at most", ACCESS_RULES_MAX);
}

int access_allow_origin(struct access *access, const char *text, struct errtext *err)
{
    struct origin_rule rule;
    int result = origin_rule_parse(&rule, text, err);
    if (result < 0) {
        return result;
    }
    if (access->origin_count == ACCESS_RULES_MAX) {
        return refuse_more(err);
    }
    struct origin_rule *more =
        reallocarray(access->origins, access->origin_count + 1, sizeof(rule));
    if (!more) {
        return err_set(err, ENOMEM, "out of memory");
    }
    access->origins = more;
    access->origins[access->origin_count++] = rule;
    return 0;
}

int access_allow_identity(struct access *access, const char *text, struct errtext *err)
{
    if (*text == '\0' || strcmp(text, "dn:") == 0 || strcmp(text, "psk:") == 0) {
        return err_set(err, EINVAL,
                       "tls-allow '%s': must be the name of a certificate (dn:CN=...) or of a "
                       "pre-shared key (psk:USERNAME)",
                       text);
    }
    if (access->identity_count == ACCESS_RULES_MAX) {
        return refuse_more(err);
    }
    char **more = reallocarray(access->identities, access->identity_count + 1, sizeof(*more));
    char *copy = strdup(text);
    if (more) {
        access->identities = more;
    }
    if (!more || !copy) {
        free(copy);
        return err_set(err, ENOMEM, "out of memory");
    }
    access->identities[access->identity_count++] = copy;
    return 0;
}

int access_copy(struct access *to, const struct access *from)
{
    *to = (struct access){0};
    if (from->origin_count > 0) {
        to->origins = reallocarray(NULL, from->origin_count, sizeof(*to->origins));
        if (!to->origins) {
            return -ENOMEM;
        }
        memcpy(to->origins, from->origins, from->origin_count * sizeof(*to->origins));
        to->origin_count = from->origin_count;
    }
    for (unsigned i = 0; i < from->identity_count; i++) {
        if (access_allow_identity(to, from->identities[i], NULL) < 0) {
            access_free(to);
            return -ENOMEM;
        }
    }
    return 0;
}

bool access_equal(const struct access *a, const struct access *b)
{
    if (a->origin_count != b->origin_count || a->identity_count != b->identity_count) {
        return false;
    }
    for (unsigned i = 0; i < a->origin_count; i++) {
        const struct origin_rule *one = &a->origins[i];
        const struct origin_rule *other = &b->origins[i];
        if (one->kind != other->kind || one->id != other->id ||
            memcmp(&one->address, &other->address, sizeof(one->address)) != 0) {
            return false;
        }
    }
    for (unsigned i = 0; i < a->identity_count; i++) {
        if (strcmp(a->identities[i], b->identities[i]) != 0) {
            return false;
        }
    }
    return true;
}

void access_free(struct access *access)
{
    for (unsigned i = 0; i < access->identity_count; i++) {
        free(access->identities[i]);
    }
    free(access->identities);
    free(access->origins);
    *access = (struct access){0};
}

static bool comes_from_there(const struct access *access, const struct stream_origin *origin)
{
    for (unsigned i = 0; origin && i < access->origin_count; i++) {
        if (origin_rule_matches(&access->origins[i], origin)) {
            return true;
        }
    }
    return access->origin_count == 0;
}

static bool is_one_of_them(const struct access *access, const char *identity)
{
    for (unsigned i = 0; i < access->identity_count; i++) {
        if (identity_is(identity, access->identities[i])) {
            return true;
        }
    }
    return access->identity_count == 0;
}

bool access_admits(const struct access *access, const struct stream_origin *origin,
                   const char *identity)
{
    return comes_from_there(access, origin) && is_one_of_them(access, identity);
}
