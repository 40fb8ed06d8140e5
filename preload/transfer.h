// SPDX-License-Identifier: MIT
// Moving bytes of a managed stream: TCP's semantics over two rings and the socket underneath.
#pragma once
#include <sys/types.h>
#include <sys/uio.h>

#include "preload/stream.h"

namespace mpklink {

// As recvmsg(2)/sendmsg(2) on a connected TCP socket: bytes, 0 at the end, -1 with errno. kNotOurs: the descriptor no longer
// names a managed stream; the caller starts over.
constexpr ssize_t kNotOurs = -2;
ssize_t receive_stream(int fd, Stream* s, const iovec* parts, int count, int flags);
ssize_t send_stream(int fd, Stream* s, const iovec* parts, int count, int flags);

// After the peer's FIN nothing in the kernel tells us that its process has died; looks whether it has, now (`now`) or now and then,
// and has sends meet TCP's answer if so. The stream has a channel that is kept.
void look_for_orphan(int fd, Stream* s, bool now);

// FIONREAD on a managed stream: unread bytes of TCP and ring. -1 with errno.
int unread_bytes(int fd, Stream* s);
// TCP_CM_INQ: the same, or 1 when there is only the peer's end left to read (tcp_inq_hint in net/ipv4/tcp.c).
int bytes_left(int fd);
// SIOCOUTQ: bytes the peer has not taken.
int unsent_bytes(int fd, Stream* s);

// An error that came behind some bytes: those are this call's result, the error is the next one's.
void keep_for_next_call(Stream* s, int error);

// Sums up what the call may move. 0, or the errno with which the kernel refuses such an array: EINVAL, EFAULT.
int check_parts(const iovec* parts, int count, std::size_t* total);

}  // namespace mpklink
