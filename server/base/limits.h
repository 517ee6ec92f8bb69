/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Every global bound in one place. "Full" means wait, or a clear refusal; nothing grows past these.
 */
#ifndef QCOWD_BASE_LIMITS_H
#define QCOWD_BASE_LIMITS_H

#define KIB (1024ULL)
#define MIB (1024ULL * KIB)
#define GIB (1024ULL * MIB)

/* Largest READ or WRITE payload: what qemu and libnbd take for granted. */
#define LIMIT_PAYLOAD_BYTES (32U * 1024U * 1024U)
/* Largest option payload in the handshake. */
#define LIMIT_OPTION_BYTES (64U * 1024U)
/* One that is larger is refused; up to this size it is read and thrown away, and the next heard. */
#define LIMIT_OPTION_DRAIN_BYTES (1024U * 1024U)
/* Names, meta context queries and error texts on the wire (NBD: strings are at most 4096). */
#define LIMIT_NBD_STRING_BYTES 4096U
/* Options one connection may send before it must choose an export or leave. */
#define LIMIT_OPTIONS_PER_HANDSHAKE 128U
/* And so many for each export that LIST told it of: qemu-nbd --list asks twice about each. */
#define LIMIT_OPTIONS_PER_LISTED_EXPORT 4U
#define LIMIT_HANDSHAKE_MS              10000U
/* Requests one connection may have in flight, and payload bytes it may hold meanwhile. */
#define LIMIT_REQUESTS_PER_CONNECTION 128U
#define LIMIT_BYTES_PER_CONNECTION    (64U * 1024U * 1024U)
/* Payload bytes of all connections together. */
#define LIMIT_BYTES_IN_FLIGHT (256U * 1024U * 1024U)
/* Connections at once; and from one address, which so never has more than half of them. */
#define LIMIT_CONNECTIONS             2048U
#define LIMIT_CONNECTIONS_PER_ADDRESS 1024U
/* Refused connections that are told why, at once, and the time they have to listen. */
#define LIMIT_REFUSALS   16U
#define LIMIT_REFUSAL_MS 2000U
/* What an export may be limited to, per second. */
#define LIMIT_RATE_BYTES      (64ULL * GIB)
#define LIMIT_RATE_OPERATIONS 10000000U
/* Extents in one BLOCK_STATUS reply (NBD: at most 2^20). */
#define LIMIT_STATUS_EXTENTS 4096U
/* Dirty bitmaps of an export that clients hear of, and queries for metadata contexts in one option:
 * each is held against each. */
#define LIMIT_BITMAPS_OFFERED 1024U
#define LIMIT_META_QUERIES    1024U
/* Stopping: in-flight requests are waited for, then clients that do not read are cut; unless
 * --shutdown-timeout says otherwise. */
#define LIMIT_SHUTDOWN_GRACE_MS 10000U
/* Of that time, who is waited for and moves no byte has this long; in the handshake, this. */
#define LIMIT_SHUTDOWN_STILL_MS           2000U
#define LIMIT_SHUTDOWN_STILL_HANDSHAKE_MS 500U

/* Lines about clients: so many of one kind are logged in so long, the rest is counted. Who asked
 * for debugging gets more. */
#define LIMIT_LOG_WINDOW_MS    10000U
#define LIMIT_LOG_CLIENT_LINES 50U
#define LIMIT_LOG_DEBUG_LINES  2000U

/* Metadata cache: L2 slices and refcount blocks of one image. */
#define LIMIT_SLICE_CACHE_BYTES (32ULL * MIB)
/* Tables held in memory whole; the same bounds as QEMU's, so that no image of its is refused. */
#define LIMIT_L1_BYTES             (32ULL * MIB)
#define LIMIT_REFCOUNT_TABLE_BYTES (8ULL * MIB)
#define LIMIT_SNAPSHOTS            65536U
#define LIMIT_SNAPSHOT_TABLE_BYTES (64ULL * MIB)
/* L1 tables of all snapshots together: read once when an image is opened for writing. */
#define LIMIT_SNAPSHOT_L1_BYTES (1ULL * GIB)
/* Persistent bitmaps: their directory, one table, and the bits of all of them in memory. */
#define LIMIT_BITMAP_DIRECTORY_BYTES (64ULL * MIB)
#define LIMIT_BITMAP_TABLE_BYTES     (1ULL * GIB)
#define LIMIT_BITMAP_BITS_BYTES      (512ULL * MIB)
#define LIMIT_BITMAPS                65535U
#define LIMIT_BACKING_NAME_BYTES     1023U
/* What checking one image may hold in memory: about 4 bytes for each host cluster in use. */
#define LIMIT_CHECK_BYTES (4ULL * GIB)
/* Images in one backing chain. */
#define LIMIT_CHAIN_DEPTH 200U

/* Rounds of the hash that a LUKS header may ask for, in all its slots together: a minute or less.
 * What programs make by themselves is two seconds a slot. */
#define LIMIT_LUKS_ROUNDS 100000000U
/* How long trying a passphrase may be asked to take. */
#define LIMIT_LUKS_ITER_TIME_MS 60000U
/* A passphrase; QEMU's and cryptsetup's are shorter. */
#define LIMIT_PASSPHRASE_BYTES 8192U

/* How long a request without progress looks for room before it is told ENOSPC. */
#define LIMIT_ROOM_SEARCH_MS 10000U
/* Usable stack of a coroutine. The deepest path is a copy on write through a long chain. */
#define LIMIT_COROUTINE_STACK_BYTES (64U * 1024U)

#endif
