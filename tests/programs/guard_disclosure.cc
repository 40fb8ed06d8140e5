// SPDX-License-Identifier: MIT
// The confused deputy: the program gives a call a pointer into guarded memory. The library opens that memory for itself in the very call;
// it must refuse as the kernel refuses bad memory, whatever the guard, and neither leak nor overwrite a byte.
#include <limits.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/sendfile.h>

#include <initializer_list>

#include "calls.h"
#include "guarded.h"
#include "peer.h"

using namespace testlib;

namespace {

constexpr size_t kUnreadBytes = 3000;
char g_buffer[8 * kPageBytes];

// The range that a call must not name: pages inside of it, and one page of the program's right in front of it.
struct Places {
  Guarded guarded;
  char* channel = guarded.channel();
  char* board = guarded.board();
  char* front = nullptr;  // the last page before the range

  Places() {
    printf("GUARDED %zu\n", guarded.count());
    fflush(stdout);
    if (channel == nullptr) return;
    CHECK(board != nullptr);
    front = low_end() - kPageBytes;
    // Good memory where nothing is yet: it must be the address that is refused.
    void* at = mmap(front, kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(at == front || errno == EEXIST);
  }

  // The range is one reservation: from its first page without rights to whatever the process mapped before it.
  char* low_end() const {
    FILE* file = fopen("/proc/self/maps", "re");
    CHECK(file != nullptr);
    char line[4096];
    unsigned long begin, end, low = 0, previous_end = 0;
    char rights[8];
    while (fgets(line, sizeof line, file) != nullptr && sscanf(line, "%lx-%lx %7s", &begin, &end, rights) == 3) {
      const bool reserved = strcmp(rights, "---p") == 0 && strchr(line, '/') == nullptr && strchr(line, '[') == nullptr;
      if (low != 0 && begin != previous_end) low = 0;
      if (low == 0 && reserved) low = begin;
      previous_end = end;
      if (begin == reinterpret_cast<uintptr_t>(channel)) break;
    }
    fclose(file);
    CHECK(low != 0);
    return reinterpret_cast<char*>(low);
  }
};

struct Bad {
  const char* name;
  char* at;
  size_t length;
};

// Into the range, with its first byte and with its last; over its lower end; so long that it wraps.
template <typename F>
void for_each_bad(const Places& places, F act) {
  if (places.channel == nullptr) return;
  const Bad all[] = {
      {"header", places.channel, 64},
      {"private page", places.channel - kPageBytes, 64},
      {"ring", places.channel + 3 * kPageBytes, 300},
      {"ring, unaligned", places.channel + 3 * kPageBytes + 7, 1},
      {"whole channel", places.channel, 32 * kPageBytes},
      {"board", places.board, 64},
      {"reserved", places.front + kPageBytes, 8},
      {"first byte", places.front + kPageBytes - 1, 2},
      {"straddling", places.front + 100, kPageBytes},
      {"over all of it", places.front, size_t{1} << 30},
      {"wrapping", places.channel, SIZE_MAX - 10},
      {"wrapping from the front", places.front, SIZE_MAX / 2},
  };
  for (const Bad& bad : all) {
    note(bad.name);
    act(bad);
  }
}

// Streams with unread bytes both ways; none of them may change.
template <typename F>
void with_unread(int fd, const Sync& sync, F act) {
  Peer peer(fd, sync);
  const Places places;
  peer.arrive(kUnreadBytes);
  peer.put(kUnreadBytes);
  act(places);
  int available = 0;
  CHECK_EQ(ioctl(fd, FIONREAD, &available), 0);
  CHECK_EQ(available, kUnreadBytes);
  peer.take(kUnreadBytes);
  peer.drained();
  peer.finish();
}

// Lengths beyond ssize_t are EINVAL in vectors, and EFAULT where the buffer is an argument.
int error_of(const char* call, const Bad& bad) {
  const bool vector = strcmp(call, "readv") == 0 || strcmp(call, "writev") == 0 || strstr(call, "msg") != nullptr;
  return vector && bad.length > SSIZE_MAX ? EINVAL : EFAULT;
}

// A single buffer, in every call.
void sends_server(int fd, const Sync& sync) {
  with_unread(fd, sync, [fd](const Places& places) {
    for_each_bad(places, [fd](const Bad& bad) {
      for (const SendCall& c : kSendCalls) {
        note(c.name);
        CHECK_ERRNO(c.call(fd, hidden(bad.at), hidden(bad.length)), error_of(c.name, bad));
      }
      CHECK_EQ(send(fd, hidden(bad.at), 0, MSG_DONTWAIT), 0);  // no byte is looked at
      CHECK_ERRNO(send(fd, hidden(bad.at), hidden(bad.length), MSG_DONTWAIT), EFAULT);
      CHECK_ERRNO(send(fd, hidden(bad.at), hidden(bad.length), MSG_MORE), EFAULT);
      CHECK_ERRNO(syscall(SYS_sendto, fd, bad.at, bad.length, 0, nullptr, 0), EFAULT);
    });
  });
}

void receives_server(int fd, const Sync& sync) {
  with_unread(fd, sync, [fd](const Places& places) {
    for_each_bad(places, [fd](const Bad& bad) {
      for (const ReadCall& c : kReadCalls) {
        if (strcmp(c.name, "readv") == 0) continue;  // readv_server
        note(c.name);
        CHECK_ERRNO(c.call(fd, hidden(bad.at), hidden(bad.length)), error_of(c.name, bad));
      }
      for (const int flags : {MSG_PEEK + 0, MSG_DONTWAIT + 0, MSG_WAITALL + 0, MSG_PEEK | MSG_WAITALL}) {
        CHECK_ERRNO(recv(fd, hidden(bad.at), hidden(bad.length), flags), EFAULT);
      }
      CHECK_ERRNO(syscall(SYS_recvfrom, fd, bad.at, bad.length, 0, nullptr, nullptr), EFAULT);
    });
  });
}

// One bad entry among good ones, in short vectors and in ones that the library reads in parts: not even the good ones in front move.
void vectors_server(int fd, const Sync& sync) {
  with_unread(fd, sync, [fd](const Places& places) {
    if (places.channel == nullptr) return;
    static struct iovec iov[1000];
    for (const int count : {2, 3, 16, 17, 40, 1000}) {
      for (const int bad : {0, 1, count / 2, count - 1}) {
        for (char* at : {places.channel + 3 * kPageBytes, places.board, places.front + kPageBytes - 1}) {
          for (int i = 0; i < count; i++) iov[i] = {g_buffer + i, 2};
          iov[bad].iov_base = at;
          struct msghdr message = {};
          message.msg_iov = iov;
          message.msg_iovlen = static_cast<size_t>(count);
          struct mmsghdr messages[2] = {{message, 0}, {message, 0}};
          CHECK_ERRNO(writev(fd, iov, count), EFAULT);
          CHECK_ERRNO(sendmsg(fd, &message, MSG_NOSIGNAL), EFAULT);
          CHECK_ERRNO(sendmmsg(fd, messages, 2, MSG_NOSIGNAL), EFAULT);
          CHECK_ERRNO(pwritev2(fd, iov, count, -1, 0), EFAULT);
          CHECK_ERRNO(recvmsg(fd, &message, 0), EFAULT);
          CHECK_ERRNO(recvmmsg(fd, messages, 2, 0, nullptr), EFAULT);
        }
      }
    }
  });
}

// readv and preadv2 look at their vector by themselves first.
void readv_server(int fd, const Sync& sync) {
  with_unread(fd, sync, [fd](const Places& places) {
    for_each_bad(places, [fd](const Bad& bad) {
      const struct iovec iov[] = {{g_buffer, 10}, {bad.at, bad.length}};
      for (int first : {0, 1}) {
        CHECK_ERRNO(readv(fd, iov + first, 2 - first), error_of("readv", bad));
        CHECK_ERRNO(preadv2(fd, iov + first, 2 - first, -1, 0), error_of("readv", bad));
      }
    });
  });
}

// The vector is changed by another thread while the call reads it: whatever the call says, no byte of guarded memory goes out. The peer
// checks that everything it gets is the good buffer's.
struct Flipper {
  struct iovec* entry;
  char *good, *bad;
  volatile bool stop;
};

void* flip(void* argument) {
  auto* self = static_cast<Flipper*>(argument);
  while (!self->stop) {
    __atomic_store_n(&self->entry->iov_base, self->bad, __ATOMIC_RELAXED);
    __atomic_store_n(&self->entry->iov_base, self->good, __ATOMIC_RELAXED);
  }
  return nullptr;
}

void race_server(int fd, const Sync& sync) {
  const Places places;
  sync.meet();  // the peer has sent what the ring now holds, and none of it is a 'g'
  memset(g_buffer, 'g', sizeof g_buffer);
  uint64_t sent = 0;
  long refused = 0, taken = 0;
  for (const int count : {1, 3, 17, 40}) {
    static struct iovec iov[40];
    for (int i = 0; i < count; i++) iov[i] = {g_buffer, 100};
    char* bad = places.channel != nullptr ? places.channel + 2 * kPageBytes : g_buffer;
    Flipper flipper = {&iov[count / 2], g_buffer, bad, false};
    const pthread_t thread = start_thread(flip, &flipper);
    for (int i = 0; i < 400 || (i < 4000 && places.channel != nullptr && (refused == 0 || taken == 0)); i++) {
      if (i >= 400) sched_yield();  // on a busy machine the other thread may not have had its turn
      const ssize_t n = writev(fd, iov, count);
      if (n > 0) sent += static_cast<uint64_t>(n);
      if (n < 0) CHECK_EQ(errno, EFAULT);
      (n < 0 ? refused : taken)++;
    }
    flipper.stop = true;
    join_thread(thread);
  }
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  CHECK_EQ(write(sync.fd(), &sent, sizeof sent), sizeof sent);
  printf("REFUSED %ld\nTAKEN %ld\n", refused, taken);
  recv_pattern(fd, kUp, 0, kUnreadBytes);
  expect_eof(fd);
  close(fd);
}

void race_client(int fd, const Sync& sync) {
  char data[kUnreadBytes];
  pattern_fill(data, sizeof data, kUp, 0);
  send_all(fd, data, sizeof data);
  sync.meet();
  uint64_t got = 0, sent = 0;
  ssize_t n;
  while ((n = recv(fd, data, sizeof data, 0)) > 0) {
    for (ssize_t i = 0; i < n; i++) CHECK_EQ(data[i], 'g');
    got += static_cast<uint64_t>(n);
  }
  CHECK_EQ(n, 0);
  CHECK_EQ(recv(sync.fd(), &sent, sizeof sent, MSG_WAITALL), sizeof sent);
  CHECK_EQ(got, sent);
  close(fd);
}

// Everything else that a call reads or writes for the program: headers, vectors, addresses, times, sets, answers. The gate is closed
// where the library does it, so that a key or page rights refuse it; with the guard off nothing does, and the test leaves this case out.
void arguments_server(int fd, const Sync& sync) {
  with_unread(fd, sync, [fd](const Places& places) {
    if (places.channel == nullptr) return;
    char* const bad = hidden(places.channel + 3 * kPageBytes);
    auto* vector = reinterpret_cast<struct iovec*>(bad);
    auto* header = reinterpret_cast<struct msghdr*>(bad);
    auto* headers = reinterpret_cast<struct mmsghdr*>(bad);
    CHECK_ERRNO(writev(fd, vector, 1), EFAULT);
    CHECK_ERRNO(writev(fd, vector, 20), EFAULT);
    CHECK_ERRNO(readv(fd, vector, 2), EFAULT);
    CHECK_ERRNO(sendmsg(fd, header, MSG_NOSIGNAL), EFAULT);
    CHECK_ERRNO(recvmsg(fd, header, 0), EFAULT);
    CHECK_ERRNO(sendmmsg(fd, headers, 1, MSG_NOSIGNAL), EFAULT);
    CHECK_ERRNO(recvmmsg(fd, headers, 1, 0, nullptr), EFAULT);
    struct iovec good = {g_buffer, 10};
    struct mmsghdr one = {one_entry(&good), 0};
    CHECK_ERRNO(recvmmsg(fd, &one, 1, 0, reinterpret_cast<struct timespec*>(bad)), EFAULT);
    CHECK_ERRNO(sendto(fd, g_buffer, 10, 0, reinterpret_cast<struct sockaddr*>(bad), 16), EFAULT);
    CHECK_ERRNO(sendfile(fd, fd, reinterpret_cast<off_t*>(bad), 10), EFAULT);
    CHECK_ERRNO(ioctl(fd, FIONREAD, reinterpret_cast<int*>(bad)), EFAULT);
    CHECK_ERRNO(setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, bad, sizeof(int)), EFAULT);
    socklen_t length = sizeof(int);
    CHECK_ERRNO(getsockopt(fd, SOL_SOCKET, SO_ERROR, bad, &length), EFAULT);
    CHECK_ERRNO(getpeername(fd, reinterpret_cast<struct sockaddr*>(bad), &length), EFAULT);

    // Not their times: libc itself reads those, and crashes.
    CHECK_ERRNO(poll(reinterpret_cast<struct pollfd*>(bad), 2, 0), EFAULT);
    CHECK_ERRNO(select(fd + 1, reinterpret_cast<fd_set*>(bad), nullptr, nullptr, nullptr), EFAULT);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(fd, &set);
    CHECK_ERRNO(select(fd + 1, &set, reinterpret_cast<fd_set*>(bad), nullptr, nullptr), EFAULT);

    const int epoll = epoll_create1(EPOLL_CLOEXEC);
    CHECK(epoll >= 0);
    struct epoll_event event = {};
    event.events = EPOLLIN;
    CHECK_ERRNO(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, reinterpret_cast<struct epoll_event*>(bad)), EFAULT);
    CHECK_EQ(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
    CHECK_ERRNO(epoll_wait(epoll, reinterpret_cast<struct epoll_event*>(bad), 4, 0), EFAULT);
    CHECK_ERRNO(epoll_wait(epoll, reinterpret_cast<struct epoll_event*>(places.front + kPageBytes - 4), 1, 0), EFAULT);
    CHECK_EQ(epoll_wait(epoll, &event, 1, 0), 1);  // told again
    close(epoll);
  });
}

// ---- buffers with keys of the program ---------------------------------------------------------------------------------

char* page_with(int key) {
  void* at = mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(at != MAP_FAILED);
  CHECK(key > 0);
  CHECK_EQ(pkey_mprotect(at, kPageBytes, PROT_READ | PROT_WRITE, key), 0);
  return static_cast<char*>(at);
}

// Not guarded memory, but the program's own with its own keys. The kernel respects the keys of the caller's buffers (a key without the right is EFAULT); so must the copies between ring and buffer.
void own_keys_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const int read_only_key = pkey_alloc(0, 0);
  char* const open = page_with(pkey_alloc(0, 0));
  char* const read_only = page_with(read_only_key);
  char* const closed = page_with(pkey_alloc(0, kNoAccess));
  CHECK_EQ(pkey_set(read_only_key, kNoWrite), 0);
  peer.arrive(100 * (sizeof kReadCalls / sizeof *kReadCalls));
  for (const ReadCall& c : kReadCalls) {
    note(c.name);
    CHECK_ERRNO(c.call(fd, read_only, 100), EFAULT);
    CHECK_ERRNO(c.call(fd, closed, 100), EFAULT);
    CHECK_EQ(c.call(fd, open, 100), 100);
    peer.took(open, 100);
  }
  for (const SendCall& c : kSendCalls) {
    note(c.name);
    CHECK_ERRNO(c.call(fd, closed, 100), EFAULT);
    peer.prepare(open, 100);
    CHECK_EQ(c.call(fd, open, 100), 100);
    peer.wrote(100);
    CHECK_EQ(pkey_set(read_only_key, 0), 0);
    peer.prepare(read_only, 100);
    CHECK_EQ(pkey_set(read_only_key, kNoWrite), 0);
    CHECK_EQ(c.call(fd, read_only, 100), 100);
    peer.wrote(100);
  }
  peer.finish();
}

const Case kCases[] = {
    {"sends", sends_server, obedient_client},     {"receives", receives_server, obedient_client},
    {"vectors", vectors_server, obedient_client}, {"race", race_server, race_client},
    {"arguments", arguments_server, obedient_client}, {"readv", readv_server, obedient_client},
    {"own_keys", own_keys_server, obedient_client, no_keys},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
