/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Credentials. All files are read here, and given to GnuTLS from memory: what is bounded, checked
 * for who may read it, and complained about is in one place, and a session needs no file.
 *
 * Pre-shared keys are looked up in our own table: GnuTLS would open the file at each handshake. For
 * a username that does not exist it is told so, and goes on with a random key, so that a stranger
 * does not learn which names there are.
 */
#include "io/tls_keys.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <gnutls/x509.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/log.h"
#include "io/identity.h"
#include "sched/co.h"

#define FILE_BYTES_MAX     MIB
#define PSK_NAME_BYTES_MAX 128U
#define PSK_KEY_BYTES_MIN  16U
#define PSK_KEY_BYTES_MAX  64U
/* A line of a key file: a name of one byte, the colon, the shortest key. */
#define PSK_LINE_BYTES_MIN (2U + 2U * PSK_KEY_BYTES_MIN)

/*
 * TLS 1.2 chooses a key exchange before it looks whether there are credentials for it, so each set
 * names what it can do. PSK without Diffie-Hellman is last: it has no forward secrecy.
 */
#define PRIORITY_BASE    "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:%SERVER_PRECEDENCE"
#define PRIORITY_PSK     ":+ECDHE-PSK:+DHE-PSK:+PSK"
#define PRIORITY_NO_CERT ":-KX-ALL"
/*
 * The library puts ChaCha20-Poly1305 before AES-128-GCM, and a pre-shared key bound to SHA-256
 * rules out AES-256-GCM: peers would agree on ChaCha20. Where the processor has AES, GCM is many
 * times as fast, and the server's order counts.
 */
#define PRIORITY_AES                                                         \
    ":-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305:+AES-128-CCM" \
    ":+AES-256-CCM:+AES-128-CBC:+AES-256-CBC"

struct psk_user {
    char *name;
    uint8_t key[PSK_KEY_BYTES_MAX];
    unsigned key_bytes;
};

struct tls_keys {
    unsigned references;
    bool verify_peer;
    gnutls_priority_t priority;
    gnutls_certificate_credentials_t certificates; /* NULL: none */
    gnutls_psk_server_credentials_t psk;           /* NULL: none */
    struct psk_user *users;                        /* by name */
    size_t user_count;
    struct errtext warning; /* what is odd about them, though they are taken */
};

struct tls {
    struct tls_config config;
    struct tls_keys *keys; /* those in force */
};

/* ---- Files ---- */

enum secrecy { FILE_PUBLIC, FILE_SECRET };

struct file {
    char *path;
    unsigned char *bytes; /* a 0 follows them */
    unsigned len;
};

static void file_free(struct file *file)
{
    if (file->bytes) {
        explicit_bzero(file->bytes, file->len);
    }
    free(file->bytes);
    free(file->path);
    *file = (struct file){.path = NULL};
}

/* What is wrong with the file's kind, size or permissions; NULL: nothing. */
static const char *file_fault(const struct stat *status, enum secrecy secrecy)
{
    if (!S_ISREG(status->st_mode)) {
        return "is no regular file";
    }
    if (status->st_size > (off_t)FILE_BYTES_MAX) {
        return "is larger than 1 MiB";
    }
    if (secrecy == FILE_SECRET && (status->st_mode & (S_IRWXO | S_IWGRP))) {
        return "holds secrets, but others may read or write it: chmod o-rwx,g-w";
    }
    return NULL;
}

static int read_whole(int fd, struct file *file, size_t capacity)
{
    size_t done = 0;

    while (done < capacity) {
        ssize_t got = read(fd, file->bytes + done, capacity - done);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return -errno;
        }
        if (got == 0) {
            break;
        }
        done += (size_t)got;
    }
    file->bytes[done] = '\0';
    file->len = (unsigned)done;
    return 0;
}

static int file_load_from(int fd, struct file *file, enum secrecy secrecy, struct errtext *err)
{
    struct stat status;

    if (fstat(fd, &status) < 0) {
        return err_set(err, errno, "%s: %s", file->path, strerror(errno));
    }
    const char *fault = file_fault(&status, secrecy);
    if (fault) {
        return err_set(err, EINVAL, "%s %s", file->path, fault);
    }
    size_t capacity = (size_t)status.st_size;
    file->bytes = malloc(capacity + 1);
    int result = file->bytes ? read_whole(fd, file, capacity) : -ENOMEM;
    return result < 0 ? err_set(err, -result, "%s: %s", file->path, strerror(-result)) : 0;
}

/* -ENOENT when there is no such file. `directory` may be NULL. */
static int file_load(struct file *file, const char *directory, const char *name,
                     enum secrecy secrecy, struct errtext *err)
{
    *file = (struct file){.path = NULL};
    if (asprintf(&file->path, "%s%s%s", directory ? directory : "", directory ? "/" : "", name) <
        0) {
        file->path = NULL;
        return err_set(err, ENOMEM, "out of memory");
    }
    /* A pipe without a writer must not hold us up. */
    int fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    int result;
    if (fd < 0) {
        result = err_set(err, errno, "cannot open %s: %s", file->path, strerror(errno));
    } else {
        result = file_load_from(fd, file, secrecy, err);
        close(fd);
    }
    if (result < 0) {
        file_free(file);
    }
    return result;
}

static int gnutls_fault(struct errtext *err, const char *where, int code)
{
    return err_set(err, code == GNUTLS_E_MEMORY_ERROR ? ENOMEM : EINVAL, "%s: %s", where,
                   gnutls_strerror(code));
}

/* ---- Certificates ---- */

/* An expired certificate is no reason to stop: those who come with a pre-shared key do not care. */
static void look_at_dates(struct tls_keys *keys, const struct file *certificate)
{
    gnutls_x509_crt_t *chain;
    unsigned count;
    gnutls_datum_t pem = {certificate->bytes, certificate->len};

    if (gnutls_x509_crt_list_import2(&chain, &count, &pem, GNUTLS_X509_FMT_PEM, 0) < 0) {
        return;
    }
    time_t now = time(NULL);
    for (unsigned i = 0; i < count; i++) {
        bool expired = now > gnutls_x509_crt_get_expiration_time(chain[i]);
        if (expired || now < gnutls_x509_crt_get_activation_time(chain[i])) {
            (void)err_set(&keys->warning, EINVAL,
                          "%s: certificate %u %s: clients that verify will refuse it",
                          certificate->path, i + 1, expired ? "has expired" : "is not valid yet");
        }
        gnutls_x509_crt_deinit(chain[i]);
    }
    gnutls_free(chain);
}

static int load_own_certificate(struct tls_keys *keys, const char *directory, struct errtext *err)
{
    struct file certificate;
    struct file key;

    int result = file_load(&certificate, directory, "server-cert.pem", FILE_PUBLIC, err);
    if (result < 0) {
        return result;
    }
    result = file_load(&key, directory, "server-key.pem", FILE_SECRET, err);
    if (result == 0) {
        gnutls_datum_t certificate_pem = {certificate.bytes, certificate.len};
        gnutls_datum_t key_pem = {key.bytes, key.len};
        int code = gnutls_certificate_set_x509_key_mem2(keys->certificates, &certificate_pem,
                                                        &key_pem, GNUTLS_X509_FMT_PEM, NULL, 0);
        if (code < 0) {
            result = gnutls_fault(err, "server-cert.pem with server-key.pem", code);
            err_prefix(err, "%s", directory);
        } else {
            look_at_dates(keys, &certificate);
        }
        file_free(&key);
    }
    file_free(&certificate);
    return result;
}

static int load_ca(struct tls_keys *keys, const char *directory, struct errtext *err)
{
    struct file file;

    int result = file_load(&file, directory, "ca-cert.pem", FILE_PUBLIC, err);
    if (result < 0) {
        return result;
    }
    gnutls_datum_t pem = {file.bytes, file.len};
    int code = gnutls_certificate_set_x509_trust_mem(keys->certificates, &pem, GNUTLS_X509_FMT_PEM);
    if (code < 0) {
        result = gnutls_fault(err, file.path, code);
    } else if (code == 0) {
        result = err_set(err, EINVAL, "%s holds no certificate", file.path);
    }
    file_free(&file);
    return result;
}

static int load_crl(struct tls_keys *keys, const char *directory, struct errtext *err)
{
    struct file file;

    int result = file_load(&file, directory, "ca-crl.pem", FILE_PUBLIC, err);
    if (result == -ENOENT) {
        return 0;
    }
    if (result < 0) {
        return result;
    }
    gnutls_datum_t pem = {file.bytes, file.len};
    int code = gnutls_certificate_set_x509_crl_mem(keys->certificates, &pem, GNUTLS_X509_FMT_PEM);
    if (code < 0) {
        result = gnutls_fault(err, file.path, code);
    } else if (code == 0) {
        result = err_set(err, EINVAL, "%s holds no list of revoked certificates", file.path);
    }
    file_free(&file);
    return result;
}

static int load_certificates(struct tls_keys *keys, const char *directory, struct errtext *err)
{
    if (gnutls_certificate_allocate_credentials(&keys->certificates) < 0) {
        keys->certificates = NULL;
        return err_set(err, ENOMEM, "out of memory");
    }
    int code = gnutls_certificate_set_known_dh_params(keys->certificates, GNUTLS_SEC_PARAM_MEDIUM);
    if (code < 0) {
        return gnutls_fault(err, "Diffie-Hellman parameters", code);
    }
    int result = load_own_certificate(keys, directory, err);
    if (result == 0 && keys->verify_peer) {
        result = load_ca(keys, directory, err);
        if (result == 0) {
            result = load_crl(keys, directory, err);
        }
    }
    return result;
}

/* ---- Pre-shared keys ---- */

static int compare_users(const void *a, const void *b)
{
    return strcmp(((const struct psk_user *)a)->name, ((const struct psk_user *)b)->name);
}

/* 0; 1 where there is no such user, as GnuTLS has it. */
static int find_psk(gnutls_session_t session, const char *username, gnutls_datum_t *key)
{
    const struct tls_keys *keys = gnutls_session_get_ptr(session);
    struct psk_user wanted = {.name = (char *)(uintptr_t)username};
    const struct psk_user *user =
        bsearch(&wanted, keys->users, keys->user_count, sizeof(wanted), compare_users);

    if (!user) {
        return 1;
    }
    key->data = gnutls_malloc(user->key_bytes);
    if (!key->data) {
        return -1;
    }
    memcpy(key->data, user->key, user->key_bytes);
    key->size = user->key_bytes;
    return 0;
}

static int hex_digit(char digit)
{
    if (digit >= '0' && digit <= '9') {
        return digit - '0';
    }
    if (digit >= 'a' && digit <= 'f') {
        return digit - 'a' + 10;
    }
    return digit >= 'A' && digit <= 'F' ? digit - 'A' + 10 : -1;
}

/* NULL, or what is wrong with it. */
static const char *parse_key(struct psk_user *user, const char *hex)
{
    size_t digits = strlen(hex);

    if (digits % 2 != 0) {
        return "the key has an odd number of hexadecimal digits";
    }
    if (digits / 2 < PSK_KEY_BYTES_MIN || digits / 2 > PSK_KEY_BYTES_MAX) {
        return "the key must be 16 to 64 bytes long, two hexadecimal digits each";
    }
    for (size_t i = 0; i < digits; i += 2) {
        int high = hex_digit(hex[i]);
        int low = hex_digit(hex[i + 1]);
        if (high < 0 || low < 0) {
            return "the key is not written in hexadecimal digits";
        }
        user->key[i / 2] = (uint8_t)(high * 16 + low);
    }
    user->key_bytes = (unsigned)(digits / 2);
    return NULL;
}

static const char *parse_user(struct psk_user *user, char *line)
{
    char *colon = strrchr(line, ':');

    if (!colon || colon == line) {
        return "a line must be USERNAME:HEXKEY";
    }
    *colon = '\0';
    if (strlen(line) > PSK_NAME_BYTES_MAX) {
        return "the username is longer than 128 bytes";
    }
    if (line[0] == '#') {
        return "a username may not begin with '#', and there are no comments here";
    }
    const char *fault = parse_key(user, colon + 1);
    if (!fault) {
        user->name = strdup(line);
        fault = user->name ? NULL : "out of memory";
    }
    return fault;
}

/* Cuts the next line off, without its end. NULL after the last. */
static char *next_line(char **rest)
{
    char *line = *rest;

    if (*line == '\0') {
        return NULL;
    }
    char *end = line + strcspn(line, "\n");
    *rest = *end == '\n' ? end + 1 : end;
    *end = '\0';
    if (end > line && end[-1] == '\r') {
        end[-1] = '\0';
    }
    return line;
}

static int parse_users(struct tls_keys *keys, struct file *file, struct errtext *err)
{
    char *rest = (char *)file->bytes;
    unsigned number = 0;

    if (strlen(rest) != file->len) {
        return err_set(err, EINVAL, "%s is not a text file", file->path);
    }
    keys->users = calloc(file->len / PSK_LINE_BYTES_MIN + 1, sizeof(*keys->users));
    if (!keys->users) {
        return err_set(err, ENOMEM, "out of memory");
    }
    for (char *line = next_line(&rest); line; line = next_line(&rest)) {
        number++;
        if (*line == '\0') {
            continue;
        }
        const char *fault = parse_user(&keys->users[keys->user_count], line);
        if (fault) {
            return err_set(err, EINVAL, "%s, line %u: %s", file->path, number, fault);
        }
        keys->user_count++;
    }
    if (keys->user_count == 0) {
        return err_set(err, EINVAL, "%s holds no key", file->path);
    }
    qsort(keys->users, keys->user_count, sizeof(*keys->users), compare_users);
    for (size_t i = 1; i < keys->user_count; i++) {
        if (strcmp(keys->users[i - 1].name, keys->users[i].name) == 0) {
            char shown[100];
            return err_set(err, EINVAL, "%s has two keys for \"%s\"", file->path,
                           err_sanitise(shown, sizeof(shown), keys->users[i].name,
                                        strlen(keys->users[i].name)));
        }
    }
    return 0;
}

static int load_psk(struct tls_keys *keys, const char *path, struct errtext *err)
{
    struct file file;

    int result = file_load(&file, NULL, path, FILE_SECRET, err);
    if (result < 0) {
        return result;
    }
    result = parse_users(keys, &file, err);
    file_free(&file);
    if (result < 0) {
        return result;
    }
    if (gnutls_psk_allocate_server_credentials(&keys->psk) < 0) {
        keys->psk = NULL;
        return err_set(err, ENOMEM, "out of memory");
    }
    int code = gnutls_psk_set_server_known_dh_params(keys->psk, GNUTLS_SEC_PARAM_MEDIUM);
    if (code < 0) {
        return gnutls_fault(err, "Diffie-Hellman parameters", code);
    }
    gnutls_psk_set_server_credentials_function(keys->psk, find_psk);
    return 0;
}

/* ---- Sets of keys ---- */

static void run_keys_free(void *arg)
{
    struct tls_keys *keys = arg;

    if (keys->certificates) {
        gnutls_certificate_free_credentials(keys->certificates);
    }
    if (keys->psk) {
        gnutls_psk_free_server_credentials(keys->psk);
    }
    if (keys->priority) {
        gnutls_priority_deinit(keys->priority);
    }
    for (size_t i = 0; i < keys->user_count; i++) {
        free(keys->users[i].name);
    }
    if (keys->users) {
        explicit_bzero(keys->users, keys->user_count * sizeof(*keys->users));
    }
    free(keys->users);
    free(keys);
}

static void tls_keys_free(struct tls_keys *keys)
{
    coro_call_on_driver(run_keys_free, keys);
}

static bool processor_has_aes(void)
{
#if defined(__x86_64__) || defined(__i386__)
    return __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul");
#elif defined(__aarch64__)
    return getauxval(AT_HWCAP) & HWCAP_AES && getauxval(AT_HWCAP) & HWCAP_PMULL;
#else
    return false;
#endif
}

static int set_priority(struct tls_keys *keys, const struct tls_config *config, struct errtext *err)
{
    char own[512];
    const char *wanted = config->priority;
    const char *at = NULL;

    if (!wanted) {
        snprintf(
            own, sizeof(own), "%s%s%s%s", PRIORITY_BASE, processor_has_aes() ? PRIORITY_AES : "",
            config->certificates ? "" : PRIORITY_NO_CERT, config->psk_file ? PRIORITY_PSK : "");
        wanted = own;
    }
    int code = gnutls_priority_init(&keys->priority, wanted, &at);
    if (code < 0 && config->priority) {
        return err_set(err, EINVAL,
                       "--tls-priority '%s': GnuTLS does not understand it from '%s' on: see "
                       "\"Priority strings\" in its manual",
                       wanted, at ? at : wanted);
    }
    return code < 0 ? gnutls_fault(err, "TLS priorities", code) : 0;
}

static int tls_keys_load(struct tls_keys **out, const struct tls_config *config,
                         struct errtext *err)
{
    struct tls_keys *keys = calloc(1, sizeof(*keys));

    assert(config->certificates || config->psk_file);
    if (!keys) {
        return err_set(err, ENOMEM, "out of memory");
    }
    keys->references = 1;
    keys->verify_peer = config->verify_peer;
    int result = set_priority(keys, config, err);
    if (result == 0 && config->certificates) {
        result = load_certificates(keys, config->certificates, err);
    }
    if (result == 0 && config->psk_file) {
        result = load_psk(keys, config->psk_file, err);
    }
    if (result < 0) {
        tls_keys_free(keys);
        return result;
    }
    *out = keys;
    return 0;
}

/* Not where they are loaded: that may be a worker. */
static void say_warning(const struct tls_keys *keys)
{
    if (keys->warning.text[0] != '\0') {
        log_warning("%s", keys->warning.text);
    }
}

struct tls_keys *tls_keys_hold(struct tls *tls)
{
    tls->keys->references++;
    return tls->keys;
}

void tls_keys_release(struct tls_keys *keys)
{
    assert(keys->references > 0);
    if (--keys->references == 0) {
        tls_keys_free(keys);
    }
}

int tls_keys_apply(struct tls_keys *keys, gnutls_session_t session)
{
    int code = gnutls_priority_set(session, keys->priority);

    if (code >= 0 && keys->certificates) {
        code = gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, keys->certificates);
    }
    if (code >= 0 && keys->psk) {
        code = gnutls_credentials_set(session, GNUTLS_CRD_PSK, keys->psk);
    }
    gnutls_certificate_server_set_request(session, keys->verify_peer ? GNUTLS_CERT_REQUIRE
                                                                     : GNUTLS_CERT_IGNORE);
    gnutls_session_set_ptr(session, keys); /* for find_psk() */
    return code;
}

bool tls_keys_verify_peer(const struct tls_keys *keys)
{
    return keys->verify_peer;
}

/* ---- The credentials object ---- */

int tls_create(struct tls **out, const struct tls_config *config, struct errtext *err)
{
    struct tls *tls = calloc(1, sizeof(*tls));

    assert(!coro_self());
    if (!tls) {
        return err_set(err, ENOMEM, "out of memory");
    }
    tls->config = *config;
    int result = tls_keys_load(&tls->keys, &tls->config, err);
    if (result < 0) {
        free(tls);
        return result;
    }
    say_warning(tls->keys);
    *out = tls;
    return 0;
}

struct reload {
    const struct tls_config *config;
    struct tls_keys *keys;
    struct errtext *err;
    int result;
};

static void run_reload(void *arg)
{
    struct reload *reload = arg;
    reload->result = tls_keys_load(&reload->keys, reload->config, reload->err);
}

int co_tls_reload(struct tls *tls, struct world *world, struct errtext *err)
{
    struct reload reload = {.config = &tls->config, .err = err};

    world->ops->co_work(world, run_reload, &reload);
    if (reload.result == 0) {
        tls_keys_release(tls->keys);
        tls->keys = reload.keys;
        say_warning(tls->keys);
    }
    return reload.result;
}

void tls_free(struct tls *tls)
{
    if (tls) {
        tls_keys_release(tls->keys);
        free(tls);
    }
}

bool tls_is_allowed(const struct tls *tls, const char *identity)
{
    for (unsigned i = 0; i < tls->config.allowed_count; i++) {
        if (identity_is(identity, tls->config.allowed[i])) {
            return true;
        }
    }
    return tls->config.allowed_count == 0;
}
