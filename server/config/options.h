/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The command line as a value: pure parsing, nothing is opened or printed here. Letters and names
 * follow nbdkit and qemu-nbd where they agree, those of create, check and info follow qemu-img.
 */
#ifndef QCOWD_CONFIG_OPTIONS_H
#define QCOWD_CONFIG_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "base/errtext.h"
#include "base/log.h"
#include "config/export_config.h"
#include "config/key_files.h"
#include "io/tls.h"
#include "proto/nbd.h"
#include "qcow2/check.h"
#include "qcow2/create.h"
#include "qcow2/qcow2.h"
#include "sandbox/sandbox.h"

#define DEFAULT_NBD_PORT 10809
/* Names that --tls-allow may list. */
#define TLS_ALLOWED_MAX 64U
/* Loops that --threads may ask for; the message that refuses more names it, too. */
#define THREADS_MAX 64U

enum command {
    COMMAND_SERVE,
    COMMAND_CREATE,
    COMMAND_CHECK,
    COMMAND_INFO,
    COMMAND_CTL,
    COMMAND_RESIZE,
    COMMAND_BITMAP,
    COMMAND_KEY,
    COMMAND_HELP,
    COMMAND_VERSION,
};

/* What whoever started the server wants of it. */
struct service_config {
    const char *pid_file; /* NULL: none */
    int ready_fd;         /* 0: none */
    bool print_uri;
    bool exit_with_parent;
    bool socket_mode_given;
    mode_t socket_mode;
    const char *socket_owner; /* NULL: as every file */
};

/* The control socket. */
struct control_config {
    const char *path; /* NULL: none is made */
    mode_t mode;
    const char *owner; /* NULL: as every file */
};

/* Where metrics are read. */
struct metrics_config {
    const char *unix_path; /* NULL: not there */
    bool tcp;
    const char *host; /* NULL: loopback */
    uint16_t port;
};

struct serve_limits {
    unsigned connections;             /* at once */
    unsigned connections_per_address; /* 0: no limit */
    uint64_t bytes_in_flight;         /* that requests of all connections hold */
    struct nbd_limits protocol;
    bool request_bytes_given;
    bool connection_bytes_given;
    /* Of each export that has none of its own; 0: no limit. */
    uint64_t bytes_per_second;
    uint64_t operations_per_second;
};

/* The exports of the command line, owned; the rest is for the time of parsing. */
struct export_options {
    struct export_configs exports;
    bool given;                /* the next two are made */
    struct export_config next; /* what the options were for if another IMAGE comes */
    struct export_config only; /* and if none does */
};

struct serve_config {
    const char *unix_path; /* NULL: no Unix socket asked for */
    bool tcp;
    bool tcp_by_default; /* nobody asked for it: inherited sockets may take its place */
    bool vsock;
    uint16_t port;    /* of TCP or vsock; 0: the kernel chooses */
    const char *bind; /* NULL: loopback */
    bool stdio;       /* alone: no listener beside it */
    const char *run;  /* NULL: serve until a signal */
    enum nbd_tls_mode tls_mode;
    bool tls_mode_given;
    struct tls_config tls;
    const char *tls_allowed[TLS_ALLOWED_MAX]; /* what tls.allowed points at, once parsed */
    struct export_options exported;
    const char *config_file; /* NULL: none */
    const char *log_writes;  /* NULL: writes are not logged; of the only export */
    struct serve_limits limits;
    uint32_t threads; /* loops, over which exports are spread */
    struct sandbox_config sandbox;
    uint32_t shutdown_timeout_ms; /* clients that do not let go are cut after this long */
    struct service_config service;
    struct control_config control;
    struct metrics_config metrics;
};

struct create_config {
    struct create_options options;
    bool size_given; /* else the backing file's size */
};

enum size_change { RESIZE_SET, RESIZE_ADD, RESIZE_SUBTRACT };

struct resize_config {
    enum size_change change;
    uint64_t bytes;
    bool shrink; /* the size may be smaller than it was */
    enum backing_format backing_format;
};

struct key_config {
    bool adds; /* else it removes */
    bool slot_given;
    uint32_t slot;
    uint32_t iter_time_ms;  /* 0: as create has it */
    struct key_files added; /* the one to add */
};

enum bitmap_command {
    BITMAP_COMMAND_ADD,
    BITMAP_COMMAND_REMOVE,
    BITMAP_COMMAND_CLEAR,
    BITMAP_COMMAND_ENABLE,
    BITMAP_COMMAND_DISABLE,
    BITMAP_COMMAND_MERGE,
    BITMAP_COMMAND_LIST,
};

struct bitmap_config {
    enum bitmap_command command;
    uint8_t granularity_bits; /* 0: not given */
    bool disabled;
    const char *source_image; /* of what is merged; NULL: the same image */
    char **names;             /* in the order of the command line */
    size_t name_count;
};

/* Strings point into argv, but for those of exports. Only the chosen command's part means anything.
 */
struct config {
    enum command command;
    enum log_level log_level;
    enum log_format log_format;
    enum log_target log_target;
    const char *image;
    struct serve_config serve;
    struct create_config create;
    struct resize_config resize;
    struct bitmap_config bitmap;
    struct key_config key;
    struct key_files key_files; /* of create, resize and key; those of exports are theirs */
    enum check_repair repair;
    bool json;
    char **operands; /* IMAGE and what follows it */
    int operand_count;
};

/*
 * Fills *config from the command line; may reorder argv and cut option values in place. 0, or
 * -EINVAL with one line in err that names the argument and what is allowed.
 */
int options_parse(struct config *config, int argc, char **argv, struct errtext *err);

/* Ends what options_parse() began, however that ended. */
void options_free(struct config *config);

/* What the server can do for its exports. */
struct export_surroundings serve_surroundings(const struct serve_config *serve);

/* The text of --help. */
void options_print_help(FILE *out);

#endif
