// SPDX-License-Identifier: MIT
#include "preload/sleepers.h"

#include "preload/fd_table.h"
#include "preload/pollers.h"

namespace mpklink {
namespace {

void close_stand_in(int fd) {
  const ErrnoSaver keep;
  forget_fd(fd);
  quiet().close(fd);
}

}  // namespace

bool enter_sleep(int fd, Stream* s) {
  s->sleepers.fetch_add(1);  // SYNC: asleep, before the look at the table
  if (fd_table().stream(fd) == s) return true;
  leave_sleep(s);
  return false;
}

void leave_sleep(Stream* s) {
  if (s->sleepers.fetch_add(~std::uint32_t{0}) == 1) drop_stand_in(s);
}

void keep_for_sleepers(int fd) {
  Stream* s = fd_table().stream(fd);
  if (s == nullptr || s->sleepers.load_acquire() == 0 || s->stand_in.load_relaxed() != 0) return;  // SYNC: asleep; relaxed: a hint
  const ErrnoSaver keep;
  const int copy = dup_hidden(fd);
  if (copy < 0) return;  // no descriptor left: the sleeper's call ends with EBADF
  s->fds.fetch_add(1);
  fd_table().set_stand_in(copy, s);
  std::uint32_t none = 0;
  if (!s->stand_in.compare_exchange(none, static_cast<std::uint32_t>(copy) + 1)) {
    close_stand_in(copy);  // another thread that closes was faster
    return;
  }
  if (s->sleepers.load_acquire() == 0) drop_stand_in(s);  // SYNC: asleep. The last sleeper may have looked before it was there
}

int stand_in(const Stream* s) { return static_cast<int>(s->stand_in.load_acquire()) - 1; }

void drop_stand_in(Stream* s) {
  const int fd = static_cast<int>(s->stand_in.exchange(0)) - 1;
  if (fd < 0) return;
  close_stand_in(fd);
}

}  // namespace mpklink
