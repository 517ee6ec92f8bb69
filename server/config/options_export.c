/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What is exported, and how. The options that stand before an IMAGE are that IMAGE's own. Where
 * there is one IMAGE only, they may stand behind it as well: so while there is one, an option
 * counts for it and for the next, and it turns out at the end, or with the next IMAGE, which was
 * meant.
 */
#include "config/option_group.h"

#include <errno.h>
#include <string.h>

#include "base/check.h"

static int out_of_memory(struct errtext *err)
{
    return err_set(err, ENOMEM, "out of memory");
}

/* The settings that options are collected in are made when the first is given. */
static int make_settings(struct export_options *options, struct errtext *err)
{
    if (options->given) {
        return 0;
    }
    if (export_config_init(&options->next) < 0) {
        return out_of_memory(err);
    }
    if (options->exports.count == 1 &&
        export_config_copy(&options->only, &options->exports.list[0]) < 0) {
        export_config_free(&options->next);
        return out_of_memory(err);
    }
    options->given = true;
    return 0;
}

static void drop_settings(struct export_options *options)
{
    if (options->given) {
        export_config_free(&options->next);
        export_config_free(&options->only);
        options->given = false;
    }
}

static int set(struct config *config, const char *field, const char *called, const char *value,
               struct errtext *err)
{
    struct export_options *options = &config->serve.exported;
    int result = make_settings(options, err);
    if (result == 0) {
        result = export_config_set(&options->next, field, called, value, err);
    }
    if (result == 0 && options->exports.count == 1) {
        result = export_config_set(&options->only, field, called, value, err);
    }
    return result;
}

static int take_name(struct config *config, char *value, struct errtext *err)
{
    return set(config, "name", "--export", value, err);
}

static int take_read_only(struct config *config, char *value, struct errtext *err)
{
    (void)value;
    return set(config, "read-only", "--read-only", "true", err);
}

static int take_snapshot(struct config *config, char *value, struct errtext *err)
{
    return set(config, "snapshot", "--snapshot", value, err);
}

static int take_description(struct config *config, char *value, struct errtext *err)
{
    return set(config, "description", "--description", value, err);
}

static int take_discard(struct config *config, char *value, struct errtext *err)
{
    return set(config, "discard", "--discard", value, err);
}

static int take_cache(struct config *config, char *value, struct errtext *err)
{
    return set(config, "cache", "--cache", value, err);
}

static int take_backing_format(struct config *config, char *value, struct errtext *err)
{
    return set(config, "backing-format", "--backing-format", value, err);
}

static int take_key_file(struct config *config, char *value, struct errtext *err)
{
    return set(config, "key-file", "--key-file", value, err);
}

static int take_allow(struct config *config, char *value, struct errtext *err)
{
    return set(config, "allow", "--allow", value, err);
}

static int take_tls(struct config *config, char *value, struct errtext *err)
{
    return set(config, "tls", "--export-tls", value, err);
}

static int take_tls_allow(struct config *config, char *value, struct errtext *err)
{
    return set(config, "tls-allow", "--export-tls-allow", value, err);
}

static int take_config(struct config *config, char *value, struct errtext *err)
{
    if (*value == '\0') {
        return option_refuse_value("--config", value, "the path of a file", err);
    }
    config->serve.config_file = value;
    return 0;
}

static int take_log_writes(struct config *config, char *value, struct errtext *err)
{
    if (*value == '\0') {
        return option_refuse_value("--log-writes", value, "the path of a file to make", err);
    }
    config->serve.log_writes = value;
    return 0;
}

static int take_image(struct config *config, char *value, struct errtext *err)
{
    struct export_options *options = &config->serve.exported;
    struct export_config export;
    int result = make_settings(options, err);
    if (result == 0) {
        result = export_config_set(&options->next, "image", "IMAGE", value, err);
    }
    if (result == 0) {
        export = options->next;
        options->next = (struct export_config){0};
        result = export_configs_add(&options->exports, &export, err);
        if (result < 0) {
            export_config_free(&export);
        }
    }
    drop_settings(options);
    return result;
}

/* Options behind the last IMAGE. */
static int place_last(struct export_options *options, struct errtext *err)
{
    if (!options->given || options->exports.count == 0) {
        return 0;
    }
    if (options->exports.count > 1) {
        return err_set(err, EINVAL,
                       "options of an export stand behind the last of %u images: with several, "
                       "they go before the image that they are for",
                       options->exports.count);
    }
    export_config_free(&options->exports.list[0]);
    options->exports.list[0] = options->only;
    options->only = (struct export_config){0};
    return 0;
}

static int check_log(const struct serve_config *serve, struct errtext *err)
{
    const struct export_configs *exports = &serve->exported.exports;
    if (!serve->log_writes) {
        return 0;
    }
    if (serve->config_file || exports->count != 1) {
        return err_set(err, EINVAL,
                       "--log-writes logs the writes of one IMAGE, and cannot be combined with "
                       "more of them or --config");
    }
    if (exports->list[0].read_only) {
        return err_set(err, EINVAL,
                       "--log-writes and --read-only cannot be combined: there are no writes");
    }
    return 0;
}

static int finish_export(struct config *config, struct errtext *err)
{
    struct serve_config *serve = &config->serve;
    struct export_options *options = &serve->exported;
    int result = 0;
    if (options->exports.count == 0 && !serve->config_file) {
        result = err_set(err, EINVAL, "serve: no image named: see qcowd --help");
    } else if (options->exports.count == 0 && options->given) {
        result = err_set(err, EINVAL,
                         "options of an export are given, but no IMAGE: what --config names has "
                         "its own in that file");
    }
    if (result == 0) {
        result = place_last(options, err);
    }
    drop_settings(options);
    if (result == 0) {
        result = check_log(serve, err);
    }
    if (result == 0) {
        struct export_surroundings surroundings = serve_surroundings(serve);
        result = export_configs_check(&options->exports, &surroundings, err);
    }
    return result;
}

struct export_surroundings serve_surroundings(const struct serve_config *serve)
{
    return (struct export_surroundings){
        .tls = serve->tls_mode != NBD_TLS_OFF,
        .certificates = serve->tls.certificates != NULL,
        .verify_peer = serve->tls.verify_peer,
    };
}

void export_options_free(struct export_options *options)
{
    drop_settings(options);
    export_configs_free(&options->exports);
}

static const struct option_spec options[] = {
    {"config", 'c', "FILE", "serve the exports of this file; it is read again on SIGHUP",
     take_config},
    {"export", 'e', "NAME", "the export's name (default: the empty name)", take_name},
    {"read-only", 'r', NULL, "refuse writes; the image is opened read-only", take_read_only},
    {"snapshot", '\0', "NAME", "show the disk as it was at this internal snapshot, read-only",
     take_snapshot},
    {"description", '\0', "TEXT", "what clients are told about the export", take_description},
    {"discard", '\0', "unmap|ignore", "give trimmed space back to the host (default), or keep it",
     take_discard},
    {"cache", '\0', "writeback|none", "use the host's page cache (default), or bypass it",
     take_cache},
    {"backing-format", '\0', "raw|qcow2",
     "what a backing file is whose format no header names: it\n"
     "is never guessed",
     take_backing_format},
    {"key-file", '\0', "FILE",
     "the passphrase of an encrypted image, all of its bytes; may\n"
     "be repeated for encrypted images below it; also - (standard\n"
     "input), fd:NUMBER, credential:NAME",
     take_key_file},
    {"allow", '\0', "ORIGIN",
     "let in only clients from there: unix, user:NAME, group:NAME,\n"
     "10.0.0.0/8, vsock:CID, stdio; may be repeated",
     take_allow},
    {"export-tls", '\0', "on|require", "without TLS as --tls has it (default), or not there",
     take_tls},
    {"export-tls-allow", '\0', "NAME", "as --tls-allow, for this export; may be repeated",
     take_tls_allow},
    {"log-writes", '\0', "FILE", "log every guest write in FILE, in dm-log-writes format",
     take_log_writes},
};

const struct option_group export_options = {
    .title = "an export; with several, the options before an IMAGE are for that one",
    .options = options,
    .count = ARRAY_LEN(options),
    .take_operand = take_image,
    .finish = finish_export,
};
