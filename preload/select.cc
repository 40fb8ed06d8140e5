// SPDX-License-Identifier: MIT
#include "preload/select.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>

#include "preload/fault.h"
#include "preload/fd_table.h"
#include "preload/process.h"
#include "preload/stream.h"
#include "preload/wait.h"
#include "shm/user_copy.h"

namespace mpklink {
namespace {

constexpr int kOnStack = 64;
// What the kernel's select means by each set (fs/select.c, POLLIN_SET and its kin).
constexpr short kInSet = POLLRDNORM | POLLRDBAND | POLLIN | POLLHUP | POLLERR;
constexpr short kOutSet = POLLWRBAND | POLLWRNORM | POLLOUT | POLLERR;
constexpr short kExceptSet = POLLPRI;

// Sets may be larger than FD_SETSIZE: programs allocate them and the kernel goes by n.
bool has(const fd_set* set, int fd) {
  if (set == nullptr) return false;
  const auto* words = reinterpret_cast<const unsigned long*>(set);
  return (words[fd / 64] >> (fd % 64)) & 1;
}
// NOLINTNEXTLINE(clang-analyzer-core.NullDereference): an event is asked for only where there is a set
void put(fd_set* set, int fd) { reinterpret_cast<unsigned long*>(set)[fd / 64] |= 1ul << (fd % 64); }
void clear(fd_set* set, int n) {
  if (set != nullptr) memset(set, 0, static_cast<std::size_t>((n + 63) / 64) * 8);
}

int count_bits(int n, const fd_set* in, const fd_set* out, const fd_set* except) {
  int count = 0;
  for (int fd = 0; fd < n; ++fd) count += has(in, fd) || has(out, fd) || has(except, fd);
  return count;
}

int fill(int n, const fd_set* in, const fd_set* out, const fd_set* except, pollfd* fds) {
  int used = 0;
  for (int fd = 0; fd < n; ++fd) {
    short events = 0;
    if (has(in, fd)) events |= POLLIN | POLLRDNORM;
    if (has(out, fd)) events |= POLLOUT | POLLWRNORM;
    if (has(except, fd)) events |= POLLPRI;
    const bool wanted = has(in, fd) || has(out, fd) || has(except, fd);
    if (wanted) fds[used++] = {fd, events, 0};
  }
  return used;
}

struct Sets {
  fd_set* in;
  fd_set* out;
  fd_set* except;
};

// The result sets. As select(2): the number of bits set, or EBADF when one of the descriptors is none.
int answer(int n, const Sets& sets, const pollfd* fds, int used) {
  for (int i = 0; i < used; ++i) {
    if (fds[i].revents & POLLNVAL) {
      errno = EBADF;
      return -1;
    }
  }
  clear(sets.in, n);
  clear(sets.out, n);
  clear(sets.except, n);
  int bits = 0;
  for (int i = 0; i < used; ++i) {
    const pollfd& p = fds[i];
    if ((p.events & POLLIN) && (p.revents & kInSet)) put(sets.in, p.fd), ++bits;
    if ((p.events & POLLOUT) && (p.revents & kOutSet)) put(sets.out, p.fd), ++bits;
    if ((p.events & POLLPRI) && (p.revents & kExceptSet)) put(sets.except, p.fd), ++bits;
  }
  return bits;
}

}  // namespace

// The kernel cuts n to the size of its table of descriptors, so select(getdtablesize(), …) on sets of FD_SETSIZE works; but our
// hidden descriptors have made that table larger than such sets are. Beyond FD_SETSIZE a bit counts when a descriptor of the
// program is behind it.
int select_size(int n, const fd_set* in, const fd_set* out, const fd_set* except) {
  if (n <= FD_SETSIZE || fd_table().unused()) return n;
  const fd_set* const sets[] = {in, out, except};
  const int most = n < FdTable::kMaxFd ? n : FdTable::kMaxFd;
  const ErrnoSaver keep;
  int size = FD_SETSIZE;
  for (const fd_set* set : sets) {
    const auto* words = reinterpret_cast<const unsigned long*>(set);
    for (int fd = size; set != nullptr && fd < most; fd += 64) {
      unsigned long bits = 0;
      if (user_copy(&bits, &words[fd / 64], sizeof bits) != 0) break;
      for (; bits != 0; bits &= bits - 1) {
        const int number = fd / 64 * 64 + __builtin_ctzl(bits);
        if (number < most && number >= size && !fd_table().hidden(number) && real().fcntl(number, F_GETFD) >= 0) size = number + 1;
      }
    }
  }
  return size;
}

bool select_concerns_us(int n, const fd_set* in, const fd_set* out, const fd_set* except) {
  if (fd_table().unused() || n < 0 || n > FdTable::kMaxFd) return false;
  const fd_set* const sets[] = {in, out, except};
  for (const fd_set* set : sets) {
    if (set != nullptr && !can_read(set, (static_cast<std::size_t>(n) + 63) / 64 * 8)) return false;
  }
  for (int fd = 0; fd < n && fd <= fd_table().highest(); ++fd) {
    if (fd_table().empty(fd) || !(has(in, fd) || has(out, fd) || has(except, fd))) continue;
    const Stream* s = fd_table().stream(fd);
    if (s != nullptr ? state_of(s) != State::kPlain : fd_table().epoll(fd) != nullptr) return true;
  }
  return false;
}

int select_streams(int n, fd_set* in, fd_set* out, fd_set* except, std::int64_t timeout_ns, const sigset_t* mask) {
  const int count = count_bits(n, in, out, except);
  pollfd on_stack[kOnStack];
  pollfd* fds = on_stack;
  const std::size_t bytes = sizeof(pollfd) * static_cast<std::size_t>(count);
  if (count > kOnStack) {
    void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) {
      errno = ENOMEM;
      return -1;
    }
    fds = static_cast<pollfd*>(at);
  }
  const int used = fill(n, in, out, except, fds);
  int result = poll_streams(fds, static_cast<nfds_t>(used), timeout_ns, mask);
  if (result >= 0) result = answer(n, {in, out, except}, fds, used);
  if (fds != on_stack) {
    const ErrnoSaver keep;
    ::munmap(fds, bytes);
  }
  return result;
}

}  // namespace mpklink
