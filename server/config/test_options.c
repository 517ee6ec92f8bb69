/* SPDX-License-Identifier: BSD-2-Clause */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/testing.h"
#include "config/options.h"

/* A command line as a writable copy, as options_parse() cuts and reorders it. */
struct line {
    char text[6000];
    char *argv[32];
    int argc;
    struct config config;
    struct errtext err;
};

static struct line line;

/* Words are parted by '|', so that values may hold spaces and be empty. */
static int parse(const char *words)
{
    options_free(&line.config);
    memset(&line, 0, sizeof(line));
    ck_assert_uint_lt(strlen(words) + 8, sizeof(line.text));
    strcpy(line.text, "qcowd");
    char *at = line.text + strlen(line.text) + 1;
    line.argv[line.argc++] = line.text;
    while (words && *words) {
        const char *end = strchr(words, '|');
        size_t len = end ? (size_t)(end - words) : strlen(words);
        ck_assert_uint_lt((size_t)line.argc, ARRAY_LEN(line.argv) - 1);
        memcpy(at, words, len);
        line.argv[line.argc++] = at;
        at += len + 1;
        words = end ? end + 1 : NULL;
    }
    return options_parse(&line.config, line.argc, line.argv, &line.err);
}

static void expect_ok(const char *words)
{
    int result = parse(words);
    ck_assert_msg(result == 0, "'%s' was refused: %s", words, line.err.text);
}

/* The message is one line and names `mentioned`. */
static void expect_refused(const char *words, const char *mentioned)
{
    int result = parse(words);
    ck_assert_msg(result == -EINVAL, "'%s' was taken", words);
    ck_assert_msg(strstr(line.err.text, mentioned) != NULL, "'%s' does not name '%s': %s", words,
                  mentioned, line.err.text);
    ck_assert_ptr_null(strchr(line.err.text, '\n'));
}

static const struct export_config *only(void)
{
    ck_assert_uint_eq(line.config.serve.exported.exports.count, 1);
    return &line.config.serve.exported.exports.list[0];
}

START_TEST(test_serve_defaults)
{
    expect_ok("disk.qcow2");
    ck_assert_int_eq((int)line.config.command, (int)COMMAND_SERVE);
    ck_assert_uint_eq(line.config.serve.exported.exports.count, 1);
    ck_assert_str_eq(only()->image, "disk.qcow2");
    ck_assert(line.config.serve.tcp);
    ck_assert_uint_eq(line.config.serve.port, 10809);
    ck_assert_ptr_null(line.config.serve.bind);
    ck_assert_ptr_null(line.config.serve.unix_path);
    ck_assert_str_eq(only()->name, "");
    ck_assert(!only()->read_only);
    ck_assert(!only()->direct);
    ck_assert_int_eq((int)only()->trim, (int)TRIM_UNMAP);
    ck_assert_int_eq((int)only()->backing_format, (int)BACKING_FORMAT_UNNAMED);
    ck_assert_ptr_null(line.config.serve.config_file);
    ck_assert_uint_eq(line.config.serve.shutdown_timeout_ms, 10000);
    ck_assert_uint_eq(line.config.serve.threads, 1);
    ck_assert_ptr_null(line.config.serve.log_writes);
    ck_assert_int_eq((int)line.config.log_level, (int)LOG_LEVEL_WARNING);
}
END_TEST

START_TEST(test_serve_all_options)
{
    expect_ok("serve|-U|s.sock|-p|0|-i|::1|-e|vm one|-r|--discard|ignore|--cache=none|--run|ls|"
              "--backing-format|qcow2|--shutdown-timeout|3600|-v|disk");
    const struct serve_config *serve = &line.config.serve;
    ck_assert_str_eq(serve->unix_path, "s.sock");
    ck_assert(serve->tcp);
    ck_assert_uint_eq(serve->port, 0);
    ck_assert_str_eq(serve->bind, "::1");
    ck_assert_str_eq(only()->name, "vm one");
    ck_assert_str_eq(serve->run, "ls");
    ck_assert(only()->read_only);
    ck_assert(only()->direct);
    ck_assert_uint_eq(serve->shutdown_timeout_ms, 3600 * 1000);
    ck_assert_int_eq((int)only()->trim, (int)TRIM_IGNORE);
    ck_assert_int_eq((int)only()->backing_format, (int)BACKING_FORMAT_QCOW2);
    ck_assert_int_eq((int)line.config.log_level, (int)LOG_LEVEL_INFO);
    ck_assert_str_eq(only()->image, "disk");
    expect_ok("--log-writes|log|disk"); /* not with -r */
    ck_assert_str_eq(line.config.serve.log_writes, "log");
}
END_TEST

START_TEST(test_resize)
{
    expect_ok("resize|disk|10G");
    const struct resize_config *resize = &line.config.resize;
    ck_assert_int_eq((int)line.config.command, (int)COMMAND_RESIZE);
    ck_assert_str_eq(line.config.image, "disk");
    ck_assert_int_eq((int)resize->change, (int)RESIZE_SET);
    ck_assert_uint_eq(resize->bytes, 10 * GIB);
    ck_assert(!resize->shrink);
    expect_ok("resize|--backing-format=raw|disk|+512");
    ck_assert_int_eq((int)resize->change, (int)RESIZE_ADD);
    ck_assert_uint_eq(resize->bytes, 512);
    ck_assert_int_eq((int)resize->backing_format, (int)BACKING_FORMAT_RAW);
    expect_ok("resize|--shrink|disk|-1.5k");
    ck_assert_int_eq((int)resize->change, (int)RESIZE_SUBTRACT);
    ck_assert_uint_eq(resize->bytes, 1536);
    ck_assert(resize->shrink);
    expect_ok("resize|disk|--shrink|-3");
    ck_assert(resize->shrink);
    expect_ok("resize|--shrink|--|disk|-3");
    ck_assert_uint_eq(resize->bytes, 3);

    expect_refused("resize|disk", "the size is missing");
    expect_refused("resize|-5", "the size is missing");
    expect_refused("resize|disk|ten", "SIZE 'ten'");
    expect_refused("resize|disk|+-5", "SIZE '+-5'");
    expect_refused("resize|disk|-", "SIZE '-'");
    expect_refused("resize|disk|1G|2G", "one argument too many");
    expect_refused("resize|-5|disk", "-5");
    expect_refused("resize|--backing-format|x|disk|1G", "raw or qcow2");
    expect_refused("create|disk|-5", "-5");
}
END_TEST

START_TEST(test_bitmap)
{
    const struct bitmap_config *bitmap = &line.config.bitmap;
    expect_ok("bitmap|add|disk|a|b|c");
    ck_assert_int_eq((int)line.config.command, (int)COMMAND_BITMAP);
    ck_assert_int_eq((int)bitmap->command, (int)BITMAP_COMMAND_ADD);
    ck_assert_str_eq(line.config.image, "disk");
    ck_assert_uint_eq(bitmap->name_count, 3);
    ck_assert_str_eq(bitmap->names[2], "c");
    ck_assert_uint_eq(bitmap->granularity_bits, 0);
    expect_ok("bitmap|add|--disabled|-g|64k|disk|a");
    ck_assert_uint_eq(bitmap->granularity_bits, 16);
    ck_assert(bitmap->disabled);
    expect_ok("bitmap|add|disk|a|--granularity=2G");
    ck_assert_uint_eq(bitmap->granularity_bits, 31);
    expect_ok("bitmap|merge|-b|other|disk|a|s|t");
    ck_assert_str_eq(bitmap->source_image, "other");
    ck_assert_uint_eq(bitmap->name_count, 3);
    expect_ok("bitmap|list|--json|disk");
    ck_assert(line.config.json);
    ck_assert_uint_eq(bitmap->name_count, 0);

    expect_refused("bitmap", "no image");
    expect_refused("bitmap|ad|disk|a", "add, remove, clear, enable, disable, merge or list");
    expect_refused("bitmap|add", "too few");
    expect_refused("bitmap|add|disk", "bitmap add: too few arguments: qcowd bitmap add IMAGE NAME");
    expect_refused("bitmap|merge|disk|a", "too few");
    expect_refused("bitmap|list|disk|a", "too many");
    expect_refused("bitmap|list||", "too ");
    expect_refused("bitmap|add|-g|3k|disk|a", "512 to 2G");
    expect_refused("bitmap|add|-g|256|disk|a", "512 to 2G");
    expect_refused("bitmap|add|-g|4G|disk|a", "512 to 2G");
    expect_refused("bitmap|clear|-g|64k|disk|a", "--granularity");
    expect_refused("bitmap|clear|--disabled|disk|a", "--disabled");
    expect_refused("bitmap|clear|-b|x|disk|a", "--source-file");
    expect_refused("bitmap|clear|--json|disk|a", "--json");
}
END_TEST

START_TEST(test_limits)
{
    const struct serve_limits *limits = &line.config.serve.limits;
    expect_ok("disk");
    ck_assert_uint_eq(limits->connections, 2048);
    ck_assert_uint_eq(limits->connections_per_address, 1024);
    ck_assert_uint_eq(limits->bytes_in_flight, 256 << 20);
    ck_assert_uint_eq(limits->protocol.handshake_ms, 10000);
    ck_assert_uint_eq(limits->protocol.idle_ms, 0);
    ck_assert_uint_eq(limits->protocol.options, 128);
    ck_assert_uint_eq(limits->protocol.request_bytes, 32 << 20);
    ck_assert_uint_eq(limits->protocol.requests, 128);
    ck_assert_uint_eq(limits->protocol.connection_bytes, 64 << 20);
    ck_assert(limits->bytes_per_second == 0 && limits->operations_per_second == 0);
    expect_ok("--max-connections|65536|--max-connections-per-address|0|--handshake-timeout|3600|"
              "--idle-timeout|60|--max-options|8|--max-requests|1|--max-request-bytes|64k|"
              "--max-bytes-per-connection|1M|--max-bytes|2G|--max-bytes-per-second|100M|"
              "--max-operations-per-second|500|disk");
    ck_assert_uint_eq(limits->connections, 65536);
    ck_assert_uint_eq(limits->connections_per_address, 0);
    ck_assert_uint_eq(limits->bytes_in_flight, 2ULL << 30);
    ck_assert_uint_eq(limits->protocol.handshake_ms, 3600 * 1000);
    ck_assert_uint_eq(limits->protocol.idle_ms, 60 * 1000);
    ck_assert_uint_eq(limits->protocol.options, 8);
    ck_assert_uint_eq(limits->protocol.request_bytes, 65536);
    ck_assert_uint_eq(limits->protocol.requests, 1);
    ck_assert_uint_eq(limits->protocol.connection_bytes, 1 << 20);
    ck_assert_uint_eq(limits->bytes_per_second, 100 << 20);
    ck_assert_uint_eq(limits->operations_per_second, 500);
}
END_TEST

START_TEST(test_limits_out_of_range)
{
    static const char *const refused[] = {
        "--max-connections|0",
        "--max-connections|65537",
        "--max-connections|many",
        "--max-connections-per-address|65537",
        "--handshake-timeout|0",
        "--handshake-timeout|3601",
        "--idle-timeout|2592001",
        "--idle-timeout|-1",
        "--max-options|7",
        "--max-options|65537",
        "--max-requests|0",
        "--max-requests|4097",
        "--max-request-bytes|65535",
        "--max-request-bytes|33M",
        "--max-request-bytes|",
        "--max-bytes-per-connection|1k",
        "--max-bytes|0",
        "--max-bytes|2T",
        "--max-bytes-per-second|512",
        "--max-bytes-per-second|65G",
        "--max-operations-per-second|10000001",
    };
    for (size_t i = 0; i < ARRAY_LEN(refused); i++) {
        char option[64];
        char words[100];
        snprintf(option, sizeof(option), "%s", refused[i]);
        *strchr(option, '|') = '\0';
        snprintf(words, sizeof(words), "%s|disk", refused[i]);
        expect_refused(words, option);
    }
    for (size_t i = 0; i < ARRAY_LEN(refused); i++) { /* nor are they create's */
        char words[100];
        snprintf(words, sizeof(words), "create|%s|disk|1M", refused[i]);
        expect_refused(words, "does not know");
    }
}
END_TEST

/* What is not given fits beside what is. */
START_TEST(test_limits_fit_together)
{
    const struct serve_limits *limits = &line.config.serve.limits;
    expect_ok("--max-bytes|1M|disk");
    ck_assert_uint_eq(limits->protocol.connection_bytes, 1 << 20);
    ck_assert_uint_eq(limits->protocol.request_bytes, 1 << 20);
    expect_ok("--max-bytes-per-connection|2M|disk");
    ck_assert_uint_eq(limits->protocol.request_bytes, 2 << 20);
    ck_assert_uint_eq(limits->bytes_in_flight, 256 << 20);
    expect_ok("--max-bytes-per-connection|16M|--max-bytes|2M|disk");
    ck_assert_uint_eq(limits->protocol.request_bytes, 2 << 20);
    expect_refused("--max-bytes|1M|--max-request-bytes|2M|disk", "--max-bytes ");
    expect_refused("--max-bytes-per-connection|1M|--max-request-bytes|2M|disk",
                   "--max-bytes-per-connection");
}
END_TEST

START_TEST(test_tls)
{
    const struct serve_config *serve = &line.config.serve;
    expect_ok("disk");
    ck_assert_int_eq((int)serve->tls_mode, (int)NBD_TLS_OFF);
    expect_ok("--tls|off|disk");
    ck_assert_int_eq((int)serve->tls_mode, (int)NBD_TLS_OFF);
    expect_ok("--tls-psk|keys|disk");
    ck_assert_int_eq((int)serve->tls_mode, (int)NBD_TLS_REQUIRE);
    ck_assert_str_eq(serve->tls.psk_file, "keys");
    expect_ok("--tls-psk|keys|--tls|on|disk");
    ck_assert_int_eq((int)serve->tls_mode, (int)NBD_TLS_ON);
    expect_ok("--tls|require|--tls-certificates|pki|--tls-verify-peer|--tls-allow|dn:CN=a|"
              "--tls-allow|psk:b|disk");
    ck_assert_int_eq((int)serve->tls_mode, (int)NBD_TLS_REQUIRE);
    ck_assert_str_eq(serve->tls.certificates, "pki");
    ck_assert(serve->tls.verify_peer);
    ck_assert_uint_eq(serve->tls.allowed_count, 2);
    ck_assert_str_eq(serve->tls.allowed[1], "psk:b");

    expect_refused("--tls|yes|disk", "off, on or require");
    expect_refused("--tls|on|disk", "TLS needs credentials");
    expect_refused("--tls|require|disk", "TLS needs credentials");
    expect_refused("--tls|off|--tls-psk|keys|disk", "needs no credentials");
    expect_refused("--tls-psk||disk", "--tls-psk");
    expect_refused("--tls-certificates||disk", "--tls-certificates");
    expect_refused("--tls-verify-peer|disk", "--tls-verify-peer needs --tls-certificates");
    expect_refused("--tls-verify-peer|--tls-psk|keys|disk", "needs --tls-certificates");
    expect_refused("--tls-allow|a|disk", "--tls-allow needs");
    expect_refused("--tls-allow||--tls-psk|keys|disk", "--tls-allow");
    expect_refused("--tls-allow|a|--tls-certificates|pki|disk", "needs --tls-verify-peer");
}
END_TEST

START_TEST(test_options_may_follow_the_image)
{
    expect_ok("disk|--unix=s.sock|-vv");
    ck_assert_str_eq(only()->image, "disk");
    ck_assert_str_eq(line.config.serve.unix_path, "s.sock");
    ck_assert_int_eq((int)line.config.log_level, (int)LOG_LEVEL_DEBUG);
    expect_ok("-q|--|-disk");
    ck_assert_str_eq(only()->image, "-disk");
    ck_assert_int_eq((int)line.config.log_level, (int)LOG_LEVEL_ERROR);
}
END_TEST

START_TEST(test_tcp_only_when_nothing_else_is_asked_for)
{
    expect_ok("-U|s|disk");
    ck_assert(!line.config.serve.tcp);
    expect_ok("-s|disk");
    ck_assert(!line.config.serve.tcp);
    expect_ok("--run|true|disk");
    ck_assert(!line.config.serve.tcp);
    expect_ok("-U|s|-i|localhost|disk");
    ck_assert(line.config.serve.tcp);
    ck_assert_uint_eq(line.config.serve.port, 10809);
}
END_TEST

START_TEST(test_serve_refusals)
{
    expect_refused("", "no image named");
    expect_refused("serve", "no image named");
    expect_refused("-r|", "no image named");
    expect_refused("-U", "'-U' needs a value");
    expect_refused("disk|--port", "'--port' needs a value");
    expect_refused("-U||disk", "--unix");
    expect_refused("-i||disk", "--bind");
    expect_refused("-Z|disk", "'-Z'");
    expect_refused("-rZ|disk", "'-Z'");
    expect_refused("--nonsense|disk", "'--nonsense'");
    expect_refused("--nonsense=1|disk", "'--nonsense=1'");
    expect_refused("--read-only=yes|disk", "--read-only takes no value");
    expect_refused("--unix=s|-Z|disk", "'-Z'");
    expect_refused("--discard|maybe|disk", "unmap or ignore");
    expect_refused("--backing-format|auto|disk", "raw or qcow2");
    expect_refused("--cache|writethrough|disk", "writeback or none");
    expect_refused("--log-writes||disk", "--log-writes");
    expect_refused("--log-writes|log|-r|disk", "--read-only");
    expect_refused("--shutdown-timeout|3601|disk", "0 to 3600");
    expect_refused("--shutdown-timeout|-1|disk", "0 to 3600");
    expect_refused("--shutdown-timeout|1.5|disk", "0 to 3600");
    expect_refused("--shutdown-timeout||disk", "0 to 3600");
    expect_refused("--shutdown-timeout|99999999999999999999|disk", "0 to 3600");
    expect_refused("-s|-U|s|disk", "--stdio");
    expect_refused("-s|-p|1|disk", "--stdio");
    expect_refused("-s|--run|ls|disk", "--run");
    expect_refused("--json|disk", "serve does not know the option '--json'");
    expect_refused("-o|x=y|disk", "'-o'");
    expect_refused("--ssl|off|disk", "does not know the option '--ssl'");
}
END_TEST

START_TEST(test_port)
{
    static const char *const wrong[] = {
        "-p|65536|d", "-p|-1|d", "-p|1x|d",  "-p||d",
        "-p| 1|d",    "-p|+1|d", "-p|nbd|d", "-p|99999999999999999999999|d"};
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        expect_refused(wrong[i], "from 0 to 65535");
    }
    expect_ok("-p|65535|d");
    ck_assert_uint_eq(line.config.serve.port, 65535);
}
END_TEST

START_TEST(test_several_exports)
{
    const struct export_configs *exports = &line.config.serve.exported.exports;
    expect_ok("-e|one|-r|a|-e|two|--description|second|--cache|none|b|-v|-e|three|--allow|unix|"
              "--allow|10.0.0.0/8|c|-U|s");
    ck_assert_uint_eq(exports->count, 3);
    ck_assert_str_eq(exports->list[0].name, "one");
    ck_assert_str_eq(exports->list[0].image, "a");
    ck_assert(exports->list[0].read_only && !exports->list[0].direct);
    ck_assert_str_eq(exports->list[1].name, "two");
    ck_assert_str_eq(exports->list[1].image, "b");
    ck_assert_str_eq(exports->list[1].description, "second");
    ck_assert(!exports->list[1].read_only && exports->list[1].direct);
    ck_assert_uint_eq(exports->list[1].access.origin_count, 0);
    ck_assert_uint_eq(exports->list[2].access.origin_count, 2);
    ck_assert_str_eq(line.config.serve.unix_path, "s");
    /* With one, before and behind it; with two, what was behind the first is the second's. */
    expect_ok("-e|one|a|-r|--cache=none");
    ck_assert(only()->read_only && only()->direct);
    ck_assert_str_eq(only()->name, "one");
    expect_ok("-e|one|a|-r|-e|two|b");
    ck_assert(!exports->list[0].read_only && exports->list[1].read_only);
    expect_ok("a|-e|two|--|-b");
    ck_assert_str_eq(exports->list[1].image, "-b");
    ck_assert_str_eq(exports->list[0].name, "");

    expect_refused("a|b", "names must differ");
    expect_refused("-e|x|a|-e|x|b", "the name 'x'");
    expect_refused("-e|x|a|-e|y|b|-r", "behind the last of 2 images");
    expect_refused("-e|x|a|-e|\xff|b", "UTF-8");
    expect_refused("--allow|nobody-such|a", "must be unix");
    expect_refused("--export-tls|require|a", "needs a server with --tls-certificates");
    expect_refused("--export-tls|yes|a", "--export-tls 'yes'");
    expect_refused("--export-tls-allow|psk:alice|a", "tls-allow needs");
    expect_refused("--log-writes|log|-e|x|a|b", "one IMAGE");
    expect_ok("--tls-psk|keys|--tls|on|--export-tls|require|--export-tls-allow|psk:alice|a");
    ck_assert(only()->tls_only);
    ck_assert_uint_eq(only()->access.identity_count, 1);
}
END_TEST

START_TEST(test_config_file)
{
    expect_ok("-c|exports.conf");
    ck_assert_str_eq(line.config.serve.config_file, "exports.conf");
    ck_assert_uint_eq(line.config.serve.exported.exports.count, 0);
    expect_ok("--config=exports.conf|-e|one|a");
    ck_assert_str_eq(only()->name, "one");
    expect_refused("--config||a", "--config");
    expect_refused("-c|exports.conf|-r", "no IMAGE");
    expect_refused("-c|exports.conf|--log-writes|log|a", "--log-writes");
}
END_TEST

START_TEST(test_export_name)
{
    static const char *const not_utf8[] = {
        "-e|\x80|d",         "-e|\xc3|d",     "-e|\xc0\xaf|d",         "-e|\xe0\x9f\x80|d",
        "-e|\xed\xa0\x80|d", "-e|\xff|d",     "-e|\xf4\x90\x80\x80|d", "-e|\xf0\x8f\x80\x80|d",
        "-e|a\xe2\x82|d",    "-e|\xe2\x28|d",
    };
    for (size_t i = 0; i < ARRAY_LEN(not_utf8); i++) {
        expect_refused(not_utf8[i], "UTF-8");
    }
    expect_ok("-e|\xc3\xa4\xe2\x82\xac\xf0\x9f\x92\xbe\xed\x9f\xbf|d");
    expect_ok("-e||d");

    char words[4200] = "-e|";
    memset(words + 3, 'n', 4097);
    strcpy(words + 3 + 4097, "|d");
    expect_refused(words, "4096");
    strcpy(words + 3 + 4096, "|d");
    expect_ok(words);
}
END_TEST

START_TEST(test_foreign_bytes_do_not_reach_the_message)
{
    expect_refused("--\x1b[31mred\n|d", "\\x1b");
    ck_assert_ptr_null(strchr(line.err.text, '\x1b'));
}
END_TEST

START_TEST(test_help_and_version)
{
    expect_ok("--help");
    ck_assert_int_eq((int)line.config.command, (int)COMMAND_HELP);
    expect_ok("check|-h");
    ck_assert_int_eq((int)line.config.command, (int)COMMAND_HELP);
    expect_ok("disk|--version");
    ck_assert_int_eq((int)line.config.command, (int)COMMAND_VERSION);
}
END_TEST

START_TEST(test_create)
{
    expect_ok("create|disk|10G");
    ck_assert_int_eq((int)line.config.command, (int)COMMAND_CREATE);
    ck_assert_str_eq(line.config.image, "disk");
    ck_assert(line.config.create.size_given);
    ck_assert(line.config.create.options.size_bytes == 10ULL << 30);

    expect_ok("create|-o|cluster_size=4k,refcount_bits=1|-o|extended_l2=off|disk|0");
    ck_assert(line.config.create.options.cluster_bytes == 4096);
    ck_assert_uint_eq(line.config.create.options.refcount_bits, 1);
    ck_assert(line.config.create.options.size_bytes == 0);

    expect_ok("create|-b|base,1|-F|raw|disk");
    ck_assert(!line.config.create.size_given);
    ck_assert_str_eq(line.config.create.options.backing_name, "base,1");
    ck_assert_str_eq(line.config.create.options.backing_format, "raw");

    expect_ok("create|-o|size=1M,backing_file=a,,b,backing_fmt=qcow2|disk");
    ck_assert_str_eq(line.config.create.options.backing_name, "a,b");
    ck_assert(line.config.create.options.size_bytes == 1 << 20);
}
END_TEST

START_TEST(test_create_refusals)
{
    expect_refused("create", "no image named");
    expect_refused("create|disk", "size is missing");
    expect_refused("create|disk|", "size is missing");
    expect_refused("create|disk|10X", "'10X'");
    expect_refused("create|disk|-1", "'-1'");
    expect_refused("create|disk|1G|2G", "'2G'");
    expect_refused("create|-o|size=1G|disk|1G", "twice");
    expect_refused("create|-b|base|disk|1G", "-F");
    expect_refused("create|-F|raw|disk|1G", "-b");
    expect_refused("create|-b||-F|raw|disk|1G", "--backing");
    expect_refused("create|-o|nonsense=1|disk|1G", "nonsense");
    expect_refused("create|-o|cluster_size|disk|1G", "cluster_size");
    expect_refused("create|-U|s|disk|1G", "create does not know the option '-U'");
}
END_TEST

START_TEST(test_check_and_info)
{
    expect_ok("check|disk");
    ck_assert_int_eq((int)line.config.command, (int)COMMAND_CHECK);
    ck_assert_int_eq((int)line.config.repair, (int)CHECK_ONLY);
    expect_ok("check|disk|--repair|leaks");
    ck_assert_int_eq((int)line.config.repair, (int)CHECK_REPAIR_LEAKS);
    expect_ok("check|--repair=all|disk");
    ck_assert_int_eq((int)line.config.repair, (int)CHECK_REPAIR_ALL);
    expect_refused("check|--repair|some|disk", "leaks or all");
    expect_refused("check|a|b", "'b'");

    expect_ok("info|disk");
    ck_assert_int_eq((int)line.config.command, (int)COMMAND_INFO);
    ck_assert(!line.config.json);
    expect_ok("info|--json|disk");
    ck_assert(line.config.json);
    expect_refused("info", "no image named");
}
END_TEST

START_TEST(test_a_command_word_after_the_first_is_an_image)
{
    expect_ok("serve|check");
    ck_assert_int_eq((int)line.config.command, (int)COMMAND_SERVE);
    ck_assert_str_eq(only()->image, "check");
    expect_ok("./create");
    ck_assert_int_eq((int)line.config.command, (int)COMMAND_SERVE);
}
END_TEST

START_TEST(test_service_options)
{
    expect_ok("disk");
    ck_assert(line.config.serve.tcp_by_default);
    ck_assert_int_eq(line.config.serve.service.ready_fd, 0);
    ck_assert_ptr_null(line.config.serve.service.pid_file);
    expect_ok("-U|s|-P|pid|--ready-fd|3|--print-uri|--exit-with-parent|--socket-mode|0660|"
              "--socket-owner|a:b|--log-format|json|--log-target|syslog|disk");
    const struct service_config *service = &line.config.serve.service;
    ck_assert_str_eq(service->pid_file, "pid");
    ck_assert_int_eq(service->ready_fd, 3);
    ck_assert(service->print_uri && service->exit_with_parent && service->socket_mode_given);
    ck_assert_uint_eq(service->socket_mode, 0660);
    ck_assert_str_eq(service->socket_owner, "a:b");
    ck_assert_int_eq((int)line.config.log_format, (int)LOG_FORMAT_JSON);
    ck_assert_int_eq((int)line.config.log_target, (int)LOG_TARGET_SYSLOG);
    expect_ok("-U|s|--socket-mode|0|disk");
    ck_assert_uint_eq(line.config.serve.service.socket_mode, 0);

    expect_refused("--pidfile||disk", "--pidfile");
    expect_refused("--ready-fd|2|disk", "3 or more");
    expect_refused("--ready-fd|x|disk", "3 or more");
    expect_refused("-U|s|--socket-mode|888|disk", "octal");
    expect_refused("-U|s|--socket-mode|1777|disk", "octal");
    expect_refused("-U|s|--socket-mode||disk", "octal");
    expect_refused("--socket-mode|600|disk", "there is none");
    expect_refused("--run|ls|--socket-owner|root|disk", "there is none");
    expect_refused("-U|s|--socket-owner||disk", "USER:GROUP");
    expect_refused("--log-format|xml|disk", "text or json");
    expect_refused("--log-target|file|disk", "stderr or syslog");
    expect_refused("--stdio|--print-uri|disk", "--stdio");
}
END_TEST

START_TEST(test_vsock_takes_the_place_of_tcp)
{
    expect_ok("--vsock|disk");
    ck_assert(line.config.serve.vsock && !line.config.serve.tcp);
    ck_assert_uint_eq(line.config.serve.port, 10809);
    expect_ok("--vsock|-p|99|-U|s|disk");
    ck_assert(line.config.serve.vsock && !line.config.serve.tcp);
    ck_assert_uint_eq(line.config.serve.port, 99);
    expect_refused("--vsock|--bind|::|disk", "--bind");
    expect_refused("--vsock|--stdio|disk", "--vsock");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("options");
    TCase *tests = tcase_create("options");
    tcase_add_test(tests, test_serve_defaults);
    tcase_add_test(tests, test_serve_all_options);
    tcase_add_test(tests, test_limits);
    tcase_add_test(tests, test_resize);
    tcase_add_test(tests, test_bitmap);
    tcase_add_test(tests, test_limits_out_of_range);
    tcase_add_test(tests, test_limits_fit_together);
    tcase_add_test(tests, test_tls);
    tcase_add_test(tests, test_options_may_follow_the_image);
    tcase_add_test(tests, test_service_options);
    tcase_add_test(tests, test_vsock_takes_the_place_of_tcp);
    tcase_add_test(tests, test_tcp_only_when_nothing_else_is_asked_for);
    tcase_add_test(tests, test_serve_refusals);
    tcase_add_test(tests, test_port);
    tcase_add_test(tests, test_export_name);
    tcase_add_test(tests, test_several_exports);
    tcase_add_test(tests, test_config_file);
    tcase_add_test(tests, test_foreign_bytes_do_not_reach_the_message);
    tcase_add_test(tests, test_help_and_version);
    tcase_add_test(tests, test_create);
    tcase_add_test(tests, test_create_refusals);
    tcase_add_test(tests, test_check_and_info);
    tcase_add_test(tests, test_a_command_word_after_the_first_is_an_image);
    suite_add_tcase(suite, tests);
    return test_suite_run(suite);
}
