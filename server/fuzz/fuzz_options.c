/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Text from whoever starts the server, or writes a file for it. An input is what the text is, and
 * lines. Demanded: refusals are one line of their own; what is taken fits what the headers say, and
 * an image made with options that were taken is sound.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "config/export_config.h"
#include "config/options.h"
#include "fuzz/feed.h"
#include "fuzz/fuzz.h"
#include "fuzz/image_rig.h"
#include "io/sim.h"
#include "qcow2/chain.h"
#include "qcow2/create.h"
#include "listen/uri.h"

#define LINES_MAX        24U
#define TEXT_BYTES_MAX   4096U
#define STEPS_MAX        200000U
#define MADE_BYTES_MAX   (4ULL * GIB)
#define MADE_CLUSTER_MIN 4096U

struct text {
    char bytes[TEXT_BYTES_MAX];
    char *lines[LINES_MAX + 1]; /* a NULL behind the last */
    int count;
};

static void take_text(struct text *text, const struct feed *feed)
{
    size_t len = MIN_OF(feed->left, sizeof(text->bytes) - 1);

    memcpy(text->bytes, feed->bytes, len);
    text->bytes[len] = '\0';
    text->count = 0;
    for (char *at = text->bytes; at && (unsigned)text->count < LINES_MAX;) {
        text->lines[text->count++] = at;
        at = strchr(at, '\n');
        if (at) {
            *at++ = '\0';
        }
    }
    text->lines[text->count] = NULL;
}

static void judge_message(int rc, const struct errtext *err)
{
    fuzz_demand_line("a message", err->text);
    demand(rc == 0 || err->text[0], "refused with %d and without a word", rc);
}

/* ---- A command line ---- */

static void try_command_line(struct text *text)
{
    struct config config;
    struct errtext err = {""};

    int rc = options_parse(&config, text->count, text->lines, &err);
    judge_message(rc, &err);
    if (rc == 0) {
        demand(config.operand_count >= 0 && config.operand_count < text->count, "%d operands",
               config.operand_count);
        demand(config.serve.tls.allowed_count <= TLS_ALLOWED_MAX, "%u names",
               config.serve.tls.allowed_count);
    }
    options_free(&config);
}

/* ---- An export's settings ---- */

static void try_export(struct text *text)
{
    struct export_configs configs = {0};
    const struct export_surroundings surroundings = {.tls = true, .certificates = true};
    struct export_config config, copy;
    struct errtext err = {""};

    int rc = export_config_init(&config);
    assert(rc == 0);
    for (int i = 0; i < text->count; i++) {
        char *value = strchr(text->lines[i], '=');
        if (value) {
            *value++ = '\0';
            err.text[0] = '\0';
            rc = export_config_set(&config, text->lines[i], text->lines[i], value, &err);
            judge_message(rc, &err);
        }
    }
    rc = export_config_copy(&copy, &config);
    assert(rc == 0);
    demand(export_config_equal(&copy, &config), "a copy is another one");
    export_config_free(&copy);
    rc = export_configs_add(&configs, &config, &err);
    assert(rc == 0);
    err.text[0] = '\0';
    rc = export_configs_check(&configs, &surroundings, &err);
    judge_message(rc, &err);
    export_configs_free(&configs);
}

/* ---- Options of a new image ---- */

struct creation {
    struct world *world;
    const struct create_options *options;
};

static void co_create(void *arg)
{
    struct creation *creation = arg;
    struct errtext err = {""};

    int rc = co_qcow2_create(creation->world, FUZZ_IMAGE, creation->options, &err);
    judge_message(rc, &err);
    demand(rc == 0, "good options, and no image: %s", err.text);
    struct judgement judgement = co_image_rig_check(creation->world, CHECK_ONLY);
    demand(is_clean(&judgement) && judgement.result.leaks == 0, "a new image is not sound");
}

static void try_creation(struct text *text)
{
    struct create_options options;
    struct errtext err = {""};
    int rc = 0;

    create_options_init(&options);
    for (int i = 0; i < text->count && rc == 0; i++) {
        rc = create_option_parse(&options, text->lines[i], &err);
    }
    if (rc == 0) {
        rc = create_options_check(&options, &err);
    }
    judge_message(rc, &err);
    if (rc == 0 && options.size_bytes <= MADE_BYTES_MAX &&
        options.cluster_bytes >= MADE_CLUSTER_MIN) {
        struct creation creation = {sim_create(1), &options};
        demand(creation.world, "no memory for a world");
        fuzz_run(creation.world, co_create, &creation, STEPS_MAX);
        sim_free(creation.world);
    }
}

/* ---- Names ---- */

static void try_backing_name(const char *image_path, const char *name)
{
    struct errtext err = {""};
    char *path = NULL;

    int rc = plain_path_resolve("backing file", image_path, name, &path, &err);
    judge_message(rc, &err);
    if (rc == 0) {
        demand(backing_name_check(name, &err) == 0, "one says yes, the other no");
        demand(strlen(path) > 0, "an empty path");
        demand(strlen(path) <= strlen(image_path) + strlen(name), "a path that has grown");
        if (name[0] == '/') {
            demand(strcmp(path, name) == 0, "an absolute path has changed");
        }
        free(path);
    }
}

static unsigned hex_digit(char c)
{
    return (unsigned)(c <= '9' ? c - '0' : c - 'A' + 10);
}

/* Whether an escaped text, up to `end`, says `plain`. */
static bool says(const char *escaped, const char *end, const char *plain)
{
    for (; escaped < end; plain++) {
        unsigned byte = (unsigned char)*escaped++;
        if (byte == '%') {
            byte = hex_digit(escaped[0]) << 4 | hex_digit(escaped[1]);
            escaped += 2;
        }
        if (byte != (unsigned char)*plain) {
            return false;
        }
    }
    return *plain == '\0';
}

static void try_uri(const char *path, const char *name)
{
    static const char scheme[] = "nbd+unix:///";
    static const char query[] = "?socket=";
    char *uri = uri_unix(false, path, name);

    assert(uri);
    for (const char *c = uri; *c; c++) {
        demand(*c > ' ' && *c < 0x7f && !strchr("\"<>\\^`{|}#&", *c), "0x%02x in a URI",
               (unsigned char)*c);
    }
    const char *mark = strstr(uri, query);
    demand(strncmp(uri, scheme, strlen(scheme)) == 0 && mark, "no such URI: %s", uri);
    demand(says(uri + strlen(scheme), mark, name), "another name: %s", uri);
    demand(says(mark + strlen(query), uri + strlen(uri), path), "another path: %s", uri);
    free(uri);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static struct text text;
    struct feed feed = {data, len};
    uint8_t what = feed_u8(&feed);

    fuzz_judge_log();
    take_text(&text, &feed);
    switch (what % 5) {
    case 0:
        try_command_line(&text);
        break;
    case 1:
        try_export(&text);
        break;
    case 2:
        try_creation(&text);
        break;
    case 3:
        try_backing_name(text.lines[0], text.count > 1 ? text.lines[1] : "");
        break;
    default:
        try_uri(text.lines[0], text.count > 1 ? text.lines[1] : "");
        break;
    }
    return 0;
}
