/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The data is a stranger's (O10): both decoders write into a buffer of fixed size and need fixed
 * memory, whatever window a stream asks for. zstd frames are therefore cut out first and decoded in
 * one go, straight into the cluster, where a streaming decoder would allocate the window that the
 * frame announces.
 */
#include "qcow2/compress.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#include <zlib.h>
#ifdef HAVE_LIBDEFLATE
#include <libdeflate.h>
#endif
#ifdef HAVE_ZSTD
#include <zstd.h>
#include <zstd_errors.h>
#endif

#include "base/check.h"

/* Raw deflate; the format writes with a window of 2^12, larger ones do no harm. */
#define INFLATE_WINDOW_BITS (-15)

static int inflate_by_zlib(const uint8_t *in, size_t in_len, uint8_t *out, size_t out_len)
{
    z_stream stream = {
        .next_in = (Bytef *)(uintptr_t)in,
        .avail_in = (uInt)MIN_OF(in_len, UINT_MAX),
        .next_out = out,
        .avail_out = (uInt)out_len,
    };
    assert(out_len <= UINT_MAX);
    int ret = inflateInit2(&stream, INFLATE_WINDOW_BITS);
    if (ret != Z_OK) {
        return ret == Z_MEM_ERROR ? -ENOMEM : -EIO;
    }
    ret = inflate(&stream, Z_FINISH);
    bool filled = stream.avail_out == 0;
    inflateEnd(&stream);
    if (ret == Z_MEM_ERROR) {
        return -ENOMEM;
    }
    return filled && (ret == Z_STREAM_END || ret == Z_BUF_ERROR || ret == Z_OK) ? 0 : -EIO;
}

/*
 * libdeflate takes half the time, but only whole streams that fill the cluster exactly. What it
 * refuses, zlib judges.
 */
static int inflate_deflate(const uint8_t *in, size_t in_len, uint8_t *out, size_t out_len)
{
#ifdef HAVE_LIBDEFLATE
    struct libdeflate_decompressor *decompressor = libdeflate_alloc_decompressor();
    if (decompressor) {
        size_t in_used;
        enum libdeflate_result result = libdeflate_deflate_decompress_ex(
            decompressor, in, in_len, out, out_len, &in_used, NULL);
        libdeflate_free_decompressor(decompressor);
        if (result == LIBDEFLATE_SUCCESS) {
            return 0;
        }
    }
#endif
    return inflate_by_zlib(in, in_len, out, out_len);
}

#ifdef HAVE_ZSTD
/* zstd and skippable frames; what old libraries wrote (other magic numbers) was never in qcow2. */
static bool is_zstd_frame(const uint8_t *in, size_t in_len)
{
    static const uint8_t zstd_magic[4] = {0x28, 0xb5, 0x2f, 0xfd};
    static const uint8_t skippable_magic_tail[3] = {0x2a, 0x4d, 0x18};
    return in_len >= sizeof(zstd_magic) &&
           (memcmp(in, zstd_magic, sizeof(zstd_magic)) == 0 ||
            ((in[0] & 0xf0) == 0x50 &&
             memcmp(in + 1, skippable_magic_tail, sizeof(skippable_magic_tail)) == 0));
}

static int zstd_errno(size_t code)
{
    return ZSTD_getErrorCode(code) == ZSTD_error_memory_allocation ? -ENOMEM : -EIO;
}

static int inflate_zstd(const uint8_t *in, size_t in_len, uint8_t *out, size_t out_len)
{
    int ret = 0;
    ZSTD_DCtx *context = ZSTD_createDCtx();
    if (!context) {
        return -ENOMEM;
    }
    while (ret == 0 && out_len > 0) {
        size_t frame_len = is_zstd_frame(in, in_len) ? ZSTD_findFrameCompressedSize(in, in_len) : 0;
        if (frame_len == 0 || ZSTD_isError(frame_len)) {
            ret = -EIO;
            break;
        }
        size_t produced = ZSTD_decompressDCtx(context, out, out_len, in, frame_len);
        if (ZSTD_isError(produced)) {
            ret = zstd_errno(produced);
            break;
        }
        in += frame_len;
        in_len -= frame_len;
        out += produced;
        out_len -= produced;
    }
    ZSTD_freeDCtx(context);
    return ret;
}
#endif

bool compression_supported(enum qcow2_compression method)
{
#ifdef HAVE_ZSTD
    if (method == QCOW2_COMPRESSION_ZSTD) {
        return true;
    }
#endif
    return method == QCOW2_COMPRESSION_ZLIB;
}

int inflate_cluster(enum qcow2_compression method, const uint8_t *in, size_t in_len, uint8_t *out,
                    size_t out_len)
{
    switch (method) {
    case QCOW2_COMPRESSION_ZLIB:
        return inflate_deflate(in, in_len, out, out_len);
    case QCOW2_COMPRESSION_ZSTD:
#ifdef HAVE_ZSTD
        return inflate_zstd(in, in_len, out, out_len);
#else
        return -ENOTSUP;
#endif
    }
    return -ENOTSUP;
}

struct inflate_work {
    enum qcow2_compression method;
    const uint8_t *in;
    size_t in_len;
    uint8_t *out;
    size_t out_len;
    int result;
};

static void run_inflate(void *arg)
{
    struct inflate_work *work = arg;
    work->result = inflate_cluster(work->method, work->in, work->in_len, work->out, work->out_len);
}

int co_inflate_cluster(struct world *world, enum qcow2_compression method, const uint8_t *in,
                       size_t in_len, uint8_t *out, size_t out_len)
{
    struct inflate_work work = {method, in, in_len, out, out_len, -EIO};
    world->ops->co_work(world, run_inflate, &work);
    return work.result;
}
