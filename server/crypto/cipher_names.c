/* SPDX-License-Identifier: BSD-2-Clause */
/* What of a cipher can be said without a library. */
#include <string.h>

#include "base/check.h"
#include "crypto/cipher.h"

static const char *const mode_names[] = {
    [CIPHER_ECB] = "ecb", [CIPHER_CBC] = "cbc", [CIPHER_CTR] = "ctr", [CIPHER_XTS] = "xts"};
static const char *const iv_names[] = {
    [CIPHER_IV_PLAIN] = "plain", [CIPHER_IV_PLAIN64] = "plain64", [CIPHER_IV_ESSIV] = "essiv"};

bool cipher_mode_find(const char *name, enum cipher_mode *mode)
{
    for (size_t i = 0; i < ARRAY_LEN(mode_names); i++) {
        if (strcmp(mode_names[i], name) == 0) {
            *mode = (enum cipher_mode)i;
            return true;
        }
    }
    return false;
}

bool cipher_iv_find(const char *name, enum cipher_iv *iv)
{
    for (size_t i = 0; i < ARRAY_LEN(iv_names); i++) {
        if (strcmp(iv_names[i], name) == 0) {
            *iv = (enum cipher_iv)i;
            return true;
        }
    }
    return false;
}

const char *cipher_mode_name(enum cipher_mode mode)
{
    return mode_names[mode];
}

const char *cipher_iv_name(enum cipher_iv iv)
{
    return iv_names[iv];
}

uint32_t cipher_spec_key_bytes(const struct cipher_spec *spec)
{
    return spec->mode == CIPHER_XTS ? 2 * spec->alg->key_bytes : spec->alg->key_bytes;
}
