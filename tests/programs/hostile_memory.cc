// SPDX-License-Identifier: MIT
// Lies in what is handed over: memory that could shrink or is not what it seems, and bells that are none.
#include <linux/falloc.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "hostile.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace hostile {
namespace {

constexpr int kSound = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

int read_only(const Segment& segment) {
  const int fd = make_memfd(segment);
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  const int reopened = open(path, O_RDONLY | O_CLOEXEC);
  CHECK(reopened >= 0);
  close(fd);
  return reopened;
}

int one_end(bool unix_domain) {
  int ends[2];
  CHECK_EQ(unix_domain ? socketpair(AF_UNIX, SOCK_STREAM, 0, ends) : pipe(ends), 0);
  close(ends[0]);
  return ends[1];
}

// Memory of `bytes` that must be refused, or a descriptor that is no memory at all.
int bad_memory(Attack* a, std::size_t bytes) {
  Segment s;
  s.bytes = bytes;
  switch (a->below(19)) {
    case 0: s.bytes -= 4096; break;
    case 1: s.bytes += 4096; break;
    case 2: s.bytes -= 1; break;
    case 3: s.bytes = 0; break;
    case 4: s.bytes = std::size_t{1} << 40; break;
    case 5: s.seals = 0; break;
    case 6: s.seals = kSound & ~F_SEAL_SHRINK; break;
    case 7: s.seals = kSound & ~F_SEAL_GROW; break;
    case 8: s.seals = kSound & ~F_SEAL_SEAL; break;
    case 9: s.seals = kSound | F_SEAL_WRITE; break;
    case 10: s.seals = kSound | F_SEAL_FUTURE_WRITE; break;
    case 11: return read_only(s);
    case 12: return one_end(true);
    case 13: return one_end(false);
    case 14: return open("/dev/zero", O_RDWR | O_CLOEXEC);
    case 15: return open("/proc/self/exe", O_PATH | O_CLOEXEC);
    case 16: return open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600) >= 0 ? open("/dev/null", O_RDWR | O_CLOEXEC) : open("/", O_RDONLY | O_CLOEXEC);
    case 17: return eventfd(0, EFD_CLOEXEC);
    default: return epoll_create1(EPOLL_CLOEXEC);
  }
  return make_memfd(s);
}

void memory_kinds(Attack* a) {
  while (!a->over()) {
    Peer p(a);
    if (!p.meet()) continue;
    p.make_memory(4096);
    const bool of_board = a->below(2) != 0;
    const int bad = bad_memory(a, of_board ? sizeof(Board) : channel_bytes(p.capacity));
    CHECK(bad >= 0);
    const int fds[] = {of_board ? p.channel_fd : bad, of_board ? bad : p.board_fd};
    const bool swapped = a->below(16) == 0;
    const int swap[] = {p.board_fd, p.channel_fd};
    p.send_offer(p.offer(), swapped ? swap : fds, 2);
    CHECK(!p.await_accepted());
    ++a->refused;
    CHECK(ftruncate(bad, 0) != 0 || !p.turn(50) || !p.over());  // whatever it was mapped as would be gone now
    close(bad);
  }
}

// Sound memory whose pages are taken away under the victim's hands, again and again.
void memory_punched(Attack* a) {
  while (!a->over()) {
    Peer p(a);
    if (!p.upgrade()) continue;
    for (int i = 0; i < 40 && !p.over() && !a->over(); i++) {
      CHECK(ftruncate(p.channel_fd, 0) != 0);
      const bool board = a->below(4) == 0;
      const off_t bytes = static_cast<off_t>(board ? sizeof(Board) : channel_bytes(p.capacity));
      const off_t from = a->below(2) != 0 ? 0 : static_cast<off_t>(a->below(static_cast<std::uint64_t>(bytes)) & ~std::uint64_t{4095});
      if (i > 3) CHECK_EQ(fallocate(board ? p.board_fd : p.channel_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from, bytes - from), 0);
      p.turn(10);
    }
  }
}

// Full, and blocks whoever writes.
int full_bell() {
  const int bell = eventfd(0, EFD_CLOEXEC);
  const std::uint64_t full = ~std::uint64_t{0} - 1;
  CHECK_EQ(write(bell, &full, sizeof full), sizeof full);
  return bell;
}

// Bells that are files, pipes and sockets, that are full, or that do not belong to anybody.
int bad_bell(Attack* a) {
  switch (a->below(8)) {
    case 0: return one_end(true);
    case 1: return one_end(false);
    case 2: return open("/dev/full", O_RDWR | O_CLOEXEC);
    case 3: return open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    case 4: return epoll_create1(EPOLL_CLOEXEC);
    case 5: return open("/", O_PATH | O_CLOEXEC);
    case 6: return make_memfd({4096, 0, 0});
    default: {
      const int bell = full_bell();
      CHECK_EQ(fcntl(bell, F_SETFL, O_NONBLOCK), 0);
      return bell;
    }
  }
}

// Has the victim ring all of them at each of its steps.
void ring_all(Attack* a, bool blocking) {
  while (!a->over()) {
    Peer p(a);
    if (!p.meet()) continue;
    p.make_memory(4096);
    OfferMessage o = p.offer();
    int fds[kMessageFdsMax] = {p.channel_fd, p.board_fd};
    o.bell_count = kOfferBellsMax;
    for (std::uint32_t i = 0; i < kOfferBellsMax; i++) {
      o.bells[i] = a->below(8) == 0 ? static_cast<std::uint32_t>(a->random->next()) : i;
      fds[2 + i] = blocking ? full_bell() : bad_bell(a);
    }
    p.send_offer(o, fds, kMessageFdsMax);
    const bool shared = p.await_accepted();
    if (shared) ++a->upgraded;
    for (std::uint32_t i = 0; i < kOfferBellsMax; i++) close(fds[2 + i]);
    for (int i = 0; i < 20 && shared && !p.over(); i++) {
      std::uint64_t ids = 0;
      for (unsigned w = 0; w < kWaitersMax; w++) ids |= std::uint64_t{1 + a->below(kOfferBellsMax)} << (16 * w);
      p.channel->waiters[p.side].ids.store_relaxed(ids);
      for (std::uint32_t id = 0; id < kOfferBellsMax; id++) p.board->side[p.side].armed[id].armed.store_relaxed(1);
      p.turn(10);
    }
  }
}

void bell_kinds(Attack* a) { ring_all(a, false); }
// To be run by another user: one of the victim's own could stop it by a signal as well.
void bell_blocks(Attack* a) { ring_all(a, true); }

// Descriptors whose close would wait: TCP sockets that linger for an hour on bytes that nobody takes.
int lingering() {
  const int listener = testlib::listen_on("127.0.0.1");
  const int fd = testlib::connect_to("127.0.0.1", testlib::port_of(listener));
  const struct linger hour = {1, 3600};
  CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_LINGER, &hour, sizeof hour), 0);
  char bytes[65536] = "";
  while (send(fd, bytes, sizeof bytes, MSG_DONTWAIT) > 0) {
  }
  static int kept = -1;  // the other end stays, and takes nothing
  if (kept >= 0) close(kept);
  kept = accept(listener, nullptr, nullptr);
  close(listener);
  return fd;
}

void lingering_fds(Attack* a) {
  while (!a->over()) {
    Peer p(a);
    if (!p.meet()) continue;
    p.make_memory(4096);
    const int fd = lingering();
    const int fds[] = {a->below(2) != 0 ? fd : p.channel_fd, fd};
    p.send_offer(p.offer(), fds, 2);
    close(fd);
    CHECK(!p.await_accepted());
    ++a->refused;
    testlib::sleep_ms(20);
  }
}

constexpr Case kCases[] = {
    {"memory-kinds", memory_kinds},
    {"memory-punched", memory_punched},
    {"bell-kinds", bell_kinds},
    {"bell-blocks", bell_blocks},
    {"lingering-fds", lingering_fds},
};

}  // namespace

Cases memory_cases() { return {kCases, sizeof kCases / sizeof *kCases}; }

}  // namespace hostile
