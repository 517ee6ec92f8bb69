/* SPDX-License-Identifier: BSD-2-Clause */
#include "io/test_tls.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <gnutls/x509.h>

#include "base/check.h"
#include "sched/co.h"

/* ---- Bytes ---- */

static size_t bytes_left(const struct bytes *bytes)
{
    return bytes->end - bytes->begin;
}

static void bytes_append(struct bytes *bytes, const void *from, size_t len)
{
    if (bytes->end + len > bytes->capacity) {
        bytes->capacity = 2 * (bytes->end + len);
        bytes->bytes = realloc(bytes->bytes, bytes->capacity);
        ck_assert_ptr_nonnull(bytes->bytes);
    }
    if (len > 0) {
        memcpy(bytes->bytes + bytes->end, from, len);
        bytes->end += len;
    }
}

static size_t bytes_take(struct bytes *bytes, void *to, size_t len)
{
    size_t now = MIN_OF(len, bytes_left(bytes));
    if (now > 0) {
        memcpy(to, bytes->bytes + bytes->begin, now);
        bytes->begin += now;
    }
    if (bytes->begin == bytes->end) {
        bytes->begin = bytes->end = 0;
    }
    return now;
}

/* ---- The stream ---- */

static struct memory_stream *memory_of(struct stream *stream)
{
    return container_of(stream, struct memory_stream, stream);
}

static ssize_t co_memory_recv(struct stream *stream, void *buf, size_t len)
{
    struct memory_stream *memory = memory_of(stream);

    for (;;) {
        if (memory->aborted) {
            return -ESHUTDOWN;
        }
        size_t got = bytes_take(&memory->to_server, buf, MIN_OF(len, memory->deliver_most));
        if (got > 0 || memory->client_gone || memory->recv_ended) {
            return (ssize_t)got;
        }
        co_wait(&memory->receiving);
    }
}

static int co_memory_send(struct stream *stream, struct iovec *iov, int iov_count, bool more)
{
    struct memory_stream *memory = memory_of(stream);

    (void)more;
    memory->sends++;
    for (int i = 0; i < iov_count; i++) {
        const uint8_t *at = iov[i].iov_base;
        size_t left = iov[i].iov_len;
        while (left > 0) {
            if (memory->aborted || memory->client_gone) {
                return memory->aborted ? -ESHUTDOWN : -EPIPE;
            }
            size_t unread = bytes_left(&memory->to_client);
            size_t now = MIN_OF(left, memory->window - MIN_OF(memory->window, unread));
            if (now == 0) {
                co_wait(&memory->sending);
                continue;
            }
            bytes_append(&memory->to_client, at, now);
            at += now;
            left -= now;
        }
    }
    return 0;
}

static void memory_end_recv(struct stream *stream)
{
    struct memory_stream *memory = memory_of(stream);
    memory->recv_ended = true;
    wait_queue_wake_all(&memory->receiving);
}

static void memory_abort(struct stream *stream)
{
    struct memory_stream *memory = memory_of(stream);
    memory->aborted = true;
    wait_queue_wake_all(&memory->receiving);
    wait_queue_wake_all(&memory->sending);
}

static void co_memory_close(struct stream *stream)
{
    struct memory_stream *memory = memory_of(stream);
    ck_assert(!memory->closed);
    memory->closed = true;
}

static const struct stream_ops memory_ops = {
    .co_recv = co_memory_recv,
    .co_send = co_memory_send,
    .end_recv = memory_end_recv,
    .abort = memory_abort,
    .co_close = co_memory_close,
};

struct memory_stream *memory_stream_create(void)
{
    struct memory_stream *memory = calloc(1, sizeof(*memory));
    ck_assert_ptr_nonnull(memory);
    memory->stream = (struct stream){.ops = &memory_ops, .peer = "memory"};
    memory->deliver_most = SIZE_MAX;
    memory->window = SIZE_MAX;
    wait_queue_init(&memory->receiving);
    wait_queue_init(&memory->sending);
    return memory;
}

void memory_stream_free(struct memory_stream *memory)
{
    free(memory->to_server.bytes);
    free(memory->to_client.bytes);
    free(memory);
}

void memory_send(struct memory_stream *memory, const void *bytes, size_t len)
{
    bytes_append(&memory->to_server, bytes, len);
    wait_queue_wake_all(&memory->receiving);
}

void memory_client_leaves(struct memory_stream *memory)
{
    memory->client_gone = true;
    wait_queue_wake_all(&memory->receiving);
    wait_queue_wake_all(&memory->sending);
}

void memory_discard(struct memory_stream *memory)
{
    memory->to_client.begin = memory->to_client.end = 0;
    wait_queue_wake_all(&memory->sending);
}

/* ---- The world ---- */

static uint64_t test_now_ns(struct world *world)
{
    (void)world;
    return 1000;
}

static void test_timer_start(struct world *world, struct world_timer *timer, uint64_t deadline_ns)
{
    struct test_world *test = container_of(world, struct test_world, world);
    ck_assert_uint_gt(deadline_ns, 1000);
    test->timer = timer;
}

static void test_timer_stop(struct world *world, struct world_timer *timer)
{
    struct test_world *test = container_of(world, struct test_world, world);
    test->timer = test->timer == timer ? NULL : test->timer;
}

/* As with a worker, others run meanwhile. */
static void co_test_work(struct world *world, void (*fn)(void *arg), void *arg)
{
    container_of(world, struct test_world, world)->works++;
    co_yield ();
    coro_call_on_driver(fn, arg);
    co_yield ();
}

void test_world_init(struct test_world *world)
{
    static const struct world_ops ops = {
        .now_ns = test_now_ns,
        .timer_start = test_timer_start,
        .timer_stop = test_timer_stop,
        .co_work = co_test_work,
    };
    *world = (struct test_world){.world.ops = &ops};
}

/* ---- The client ---- */

static ssize_t client_push(gnutls_transport_ptr_t transport, const void *from, size_t len)
{
    struct tls_client *client = transport;
    memory_send(client->memory, from, len);
    return (ssize_t)len;
}

static ssize_t client_pull(gnutls_transport_ptr_t transport, void *to, size_t len)
{
    struct tls_client *client = transport;
    size_t got = bytes_take(&client->memory->to_client, to, len);
    if (got == 0 && client->memory->closed) {
        return 0;
    }
    if (got == 0) {
        gnutls_transport_set_errno(client->session, EAGAIN);
        return -1;
    }
    wait_queue_wake_all(&client->memory->sending);
    return (ssize_t)got;
}

void tls_client_init(struct tls_client *client, struct memory_stream *memory,
                     const char *priorities)
{
    *client = (struct tls_client){.memory = memory};
    ck_assert_int_eq(gnutls_init(&client->session, GNUTLS_CLIENT | GNUTLS_NONBLOCK), 0);
    const char *wanted = priorities ? priorities : "NORMAL:+ECDHE-PSK:+DHE-PSK:+PSK";
    ck_assert_int_eq(gnutls_priority_set_direct(client->session, wanted, NULL), 0);
    gnutls_transport_set_ptr(client->session, client);
    gnutls_transport_set_push_function(client->session, client_push);
    gnutls_transport_set_pull_function(client->session, client_pull);
    ck_assert_int_eq(gnutls_certificate_allocate_credentials(&client->certificates), 0);
    ck_assert_int_eq(
        gnutls_credentials_set(client->session, GNUTLS_CRD_CERTIFICATE, client->certificates), 0);
}

void tls_client_use_psk(struct tls_client *client, const char *user, const char *hex_key)
{
    gnutls_datum_t key = {(unsigned char *)(uintptr_t)hex_key, (unsigned)strlen(hex_key)};
    ck_assert_int_eq(gnutls_psk_allocate_client_credentials(&client->psk), 0);
    ck_assert_int_eq(gnutls_psk_set_client_credentials(client->psk, user, &key, GNUTLS_PSK_KEY_HEX),
                     0);
    ck_assert_int_eq(gnutls_credentials_set(client->session, GNUTLS_CRD_PSK, client->psk), 0);
}

void tls_client_use_certificate(struct tls_client *client, const char *directory, const char *name)
{
    char certificate[512];
    char key[512];
    snprintf(certificate, sizeof(certificate), "%s/%s-cert.pem", directory, name);
    snprintf(key, sizeof(key), "%s/%s-key.pem", directory, name);
    ck_assert_int_eq(gnutls_certificate_set_x509_key_file(client->certificates, certificate, key,
                                                          GNUTLS_X509_FMT_PEM),
                     0);
}

void tls_client_free(struct tls_client *client)
{
    gnutls_deinit(client->session);
    gnutls_certificate_free_credentials(client->certificates);
    if (client->psk) {
        gnutls_psk_free_client_credentials(client->psk);
    }
}

/* ---- Files ---- */

char *make_directory(void)
{
    char *directory = strdup("/tmp/qcowd-tls-XXXXXX");
    ck_assert_ptr_nonnull(directory);
    ck_assert_ptr_nonnull(mkdtemp(directory));
    return directory;
}

void remove_directory(char *directory)
{
    char command[128];
    snprintf(command, sizeof(command), "rm -r '%s'", directory);
    ck_assert_int_eq(system(command), 0);
    free(directory);
}

static void write_bytes(const char *directory, const char *name, unsigned mode, const void *bytes,
                        size_t len)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, bytes, len), (ssize_t)len);
    ck_assert_int_eq(fchmod(fd, mode), 0);
    close(fd);
}

void write_file(const char *directory, const char *name, unsigned mode, const char *text)
{
    write_bytes(directory, name, mode, text, strlen(text));
}

/* ---- Certificates ---- */

struct test_ca {
    gnutls_x509_privkey_t key;
    gnutls_x509_crt_t certificate;
    unsigned issued;
    gnutls_x509_crt_t last;
};

static gnutls_x509_privkey_t make_key(void)
{
    gnutls_x509_privkey_t key;
    ck_assert_int_eq(gnutls_x509_privkey_init(&key), 0);
    ck_assert_int_eq(gnutls_x509_privkey_generate(
                         key, GNUTLS_PK_ECDSA, GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0),
                     0);
    return key;
}

static void set_name(gnutls_x509_crt_t certificate, const char *name)
{
    const char *organisation = "Test";
    ck_assert_int_eq(gnutls_x509_crt_set_dn_by_oid(certificate, GNUTLS_OID_X520_ORGANIZATION_NAME,
                                                   0, organisation, (unsigned)strlen(organisation)),
                     0);
    ck_assert_int_eq(gnutls_x509_crt_set_dn_by_oid(certificate, GNUTLS_OID_X520_COMMON_NAME, 0,
                                                   name, (unsigned)strlen(name)),
                     0);
}

static void write_certificate(const char *directory, const char *name,
                              gnutls_x509_crt_t certificate)
{
    char file[128];
    gnutls_datum_t pem;
    snprintf(file, sizeof(file), "%s-cert.pem", name);
    ck_assert_int_eq(gnutls_x509_crt_export2(certificate, GNUTLS_X509_FMT_PEM, &pem), 0);
    write_bytes(directory, file, 0644, pem.data, pem.size);
    gnutls_free(pem.data);
}

static gnutls_x509_crt_t make_certificate(struct test_ca *ca, const char *name,
                                          gnutls_x509_privkey_t key, long from_s, long to_s)
{
    gnutls_x509_crt_t certificate;
    unsigned char serial = (unsigned char)++ca->issued;
    time_t now = time(NULL);
    ck_assert_int_eq(gnutls_x509_crt_init(&certificate), 0);
    ck_assert_int_eq(gnutls_x509_crt_set_version(certificate, 3), 0);
    ck_assert_int_eq(gnutls_x509_crt_set_serial(certificate, &serial, 1), 0);
    gnutls_x509_crt_set_activation_time(certificate, now + from_s);
    gnutls_x509_crt_set_expiration_time(certificate, now + to_s);
    set_name(certificate, name);
    ck_assert_int_eq(gnutls_x509_crt_set_key(certificate, key), 0);
    return certificate;
}

struct test_ca *test_ca_create(const char *directory)
{
    struct test_ca *ca = calloc(1, sizeof(*ca));
    ck_assert_ptr_nonnull(ca);
    ca->key = make_key();
    ca->certificate = make_certificate(ca, "CA", ca->key, -3600, 3600);
    gnutls_x509_crt_set_ca_status(ca->certificate, 1);
    gnutls_x509_crt_set_key_usage(ca->certificate, GNUTLS_KEY_KEY_CERT_SIGN | GNUTLS_KEY_CRL_SIGN);
    ck_assert_int_eq(
        gnutls_x509_crt_sign2(ca->certificate, ca->certificate, ca->key, GNUTLS_DIG_SHA256, 0), 0);
    write_certificate(directory, "ca", ca->certificate);
    return ca;
}

void test_ca_issue(struct test_ca *ca, const char *directory, const char *name, const char *purpose,
                   long from_s, long to_s)
{
    char file[128];
    gnutls_datum_t pem;
    gnutls_x509_privkey_t key = make_key();
    if (ca->last) {
        gnutls_x509_crt_deinit(ca->last);
    }
    ca->last = make_certificate(ca, name, key, from_s, to_s);
    gnutls_x509_crt_set_ca_status(ca->last, 0);
    gnutls_x509_crt_set_key_usage(ca->last, GNUTLS_KEY_DIGITAL_SIGNATURE);
    ck_assert_int_eq(gnutls_x509_crt_set_key_purpose_oid(ca->last, purpose, 0), 0);
    ck_assert_int_eq(
        gnutls_x509_crt_sign2(ca->last, ca->certificate, ca->key, GNUTLS_DIG_SHA256, 0), 0);
    write_certificate(directory, name, ca->last);
    snprintf(file, sizeof(file), "%s-key.pem", name);
    ck_assert_int_eq(gnutls_x509_privkey_export2(key, GNUTLS_X509_FMT_PEM, &pem), 0);
    write_bytes(directory, file, 0600, pem.data, pem.size);
    gnutls_free(pem.data);
    gnutls_x509_privkey_deinit(key);
}

void test_ca_revoke_last(struct test_ca *ca, const char *directory)
{
    gnutls_x509_crl_t list;
    gnutls_datum_t pem;
    time_t now = time(NULL);
    unsigned char number = 1;
    ck_assert_int_eq(gnutls_x509_crl_init(&list), 0);
    ck_assert_int_eq(gnutls_x509_crl_set_version(list, 2), 0);
    gnutls_x509_crl_set_this_update(list, now - 60);
    gnutls_x509_crl_set_next_update(list, now + 3600);
    ck_assert_int_eq(gnutls_x509_crl_set_number(list, &number, 1), 0);
    ck_assert_int_eq(gnutls_x509_crl_set_crt(list, ca->last, now - 60), 0);
    ck_assert_int_eq(gnutls_x509_crl_sign2(list, ca->certificate, ca->key, GNUTLS_DIG_SHA256, 0),
                     0);
    ck_assert_int_eq(gnutls_x509_crl_export2(list, GNUTLS_X509_FMT_PEM, &pem), 0);
    write_bytes(directory, "ca-crl.pem", 0644, pem.data, pem.size);
    gnutls_free(pem.data);
    gnutls_x509_crl_deinit(list);
}

void test_ca_free(struct test_ca *ca)
{
    if (ca->last) {
        gnutls_x509_crt_deinit(ca->last);
    }
    gnutls_x509_crt_deinit(ca->certificate);
    gnutls_x509_privkey_deinit(ca->key);
    free(ca);
}
