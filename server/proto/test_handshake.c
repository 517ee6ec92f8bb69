/* SPDX-License-Identifier: BSD-2-Clause */
/* The handshake, word by word, from a client that means well and from others. */
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "base/log.h"
#include "proto/meta.h"
#include "proto/test_main.h"
#include "proto/test_rig.h"

static struct rig *rig;
static unsigned errors_logged;

static void count_errors(enum log_level level, const char *line, void *arg)
{
    (void)line;
    (void)arg;
    errors_logged += level <= LOG_LEVEL_WARNING;
}

static void begin(void)
{
    rig = rig_create();
    errors_logged = 0;
    log_set_level(LOG_LEVEL_DEBUG);
    log_set_sink(count_errors, NULL);
}

/* Client errors are no errors of ours. */
static void end(void)
{
    ck_assert_uint_eq(errors_logged, 0);
    rig_free(rig);
}

static struct client *greeted(uint32_t flags)
{
    struct client *client = client_create(rig);
    client_greet(client, flags);
    return client;
}

static void expect_refusal(struct client *client, uint32_t option, uint32_t type)
{
    size_t len;
    client_option_reply(client, option, type, &len);
    ck_assert(len > 0 && len <= LIMIT_NBD_STRING_BYTES);
    ck_assert(client_unread(client) == 0);
}

static void expect_ack(struct client *client, uint32_t option)
{
    size_t len;
    client_option_reply(client, option, NBD_REP_ACK, &len);
    ck_assert(len == 0 && client_unread(client) == 0);
}

/* The loop goes on: an option that always works. */
static void expect_alive(struct client *client)
{
    uint8_t payload[64];
    size_t len = pack_go(payload, "other", NULL, 0);
    client_option(client, NBD_OPT_INFO, payload, len);
    client_option_reply(client, NBD_OPT_INFO, NBD_REP_INFO, &len);
    expect_ack(client, NBD_OPT_INFO);
}

START_TEST(statement_01_greeting_and_client_flags)
{
    begin();
    struct client *client = client_create(rig);
    ck_assert(client_unread(client) == 18);
    client_greet(client, 4);
    client_expect_closed(client);
    client_free(client);
    client = greeted(0x80000003U);
    client_expect_closed(client);
    client_free(client);
    end();
}
END_TEST

START_TEST(statement_02_a_probe_leaves_no_error)
{
    begin();
    struct client *client = client_create(rig);
    client_take(client, 18);
    client_half_close(client);
    client_expect_closed(client);
    client_free(client);
    client = client_create(rig);
    client_free(client); /* vanishes without even reading */
    end();
}
END_TEST

START_TEST(statement_03_bad_magic_and_huge_option)
{
    begin();
    struct client *client = greeted(3);
    client_send(client, "GET / HTTP/1.1\r\n", 16);
    client_expect_closed(client);
    client_free(client);

    struct wire_option header;
    put_be64(header.magic, NBD_OPTION_MAGIC);
    put_be32(header.option, NBD_OPT_LIST);
    put_be32(header.length, LIMIT_OPTION_DRAIN_BYTES + 1);
    client = greeted(3);
    client_send(client, &header, sizeof(header));
    expect_refusal(client, NBD_OPT_LIST, NBD_REP_ERR_TOO_BIG);
    client_expect_closed(client);
    client_free(client);

    put_be32(header.option, NBD_OPT_EXPORT_NAME);
    put_be32(header.length, LIMIT_OPTION_BYTES + 1);
    client = greeted(3);
    client_send(client, &header, sizeof(header));
    client_expect_closed(client);
    client_free(client);
    end();
}
END_TEST

START_TEST(statement_03_options_too_big_are_drained)
{
    static const uint32_t sizes[] = {LIMIT_OPTION_BYTES + 1, LIMIT_OPTION_DRAIN_BYTES};
    static uint8_t payload[LIMIT_OPTION_DRAIN_BYTES];
    begin();
    struct client *client = greeted(3);
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        client_option(client, NBD_OPT_LIST, payload, sizes[i]);
        expect_refusal(client, NBD_OPT_LIST, NBD_REP_ERR_TOO_BIG);
        expect_alive(client);
    }
    client_free(client);
    end();
}
END_TEST

START_TEST(statement_04_unknown_option_is_drained)
{
    static const uint32_t unknown[] = {0, 4, 12, 0x7fffffff, UINT32_MAX};
    static uint8_t payload[LIMIT_OPTION_BYTES];
    begin();
    struct client *client = greeted(3);
    for (size_t i = 0; i < ARRAY_LEN(unknown); i++) {
        client_option(client, unknown[i], payload, i % 2 ? 0 : sizeof(payload));
        expect_refusal(client, unknown[i], NBD_REP_ERR_UNSUP);
        expect_alive(client);
    }
    client_free(client);
    end();
}
END_TEST

START_TEST(statement_05_malformed_payload_gets_one_error)
{
    static const uint32_t options[] = {NBD_OPT_LIST,
                                       NBD_OPT_STARTTLS,
                                       NBD_OPT_INFO,
                                       NBD_OPT_GO,
                                       NBD_OPT_STRUCTURED_REPLY,
                                       NBD_OPT_EXTENDED_HEADERS,
                                       NBD_OPT_LIST_META_CONTEXT,
                                       NBD_OPT_SET_META_CONTEXT};
    static uint8_t payload[40000];
    begin();
    struct client *client = greeted(3);
    memset(payload, 0xff, sizeof(payload));
    for (size_t i = 0; i < ARRAY_LEN(options); i++) {
        client_option(client, options[i], payload, sizeof(payload) - i);
        expect_refusal(client, options[i], NBD_REP_ERR_INVALID);
        client_option(client, options[i], payload, 1);
        expect_refusal(client, options[i], NBD_REP_ERR_INVALID);
        expect_alive(client);
    }
    client_free(client);
    end();
}
END_TEST

START_TEST(statement_06_without_fixed_newstyle)
{
    begin();
    struct client *client = greeted(0);
    client_option(client, NBD_OPT_LIST, NULL, 0);
    client_expect_closed(client);
    client_free(client);
    client = greeted(0);
    client_option(client, NBD_OPT_EXPORT_NAME, NULL, 0);
    client_take(client, 134);
    client_request(client, NBD_CMD_FLUSH, 0, 1, 0, 0);
    client_expect_simple(client, 1, 0);
    client_free(client);
    end();
}
END_TEST

START_TEST(statement_07_export_name)
{
    static uint8_t too_long[5000];
    begin();
    struct client *client = greeted(NBD_FLAG_FIXED_NEWSTYLE);
    client_option(client, NBD_OPT_EXPORT_NAME, "ro", 2);
    const uint8_t *reply = client_take(client, 134);
    ck_assert(get_be64(reply) == RIG_IMAGE_BYTES);
    ck_assert(get_be16(reply + 8) & NBD_FLAG_READ_ONLY);
    for (size_t i = 10; i < 134; i++) {
        ck_assert(reply[i] == 0);
    }
    client_free(client);

    client = greeted(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    client_option(client, NBD_OPT_EXPORT_NAME, "other", 5);
    ck_assert(client_unread(client) == 10);
    client_take(client, 10);
    client_free(client);

    static const struct {
        const void *name;
        size_t len;
    } bad[] = {{"nope", 4}, {"r\0o", 3}, {too_long, sizeof(too_long)}, {"othe", 4}, {"\xff", 1}};
    memset(too_long, 'n', sizeof(too_long));
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        client = greeted(3);
        client_option(client, NBD_OPT_EXPORT_NAME, bad[i].name, bad[i].len);
        client_expect_closed(client);
        client_free(client);
    }
    end();
}
END_TEST

START_TEST(statement_09_abort)
{
    begin();
    struct client *client = greeted(3);
    client_option(client, NBD_OPT_ABORT, "why not", 7);
    expect_ack(client, NBD_OPT_ABORT);
    client_expect_closed(client);
    client_free(client);

    client = greeted(3);
    client->gone = true; /* says ABORT, and does not wait for the answer */
    client_option(client, NBD_OPT_ABORT, NULL, 0);
    client_expect_closed(client);
    client_free(client);
    end();
}
END_TEST

START_TEST(statement_10_list)
{
    static const char *const names[] = {"", "ro", "other"};
    begin();
    struct client *client = greeted(3);
    client_option(client, NBD_OPT_LIST, NULL, 0);
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        size_t len;
        const uint8_t *reply = client_option_reply(client, NBD_OPT_LIST, NBD_REP_SERVER, &len);
        ck_assert(get_be32(reply) == strlen(names[i]));
        ck_assert(memcmp(reply + 4, names[i], strlen(names[i])) == 0);
        size_t description_len = len - 4 - strlen(names[i]); /* statement 11 */
        ck_assert(description_len == (i == 1 ? strlen(rig->exports[1].description) : 0));
    }
    expect_ack(client, NBD_OPT_LIST);
    nbd_service_offer(&rig->service, NULL);
    client_option(client, NBD_OPT_LIST, NULL, 0);
    expect_ack(client, NBD_OPT_LIST);
    client_free(client);
    end();
}
END_TEST

START_TEST(statement_10_a_list_larger_than_the_buffer)
{
    enum { COUNT = 40 };
    static struct nbd_export many[COUNT];
    static char long_text[LIMIT_NBD_STRING_BYTES + 1];
    begin();
    memset(long_text, 'd', LIMIT_NBD_STRING_BYTES);
    for (unsigned i = 0; i < COUNT; i++) {
        many[i] = rig->exports[0];
        many[i].name = many[i].description = long_text;
        many[i].references = 0;
    }
    ck_assert_int_eq(nbd_service_offer_array(&rig->service, many, COUNT), 0);
    struct client *client = greeted(3);
    client->window = 1000;
    client_option(client, NBD_OPT_LIST, NULL, 0);
    nbd_service_offer(&rig->service, NULL); /* the answer goes on with what it began with */
    many[1].description = "new";            /* which is looked at when there is room for it */
    client->window = SIZE_MAX;
    wait_queue_wake_all(&client->sending);
    rig_run(rig);
    for (unsigned i = 0; i < COUNT; i++) {
        size_t len;
        client_option_reply(client, NBD_OPT_LIST, NBD_REP_SERVER, &len);
        ck_assert_uint_eq(len, 4 + LIMIT_NBD_STRING_BYTES + (i == 1 ? 3 : LIMIT_NBD_STRING_BYTES));
    }
    expect_ack(client, NBD_OPT_LIST);
    client_free(client);
    end();
}
END_TEST

START_TEST(statement_12_info_lengths_are_exact)
{
    static const uint16_t infos[] = {NBD_INFO_NAME, NBD_INFO_BLOCK_SIZE};
    uint8_t payload[64] = {0};
    begin();
    struct client *client = greeted(3);
    size_t len = pack_go(payload, "ro", infos, 2);
    for (size_t cut = 0; cut <= sizeof(payload); cut++) {
        if (cut == len) {
            continue;
        }
        client_option(client, NBD_OPT_GO, payload, cut);
        expect_refusal(client, NBD_OPT_GO, NBD_REP_ERR_INVALID);
    }
    put_be32(payload, UINT32_MAX);
    client_option(client, NBD_OPT_GO, payload, len);
    expect_refusal(client, NBD_OPT_GO, NBD_REP_ERR_INVALID);
    expect_alive(client);
    client_free(client);
    end();
}
END_TEST

START_TEST(statement_13_names)
{
    static const struct {
        const char *name;
        size_t len;
        uint32_t type;
    } cases[] = {
        {"r\0o", 3, NBD_REP_ERR_INVALID},
        {"\xc3\xa4", 2, NBD_REP_ERR_UNKNOWN},
        {"\xc3", 1, NBD_REP_ERR_INVALID},
        {"\xc0\x80", 2, NBD_REP_ERR_INVALID},
        {"\xed\xa0\x80", 3, NBD_REP_ERR_INVALID},
        {"\xf0\x9f\x90\x84", 4, NBD_REP_ERR_UNKNOWN},
        {"\xf4\x90\x80\x80", 4, NBD_REP_ERR_INVALID},
        {"\x80", 1, NBD_REP_ERR_INVALID},
        {"ro ", 3, NBD_REP_ERR_UNKNOWN},
        {"a\x1b[31m\n", 7, NBD_REP_ERR_UNKNOWN},
    };
    static uint8_t payload[8192];
    size_t len;
    begin();
    struct client *client = greeted(3);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        put_be32(payload, (uint32_t)cases[i].len);
        memcpy(payload + 4, cases[i].name, cases[i].len);
        put_be16(payload + 4 + cases[i].len, 0);
        client_option(client, NBD_OPT_INFO, payload, cases[i].len + 6);
        const uint8_t *text = client_option_reply(client, NBD_OPT_INFO, cases[i].type, &len);
        for (size_t at = 0; at < len; at++) {
            ck_assert_msg(text[at] >= 0x20 && text[at] < 0x7f, "unsanitised byte in a message");
        }
    }
    /* 4096 bytes are a name, if an unknown one; its echo is cut. 4097 are none. */
    memset(payload, 'n', sizeof(payload));
    put_be32(payload, 4096);
    put_be16(payload + 4100, 0);
    client_option(client, NBD_OPT_INFO, payload, 4102);
    client_option_reply(client, NBD_OPT_INFO, NBD_REP_ERR_UNKNOWN, &len);
    ck_assert(len < 200);
    put_be32(payload, 4097);
    payload[4100] = 'n';
    put_be16(payload + 4101, 0);
    client_option(client, NBD_OPT_INFO, payload, 4103);
    expect_refusal(client, NBD_OPT_INFO, NBD_REP_ERR_INVALID);
    /* The empty name is the default export, where there is one. */
    client_go(client, "");
    client_free(client);
    ck_assert_int_eq(nbd_service_offer_array(&rig->service, &rig->exports[1], 2), 0);
    client = greeted(3);
    len = pack_go(payload, "", NULL, 0);
    client_option(client, NBD_OPT_GO, payload, len);
    expect_refusal(client, NBD_OPT_GO, NBD_REP_ERR_UNKNOWN);
    client_free(client);
    end();
}
END_TEST

/* Takes the replies to an INFO or GO into out, in order; returns how many bytes. */
static size_t take_info(struct client *client, uint32_t option, uint8_t *out, unsigned infos)
{
    size_t used = 0;
    for (unsigned i = 0; i < infos; i++) {
        size_t len;
        const uint8_t *reply = client_option_reply(client, option, NBD_REP_INFO, &len);
        memcpy(out + used, reply, len);
        used += len;
    }
    expect_ack(client, option);
    return used;
}

START_TEST(statement_14_16_18_info_then_go)
{
    static const uint16_t infos[] = {NBD_INFO_NAME, 77, NBD_INFO_DESCRIPTION, 0xffff,
                                     NBD_INFO_BLOCK_SIZE};
    uint8_t payload[64], first[256], second[256];
    begin();
    struct client *client = greeted(3);
    size_t len = pack_go(payload, "ro", infos, ARRAY_LEN(infos));
    client_option(client, NBD_OPT_INFO, payload, len);
    size_t first_len = take_info(client, NBD_OPT_INFO, first, 4);
    client_option(client, NBD_OPT_GO, payload, len);
    size_t second_len = take_info(client, NBD_OPT_GO, second, 4);
    ck_assert(first_len == second_len && memcmp(first, second, first_len) == 0);

    const uint8_t *at = first;
    ck_assert(get_be16(at) == NBD_INFO_EXPORT && get_be64(at + 2) == RIG_IMAGE_BYTES);
    ck_assert_uint_eq(get_be16(at + 10), NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY |
                                             NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
                                             NBD_FLAG_SEND_CACHE);
    at += 12;
    ck_assert(get_be16(at) == NBD_INFO_NAME && memcmp(at + 2, "ro", 2) == 0);
    at += 4;
    size_t description_len = strlen(rig->exports[1].description);
    ck_assert(get_be16(at) == NBD_INFO_DESCRIPTION);
    ck_assert(memcmp(at + 2, rig->exports[1].description, description_len) == 0);
    at += 2 + description_len;
    ck_assert(get_be16(at) == NBD_INFO_BLOCK_SIZE);
    ck_assert_uint_eq(get_be32(at + 2), 1);
    ck_assert_uint_eq(get_be32(at + 6), 65536);
    ck_assert_uint_eq(get_be32(at + 10), LIMIT_PAYLOAD_BYTES);
    ck_assert(at + 14 == first + first_len);

    client_request(client, NBD_CMD_FLUSH, 0, 5, 0, 0);
    client_expect_simple(client, 5, 0);
    client_free(client);
    end();
}
END_TEST

START_TEST(transmission_flags_follow_the_export)
{
    struct wire_info_export info;
    uint8_t payload[64];
    size_t len;
    begin();
    struct client *client = greeted(3);
    for (unsigned structured = 0; structured < 2; structured++) {
        if (structured) { /* statement 37: DF if and only if structured */
            client_option(client, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
            expect_ack(client, NBD_OPT_STRUCTURED_REPLY);
        }
        for (unsigned fast = 0; fast < 2; fast++) {
            rig->disk->image.can_zero_fast = fast;
            len = pack_go(payload, "", NULL, 0);
            client_option(client, NBD_OPT_INFO, payload, len);
            memcpy(&info, client_option_reply(client, NBD_OPT_INFO, NBD_REP_INFO, &len),
                   sizeof(info));
            expect_ack(client, NBD_OPT_INFO);
            ck_assert_uint_eq(
                get_be16(info.flags),
                NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM |
                    NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_CACHE | NBD_FLAG_CAN_MULTI_CONN |
                    (structured ? NBD_FLAG_SEND_DF : 0U) | (fast ? NBD_FLAG_SEND_FAST_ZERO : 0U));
        }
    }
    client_free(client);
    end();
}
END_TEST

START_TEST(statement_15_17_failed_go_goes_on)
{
    uint8_t payload[64];
    begin();
    struct client *client = greeted(3);
    size_t len = pack_go(payload, "nope", NULL, 0);
    client_option(client, NBD_OPT_GO, payload, len);
    expect_refusal(client, NBD_OPT_GO, NBD_REP_ERR_UNKNOWN);
    client_go(client, "other");
    client_request(client, NBD_CMD_FLUSH, 0, 5, 0, 0);
    client_expect_simple(client, 5, 0);
    client_free(client);
    end();
}
END_TEST

START_TEST(statement_20_structured_reply)
{
    begin();
    struct client *client = greeted(3);
    client_option(client, NBD_OPT_STRUCTURED_REPLY, "x", 1);
    expect_refusal(client, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_INVALID);
    client_option(client, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    expect_ack(client, NBD_OPT_STRUCTURED_REPLY);
    client_option(client, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    expect_refusal(client, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_INVALID);
    client_go(client, "");
    client_request(client, NBD_CMD_READ, 0, 9, 0, 512);
    ck_assert(client_chunk(client).type == NBD_REPLY_TYPE_OFFSET_DATA);
    client_free(client);

    client = greeted(3); /* a refused one leaves replies simple */
    client_option(client, NBD_OPT_STRUCTURED_REPLY, "x", 1);
    expect_refusal(client, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_INVALID);
    client_go(client, "");
    client_request(client, NBD_CMD_READ, 0, 9, 0, 512);
    client_expect_simple(client, 9, 0);
    client_take(client, 512);
    client_free(client);
    end();
}
END_TEST

START_TEST(statement_08_export_name_after_extended_headers)
{
    begin();
    struct client *client = greeted(3);
    client_option(client, NBD_OPT_EXTENDED_HEADERS, NULL, 0);
    expect_ack(client, NBD_OPT_EXTENDED_HEADERS);
    client_option(client, NBD_OPT_EXPORT_NAME, "other", 5);
    client_expect_closed(client);
    client_free(client);
    end();
}
END_TEST

START_TEST(statement_20_21_extended_headers)
{
    begin();
    for (unsigned structured_first = 0; structured_first < 2; structured_first++) {
        struct client *client = greeted(3);
        if (structured_first) {
            client_option(client, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
            expect_ack(client, NBD_OPT_STRUCTURED_REPLY);
        }
        client_option(client, NBD_OPT_EXTENDED_HEADERS, "x", 1);
        expect_refusal(client, NBD_OPT_EXTENDED_HEADERS, NBD_REP_ERR_INVALID);
        client_option(client, NBD_OPT_EXTENDED_HEADERS, NULL, 0);
        expect_ack(client, NBD_OPT_EXTENDED_HEADERS);
        client_option(client, NBD_OPT_EXTENDED_HEADERS, NULL, 0);
        expect_refusal(client, NBD_OPT_EXTENDED_HEADERS, NBD_REP_ERR_INVALID);
        client_option(client, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
        expect_refusal(client, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_EXT_HEADER_REQD);
        client_option(client, NBD_OPT_STRUCTURED_REPLY, "x", 1);
        expect_refusal(client, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_INVALID);
        client_go(client, "");
        client->extended = true;
        client_extended(client, NBD_CMD_FLUSH, 0, 9, 0, 0);
        client_expect_none(client, 9);
        client_free(client);
    }
    struct client *client = greeted(3); /* a refused one leaves headers compact */
    client_option(client, NBD_OPT_EXTENDED_HEADERS, "x", 1);
    expect_refusal(client, NBD_OPT_EXTENDED_HEADERS, NBD_REP_ERR_INVALID);
    client_go(client, "");
    client_request(client, NBD_CMD_FLUSH, 0, 9, 0, 0);
    client_expect_simple(client, 9, 0);
    client_free(client);
    end();
}
END_TEST

static void set_contexts(struct client *client, uint32_t option, const char *name,
                         const char *const *queries, unsigned count)
{
    uint8_t payload[256];
    size_t len = pack_meta(payload, name, queries, count);
    client_option(client, option, payload, len);
}

static const char *const allocation[] = {"base:allocation"};

START_TEST(statement_22_contexts_need_structured_and_each_set_wipes)
{
    begin();
    struct client *client = greeted(3);
    set_contexts(client, NBD_OPT_SET_META_CONTEXT, "", allocation, 1);
    expect_refusal(client, NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_INVALID);
    client_free(client);

    for (unsigned how = 0; how < 4; how++) {
        size_t len;
        client = greeted(3);
        client_option(client, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
        expect_ack(client, NBD_OPT_STRUCTURED_REPLY);
        set_contexts(client, NBD_OPT_SET_META_CONTEXT, "", allocation, 1);
        const uint8_t *reply =
            client_option_reply(client, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT, &len);
        ck_assert(len == 19 && memcmp(reply + 4, "base:allocation", 15) == 0);
        ck_assert(get_be32(reply) != 0);
        expect_ack(client, NBD_OPT_SET_META_CONTEXT);
        if (how == 1) { /* for an unknown export */
            set_contexts(client, NBD_OPT_SET_META_CONTEXT, "nope", allocation, 1);
            expect_refusal(client, NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_UNKNOWN);
        } else if (how == 2) { /* malformed */
            client_option(client, NBD_OPT_SET_META_CONTEXT, "x", 1);
            expect_refusal(client, NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_INVALID);
        } else if (how == 3) { /* statement 23: no queries select nothing */
            set_contexts(client, NBD_OPT_SET_META_CONTEXT, "", NULL, 0);
            expect_ack(client, NBD_OPT_SET_META_CONTEXT);
        }
        client_go(client, "");
        client_request(client, NBD_CMD_BLOCK_STATUS, 0, 7, 0, 4096);
        if (how == 0) {
            ck_assert(client_chunk(client).type == NBD_REPLY_TYPE_BLOCK_STATUS);
        } else {
            client_expect_error_chunk(client, 7, NBD_EINVAL);
        }
        client_free(client);
    }
    end();
}
END_TEST

static uint16_t flags_by(struct client *client, uint32_t option, const char *name)
{
    uint8_t payload[64];
    size_t len = pack_go(payload, name, NULL, 0);
    client_option(client, option, payload, len);
    uint16_t flags = get_be16(client_option_reply(client, option, NBD_REP_INFO, &len) + 10);
    expect_ack(client, option);
    return flags;
}

START_TEST(statement_51_payload_flag_goes_with_the_contexts)
{
    static const uint16_t flag = NBD_FLAG_BLOCK_STATUS_PAYLOAD;
    begin();
    struct client *client = greeted(3);
    for (unsigned extended = 0; extended < 2; extended++) {
        uint32_t option = extended ? NBD_OPT_EXTENDED_HEADERS : NBD_OPT_STRUCTURED_REPLY;
        size_t len;
        client_option(client, option, NULL, 0);
        expect_ack(client, option);
        ck_assert(!(flags_by(client, NBD_OPT_INFO, "") & flag));
        set_contexts(client, NBD_OPT_SET_META_CONTEXT, "", allocation, 1);
        client_option_reply(client, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT, &len);
        expect_ack(client, NBD_OPT_SET_META_CONTEXT);
        ck_assert(!!(flags_by(client, NBD_OPT_INFO, "") & flag) == extended);
        ck_assert(!(flags_by(client, NBD_OPT_INFO, "other") & flag));
        if (!extended) {
            set_contexts(client, NBD_OPT_SET_META_CONTEXT, "", NULL, 0);
            expect_ack(client, NBD_OPT_SET_META_CONTEXT);
        }
    }
    uint16_t info_flags = flags_by(client, NBD_OPT_INFO, "");
    ck_assert(info_flags & NBD_FLAG_SEND_DF);
    ck_assert_uint_eq(flags_by(client, NBD_OPT_GO, ""), info_flags); /* statement 16 */
    client_free(client);
    end();
}
END_TEST

START_TEST(statement_23_24_listing)
{
    static const char *const wildcard[] = {"base:", "base:allocation", "x-unknown:thing"};
    size_t len;
    begin();
    struct client *client = greeted(3);
    client_option(client, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    expect_ack(client, NBD_OPT_STRUCTURED_REPLY);
    set_contexts(client, NBD_OPT_LIST_META_CONTEXT, "", NULL, 0);
    for (unsigned i = 0; i < 2; i++) {
        const uint8_t *reply =
            client_option_reply(client, NBD_OPT_LIST_META_CONTEXT, NBD_REP_META_CONTEXT, &len);
        ck_assert_uint_eq(get_be32(reply), 0);
    }
    expect_ack(client, NBD_OPT_LIST_META_CONTEXT);
    set_contexts(client, NBD_OPT_LIST_META_CONTEXT, "", wildcard, 3);
    client_option_reply(client, NBD_OPT_LIST_META_CONTEXT, NBD_REP_META_CONTEXT, &len);
    expect_ack(client, NBD_OPT_LIST_META_CONTEXT);
    set_contexts(client, NBD_OPT_SET_META_CONTEXT, "", wildcard, 1);
    expect_ack(client, NBD_OPT_SET_META_CONTEXT);
    client_free(client);
    end();
}
END_TEST

static struct client *structured(void)
{
    struct client *client = greeted(3);
    client_option(client, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    expect_ack(client, NBD_OPT_STRUCTURED_REPLY);
    return client;
}

/* The next META_CONTEXT reply, which must name this context; returns its id. */
static uint32_t expect_context(struct client *client, uint32_t option, const char *name)
{
    size_t len;
    const uint8_t *reply = client_option_reply(client, option, NBD_REP_META_CONTEXT, &len);
    ck_assert_uint_eq(len, 4 + strlen(name));
    ck_assert_mem_eq(reply + 4, name, len - 4);
    return get_be32(reply);
}

START_TEST(dirty_bitmaps_are_listed_and_selected)
{
    static const char *const all[] = {"qemu:dirty-bitmap:"};
    static const char *const some[] = {"qemu:dirty-bitmap:b2", "qemu:dirty-bitmap:gone",
                                       "base:allocation", "qemu:dirty-bitmap:b0"};
    begin();
    rig->disk->bitmap_count = 3;
    struct client *client = structured();
    set_contexts(client, NBD_OPT_LIST_META_CONTEXT, "", NULL, 0);
    expect_context(client, NBD_OPT_LIST_META_CONTEXT, "base:allocation");
    expect_context(client, NBD_OPT_LIST_META_CONTEXT, "qemu:allocation-depth");
    for (unsigned i = 0; i < 3; i++) {
        char name[32];
        snprintf(name, sizeof(name), "qemu:dirty-bitmap:b%u", i);
        ck_assert_uint_eq(expect_context(client, NBD_OPT_LIST_META_CONTEXT, name), 0);
    }
    expect_ack(client, NBD_OPT_LIST_META_CONTEXT);
    set_contexts(client, NBD_OPT_LIST_META_CONTEXT, "", all, 1);
    expect_context(client, NBD_OPT_LIST_META_CONTEXT, "qemu:dirty-bitmap:b0");
    expect_context(client, NBD_OPT_LIST_META_CONTEXT, "qemu:dirty-bitmap:b1");
    expect_context(client, NBD_OPT_LIST_META_CONTEXT, "qemu:dirty-bitmap:b2");
    expect_ack(client, NBD_OPT_LIST_META_CONTEXT);

    set_contexts(client, NBD_OPT_SET_META_CONTEXT, "", all, 1); /* a wildcard selects nothing */
    expect_ack(client, NBD_OPT_SET_META_CONTEXT);
    set_contexts(client, NBD_OPT_SET_META_CONTEXT, "", some, 4);
    uint32_t ids[3] = {
        expect_context(client, NBD_OPT_SET_META_CONTEXT, "base:allocation"),
        expect_context(client, NBD_OPT_SET_META_CONTEXT, "qemu:dirty-bitmap:b0"),
        expect_context(client, NBD_OPT_SET_META_CONTEXT, "qemu:dirty-bitmap:b2"),
    };
    ck_assert(ids[0] != ids[1] && ids[0] != ids[2] && ids[1] != ids[2]);
    expect_ack(client, NBD_OPT_SET_META_CONTEXT);
    client_go(client, "");

    client_request(client, NBD_CMD_BLOCK_STATUS, 0, 7, 0, 6 * RIG_UNIT_BYTES);
    for (unsigned i = 0; i < 3; i++) {
        struct chunk chunk = client_chunk(client);
        ck_assert(chunk.type == NBD_REPLY_TYPE_BLOCK_STATUS && get_be32(chunk.payload) == ids[i]);
        ck_assert(chunk.flags == (i == 2 ? NBD_REPLY_FLAG_DONE : 0));
        if (i > 0) { /* every second unit, every fourth */
            unsigned every = i == 1 ? 2 : 4;
            uint64_t at = 0;
            for (const uint8_t *extent = chunk.payload + 4; extent < chunk.payload + chunk.length;
                 extent += 8) {
                bool dirty = at / RIG_UNIT_BYTES % every == 0;
                ck_assert_uint_eq(get_be32(extent + 4), dirty ? META_BITMAP_DIRTY : 0);
                at += get_be32(extent);
            }
            ck_assert_uint_eq(at, 6 * RIG_UNIT_BYTES);
        }
    }
    /* One that is removed while it is selected: an error, and the connection goes on. */
    rig->disk->removed_bitmap_id = RIG_BITMAP_ID + 2;
    client_request(client, NBD_CMD_BLOCK_STATUS, 0, 8, 0, 4096);
    client_expect_error_chunk(client, 8, NBD_EINVAL);
    client_request(client, NBD_CMD_FLUSH, 0, 9, 0, 0);
    client_expect_simple(client, 9, 0);
    client_free(client);
    end();
}
END_TEST

/* Every bitmap is listed, and so many selected as have a place in a set. */
START_TEST(many_dirty_bitmaps)
{
    static char names[RIG_BITMAPS_MAX][32];
    const char *queries[RIG_BITMAPS_MAX];
    static uint8_t payload[4 * LIMIT_META_QUERIES + 64];
    size_t len;

    begin();
    rig->disk->bitmap_count = RIG_BITMAPS_MAX;
    for (unsigned i = 0; i < RIG_BITMAPS_MAX; i++) {
        snprintf(names[i], sizeof(names[i]), "qemu:dirty-bitmap:b%u", i);
        queries[i] = names[i];
    }
    struct client *client = structured();
    set_contexts(client, NBD_OPT_LIST_META_CONTEXT, "", NULL, 0);
    for (unsigned i = 0; i < META_FIXED_COUNT + RIG_BITMAPS_MAX; i++) {
        client_option_reply(client, NBD_OPT_LIST_META_CONTEXT, NBD_REP_META_CONTEXT, &len);
    }
    expect_ack(client, NBD_OPT_LIST_META_CONTEXT);

    len = pack_meta(payload, "", queries, META_BITMAPS_MAX + 1);
    client_option(client, NBD_OPT_SET_META_CONTEXT, payload, len);
    expect_refusal(client, NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_TOO_BIG);
    len = pack_meta(payload, "", queries, META_BITMAPS_MAX);
    client_option(client, NBD_OPT_SET_META_CONTEXT, payload, len);
    for (unsigned i = 0; i < META_BITMAPS_MAX; i++) {
        client_option_reply(client, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT, &len);
    }
    expect_ack(client, NBD_OPT_SET_META_CONTEXT);

    /* More queries than are answered, all empty. */
    memset(payload, 0, sizeof(payload));
    put_be32(payload + 4, LIMIT_META_QUERIES + 1);
    client_option(client, NBD_OPT_LIST_META_CONTEXT, payload, 8 + 4 * (LIMIT_META_QUERIES + 1));
    expect_refusal(client, NBD_OPT_LIST_META_CONTEXT, NBD_REP_ERR_TOO_BIG);
    client_go(client, "");
    client_request(client, NBD_CMD_BLOCK_STATUS, 0, 7, 0, RIG_IMAGE_BYTES);
    for (unsigned i = 0; i < META_BITMAPS_MAX; i++) {
        struct chunk chunk = client_chunk(client);
        ck_assert(get_be32(chunk.payload) == meta_context_id(META_FIXED_COUNT + i));
        ck_assert(chunk.length > 4 && chunk.length <= 4 + 8 * LIMIT_STATUS_EXTENTS);
        ck_assert(!!(chunk.flags & NBD_REPLY_FLAG_DONE) == (i + 1 == META_BITMAPS_MAX));
    }
    client_free(client);
    end();
}
END_TEST

START_TEST(statement_25_contexts_of_another_export_are_dropped)
{
    size_t len;
    begin();
    struct client *client = greeted(3);
    client_option(client, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    expect_ack(client, NBD_OPT_STRUCTURED_REPLY);
    set_contexts(client, NBD_OPT_SET_META_CONTEXT, "", allocation, 1);
    client_option_reply(client, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT, &len);
    expect_ack(client, NBD_OPT_SET_META_CONTEXT);
    client_go(client, "other");
    client_request(client, NBD_CMD_BLOCK_STATUS, 0, 7, 0, 4096);
    client_expect_error_chunk(client, 7, NBD_EINVAL);
    client_request(client, NBD_CMD_READ, NBD_CMD_FLAG_DF, 8, 0, 4096);
    ck_assert(client_chunk(client).type == NBD_REPLY_TYPE_OFFSET_DATA);
    client_free(client);
    end();
}
END_TEST

START_TEST(limits_are_the_services)
{
    uint8_t payload[64];
    size_t len;
    begin();
    rig->service.limits.options = 3;
    rig->service.limits.handshake_ms = 500;
    rig->service.limits.request_bytes = 65536 + 4096;
    struct client *client = greeted(3);
    client_option(client, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    expect_ack(client, NBD_OPT_STRUCTURED_REPLY);
    client_option(client, 77, NULL, 0);
    expect_refusal(client, 77, NBD_REP_ERR_UNSUP);
    /* A block size that is not the default is told without being asked for. */
    len = pack_go(payload, "", NULL, 0);
    client_option(client, NBD_OPT_INFO, payload, len);
    client_option_reply(client, NBD_OPT_INFO, NBD_REP_INFO, &len);
    const uint8_t *info = client_option_reply(client, NBD_OPT_INFO, NBD_REP_INFO, &len);
    ck_assert_uint_eq(len, 14);
    ck_assert_uint_eq(get_be16(info), NBD_INFO_BLOCK_SIZE);
    ck_assert_uint_eq(get_be32(info + 6), 65536);
    ck_assert_uint_eq(get_be32(info + 10), 65536 + 4096);
    expect_ack(client, NBD_OPT_INFO);
    client_option(client, NBD_OPT_LIST, NULL, 0);
    const uint8_t *text = client_option_reply(client, NBD_OPT_LIST, NBD_REP_ERR_POLICY, &len);
    ck_assert_ptr_nonnull(memmem(text, len, "more than 3 options", 19));
    client_expect_closed(client);
    client_free(client);

    client = greeted(3);
    rig_advance(rig, 499 * MS);
    ck_assert(!client->closed);
    rig_advance(rig, MS);
    client_expect_closed(client);
    client_free(client);
    end();
}
END_TEST

/* The connection that is one too many hears so, whatever it says. */
START_TEST(refused_connections_hear_why)
{
    static const uint32_t options[] = {
        NBD_OPT_STRUCTURED_REPLY, NBD_OPT_INFO, 99,        NBD_OPT_SET_META_CONTEXT,
        NBD_OPT_STARTTLS,         NBD_OPT_LIST, NBD_OPT_GO};
    size_t len;
    begin();
    struct client *client = client_create_refused(rig, "too many, says the test");
    client_greet(client, 3);
    for (size_t i = 0; i < ARRAY_LEN(options); i++) {
        client_option(client, options[i], "abc", 3);
        const uint8_t *text = client_option_reply(client, options[i], NBD_REP_ERR_POLICY, &len);
        ck_assert(len == 23 && memcmp(text, "too many, says the test", len) == 0);
    }
    client_option(client, NBD_OPT_ABORT, NULL, 0);
    expect_ack(client, NBD_OPT_ABORT);
    client_expect_closed(client);
    client_free(client);

    struct client *old = client_create_refused(rig, "no");
    client_greet(old, 3);
    client_option(old, NBD_OPT_EXPORT_NAME, NULL, 0);
    client_expect_closed(old);
    client_free(old);

    struct client *silent = client_create_refused(rig, "no");
    client_take(silent, 18);
    rig_advance(rig, LIMIT_REFUSAL_MS * MS - 1);
    ck_assert(!silent->closed);
    rig_advance(rig, 1);
    client_expect_closed(silent);
    client_free(silent);
    end();
}
END_TEST

/* Whoever was told of exports may ask about each: qemu-nbd --list does so in one handshake. */
START_TEST(statement_26_a_list_may_be_asked_about)
{
    enum { COUNT = 100, TOLD = 70, MOST = LIMIT_OPTIONS_PER_HANDSHAKE };
    static struct nbd_export many[COUNT];
    unsigned allowed = MOST + TOLD * LIMIT_OPTIONS_PER_LISTED_EXPORT;
    begin();
    for (unsigned i = 0; i < COUNT; i++) {
        many[i] = rig->exports[0];
        many[i].tls_only = i >= TOLD; /* hidden, and does not count */
        many[i].references = 0;
    }
    ck_assert_int_eq(nbd_service_offer_array(&rig->service, many, COUNT), 0);
    struct client *client = greeted(3);
    for (unsigned i = 0; i < allowed; i++) {
        bool listing = i == 5 || i == 6; /* twice is not twice as many */
        client_option(client, listing ? NBD_OPT_LIST : 77, NULL, 0);
        for (unsigned told = 0; listing && told < TOLD; told++) {
            size_t len;
            client_option_reply(client, NBD_OPT_LIST, NBD_REP_SERVER, &len);
        }
        if (listing) {
            expect_ack(client, NBD_OPT_LIST);
        } else {
            expect_refusal(client, 77, NBD_REP_ERR_UNSUP);
        }
    }
    client_option(client, 77, NULL, 0);
    expect_refusal(client, 77, NBD_REP_ERR_POLICY);
    client_expect_closed(client);
    client_free(client);
    nbd_service_offer(&rig->service, NULL);
    end();
}
END_TEST

START_TEST(statement_26_options_and_time_are_bounded)
{
    begin();
    struct client *client = greeted(3);
    for (unsigned i = 0; i < LIMIT_OPTIONS_PER_HANDSHAKE; i++) {
        client_option(client, NBD_OPT_STARTTLS, NULL, 0);
        expect_refusal(client, NBD_OPT_STARTTLS, NBD_REP_ERR_POLICY); /* statement 27 */
    }
    client_option(client, NBD_OPT_STARTTLS, NULL, 0);
    expect_refusal(client, NBD_OPT_STARTTLS, NBD_REP_ERR_POLICY);
    client_expect_closed(client);
    client_free(client);

    /* Slow words, and none at all, and replies that nobody reads. */
    struct client *slow = greeted(3);
    struct client *silent = client_create(rig);
    struct client *deaf = client_create(rig);
    client_greet(deaf, 3);
    deaf->window = 0;
    client_option(deaf, NBD_OPT_LIST, NULL, 0);
    for (unsigned second = 0; second < LIMIT_HANDSHAKE_MS / 1000; second++) {
        ck_assert(!slow->closed && !silent->closed && !deaf->closed);
        client_send(slow, &"IHAVEOPTxxxxxxxx"[second], 1);
        rig_advance(rig, 1000 * MS);
    }
    client_take(silent, 18);
    client_expect_closed(slow);
    client_expect_closed(silent);
    client_expect_closed(deaf);
    client_free(slow);
    client_free(silent);
    client_free(deaf);

    /* Once in transmission the deadline is over. */
    client = client_enter(rig, "", SIMPLE);
    rig_advance(rig, 3600 * 1000 * MS);
    client_request(client, NBD_CMD_FLUSH, 0, 1, 0, 0);
    client_expect_simple(client, 1, 0);
    client_free(client);
    end();
}
END_TEST

START_TEST(options_arrive_byte_by_byte_or_all_at_once)
{
    uint8_t words[512];
    size_t used = 0, len;
    begin();
    put_be32(words, 3);
    used = 4;
    for (unsigned i = 0; i < 2; i++) {
        struct wire_option *option = (void *)(words + used);
        put_be64(option->magic, NBD_OPTION_MAGIC);
        put_be32(option->option, i == 0 ? NBD_OPT_STRUCTURED_REPLY : NBD_OPT_GO);
        used += sizeof(*option);
        len = i == 0 ? 0 : pack_go(words + used, "other", NULL, 0);
        put_be32(option->length, (uint32_t)len);
        used += len;
    }
    pack_request(words + used, NBD_CMD_READ, 0, 1, 4096, 512);
    used += sizeof(struct wire_request);

    for (size_t most = 1; most < used; most = most * 2 + 1) {
        struct client *client = client_create(rig);
        client->deliver_most = most;
        client_take(client, 18);
        client_send(client, words, used);
        client_option_reply(client, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK, &len);
        client_option_reply(client, NBD_OPT_GO, NBD_REP_INFO, &len);
        client_option_reply(client, NBD_OPT_GO, NBD_REP_ACK, &len);
        struct chunk chunk = client_chunk(client);
        ck_assert(chunk.length == 8 + 512);
        ck_assert(memcmp(chunk.payload + 8, rig->disk->bytes + 4096, 512) == 0);
        client_free(client);
    }
    end();
}
END_TEST

START_TEST(every_half_sent_handshake_ends_cleanly)
{
    uint8_t words[256];
    size_t used = 4;
    begin();
    put_be32(words, 3);
    struct wire_option *option = (void *)(words + used);
    put_be64(option->magic, NBD_OPTION_MAGIC);
    put_be32(option->option, NBD_OPT_GO);
    used += sizeof(*option);
    size_t len = pack_go(words + used, "other", NULL, 0);
    put_be32(option->length, (uint32_t)len);
    used += len;
    for (size_t cut = 0; cut < used; cut++) {
        struct client *client = client_create(rig);
        client_take(client, 18);
        client_send(client, words, cut);
        client_half_close(client);
        client_expect_closed(client);
        client_free(client);
    }
    end();
}
END_TEST

static bool admits_nobody(const struct nbd_export *export, const struct stream *stream)
{
    ck_assert(export == &rig->exports[1] && stream != NULL);
    return false;
}

/* The answer to an option that names an export, without the name's echo. */
static void take_answer(struct client *client, uint32_t option, const char *name, uint32_t *type,
                        char *text, size_t text_bytes)
{
    struct wire_option_reply header;
    memcpy(&header, client_take(client, sizeof(header)), sizeof(header));
    size_t len = get_be32(header.length);
    ck_assert_uint_eq(get_be32(header.option), option);
    ck_assert(len < text_bytes);
    *type = get_be32(header.type);
    memcpy(text, client_take(client, len), len);
    text[len] = '\0';
    char *at = strstr(text, name);
    ck_assert_msg(at != NULL, "'%s' does not name '%s'", text, name);
    memmove(at, at + strlen(name), strlen(at + strlen(name)) + 1);
}

START_TEST(what_a_client_may_not_use_is_not_there)
{
    static const uint32_t options[] = {NBD_OPT_INFO, NBD_OPT_GO, NBD_OPT_LIST_META_CONTEXT,
                                       NBD_OPT_SET_META_CONTEXT};
    begin();
    rig->exports[1].admits = admits_nobody;
    struct client *client = greeted(3);
    client_option(client, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    expect_ack(client, NBD_OPT_STRUCTURED_REPLY);
    client_option(client, NBD_OPT_LIST, NULL, 0);
    for (unsigned i = 0; i < 2; i++) {
        size_t len;
        const uint8_t *reply = client_option_reply(client, NBD_OPT_LIST, NBD_REP_SERVER, &len);
        ck_assert_uint_eq(get_be32(reply), i == 0 ? 0 : strlen("other"));
    }
    expect_ack(client, NBD_OPT_LIST);
    for (size_t i = 0; i < ARRAY_LEN(options); i++) {
        uint8_t payload[128];
        char hidden[256], absent[256];
        uint32_t hidden_type, absent_type;
        bool meta = options[i] >= NBD_OPT_LIST_META_CONTEXT;
        size_t len =
            meta ? pack_meta(payload, "ro", allocation, 1) : pack_go(payload, "ro", NULL, 0);
        client_option(client, options[i], payload, len);
        take_answer(client, options[i], "\"ro\"", &hidden_type, hidden, sizeof(hidden));
        len = meta ? pack_meta(payload, "no", allocation, 1) : pack_go(payload, "no", NULL, 0);
        client_option(client, options[i], payload, len);
        take_answer(client, options[i], "\"no\"", &absent_type, absent, sizeof(absent));
        ck_assert_uint_eq(hidden_type, NBD_REP_ERR_POLICY);
        ck_assert_uint_eq(absent_type, NBD_REP_ERR_POLICY);
        ck_assert_str_eq(hidden, absent);
    }
    client_option(client, NBD_OPT_EXPORT_NAME, "ro", 2);
    client_expect_closed(client);
    client_free(client);
    client = greeted(3);
    client_go(client, "other");
    client_free(client);
    end();
}
END_TEST

static void on_released(struct nbd_export *export)
{
    export->description = "released";
}

START_TEST(exports_live_while_somebody_uses_them)
{
    uint8_t payload[64];
    size_t len;
    begin();
    rig->exports[0].released = rig->exports[1].released = rig->exports[2].released = on_released;
    struct client *user = client_enter(rig, "", SIMPLE);
    struct client *haggler = greeted(3);
    client_option(haggler, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    expect_ack(haggler, NBD_OPT_STRUCTURED_REPLY);
    len = pack_meta(payload, "ro", allocation, 1);
    client_option(haggler, NBD_OPT_SET_META_CONTEXT, payload, len);
    client_option_reply(haggler, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT, &len);
    expect_ack(haggler, NBD_OPT_SET_META_CONTEXT);
    nbd_service_offer(&rig->service, NULL);
    ck_assert_uint_eq(rig->exports[0].references, 1);
    ck_assert_uint_eq(rig->exports[1].references, 1);
    ck_assert_str_eq(rig->exports[2].description, "released");
    /* Gone for who asks now, and there for who has it. */
    len = pack_go(payload, "ro", NULL, 0);
    client_option(haggler, NBD_OPT_GO, payload, len);
    expect_refusal(haggler, NBD_OPT_GO, NBD_REP_ERR_UNKNOWN);
    client_request(user, NBD_CMD_FLUSH, 0, 1, 0, 0);
    client_expect_simple(user, 1, 0);
    client_free(haggler);
    ck_assert_str_eq(rig->exports[1].description, "released");
    client_free(user);
    ck_assert_str_eq(rig->exports[0].description, "released");
    end();
}
END_TEST

START_TEST(garbage_in_the_handshake)
{
    uint64_t state = 42;
    begin();
    for (unsigned round = 0; round < 3000; round++) {
        uint8_t words[400];
        struct client *client = client_create(rig);
        size_t at = 4;
        put_be32(words, 3);
        while (at + 16 + 40 < sizeof(words)) {
            struct wire_option *option = (void *)(words + at);
            state = state * 6364136223846793005ULL + 1442695040888963407ULL;
            size_t len = (state >> 40) % 40;
            put_be64(option->magic, NBD_OPTION_MAGIC);
            put_be32(option->option, (uint32_t)(state >> 60));
            put_be32(option->length, (uint32_t)len);
            at += sizeof(*option);
            for (size_t i = 0; i < len; i++) {
                state = state * 6364136223846793005ULL + 1442695040888963407ULL;
                words[at++] = (state >> 62) ? 0 : (uint8_t)(state >> 50);
            }
        }
        client_send(client, words, at);
        client_free(client);
    }
    end();
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        statement_01_greeting_and_client_flags,
        statement_02_a_probe_leaves_no_error,
        statement_03_bad_magic_and_huge_option,
        statement_03_options_too_big_are_drained,
        statement_04_unknown_option_is_drained,
        statement_05_malformed_payload_gets_one_error,
        statement_06_without_fixed_newstyle,
        statement_07_export_name,
        statement_09_abort,
        statement_10_list,
        statement_10_a_list_larger_than_the_buffer,
        statement_12_info_lengths_are_exact,
        statement_13_names,
        statement_14_16_18_info_then_go,
        transmission_flags_follow_the_export,
        statement_15_17_failed_go_goes_on,
        statement_20_structured_reply,
        statement_08_export_name_after_extended_headers,
        statement_20_21_extended_headers,
        statement_51_payload_flag_goes_with_the_contexts,
        statement_22_contexts_need_structured_and_each_set_wipes,
        statement_23_24_listing,
        dirty_bitmaps_are_listed_and_selected,
        many_dirty_bitmaps,
        statement_25_contexts_of_another_export_are_dropped,
        statement_26_options_and_time_are_bounded,
        statement_26_a_list_may_be_asked_about,
        limits_are_the_services,
        refused_connections_hear_why,
        options_arrive_byte_by_byte_or_all_at_once,
        every_half_sent_handshake_ends_cleanly,
        garbage_in_the_handshake,
        what_a_client_may_not_use_is_not_there,
        exports_live_while_somebody_uses_them,
    };
    return run_tests("handshake", tests, ARRAY_LEN(tests));
}
