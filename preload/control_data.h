// SPDX-License-Identifier: MIT
// Control data that comes with received bytes, as the kernel writes it (put_cmsg in net/core/scm.c).
#pragma once
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

#include "shm/user_copy.h"

namespace mpklink {

// One int into the program's buffer. `header` is our copy of its header; its length becomes what was used.
inline void put_control(msghdr* header, int level, int type, int value) {
  alignas(cmsghdr) unsigned char data[CMSG_SPACE(sizeof value)] = {};
  const std::size_t room = header->msg_control == nullptr ? 0 : header->msg_controllen;
  header->msg_controllen = 0;
  if (room < CMSG_LEN(sizeof value)) header->msg_flags |= MSG_CTRUNC;
  if (room < sizeof(cmsghdr)) return;
  auto* const c = reinterpret_cast<cmsghdr*>(data);
  c->cmsg_level = level;
  c->cmsg_type = type;
  c->cmsg_len = room < CMSG_LEN(sizeof value) ? room : CMSG_LEN(sizeof value);
  memcpy(CMSG_DATA(c), &value, sizeof value);
  if (user_copy(header->msg_control, data, c->cmsg_len) != 0) return;  // the bytes have been received: no error any more
  header->msg_controllen = room < sizeof data ? room : sizeof data;
}

}  // namespace mpklink
