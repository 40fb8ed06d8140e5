// SPDX-License-Identifier: MIT
#include "preload/sleepers.h"

#include <initializer_list>

#include "preload/fd_table.h"
#include "preload/pollers.h"

namespace mpklink {
namespace {

SpinLock g_stand_in_lock;  // between the last sleeper, who drops a stand-in, and whoever makes one

int take_stand_in(Stream* s) {
  if (g_stand_in_lock.held_by_this_thread()) return -1;
  const LockGuard guard(g_stand_in_lock);
  if (s->sleepers.load_acquire() != 0) return -1;  // SYNC: asleep. Somebody has come
  return static_cast<int>(s->stand_in.exchange(0)) - 1;
}

}  // namespace

bool enter_sleep(int fd, Stream* s) {
  s->sleepers.fetch_add(1);  // SYNC: asleep, before the look at the table
  if (fd_table().names(fd, s)) return true;
  leave_sleep(s);
  return false;
}

void leave_sleep(Stream* s) {
  if (s->sleepers.load_relaxed() == 0) return;  // relaxed: a child, forked by a handler in our sleep, counts nobody
  if (s->sleepers.fetch_add(~std::uint32_t{0}) == 1 && s->stand_in.load_acquire() != 0) drop_stand_in(s);
}

void keep_for_sleepers(int fd, Stream* s) {
  if (s->sleepers.load_acquire() == 0 || in_foreign_child() || g_stand_in_lock.held_by_this_thread()) return;  // SYNC: asleep
  const ErrnoSaver keep;
  const LockGuard guard(g_stand_in_lock);
  if (s->sleepers.load_acquire() == 0 || s->stand_in.load_relaxed() != 0) return;  // SYNC: asleep; relaxed: under the lock
  const int copy = dup_hidden(fd);
  if (copy < 0) return;  // no descriptor left: the sleeper's call ends with EBADF
  s->fds.fetch_add(1);
  fd_table().set_stand_in(copy, s);
  s->stand_in.store_release(static_cast<std::uint32_t>(copy) + 1);  // SYNC: stand-in
}

namespace {

// Whoever took one of the stream's locks while the number named it, and uses it in the kernel, has finished: after this the number may be
// closed, and be another file's. A handler that interrupted us cannot wait for what its own thread may hold up.
void await_steps(Stream* s) {
  if (sections_here() != 0) return;
  for (SpinLock* lock : {&s->step_lock, &s->send_lock, &s->receive_lock}) {
    const LockGuard guard(*lock);
  }
}

}  // namespace

void forget_open_fd(int fd) {
  Stream* s = fd_table().stream(fd);
  if (s == nullptr || fd_table().hidden(fd)) {
    forget_fd(fd);
    return;
  }
  keep_for_sleepers(fd, s);
  if (!fd_table().take(fd, s)) return;
  keep_for_sleepers(fd, s);
  await_steps(s);
  drop_number(fd, s);
}

int stand_in(const Stream* s) { return static_cast<int>(s->stand_in.load_acquire()) - 1; }  // SYNC: stand-in

void move_stand_in(Stream* s, int from, int to) {
  if (g_stand_in_lock.held_by_this_thread()) return close_hidden(to);  // in a handler: the sleeper's call ends with EBADF
  const LockGuard guard(g_stand_in_lock);
  std::uint32_t expected = static_cast<std::uint32_t>(from) + 1;
  if (s->stand_in.compare_exchange(expected, static_cast<std::uint32_t>(to) + 1)) {
    fd_table().set_stand_in(to, s);
  } else {
    close_hidden(to);  // it has just been dropped
  }
}

void drop_stand_in(Stream* s) {
  const int fd = take_stand_in(s);
  if (fd < 0) return;
  const ErrnoSaver keep;
  if (fd_table().take(fd, s)) {
    await_steps(s);
    drop_number(fd, s);
  }
  quiet().close(fd);
}

void sleepers_forked_child() {
  g_stand_in_lock.reset();
  for_each_stream([](Stream* s) {
    s->sleepers.store_relaxed(0);  // relaxed: one thread here
    drop_stand_in(s);
  });
}

}  // namespace mpklink
