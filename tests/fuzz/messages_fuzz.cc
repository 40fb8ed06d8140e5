// SPDX-License-Identifier: MIT
// The messages of the rendezvous and of a pair's control channel, over a real socket: datagrams of any size with any descriptors.
//
// Accepted is what has the one right size and no more descriptors than there is room for, bit by bit as it was sent; of all else no
// descriptor stays behind. What was accepted and is sent again is the same datagram. On the control channel the first sound bell of a
// poller is kept, and a peer that sends faster than we read holds nobody up.
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cerrno>
#include <map>
#include <memory>
#include <vector>

#include "preload/fd_table.h"
#include "preload/messages.h"
#include "preload/pair.h"
#include "preload/pollers.h"
#include "tests/fuzz/fuzz.h"

namespace mpklink {
namespace {

using fuzz::Input;

constexpr int kFdsSent = kMessageFdsMax + 3;
constexpr std::size_t kBytesMax = 300;
constexpr unsigned kReceivesMax = 4 * kPollers;

// What a peer may send as a descriptor, told apart by its inode or its size.
struct Files {
  Files() {
    for (int i = 0; i < kFdsSent; ++i) {
      const int fd = memfd_create("fuzz", MFD_CLOEXEC);
      FUZZ_TRUE(fd >= 0 && ftruncate(fd, i + 1) == 0);
      sized[i] = fd;
    }
    int ends[2];
    FUZZ_TRUE(pipe(ends) == 0);
    kinds = {eventfd(0, EFD_NONBLOCK), sized[0], ends[1], epoll_create1(0), timerfd_create(CLOCK_MONOTONIC, 0), open("/dev/null", O_RDWR)};
  }
  int sized[kFdsSent];
  std::vector<int> kinds;
};

Files& files() {
  static Files all;
  return all;
}

// Descriptors that are left open take the lowest number.
int lowest_free() {
  const int fd = dup(0);
  FUZZ_CHECK(fd, >=, 0);
  close(fd);
  return fd;
}

struct Ends {
  Ends() {
    int fds[2];
    FUZZ_TRUE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0);
    ours = fds[0];
    peer = fds[1];
  }
  ~Ends() {
    close(ours);
    close(peer);
  }
  Ends(const Ends&) = delete;
  Ends& operator=(const Ends&) = delete;
  int ours, peer;
};

// Not by send_message: a peer's own way.
bool raw_send(int fd, const void* bytes, std::size_t n, const int* fds, int count, bool split) {
  alignas(cmsghdr) char control[2 * CMSG_SPACE(sizeof(int) * kFdsSent)] = {};
  iovec part = {const_cast<void*>(bytes), n};
  msghdr header = {};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  if (count > 0) {
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    const int first = split ? count / 2 : 0;
    cmsghdr* c = CMSG_FIRSTHDR(&header);
    std::size_t used = 0;
    for (const auto& piece : {std::pair<int, int>{0, first}, {first, count - first}}) {
      if (piece.second == 0) continue;
      const std::size_t size = sizeof(int) * static_cast<std::size_t>(piece.second);
      c->cmsg_level = SOL_SOCKET;
      c->cmsg_type = SCM_RIGHTS;
      c->cmsg_len = CMSG_LEN(size);
      std::memcpy(CMSG_DATA(c), fds + piece.first, size);
      used += CMSG_SPACE(size);
      c = reinterpret_cast<cmsghdr*>(control + used);
    }
    header.msg_controllen = used;
  }
  return sendmsg(fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL) == static_cast<ssize_t>(n);
}

std::vector<unsigned char> raw_receive(int fd) {
  std::vector<unsigned char> bytes(kBytesMax + 1);
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kFdsSent)];
  iovec part = {bytes.data(), bytes.size()};
  msghdr header = {};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  const ssize_t n = recvmsg(fd, &header, MSG_DONTWAIT);
  FUZZ_CHECK(n, >=, 0);
  bytes.resize(static_cast<std::size_t>(n));
  for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
    for (std::size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
      int one = -1;
      std::memcpy(&one, CMSG_DATA(c) + i * sizeof one, sizeof one);
      close(one);
    }
  }
  return bytes;
}

// A process that has room for `room` more descriptors, for a while.
class FewDescriptors {
 public:
  FewDescriptors(bool few, int room) : few_(few) {
    if (!few_) return;
    getrlimit(RLIMIT_NOFILE, &before_);
    const rlimit now = {static_cast<rlim_t>(lowest_free() + room), before_.rlim_max};
    setrlimit(RLIMIT_NOFILE, &now);
  }
  ~FewDescriptors() {
    if (few_) setrlimit(RLIMIT_NOFILE, &before_);
  }
  FewDescriptors(const FewDescriptors&) = delete;
  FewDescriptors& operator=(const FewDescriptors&) = delete;

 private:
  bool few_;
  rlimit before_ = {};
};

std::size_t size_of(unsigned kind) {
  const std::size_t sizes[] = {sizeof(HelloMessage), sizeof(OfferMessage), sizeof(BellMessage)};
  return sizes[kind % 3];
}

void one_message(Input* input) {
  const Ends ends;
  const unsigned how = input->byte();
  const std::size_t wanted = size_of(how);
  const std::size_t size = how & 0x10 ? input->below(kBytesMax) : wanted;
  const int count = static_cast<int>(input->below(kFdsSent + 1));
  const bool few = (how & 0x20) != 0;
  const int room = static_cast<int>(input->below(kFdsSent));
  unsigned char bytes[kBytesMax] = {};
  input->bytes(bytes, size);
  FUZZ_TRUE(raw_send(ends.peer, bytes, size, files().sized, count, (how & 0x40) != 0));

  const int free_before = lowest_free();
  const std::unique_ptr<unsigned char[]> message(new unsigned char[wanted]());
  int fds[kMessageFdsMax];
  int got = -1;
  bool accepted = false;
  {
    const FewDescriptors limit(few, room);
    accepted = receive_message(ends.ours, message.get(), wanted, fds, &got);
  }
  const bool fits = count <= kMessageFdsMax && (!few || count <= room);
  FUZZ_CHECK(accepted, ==, size == wanted && fits);
  if (!accepted) {
    FUZZ_CHECK(got, ==, 0);
    FUZZ_CHECK(errno, ==, size == 0 ? ECONNRESET : EPROTO);
    FUZZ_CHECK(lowest_free(), ==, free_before);
    return;
  }
  FUZZ_CHECK(got, ==, count);
  FUZZ_CHECK(std::memcmp(message.get(), bytes, size), ==, 0);
  for (int i = 0; i < got; ++i) {
    struct stat st = {};
    FUZZ_TRUE(fstat(fds[i], &st) == 0 && (fcntl(fds[i], F_GETFD) & FD_CLOEXEC) != 0);
    FUZZ_CHECK(st.st_size, ==, i + 1);
  }
  // Sent on by us it is the same datagram, and the same message.
  FUZZ_TRUE(send_message(ends.ours, message.get(), wanted, fds, got));
  FUZZ_TRUE(send_message(ends.peer, message.get(), wanted, fds, got));
  close_all(fds, got);
  const auto again = raw_receive(ends.peer);
  FUZZ_CHECK(again.size(), ==, size);
  FUZZ_CHECK(std::memcmp(again.data(), bytes, size), ==, 0);
  FUZZ_TRUE(receive_message(ends.ours, message.get(), wanted, fds, &got));
  FUZZ_CHECK(got, ==, count);
  FUZZ_CHECK(std::memcmp(message.get(), bytes, size), ==, 0);
  close_all(fds, got);
  FUZZ_CHECK(lowest_free(), ==, free_before);
  FUZZ_TRUE(!receive_message(ends.ours, message.get(), wanted, fds, &got) && errno == EAGAIN);
}

// --- the control channel

ssize_t (*g_recvmsg)(int, msghdr*, int);
unsigned g_receives;
const std::vector<unsigned char>* g_flood;  // what the peer sends whenever we read
int g_flood_from;

ssize_t counted_recvmsg(int fd, msghdr* message, int flags) {
  FUZZ_CHECK(++g_receives, <=, kReceivesMax);
  if (g_flood != nullptr) raw_send(g_flood_from, g_flood->data(), g_flood->size(), nullptr, 0, false);
  return g_recvmsg(fd, message, flags);
}

bool can_be_a_bell(int fd) {
  struct stat st = {};
  return fstat(fd, &st) == 0 && (st.st_mode & S_IFMT) == 0;
}

void control_channel(Input* input) {
  static Pair& pair = *new Pair();
  static const bool hooked = [] {
    initialise();
    g_recvmsg = quiet().recvmsg;
    real_for_test().quiet.recvmsg = counted_recvmsg;
    return true;
  }();
  FUZZ_TRUE(hooked);
  const Ends ends;
  const int free_before = lowest_free();
  pair.generation = process().generation.load_relaxed();
  pair.control_fd = ends.ours;
  pair.bells_kept = pair.nonsense = 0;
  std::map<std::uint32_t, int> kept;  // poller -> kind
  unsigned floods = 0;
  for (int i = 0; i < 40 && !input->empty(); ++i) {
    const unsigned how = input->byte();
    if ((how & 7) == 7) {
      const std::vector<unsigned char> flood(input->below(kBytesMax), 'x');
      if ((how & 0x80) && floods++ == 0) g_flood = &flood;  // one takes milliseconds
      g_flood_from = ends.peer;
      g_receives = 0;
      const std::uint32_t id = input->value<std::uint16_t>() % kPollers;
      const int bell = peer_bell(&pair, id);
      g_flood = nullptr;
      FUZZ_TRUE(bell < 0 || kept.count(id) != 0);
      if (bell >= 0) FUZZ_TRUE(can_be_a_bell(bell) && fd_table().hidden(bell));
      continue;
    }
    BellMessage bell = {MessageType::kBell, how & 8 ? input->value<std::uint32_t>() : input->byte()};
    if (how & 0x10) bell.type = static_cast<MessageType>(input->byte());
    const std::size_t size = how & 0x20 ? input->below(2 * sizeof bell) : sizeof bell;
    unsigned char bytes[2 * sizeof bell] = {};
    std::memcpy(bytes, &bell, sizeof bell);
    const int count = how & 0x40 ? static_cast<int>(input->below(3)) : 1;
    const int fd = files().kinds[how % 6];
    const int fds[3] = {fd, fd, fd};
    if (!raw_send(ends.peer, bytes, size, fds, count, false)) continue;  // its queue is full
    const bool sound = size == sizeof bell && count == 1 && bell.type == MessageType::kBell && bell.poller < kPollers && can_be_a_bell(fd);
    if (sound && kept.size() < kPeerBellsMax) kept.emplace(bell.poller, fd);
  }
  g_receives = 0;
  for (const auto& one : kept) {
    int bell = -1;
    for (int look = 0; look <= 40 && bell < 0; ++look) bell = peer_bell(&pair, one.first);  // a message of no bytes ends a look
    if (bell < 0 && pair.nonsense >= kNonsenseMax) continue;  // what is behind so much nonsense is not read
    FUZZ_CHECK(bell, >=, 0);
    struct stat sent = {}, there = {};
    FUZZ_TRUE(fstat(bell, &there) == 0 && fstat(one.second, &sent) == 0);
    FUZZ_CHECK(there.st_ino, ==, sent.st_ino);
  }
  FUZZ_CHECK(pair.bells_kept, <=, kept.size());
  FUZZ_TRUE(pair.bells_kept == kept.size() || pair.nonsense >= kNonsenseMax);
  forget_peer_bells(&pair);
  FUZZ_CHECK(lowest_free(), ==, free_before);
}

}  // namespace
}  // namespace mpklink

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace mpklink;
  fuzz::Input input(data, size);
  files();
  if (input.byte() & 1) {
    control_channel(&input);
  } else {
    for (int i = 0; i < 8 && !input.empty(); ++i) one_message(&input);
  }
  return 0;
}
