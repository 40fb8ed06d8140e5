// SPDX-License-Identifier: MIT
#include <errno.h>
#include <limits.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <string.h>

#include "preload/epoll_set.h"
#include "preload/export.h"
#include "preload/hook_scope.h"
#include "preload/revoke.h"
#include "preload/transfer.h"
#include "shm/user_copy.h"

using namespace mpklink;

namespace {

constexpr int kTcpUlp = 31;  // TCP_ULP, linux/tcp.h
// SO_TIMESTAMP_NEW and its kin, asm-generic/socket.h: what libc's names mean on systems with 64-bit time.
constexpr int kTimestampNew = 63, kTimestampNsNew = 64, kTimestampingNew = 65, kReceiveTimeoutNew = 66, kSendTimeoutNew = 67;

// An option that only the kernel's path can honour: the stream goes back there, before it is in force.
void make_way_for_option(int fd, Stream* s, int level, int name, const void* value, socklen_t size) {
  int number = 0;
  if (value == nullptr || size < sizeof number || user_copy(&number, value, sizeof number) != 0) number = 0;
  // They come as control data with the bytes, of which the ring knows nothing.
  const bool stamps = level == SOL_SOCKET && (name == SO_TIMESTAMP || name == SO_TIMESTAMPNS || name == SO_TIMESTAMPING ||
                                              name == kTimestampNew || name == kTimestampNsNew || name == kTimestampingNew);
  if (stamps && number != 0) revoke(fd, s, Reason::kControl);
  if (level == IPPROTO_TCP && name == kTcpUlp) revoke(fd, s, Reason::kUlp);
  if (level == IPPROTO_TCP && name == TCP_REPAIR) revoke(fd, s, Reason::kRepair);
}

void note_option(int fd, Stream* s, int level, int name, const void* value, socklen_t size) {
  int number = 0;
  if (value == nullptr) return;
  if (size >= sizeof number) memcpy(&number, value, sizeof number);
  if (level == IPPROTO_TCP && name == TCP_INQ) s->inq.store_release(number != 0);
  if (level != SOL_SOCKET) return;
  if (name == SO_ZEROCOPY) s->zero_copy.store_release(number != 0);
  if (name == SO_RCVLOWAT && size >= sizeof(int)) {
    s->low_water.store_release(number < 0 ? INT_MAX : static_cast<uint32_t>(number));
    refresh_members(s);
    wake_own_sleepers(fd, s);
  }
  if (name == SO_RCVTIMEO || name == SO_SNDTIMEO || name == kReceiveTimeoutNew || name == kSendTimeoutNew) read_timeouts(fd, s);
}

// An error the stream has kept for the program: SO_ERROR reports and clears it, as the kernel's own.
void add_pending_error(Stream* s, void* value, const socklen_t* size) {
  s->sticky.fetch_and(~uint32_t{kStickyErr});
  if (*size < sizeof(int)) return;
  int number = 0;
  memcpy(&number, value, sizeof number);
  if (number != 0) return;
  number = static_cast<int>(s->pending_error.exchange(0));
  memcpy(value, &number, sizeof number);
}

int queue_length(int fd, Stream* s, unsigned long request, int* out) {
  const int bytes = request == FIONREAD ? unread_bytes(fd, s) : unsent_bytes(fd, s);
  if (bytes < 0) return -1;
  if (user_copy(out, &bytes, sizeof bytes) == 0) return 0;
  errno = EFAULT;
  return -1;
}

}  // namespace

extern "C" {

int mpklink_ioctl(int fd, unsigned long request, ...) noexcept {
  va_list arguments;
  va_start(arguments, request);
  void* argument = va_arg(arguments, void*);
  va_end(arguments);
  Stream* s = stream_of(fd);
  if (s == nullptr) return real().ioctl(fd, request, argument);
  const bool is_managed = managed(state_of(s));
  if (is_managed && argument != nullptr && (request == FIONREAD || request == TIOCOUTQ)) {
    return queue_length(fd, s, request, static_cast<int*>(argument));
  }
  const int result = real().ioctl(fd, request, argument);
  if (result != 0 || argument == nullptr) return result;
  if (request == FIONBIO) s->nonblocking.store_release(*static_cast<int*>(argument) != 0);
  if (request == FIOASYNC && *static_cast<int*>(argument) != 0) revoke(fd, s, Reason::kAsync);
  return result;
}

int mpklink_getsockopt(int fd, int level, int name, void* value, socklen_t* size) noexcept {
  const int result = real().getsockopt(fd, level, name, value, size);
  if (result != 0 || level != SOL_SOCKET || name != SO_ERROR) return result;
  if (Stream* s = stream_of(fd)) add_pending_error(s, value, size);
  return result;
}

int mpklink_setsockopt(int fd, int level, int name, const void* value, socklen_t size) noexcept {
  if (Stream* s = stream_of(fd)) make_way_for_option(fd, s, level, name, value, size);
  const int result = real().setsockopt(fd, level, name, value, size);
  if (result != 0) return result;
  if (Stream* s = stream_of(fd)) note_option(fd, s, level, name, value, size);
  return result;
}

}  // extern "C"

MPKLINK_EXPORT(ioctl)
MPKLINK_EXPORT(getsockopt)
MPKLINK_EXPORT(setsockopt)
