// SPDX-License-Identifier: MIT
#include "preload/bell.h"

#include <errno.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "preload/process.h"
#include "shm/raw_syscall.h"

namespace mpklink {
namespace {

constexpr long kEvents = 64;
constexpr std::uint64_t kNone = ~std::uint64_t{0};
Atomic<std::uint64_t> g_context;  // aio_context_t; 0: not asked for yet, kNone: not to be had

std::uint64_t context() {
  const std::uint64_t known = g_context.load_acquire();
  if (known != 0) return known;
  aio_context_t made = 0;
  if (raw_syscall(SYS_io_setup, kEvents, reinterpret_cast<long>(&made)) != 0) made = kNone;
  std::uint64_t expected = 0;
  if (g_context.compare_exchange(expected, made)) return made;
  if (made != kNone) raw_syscall(SYS_io_destroy, static_cast<long>(made));
  return expected;
}

// write(2) on an eventfd waits while it is full, unless O_NONBLOCK is set, which the peer may clear at any moment, too. What the kernel itself
// does to tell of a finished AIO operation never waits (eventfd_signal in fs/eventfd.c), and takes nothing but an eventfd. The operation is a
// look at the eventfd, which is always either readable or writable: finished at once. False: no AIO here.
bool ring_by_aio(int bell) {
  const auto aio = static_cast<long>(context());
  if (aio == static_cast<long>(kNone)) return false;
  iocb look = {};
  look.aio_lio_opcode = IOCB_CMD_POLL;
  look.aio_fildes = static_cast<std::uint32_t>(bell);
  look.aio_buf = POLLIN | POLLOUT;
  look.aio_flags = IOCB_FLAG_RESFD;
  look.aio_resfd = static_cast<std::uint32_t>(bell);
  iocb* const one = &look;
  if (raw_syscall(SYS_io_submit, aio, 1, reinterpret_cast<long>(&one)) == -EAGAIN) {  // full of what nobody has fetched
    io_event done[kEvents];
    timespec now = {};
    raw_syscall(SYS_io_getevents, aio, 0, kEvents, reinterpret_cast<long>(done), reinterpret_cast<long>(&now));
    raw_syscall(SYS_io_submit, aio, 1, reinterpret_cast<long>(&one));
  }
  return true;
}

}  // namespace

bool could_stop_us(std::uint32_t uid, std::uint32_t pid) {
  if (uid != ::geteuid() || pid == 0) return false;
  char path[40] = "";
  snprintf(path, sizeof path, "/proc/%u/ns/pid", pid);
  struct stat ours = {}, theirs = {};
  const ErrnoSaver keep;
  return ::stat("/proc/self/ns/pid", &ours) == 0 && ::stat(path, &theirs) == 0 && ours.st_ino == theirs.st_ino && ours.st_dev == theirs.st_dev;
}

void ring_bell(int bell, bool trusted) {
  if (!trusted) {
    if (ring_by_aio(bell)) return;
    pollfd room = {bell, POLLOUT, 0};
    if (quiet().poll(&room, 1, 0) == 1 && !(room.revents & POLLOUT)) return;
  }
  const std::uint64_t one = 1;
  if (quiet().write(bell, &one, sizeof one) >= 0 || errno != EAGAIN) return;
  // The counter is full (only a hostile peer gets it there): empty it, or the edge would not come.
  std::uint64_t drained = 0;
  if (quiet().read(bell, &drained, sizeof drained) >= 0 && quiet().write(bell, &one, sizeof one) < 0) return;
}

void bells_forked_child() { g_context.store_relaxed(0); }  // relaxed: one thread here. The context is the parent's

}  // namespace mpklink
