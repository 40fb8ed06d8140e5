// SPDX-License-Identifier: MIT
// hostile list | hostile CASE --port=N [--role=connector|acceptor] [--speak=echo|http|redis] [--seed=N] [--seconds=S] [--least=STREAMS]
// As an acceptor it listens itself, and prints "PORT n". It prints its seed first and at the end, on one line, what became of its streams.
#include "hostile.h"

#include <poll.h>
#include <sys/mman.h>

#include <initializer_list>

namespace hostile {

namespace {

void close_if(int* fd) {
  if (*fd >= 0) close(*fd);
  *fd = -1;
}

socklen_t rendezvous_name(int tcp, bool acceptor, struct sockaddr_un* name) {
  testlib::Address local, peer;
  local.length = peer.length = sizeof local.storage;
  if (getsockname(tcp, local.get(), &local.length) != 0 || getpeername(tcp, peer.get(), &peer.length) != 0) return 0;
  const int ours = ntohs(reinterpret_cast<struct sockaddr_in*>(&local.storage)->sin_port);
  const int theirs = ntohs(reinterpret_cast<struct sockaddr_in*>(&peer.storage)->sin_port);
  *name = {};
  name->sun_family = AF_UNIX;
  const int n = snprintf(name->sun_path + 1, sizeof name->sun_path - 1, "mpklink/127.0.0.1:%d-127.0.0.1:%d",
                         acceptor ? theirs : ours, acceptor ? ours : theirs);
  return static_cast<socklen_t>(offsetof(struct sockaddr_un, sun_path) + 1 + static_cast<size_t>(n));
}

bool readable(int fd, int timeout_ms) {
  struct pollfd p = {fd, POLLIN, 0};
  return poll(&p, 1, timeout_ms) == 1;
}

}  // namespace

int make_memfd(const Segment& segment) {
  const int fd = memfd_create("hostile", MFD_CLOEXEC | MFD_ALLOW_SEALING | segment.flags);
  CHECK(fd >= 0);
  CHECK_EQ(ftruncate(fd, static_cast<off_t>(segment.bytes)), 0);
  if (segment.seals != 0) CHECK_EQ(fcntl(fd, F_ADD_SEALS, segment.seals), 0);
  return fd;
}

bool tell(int socket, const void* message, std::size_t size, const int* fds, int count) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 253)] = {};
  struct iovec part = {const_cast<void*>(message), size};
  struct msghdr header = {};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  if (count > 0) {
    const std::size_t bytes = sizeof(int) * static_cast<std::size_t>(count);
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(bytes);
    struct cmsghdr* c = CMSG_FIRSTHDR(&header);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(bytes);
    memcpy(CMSG_DATA(c), fds, bytes);
  }
  return sendmsg(socket, &header, MSG_DONTWAIT | MSG_NOSIGNAL) == static_cast<ssize_t>(size);
}

long hear(int socket, void* message, std::size_t size, int* fds, int room, int* count) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 16)] = {};
  struct iovec part = {message, size};
  struct msghdr header = {};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  *count = 0;
  const ssize_t n = recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (n < 0) return n;
  for (struct cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
    const std::size_t here = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < here; i++) {
      int fd;
      memcpy(&fd, CMSG_DATA(c) + sizeof fd * i, sizeof fd);
      if (*count < room) {
        fds[(*count)++] = fd;
      } else {
        close(fd);
      }
    }
  }
  return n;
}

std::uint64_t boundary(Attack* attack, std::uint64_t now, std::uint64_t capacity) {
  const std::uint64_t top = std::uint64_t{1} << 63;
  const std::uint64_t places[] = {0, 1, 7, 8, 255, 4095, 4096, 65535, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, top - 1, top, top + 1, ~std::uint64_t{0}};
  const std::uint64_t place = places[attack->below(sizeof places / sizeof *places)];
  switch (attack->below(7)) {
    case 0: return place;
    case 1: return now + place;
    case 2: return now - place;
    case 3: return now + capacity + attack->below(3) - 1;
    case 4: return now - capacity + attack->below(3) - 1;
    case 5: return now ^ (std::uint64_t{1} << attack->below(64));
    default: return attack->random->next();
  }
}

Peer::~Peer() {
  if (channel != nullptr) munmap(channel, mapped_);
  if (board != nullptr) munmap(board, sizeof(Board));
  for (int& bell : bells_) {
    if (bell != 0) close(bell - 1);
  }
  for (int* fd : {&tcp, &control, &channel_fd, &board_fd, &name_listener_}) close_if(fd);
}

void Peer::note_end(long n) {
  if (over_) return;
  over_ = true;
  ++(n == 0 ? attack_.ends : attack_.resets);
}

bool Peer::connect_name() {
  struct sockaddr_un name;
  const socklen_t length = rendezvous_name(tcp, false, &name);
  if (length == 0) return false;
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  CHECK(fd >= 0);
  if (connect(fd, reinterpret_cast<struct sockaddr*>(&name), length) != 0) {
    close(fd);
    return false;
  }
  control = fd;
  return true;
}

bool Peer::listen_name() {
  struct sockaddr_un name;
  const socklen_t length = rendezvous_name(tcp, true, &name);
  if (length == 0) return false;
  name_listener_ = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  CHECK(name_listener_ >= 0);
  return bind(name_listener_, reinterpret_cast<struct sockaddr*>(&name), length) == 0 && listen(name_listener_, 8) == 0;
}

bool Peer::receive_hello() {
  HelloMessage hello = {};
  int count = 0;
  if (hear(control, &hello, sizeof hello, nullptr, 0, &count) != sizeof hello) return false;
  victim = hello.process;
  return true;
}

bool Peer::meet() {
  ++attack_.streams;
  side = attack_.acceptor ? 1 : 0;
  own.word[0] = attack_.random->next() | 1;
  own.word[1] = attack_.random->next();
  nonce.word[0] = attack_.random->next() | 1;
  if (attack_.acceptor) {
    if (!readable(attack_.listener, 100)) return false;
    tcp = accept4(attack_.listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (tcp < 0 || !listen_name()) return false;
  } else {
    testlib::Address a = testlib::make_address("127.0.0.1", attack_.port);
    tcp = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(tcp >= 0);
    if (connect(tcp, a.get(), a.length) != 0) return false;
  }
  testlib::no_delay(tcp);
  for (int i = 0; i < 60; i++) {
    if (!turn()) return false;
    if (control < 0 && attack_.acceptor) control = accept4(name_listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (control < 0 && !attack_.acceptor) connect_name();
    if (control >= 0 && (attack_.acceptor || receive_hello())) return true;
  }
  return false;
}

OfferMessage Peer::offer() const {
  OfferMessage offer = {};
  offer.type = MessageType::kOffer;
  offer.version = kLayoutVersion;
  offer.process = own;
  offer.capacity = capacity;
  offer.slot = slot;
  offer.new_pair = 1;
  offer.pair_nonce = nonce;
  return offer;
}

bool Peer::make_memory(std::uint64_t bytes) {
  capacity = bytes;
  slot = static_cast<std::uint32_t>(attack_.below(kSlots));
  Segment segment;
  segment.bytes = mapped_ = channel_bytes(capacity);
  channel_fd = make_memfd(segment);
  segment.bytes = sizeof(Board);
  board_fd = make_memfd(segment);
  void* at = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_SHARED, channel_fd, 0);
  void* side_at = mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED, board_fd, 0);
  CHECK(at != MAP_FAILED && side_at != MAP_FAILED);
  channel = static_cast<ChannelHeader*>(at);
  board = static_cast<Board*>(side_at);
  channel->magic = kChannelMagic;
  channel->version = kLayoutVersion;
  channel->slot = slot;
  channel->ring_capacity = capacity;
  board->header.magic = kBoardMagic;
  board->header.version = kLayoutVersion;
  return true;
}

bool Peer::send_offer(const OfferMessage& message, const int* fds, int count) {
  return tell(control, &message, sizeof message, fds, count);
}

// The acceptor's half: HELLO, then the victim's memory.
bool Peer::receive_offer() {
  HelloMessage hello = {};
  hello.type = MessageType::kHello;
  hello.version = kLayoutVersion;
  hello.process = own;
  if (!tell(control, &hello, sizeof hello, nullptr, 0)) return false;
  OfferMessage got = {};
  int fds[kMessageFdsMax];
  int count = 0;
  for (int i = 0; i < 60; i++) {
    if (!turn()) return false;
    const long n = hear(control, &got, sizeof got, fds, kMessageFdsMax, &count);
    if (n == 0) return false;
    if (n != sizeof got) continue;
    CHECK(count >= 2 && got.new_pair == 1);  // each stream is of a new process as far as the victim knows
    channel_fd = fds[0];
    board_fd = fds[1];
    for (int b = 2; b < count; b++) {
      const std::uint32_t id = got.bells[b - 2];
      if (id < kPollers && bells_[id] == 0) {
        bells_[id] = fds[b] + 1;
      } else {
        close(fds[b]);
      }
    }
    capacity = got.capacity;
    slot = got.slot;
    mapped_ = channel_bytes(capacity);
    void* at = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_SHARED, channel_fd, 0);
    void* side_at = mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED, board_fd, 0);
    CHECK(at != MAP_FAILED && side_at != MAP_FAILED);
    channel = static_cast<ChannelHeader*>(at);
    board = static_cast<Board*>(side_at);
    std::uint32_t expected = kOffered;
    return channel->accept_state.compare_exchange(expected, kAccepted);
  }
  return false;
}

bool Peer::await_accepted() {
  for (int i = 0; i < 20; i++) {
    if (!turn()) return false;
    if (channel->accept_state.load_acquire() == kAccepted) return true;
  }
  return false;
}

bool Peer::upgrade() {
  if (!meet()) return false;
  bool shared = false;
  if (attack_.acceptor) {
    shared = receive_offer();
  } else {
    std::uint64_t sizes[] = {256 * 1024, 65536, 4096, 64, 8};
    make_memory(sizes[attack_.below(5)]);
    const int fds[] = {channel_fd, board_fd};
    shared = send_offer(offer(), fds, 2) && await_accepted();
  }
  ++(shared ? attack_.upgraded : attack_.refused);
  return shared;
}

void Peer::hear_bells() {
  for (int i = 0; i < 64; i++) {
    BellMessage message = {};
    int fds[kMessageFdsMax];
    int count = 0;
    if (hear(control, &message, sizeof message, fds, kMessageFdsMax, &count) <= 0) return;
    for (int f = 0; f < count; f++) {
      if (message.poller < kPollers && bells_[message.poller] == 0) {
        bells_[message.poller] = fds[f] + 1;
      } else {
        close(fds[f]);
      }
    }
  }
}

void Peer::wake() {
  hear_bells();
  const std::uint64_t ids = channel->waiters[1 - side].ids.load_acquire();
  BoardSide& theirs = board->side[1 - side];
  for (unsigned i = 0; i < kWaitersMax; i++) {
    const std::uint32_t field = waiter_at(ids, i);
    if (field == 0 || field > kPollers) continue;
    if (field - 1 < kBitmapPollers) mark_ready(&theirs.ready[field - 1], slot);
    const std::uint64_t one = 1;
    if (take_armed(&theirs.armed[field - 1]) && bells_[field - 1] != 0) {
      if (write(bells_[field - 1] - 1, &one, sizeof one) < 0) continue;
    }
  }
}

// By ring once switched. The first bytes after the upgrade go over TCP, behind the announcement of the switch.
bool Peer::say(const void* from, std::size_t n) {
  if (ring_out_) {
    RingProducer p = producer();
    if (!p.refresh() || p.frozen() || p.space() < n) return false;
    p.write(from, n);
    p.publish();
    wake();
    return true;
  }
  const bool switches = channel != nullptr && channel->accept_state.load_acquire() == kAccepted;
  if (switches) out().producer.switch_at.store_release(sent_ + n + 1);
  const ssize_t done = send(tcp, from, n, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (done < 0 && errno != EAGAIN) note_end(-1);
  if (done != static_cast<ssize_t>(n)) return false;
  sent_ += n;
  ring_out_ = switches;
  return true;
}

long Peer::take() {
  char buffer[65536];
  if (ring_in_) {
    RingConsumer c = consumer();
    if (answers && c.refresh() && c.available() > 0) {
      const std::size_t n = c.peek(0, buffer, sizeof buffer);
      c.consume(n);
      bool lied = false;
      if (c.publish(&lied)) {
        if (c.take_wish()) wake();
        return static_cast<long>(n);
      }
    }
  }
  std::size_t most = sizeof buffer;
  const std::uint64_t at = channel == nullptr ? 0 : in().producer.switch_at.load_acquire();
  if (!ring_in_ && at > received_ && at - 1 - received_ < most) most = at - 1 - received_;
  if (most == 0) {
    ring_in_ = true;
    return take();
  }
  const ssize_t n = recv(tcp, buffer, most, MSG_DONTWAIT);
  if (n < 0 && errno == EAGAIN) return 0;
  if (n <= 0) {
    note_end(n);
    return -1;
  }
  received_ += static_cast<std::uint64_t>(n);
  if (!ring_in_ && at != 0 && at - 1 == received_) ring_in_ = true;
  return n;
}

bool Peer::ask() {
  if (attack_.acceptor) {  // the victim asks; we answer what has come
    char buffer[8192] = "";
    const long n = take();
    return n > 0 && say(buffer, static_cast<std::size_t>(n) < sizeof buffer ? static_cast<std::size_t>(n) : sizeof buffer);
  }
  if (strcmp(attack_.speak, "http") == 0) {
    static const char question[] = "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n";
    return say(question, sizeof question - 1);
  }
  if (strcmp(attack_.speak, "redis") == 0) return say("PING\r\n", 6);
  return say("12345678", capacity != 0 && capacity < 8 ? static_cast<std::size_t>(capacity) : 8);
}

bool Peer::turn(int timeout_ms) {
  ++attack_.rounds;
  const int64_t deadline = testlib::now_ms() + timeout_ms;
  bool asked = false;
  for (unsigned i = 0; testlib::now_ms() < deadline && !over_; i++) {
    if (!asked) asked = ask();
    if (attack_.acceptor && asked) return true;
    if (asked) {
      const long n = take();
      if (n != 0) return n > 0;
    }
    // Asleep on TCP for a moment: the victim needs the processor, too.
    struct pollfd p = {tcp, POLLIN, 0};
    if (i > 50) poll(&p, 1, 1);
  }
  return false;
}

}  // namespace hostile

using namespace hostile;

namespace {

const Cases* all_cases() {
  static const Cases all[] = {message_cases(), memory_cases(), word_cases(), {nullptr, 0}};
  return all;
}

int list() {
  for (const Cases* cases = all_cases(); cases->first != nullptr; cases++) {
    for (std::size_t i = 0; i < cases->count; i++) printf("%s\n", cases->first[i].name);
  }
  return 0;
}

const Case* find(const char* name) {
  for (const Cases* cases = all_cases(); cases->first != nullptr; cases++) {
    for (std::size_t i = 0; i < cases->count; i++) {
      if (strcmp(cases->first[i].name, name) == 0) return &cases->first[i];
    }
  }
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv);
  if (options.is("list")) return list();
  const Case* chosen = find(options.role());
  if (chosen == nullptr) {
    fprintf(stderr, "no such case: %s\n", options.role());
    return 2;
  }
  const auto seed = static_cast<std::uint64_t>(options.number("seed", testlib::now_ms()));
  Random random(seed);
  Attack attack;
  attack.random = &random;
  attack.port = static_cast<int>(options.number("port", 0));
  attack.least = static_cast<std::uint64_t>(options.number("least", 0));
  attack.acceptor = strcmp(options.text("role", "connector"), "acceptor") == 0;
  attack.speak = options.text("speak", "echo");
  printf("SEED %llu\n", static_cast<unsigned long long>(seed));
  if (attack.acceptor) {
    attack.listener = testlib::listen_on("127.0.0.1");
    testlib::announce(attack.listener);
  }
  fflush(stdout);
  attack.end_ms = testlib::now_ms() + static_cast<int64_t>(strtod(options.text("seconds", "1"), nullptr) * 1000);
  chosen->run(&attack);
  printf("RESULT streams=%llu upgraded=%llu refused=%llu resets=%llu ends=%llu rounds=%llu\n", static_cast<unsigned long long>(attack.streams),
         static_cast<unsigned long long>(attack.upgraded), static_cast<unsigned long long>(attack.refused),
         static_cast<unsigned long long>(attack.resets), static_cast<unsigned long long>(attack.ends),
         static_cast<unsigned long long>(attack.rounds));
  return testlib::succeed();
}
