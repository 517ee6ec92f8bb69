/* SPDX-License-Identifier: BSD-2-Clause */
/* In place of TLS where GnuTLS was left out of the build: credentials cannot be made. */
#include "io/tls.h"

#include <assert.h>
#include <errno.h>

int tls_create(struct tls **out, const struct tls_config *config, struct errtext *err)
{
    (void)out;
    (void)config;
    return err_set(err, ENOTSUP, "this qcowd was built without TLS: it needs GnuTLS at build time");
}

int co_tls_reload(struct tls *tls, struct world *world, struct errtext *err)
{
    (void)world;
    (void)err;
    assert(!tls);
    return 0;
}

void tls_free(struct tls *tls)
{
    assert(!tls);
}

int co_tls_accept(struct tls *tls, struct world *world, struct stream *inner, struct stream **out,
                  struct errtext *err)
{
    (void)tls;
    (void)world;
    (void)inner;
    (void)out;
    return err_set(err, ENOTSUP, "this qcowd was built without TLS");
}
