/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What is asked for one export, as a value that owns its strings: the command line and the
 * configuration file both end in a list of these. A setting has one name, one set of values and one
 * message, wherever it was written.
 */
#ifndef QCOWD_CONFIG_EXPORT_CONFIG_H
#define QCOWD_CONFIG_EXPORT_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/errtext.h"
#include "config/access.h"
#include "config/key_files.h"
#include "qcow2/qcow2.h"

/* Exports of one server. */
#define EXPORTS_MAX 1024U

struct export_config {
    char *name;        /* "" is the default export */
    char *image;       /* a path; NULL: not said yet */
    char *description; /* NULL: none */
    bool read_only;
    char *snapshot; /* the internal snapshot that is shown, read-only; NULL: none */
    bool direct;    /* cache none */
    enum trim_policy trim;
    enum backing_format backing_format; /* of backing files whose format no header names */
    struct key_files key_files;         /* of the image and those below it that are encrypted */
    bool tls_only;
    struct access access;
    uint64_t bytes_per_second; /* 0: as the server has it; the same for the next */
    uint64_t operations_per_second;
    bool added_while_running; /* over the control socket; makes no difference between two */
};

/* These may be told -ENOMEM by what they call; export_config_free() is always right then. */
int export_config_init(struct export_config *config);
void export_config_free(struct export_config *config);
/* *to is overwritten. */
int export_config_copy(struct export_config *to, const struct export_config *from);
bool export_config_equal(const struct export_config *a, const struct export_config *b);

/*
 * Sets what `field` names: name, image, description, read-only, snapshot (which is read-only),
 * discard, cache, backing-format, key-file, tls, allow, tls-allow, bytes-per-second,
 * operations-per-second. key-file, allow and tls-allow add one. 0, or -errno with a message that
 * begins with what the field is called where it was written.
 */
int export_config_set(struct export_config *config, const char *field, const char *called,
                      const char *value, struct errtext *err);

struct export_configs {
    struct export_config *list;
    unsigned count;
};

/* Takes over what is in *config, on success. */
int export_configs_add(struct export_configs *configs, struct export_config *config,
                       struct errtext *err);
/* The same with a copy. */
int export_configs_add_copy(struct export_configs *configs, const struct export_config *config,
                            struct errtext *err);
void export_configs_free(struct export_configs *configs);

/* What the server can do for its exports. */
struct export_surroundings {
    bool tls;          /* it has credentials */
    bool certificates; /* among them */
    bool verify_peer;  /* clients must show one */
};

/* Whether they fit together, and into the server: names differ, rules can be kept. 0 or -EINVAL. */
int export_configs_check(const struct export_configs *configs,
                         const struct export_surroundings *surroundings, struct errtext *err);

#endif
