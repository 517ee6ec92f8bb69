/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Get and put at any alignment: the only endianness code in qcowd. Both the NBD wire and qcow2 on
 * disk are big endian; the log of writes is little endian.
 */
#ifndef QCOWD_BASE_BYTES_H
#define QCOWD_BASE_BYTES_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

static inline uint16_t get_be16(const void *from)
{
    uint16_t raw;
    memcpy(&raw, from, sizeof(raw));
    return be16toh(raw);
}

static inline uint32_t get_be32(const void *from)
{
    uint32_t raw;
    memcpy(&raw, from, sizeof(raw));
    return be32toh(raw);
}

static inline uint64_t get_be64(const void *from)
{
    uint64_t raw;
    memcpy(&raw, from, sizeof(raw));
    return be64toh(raw);
}

static inline void put_be16(void *to, uint16_t value)
{
    uint16_t raw = htobe16(value);
    memcpy(to, &raw, sizeof(raw));
}

static inline void put_be32(void *to, uint32_t value)
{
    uint32_t raw = htobe32(value);
    memcpy(to, &raw, sizeof(raw));
}

static inline void put_be64(void *to, uint64_t value)
{
    uint64_t raw = htobe64(value);
    memcpy(to, &raw, sizeof(raw));
}

static inline void put_le32(void *to, uint32_t value)
{
    uint32_t raw = htole32(value);
    memcpy(to, &raw, sizeof(raw));
}

static inline void put_le64(void *to, uint64_t value)
{
    uint64_t raw = htole64(value);
    memcpy(to, &raw, sizeof(raw));
}

static inline uint32_t get_le32(const void *from)
{
    uint32_t raw;
    memcpy(&raw, from, sizeof(raw));
    return le32toh(raw);
}

static inline uint64_t get_le64(const void *from)
{
    uint64_t raw;
    memcpy(&raw, from, sizeof(raw));
    return le64toh(raw);
}

#endif
