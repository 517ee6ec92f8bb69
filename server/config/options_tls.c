/* SPDX-License-Identifier: BSD-2-Clause */
/* TLS: whether, with which credentials, and for whom. */
#include "config/option_group.h"

#include <errno.h>
#include <string.h>

#include "base/check.h"

static int take_mode(struct config *config, char *value, struct errtext *err)
{
    static const char *const names[] = {
        [NBD_TLS_OFF] = "off",
        [NBD_TLS_ON] = "on",
        [NBD_TLS_REQUIRE] = "require",
    };
    for (unsigned mode = 0; mode < ARRAY_LEN(names); mode++) {
        if (strcmp(value, names[mode]) == 0) {
            config->serve.tls_mode = (enum nbd_tls_mode)mode;
            config->serve.tls_mode_given = true;
            return 0;
        }
    }
    return option_refuse_value("--tls", value, "off, on or require", err);
}

static int take_certificates(struct config *config, char *value, struct errtext *err)
{
    if (*value == '\0') {
        return option_refuse_value("--tls-certificates", value, "the path of a directory", err);
    }
    config->serve.tls.certificates = value;
    return 0;
}

static int take_psk(struct config *config, char *value, struct errtext *err)
{
    if (*value == '\0') {
        return option_refuse_value("--tls-psk", value, "the path of a file", err);
    }
    config->serve.tls.psk_file = value;
    return 0;
}

static int take_priority(struct config *config, char *value, struct errtext *err)
{
    if (*value == '\0') {
        return option_refuse_value("--tls-priority", value, "a priority string of GnuTLS", err);
    }
    config->serve.tls.priority = value;
    return 0;
}

static int take_verify_peer(struct config *config, char *value, struct errtext *err)
{
    (void)value;
    (void)err;
    config->serve.tls.verify_peer = true;
    return 0;
}

static int take_allow(struct config *config, char *value, struct errtext *err)
{
    struct serve_config *serve = &config->serve;
    if (*value == '\0') {
        return option_refuse_value("--tls-allow", value, "the name of a certificate or a username",
                                   err);
    }
    if (serve->tls.allowed_count == TLS_ALLOWED_MAX) {
        return err_set(err, EINVAL, "--tls-allow: more than %u names", TLS_ALLOWED_MAX);
    }
    serve->tls_allowed[serve->tls.allowed_count++] = value;
    return 0;
}

/* What is asked of TLS must be able to happen, and must not be a check that checks nobody. */
static int finish_tls(struct config *config, struct errtext *err)
{
    struct serve_config *serve = &config->serve;
    bool credentials = serve->tls.certificates || serve->tls.psk_file;
    if (credentials && !serve->tls_mode_given) {
        serve->tls_mode = NBD_TLS_REQUIRE;
    }
    serve->tls.allowed = serve->tls_allowed;
    if (credentials && serve->tls_mode == NBD_TLS_OFF) {
        return err_set(err, EINVAL,
                       "--tls off needs no credentials: drop it, or --tls-certificates and "
                       "--tls-psk");
    }
    if (!credentials && serve->tls_mode != NBD_TLS_OFF) {
        return err_set(err, EINVAL,
                       "TLS needs credentials: --tls-certificates DIR, --tls-psk FILE, or both");
    }
    if (serve->tls.priority && !credentials) {
        return err_set(err, EINVAL,
                       "--tls-priority needs --tls-certificates DIR or --tls-psk FILE");
    }
    if (serve->tls.verify_peer && !serve->tls.certificates) {
        return err_set(err, EINVAL,
                       "--tls-verify-peer needs --tls-certificates DIR, where the CA's is");
    }
    if (serve->tls.allowed_count > 0 && !credentials) {
        return err_set(err, EINVAL, "--tls-allow needs --tls-certificates DIR or --tls-psk FILE");
    }
    if (serve->tls.allowed_count > 0 && serve->tls.certificates && !serve->tls.verify_peer) {
        return err_set(err, EINVAL,
                       "--tls-allow needs --tls-verify-peer where there are certificates: a "
                       "client that shows none has no name");
    }
    return 0;
}

static const struct option_spec options[] = {
    {"tls", '\0', "off|on|require",
     "without TLS (default), as the client likes, or with TLS only;\n"
     "require is the default when the next two are given",
     take_mode},
    {"tls-certificates", '\0', "DIR", "server-cert.pem, server-key.pem, ca-cert.pem, ca-crl.pem",
     take_certificates},
    {"tls-psk", '\0', "FILE", "pre-shared keys, lines USERNAME:HEXKEY", take_psk},
    {"tls-verify-peer", '\0', NULL, "clients must show a certificate that ca-cert.pem has signed",
     take_verify_peer},
    {"tls-priority", '\0', "STRING", "versions and ciphers, as GnuTLS writes them", take_priority},
    {"tls-allow", '\0', "NAME",
     "let in only clients with this certificate's name (CN=...)\n"
     "or username; may be repeated",
     take_allow},
};

const struct option_group tls_options = {
    .options = options, .count = ARRAY_LEN(options), .finish = finish_tls};
