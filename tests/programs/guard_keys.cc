// SPDX-License-Identifier: MIT
// Programs with protection keys of their own: the library takes one key, changes the two bits of that, and no others; without a key left it
// does without.
#include <sys/epoll.h>
#include <sys/ioctl.h>

#include <initializer_list>

#include "case_tools.h"
#include "guarded.h"

using namespace testlib;

namespace {

// Made before the first socket, so that they are older than the library's.
struct OwnKeys {
  int open, read_only, closed;
} g_own;

void make_own_keys() {
  g_own = {pkey_alloc(0, 0), pkey_alloc(0, kNoWrite), pkey_alloc(0, kNoAccess)};
  CHECK(g_own.open > 0 && g_own.read_only > 0 && g_own.closed > 0);
}

void take_all_keys() {
  int taken = 0;
  while (pkey_alloc(0, kNoAccess) > 0) taken++;
  CHECK_EQ(taken, 15);
}

// ---- no key left ------------------------------------------------------------------------------------------------------

void taken_client(int fd, const Sync& sync) {
  uint64_t offset = 0;
  exchange(fd, &offset);
  printf("KEY %d\n", Guarded().key());
  finish(fd, sync);
}

// ---- PKRU is the program's --------------------------------------------------------------------------------------------

// One of each kind of call, with `check` after each.
template <typename F>
void one_of_each(int fd, uint64_t* offset, F check) {
  char data[kTripBytes];
  struct pollfd p = {fd, POLLIN, 0};
  int bytes;
  send_pattern(fd, kUp, *offset, kTripBytes);
  check();
  CHECK_EQ(poll(&p, 1, 5000), 1);
  check();
  CHECK_EQ(ioctl(fd, FIONREAD, &bytes), 0);
  check();
  CHECK(recv(fd, data, sizeof data, MSG_PEEK) > 0);
  check();
  recv_all(fd, data, sizeof data);
  check();
  pattern_check(data, sizeof data, kUp, *offset);
  *offset += kTripBytes;
  CHECK_ERRNO(recv(fd, data, sizeof data, MSG_DONTWAIT), EAGAIN);
  check();
  CHECK_ERRNO(send(fd, hidden(static_cast<char*>(nullptr)), 10, MSG_NOSIGNAL), EFAULT);
  check();
}

void unchanged_client(int fd, const Sync& sync) {
  const int ours = Guarded().key();
  const int late = pkey_alloc(0, kNoWrite);  // younger than the library's
  CHECK(late > 0 && late != ours);
  for (const int key : {g_own.open, g_own.read_only, g_own.closed, late}) CHECK(key != ours);
  expect_closed(ours);
  uint64_t offset = 0;
  for (int round = 0; round < 100; round++) {
    // Every combination of the program's own rights in turn, as pkey_set would make them.
    uint32_t wanted = rdpkru();
    const int keys[] = {g_own.open, g_own.read_only, g_own.closed, late};
    for (int i = 0; i < 4; i++) {
      wanted &= ~(3u << (2 * keys[i]));
      wanted |= static_cast<uint32_t>((round + i) % 4) << (2 * keys[i]);
    }
    wrpkru(wanted);
    one_of_each(fd, &offset, [=] { CHECK_EQ(rdpkru(), wanted); });
    const int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {};
    event.events = EPOLLOUT;
    CHECK_EQ(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
    CHECK_EQ(epoll_wait(epoll, &event, 1, 1000), 1);
    close(epoll);
    CHECK_EQ(rdpkru(), wanted);
  }
  finish(fd, sync);
}

// ---- a program that opens what is not its own -------------------------------------------------------------------------

// pkeys(7): anybody may execute WRPKRU. The next gate finds the key open, counts that, and closes it.
void opened_client(int fd, const Sync& sync) {
  catch_faults();
  const Guarded guarded;
  const int ours = guarded.key();
  uint64_t offset = 0;
  for (int round = 0; round < 10; round++) {
    wrpkru(rdpkru() & ~(3u << (2 * ours)));
    if (guarded.channel() != nullptr) CHECK(!touch_read(reinterpret_cast<uintptr_t>(guarded.channel())).raised);
    exchange(fd, &offset, 1);
    expect_closed(ours);
    if (ours > 0) CHECK(touch_read(reinterpret_cast<uintptr_t>(guarded.channel())).raised);
  }
  finish(fd, sync);
}

const Case kCases[] = {
    {"taken", echo_server, taken_client, no_keys},
    {"unchanged", echo_server, unchanged_client, no_keys},
    {"opened", echo_server, opened_client, no_keys},
};

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  const char* const name = options.text("case", "");
  if (strcmp(name, "taken") == 0 && options.is("client")) take_all_keys();
  if (strcmp(name, "unchanged") == 0 && options.is("client")) make_own_keys();
  return case_main(argc, argv, kCases);
}
