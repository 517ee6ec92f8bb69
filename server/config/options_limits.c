/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What clients may take. Limits that were not given are lowered to fit beside those that were; two
 * that were given and contradict each other are refused.
 */
#include "config/option_group.h"

#include <errno.h>

#include "base/check.h"
#include "base/limits.h"

#define CONNECTIONS_MAX     65536U
#define TIMEOUT_MAX_S       3600U
#define IDLE_TIMEOUT_MAX_S  (30U * 24 * 3600)
#define OPTIONS_TAKEN_MIN   8U /* TLS, headers, contexts, information, the export */
#define OPTIONS_TAKEN_MAX   65536U
#define REQUESTS_MAX        4096U
#define REQUEST_BYTES_MIN   (64 * KIB)
#define BYTES_IN_FLIGHT_MAX (1024 * GIB)
#define RATE_BYTES_MIN      KIB

static int take_number(const char *option, const char *value, uint32_t least, uint32_t most,
                       const char *allowed, uint32_t *number, struct errtext *err)
{
    uint32_t parsed = 0;
    if (!option_parse_number(value, most, &parsed) || parsed < least) {
        return option_refuse_value(option, value, allowed, err);
    }
    *number = parsed;
    return 0;
}

static int take_bytes(const char *option, const char *value, uint64_t least, uint64_t most,
                      const char *allowed, uint64_t *bytes, struct errtext *err)
{
    uint64_t parsed = 0;
    if (parse_size(value, &parsed) < 0 || parsed < least || parsed > most) {
        return option_refuse_value(option, value, allowed, err);
    }
    *bytes = parsed;
    return 0;
}

static int take_connections(struct config *config, char *value, struct errtext *err)
{
    return take_number("--max-connections", value, 1, CONNECTIONS_MAX, "a number from 1 to 65536",
                       &config->serve.limits.connections, err);
}

static int take_connections_per_address(struct config *config, char *value, struct errtext *err)
{
    return take_number("--max-connections-per-address", value, 0, CONNECTIONS_MAX,
                       "a number from 1 to 65536, or 0: no limit",
                       &config->serve.limits.connections_per_address, err);
}

static int take_handshake_timeout(struct config *config, char *value, struct errtext *err)
{
    uint32_t seconds = 0;
    int result = take_number("--handshake-timeout", value, 1, TIMEOUT_MAX_S,
                             "seconds, a number from 1 to 3600", &seconds, err);
    if (result == 0) {
        config->serve.limits.protocol.handshake_ms = seconds * 1000;
    }
    return result;
}

static int take_idle_timeout(struct config *config, char *value, struct errtext *err)
{
    uint32_t seconds = 0;
    int result = take_number("--idle-timeout", value, 0, IDLE_TIMEOUT_MAX_S,
                             "seconds, a number from 1 to 2592000, or 0: never", &seconds, err);
    if (result == 0) {
        config->serve.limits.protocol.idle_ms = seconds * 1000;
    }
    return result;
}

static int take_options(struct config *config, char *value, struct errtext *err)
{
    return take_number("--max-options", value, OPTIONS_TAKEN_MIN, OPTIONS_TAKEN_MAX,
                       "a number from 8 to 65536", &config->serve.limits.protocol.options, err);
}

static int take_requests(struct config *config, char *value, struct errtext *err)
{
    return take_number("--max-requests", value, 1, REQUESTS_MAX, "a number from 1 to 4096",
                       &config->serve.limits.protocol.requests, err);
}

static int take_request_bytes(struct config *config, char *value, struct errtext *err)
{
    uint64_t bytes = 0;
    int result = take_bytes("--max-request-bytes", value, REQUEST_BYTES_MIN, LIMIT_PAYLOAD_BYTES,
                            "a size from 64k to 32M", &bytes, err);
    if (result == 0) {
        config->serve.limits.protocol.request_bytes = (uint32_t)bytes;
        config->serve.limits.request_bytes_given = true;
    }
    return result;
}

static int take_connection_bytes(struct config *config, char *value, struct errtext *err)
{
    config->serve.limits.connection_bytes_given = true;
    return take_bytes("--max-bytes-per-connection", value, REQUEST_BYTES_MIN, BYTES_IN_FLIGHT_MAX,
                      "a size from 64k to 1T", &config->serve.limits.protocol.connection_bytes,
                      err);
}

static int take_bytes_in_flight(struct config *config, char *value, struct errtext *err)
{
    return take_bytes("--max-bytes", value, REQUEST_BYTES_MIN, BYTES_IN_FLIGHT_MAX,
                      "a size from 64k to 1T", &config->serve.limits.bytes_in_flight, err);
}

static int take_bytes_per_second(struct config *config, char *value, struct errtext *err)
{
    uint64_t bytes = 0;
    if (parse_size(value, &bytes) < 0 || bytes > LIMIT_RATE_BYTES ||
        (bytes > 0 && bytes < RATE_BYTES_MIN)) {
        return option_refuse_value("--max-bytes-per-second", value,
                                   "a size from 1k to 64G, or 0: no limit", err);
    }
    config->serve.limits.bytes_per_second = bytes;
    return 0;
}

static int take_operations_per_second(struct config *config, char *value, struct errtext *err)
{
    uint32_t operations = 0;
    int result = take_number("--max-operations-per-second", value, 0, LIMIT_RATE_OPERATIONS,
                             "a number from 1 to 10000000, or 0: no limit", &operations, err);
    config->serve.limits.operations_per_second = operations;
    return result;
}

static int finish_limits(struct config *config, struct errtext *err)
{
    struct serve_limits *limits = &config->serve.limits;
    struct nbd_limits *protocol = &limits->protocol;

    if (!limits->connection_bytes_given) {
        protocol->connection_bytes = MIN_OF(protocol->connection_bytes, limits->bytes_in_flight);
        if (limits->request_bytes_given) {
            protocol->connection_bytes =
                MAX_OF(protocol->connection_bytes, protocol->request_bytes);
        }
    }
    uint64_t most = MIN_OF(protocol->connection_bytes, limits->bytes_in_flight);
    if (!limits->request_bytes_given) {
        protocol->request_bytes = (uint32_t)MIN_OF(protocol->request_bytes, most);
    }
    if (protocol->request_bytes > most) {
        return err_set(
            err, EINVAL, "--max-request-bytes lets requests have %u bytes, and %s only %llu",
            protocol->request_bytes,
            protocol->connection_bytes < limits->bytes_in_flight ? "--max-bytes-per-connection"
                                                                 : "--max-bytes",
            (unsigned long long)most);
    }
    return 0;
}

void serve_limits_init(struct serve_limits *limits)
{
    *limits = (struct serve_limits){
        .connections = LIMIT_CONNECTIONS,
        .connections_per_address = LIMIT_CONNECTIONS_PER_ADDRESS,
        .bytes_in_flight = LIMIT_BYTES_IN_FLIGHT,
        .protocol = nbd_limits_default(),
    };
}

static const struct option_spec options[] = {
    {"max-connections", '\0', "N", "refuse more than N connections at once (2048)",
     take_connections},
    {"max-connections-per-address", '\0', "N",
     "refuse more than N from one IPv4 address, IPv6 /64\n"
     "network, local user or virtual machine (1024; 0: any)",
     take_connections_per_address},
    {"handshake-timeout", '\0', "N",
     "cut clients that have not chosen an export within\n"
     "N seconds (10)",
     take_handshake_timeout},
    {"idle-timeout", '\0', "N", "close connections without a request for N seconds (0: never)",
     take_idle_timeout},
    {"max-options", '\0', "N", "refuse more than N options before an export is chosen (128)",
     take_options},
    {"max-request-bytes", '\0', "SIZE", "refuse READ and WRITE of more than SIZE (32M)",
     take_request_bytes},
    {"max-requests", '\0', "N", "take no more than N requests of a connection at once (128)",
     take_requests},
    {"max-bytes-per-connection", '\0', "SIZE",
     "hold at most SIZE for the requests of a connection (64M)", take_connection_bytes},
    {"max-bytes", '\0', "SIZE", "and for those of all connections (256M)", take_bytes_in_flight},
    {"max-bytes-per-second", '\0', "SIZE",
     "read and write at most SIZE a second in an export\n"
     "(0: no limit)",
     take_bytes_per_second},
    {"max-operations-per-second", '\0', "N",
     "let at most N requests a second go to an export\n"
     "(0: no limit)",
     take_operations_per_second},
};

const struct option_group limits_options = {
    .options = options, .count = ARRAY_LEN(options), .finish = finish_limits};
