/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A disk that gets another size in the middle of a life, with clients at work. While it grows they
 * go on to what is new as soon as they are told of it; while it shrinks they stay before the new
 * end. Power may go at any moment: then the disk has its old size and all of its bytes, or the new
 * one.
 */
#ifndef QCOWD_SIMULATOR_RESIZE_H
#define QCOWD_SIMULATOR_RESIZE_H

struct run;

/* Before a life: whether there will be a resize in it, and to which size. */
void resize_draw(struct run *run);

/* Starts it beside the clients, if one was drawn. */
void resize_start(struct run *run);

/* After the life, with the image open and nothing that fails: which size it is, and the oracle's.
 */
void resize_settle(struct run *run);

#endif
