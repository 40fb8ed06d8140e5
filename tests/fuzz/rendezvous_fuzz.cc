// SPDX-License-Identifier: MIT
// A stranger at the other end of a rendezvous: offers and answers with any fields and any descriptors, then any words in the shared
// memory of the streams that came of it, while this end goes on receiving and sending. The core as in the library, over real sockets.
//
// An offer is taken exactly when a second, plain reading of the rules says so. No descriptor stays behind. With the guard of mprotect, which
// every second input has, an access outside of a gate faults.
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <memory>
#include <vector>

#include "preload/fd_table.h"
#include "preload/messages.h"
#include "preload/pollers.h"
#include "preload/readiness.h"
#include "preload/rendezvous_step.h"
#include "preload/revoke.h"
#include "preload/transfer.h"
#include "tests/fuzz/fuzz.h"

namespace mpklink {
namespace {

using fuzz::Input;

constexpr int kFutureWrite = 0x10;  // F_SEAL_FUTURE_WRITE, Linux 5.1
constexpr int kSealed = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
constexpr unsigned kStreamsMax = 3;
constexpr unsigned kOpsMax = 60;

std::size_t open_descriptors() {
  std::size_t count = 0;
  DIR* dir = opendir("/proc/self/fd");
  while (readdir(dir) != nullptr) ++count;
  closedir(dir);
  return count;
}

// A descriptor of the peer's, and its own view of it.
struct Segment {
  int fd = -1;
  bool sound = false;  // what we must accept
  unsigned char* view = nullptr;
  std::size_t bytes = 0;
};

void drop(Segment* s) {
  if (s->fd >= 0) close(s->fd);
  if (s->view != nullptr) munmap(s->view, s->bytes);
  *s = {};
}

int read_only(int fd) {
  char path[32] = "";
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  const int again = open(path, O_RDONLY | O_CLOEXEC);
  close(fd);
  return again;
}

Segment make_segment_of_peer(Input* input, std::size_t bytes) {
  Segment s;
  s.bytes = bytes;
  const unsigned kind = input->byte() % 16;
  if (kind == 11 || kind == 12) {
    s.fd = kind == 11 ? eventfd(0, EFD_NONBLOCK) : epoll_create1(0);
    return s;
  }
  long size = static_cast<long>(bytes);
  if (kind == 6) size += static_cast<signed char>(input->byte());
  if (kind == 13) size = static_cast<long>(input->value<std::uint32_t>() & 0xffffff);
  int seals = kSealed;
  if (kind == 7) seals = input->byte() & 0xf;
  if (kind == 8) seals |= F_SEAL_WRITE;
  if (kind == 9) seals |= kFutureWrite;
  s.fd = memfd_create("stranger", MFD_CLOEXEC | (kind == 14 ? 0u : unsigned{MFD_ALLOW_SEALING}));
  FUZZ_TRUE(s.fd >= 0 && ftruncate(s.fd, size) == 0);
  if ((seals & F_SEAL_WRITE) == 0 && size == static_cast<long>(bytes)) {
    void* view = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, s.fd, 0);
    FUZZ_TRUE(view != MAP_FAILED);
    s.view = static_cast<unsigned char*>(view);
  }
  if (kind != 14) FUZZ_TRUE(fcntl(s.fd, F_ADD_SEALS, seals) == 0);
  if (kind == 10) s.fd = read_only(s.fd);
  const bool sealed = kind != 14 && (seals & kSealed) == kSealed && (seals & (F_SEAL_WRITE | kFutureWrite)) == 0;
  s.sound = sealed && kind != 10 && size == static_cast<long>(bytes);
  return s;
}

struct Connection {
  int fd = -1;         // ours
  int peer_fd = -1;    // the stranger's end of TCP
  int peer_unix = -1;  // and of the rendezvous
  Stream* stream = nullptr;
  Segment channel;
  bool accepted = false;
};

int listening(sockaddr_in* address) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  *address = {};
  address->sin_family = AF_INET;
  address->sin_addr.s_addr = htonl(INADDR_ANY);
  socklen_t size = sizeof *address;
  FUZZ_TRUE(bind(fd, reinterpret_cast<sockaddr*>(address), size) == 0 && listen(fd, 16) == 0);
  FUZZ_TRUE(getsockname(fd, reinterpret_cast<sockaddr*>(address), &size) == 0);
  return fd;
}

Connection connect_to_stranger(bool connector, Step step) {
  static sockaddr_in address;
  static const int listener = listening(&address);
  Connection c;
  const int active = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  static std::uint32_t number = 0;  // of ports there are not enough, each address has its own
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK + number++ % 50000);
  FUZZ_CHECK(connect(active, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 ? 0 : errno, ==, 0);
  const int passive = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
  FUZZ_CHECK(passive, >=, 0);
  c.fd = connector ? active : passive;
  c.peer_fd = connector ? passive : active;
  int ends[2];
  FUZZ_TRUE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0);
  c.peer_unix = ends[1];
  Stream* s = make_stream(State::kCandidate);
  FUZZ_TRUE(s != nullptr);
  s->connector = connector;
  s->rendezvous_fd = hide_fd(ends[0]);
  s->rendezvous_step = step;
  s->peer_uid = ::geteuid();
  enter_stream(c.fd, s);
  c.stream = s;
  return c;
}

class Stranger {
 public:
  void run(Input* input) {
    const unsigned how = input->byte();
    process().guard.set_mode(how & 1 ? GuardMode::kMprotect : GuardMode::kOff, 0);
    for (unsigned i = 0; i <= (how >> 2) % kStreamsMax; ++i) {
      connections_.push_back(connect_to_stranger((how & 2) != 0, how & 2 ? kHello : kTake));
      if (how & 2) {
        answer(input, &connections_.back());
      } else {
        offer(input, &connections_.back());
      }
    }
    for (unsigned i = 0; i < kOpsMax && !input->empty(); ++i) operate(input);
    end((how & 0x40) != 0);
  }

 private:
  bool send_raw(int fd, const void* bytes, std::size_t n, const std::vector<int>& fds) {
    return send_message(fd, bytes, n, fds.data(), static_cast<int>(fds.size()));
  }

  // --- we accepted: the stranger offers

  void offer(Input* input, Connection* c) {
    OfferMessage m = {};
    m.type = MessageType::kOffer;
    m.version = kLayoutVersion;
    m.process.word[0] = 7;
    m.capacity = 4096;
    m.slot = static_cast<std::uint32_t>(connections_.size());
    m.new_pair = board_.view == nullptr ? 1 : 0;
    m.pair_nonce.word[0] = 9;
    for (unsigned patches = input->below(4); patches > 0; --patches) patch(input, &m);
    const bool valid = m.capacity >= 8 && m.capacity <= kMaxRing && (m.capacity & (m.capacity - 1)) == 0;
    // As large as the offer says where that can be: sparse, but mapped.
    c->channel = make_segment_of_peer(input, channel_bytes(valid || m.capacity <= 65536 ? m.capacity : 4096));
    Segment board;
    std::vector<int> fds = {c->channel.fd};
    bool board_sound = false;
    if (m.new_pair != 0) {
      board = make_segment_of_peer(input, sizeof(Board));
      board_sound = board.sound;
      auto* header = reinterpret_cast<BoardHeader*>(board.view);
      if (header != nullptr) {
        *header = {kBoardMagic, kLayoutVersion, 0};
        const unsigned lie = input->byte();
        if (lie == 1) header->magic ^= input->value<std::uint64_t>();
        if (lie == 2) header->version += input->byte();
        board_sound = board_sound && header->magic == kBoardMagic && header->version == kLayoutVersion;
      }
      fds.push_back(board.fd);
    }
    const int bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    for (std::uint32_t i = 0; i < m.bell_count && i < kOfferBellsMax; ++i) {
      fds.push_back(bell);
      m.bells[i] = input->byte() & 0x80 ? input->value<std::uint32_t>() : i;
    }
    const unsigned extra = input->byte();
    if (extra == 1) fds.push_back(bell);
    if (extra == 2) fds.pop_back();
    bool offered = true;
    if (c->channel.view != nullptr) {
      auto* header = reinterpret_cast<ChannelHeader*>(c->channel.view);
      const std::uint8_t state = input->byte();
      header->accept_state.store_relaxed(state < 128 ? std::uint32_t{kOffered} : state);
      offered = state < 128;
    }
    while (fds.size() > static_cast<std::size_t>(kMessageFdsMax)) fds.pop_back();
    FUZZ_TRUE(send_raw(c->peer_unix, &m, sizeof m, fds));
    const std::size_t room = channel_bytes(process().settings.ring_bytes) + kPage;
    const bool sane = m.type == MessageType::kOffer && m.version == kLayoutVersion && valid && m.slot < kSlots && m.new_pair <= 1 &&
                      m.bell_count <= (m.new_pair == 1 ? 8u : 0u) && fds.size() == 1 + m.new_pair + m.bell_count;
    const bool paired = m.new_pair != 0 ? board_sound : known_pair(m) && slot_free(m.slot);
    const bool expected = sane && c->channel.sound && paired && offered && kPage + channel_bytes(m.capacity) <= room;

    c->stream->step_lock.lock();
    acceptor_take(c->fd, c->stream);
    c->stream->step_lock.unlock();
    close(bell);
    const State state = state_of(c->stream);
    FUZZ_CHECK(state == State::kShared, ==, expected);
    FUZZ_TRUE(expected || state == State::kPlain);
    c->accepted = expected;
    if (expected) {
      FUZZ_CHECK(c->stream->capacity, ==, m.capacity);
      FUZZ_CHECK(c->stream->slot, ==, m.slot);
      same_memory(*c);
      if (m.new_pair != 0) {
        drop(&board_);
        board_ = board;
        board = {};
        pair_process_ = m.process;
        pair_nonce_ = m.pair_nonce;
      }
    }
    drop(&board);
  }

  void patch(Input* input, OfferMessage* m) {
    switch (input->byte() % 10) {
      case 0: m->type = static_cast<MessageType>(input->value<std::uint32_t>()); break;
      case 1: m->version = input->value<std::uint32_t>(); break;
      case 2: m->capacity = std::uint64_t{1} << (input->byte() & 63); break;
      case 3: m->capacity = input->value<std::uint64_t>(); break;
      case 4: m->slot = input->value<std::uint32_t>(); break;
      case 5: m->slot = input->byte(); break;
      case 6: m->new_pair = input->byte(); break;
      case 7: m->bell_count = input->byte() % 12; break;
      case 8: m->pair_nonce.word[1] = input->byte(); break;
      case 9: m->capacity = input->value<std::uint16_t>(); break;
    }
  }

  bool known_pair(const OfferMessage& m) const {
    return board_.view != nullptr && m.process == pair_process_ && m.pair_nonce == pair_nonce_;
  }
  bool slot_free(std::uint32_t slot) const {
    for (const Connection& c : connections_) {
      if (c.accepted && c.stream->slot == slot && c.stream->pair->nonce == pair_nonce_) return false;
    }
    return true;
  }

  // Our mapping is the stranger's memory, and as large.
  void same_memory(const Connection& c) {
    const std::uint64_t mark = 0x1234567890abcdef;
    std::memcpy(c.channel.view + c.channel.bytes - sizeof mark, &mark, sizeof mark);
    const Gate gate;
    const auto* ours = reinterpret_cast<const unsigned char*>(c.stream->channel);
    FUZZ_CHECK(std::memcmp(ours + channel_bytes(c.stream->capacity) - sizeof mark, &mark, sizeof mark), ==, 0);
    FUZZ_TRUE(process().guard.range().touches(ours, channel_bytes(c.stream->capacity)));
  }

  // --- we connected: the stranger answers

  void answer(Input* input, Connection* c) {
    HelloMessage hello = {};
    hello.type = MessageType::kHello;
    hello.version = kLayoutVersion;
    hello.process.word[0] = 7;
    const unsigned lie = input->byte() % 8;
    std::size_t size = sizeof hello;
    std::vector<int> fds;
    if (lie == 1) input->bytes(&hello, sizeof hello);
    if (lie == 2) size = input->below(sizeof hello);
    if (lie == 3) fds.assign(1 + input->below(3), 0);
    if (lie == 4) hello.process.word[1] = input->byte();
    FUZZ_TRUE(send_raw(c->peer_unix, &hello, size, fds));
    Stream* s = c->stream;
    s->step_lock.lock();
    connector_hello(s);
    const bool sound = size == sizeof hello && fds.empty() && hello.type == MessageType::kHello && hello.version == kLayoutVersion;
    FUZZ_CHECK(s->rendezvous_step == kOffer, ==, sound);
    if (sound) {
      FUZZ_TRUE(s->peer_id == hello.process);
      connector_offer(c->fd, s);
    }
    s->step_lock.unlock();
    if (!sound) FUZZ_TRUE(state_of(s) == State::kPlain);
    if (state_of(s) == State::kOffered) take_our_offer(input, c);
  }

  // What we offer is what we would take.
  void take_our_offer(Input* input, Connection* c) {
    OfferMessage m = {};
    int fds[kMessageFdsMax];
    int count = 0;
    FUZZ_TRUE(receive_message(c->peer_unix, &m, sizeof m, fds, &count));
    FUZZ_TRUE(m.type == MessageType::kOffer && m.version == kLayoutVersion && valid_ring_capacity(m.capacity));
    FUZZ_TRUE(m.slot < kSlots && m.new_pair <= 1);
    FUZZ_CHECK(static_cast<std::uint32_t>(count), ==, 1 + m.new_pair + m.bell_count);
    c->channel.bytes = channel_bytes(m.capacity);
    adopt(fds[0], &c->channel);
    if (m.new_pair != 0) {
      drop(&board_);
      board_.bytes = sizeof(Board);
      adopt(fds[1], &board_);
    }
    for (int i = 1 + static_cast<int>(m.new_pair); i < count; ++i) close(fds[i]);
    auto* header = reinterpret_cast<ChannelHeader*>(c->channel.view);
    FUZZ_TRUE(header->magic == kChannelMagic && header->version == kLayoutVersion && header->ring_capacity == m.capacity);
    const std::uint8_t state = input->byte();
    header->accept_state.store_relaxed(state < 128 ? std::uint32_t{kAccepted} : state);
    c->stream->step_lock.lock();
    connector_await(c->fd, c->stream);
    c->stream->step_lock.unlock();
    c->accepted = state < 128 || state == kAccepted;
    FUZZ_CHECK(state_of(c->stream) == State::kShared, ==, c->accepted);
  }

  void adopt(int fd, Segment* s) {
    FUZZ_CHECK(fcntl(fd, F_GET_SEALS), ==, kSealed);
    struct stat st = {};
    FUZZ_TRUE(fstat(fd, &st) == 0);
    FUZZ_CHECK(static_cast<std::size_t>(st.st_size), ==, s->bytes);
    FUZZ_CHECK(st.st_mode & 0777, ==, 0600u);
    void* view = mmap(nullptr, s->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    FUZZ_TRUE(view != MAP_FAILED);
    s->view = static_cast<unsigned char*>(view);
    close(fd);
  }

  // --- the stream in use

  void operate(Input* input) {
    const unsigned how = input->byte();
    Connection& c = connections_[(how >> 4) % connections_.size()];
    const std::size_t n = input->below(600);
    switch (how & 15) {
      case 0: case 1: case 2: lie(input, c); break;
      case 3: send_tcp(c, n); break;
      case 4: drain_tcp(c); break;
      case 5: case 6: receive(c, n, input->byte()); break;
      case 7: case 8: send(c, n); break;
      case 9: ask(c); break;
      case 10: if (c.accepted) answer_freeze(c.fd, c.stream); break;
      case 11: (void)send_message(c.peer_unix, &n, input->below(sizeof n), nullptr, 0); break;
      case 12: finish_tcp(&c, n); break;
      case 13: publish(input, c, n); break;
      case 14: lie_on_board(input); break;
      case 15: break;
    }
  }

  // A word of the channel's header, or one that has a meaning.
  void lie(Input* input, const Connection& c) {
    if (c.channel.view == nullptr) return;
    const unsigned at = input->byte() % (sizeof(ChannelHeader) / 8);
    change(input, c.channel.view + std::size_t{at} * 8);
  }
  void lie_on_board(Input* input) {
    if (board_.view == nullptr) return;
    change(input, board_.view + (input->value<std::uint32_t>() % sizeof(Board)) / 8 * 8);
  }
  void change(Input* input, unsigned char* at) {
    std::uint64_t value = 0;
    std::memcpy(&value, at, sizeof value);
    switch (input->byte() % 6) {
      case 0: value += input->byte(); break;
      case 1: value -= input->byte(); break;
      case 2: value = input->byte(); break;
      case 3: value ^= std::uint64_t{1} << (input->byte() & 63); break;
      case 4: value = input->value<std::uint64_t>(); break;
      case 5: value ^= kFrozenBit; break;
    }
    std::memcpy(at, &value, sizeof value);
  }

  // As an honest sender would: switches to the ring, and publishes bytes there.
  void publish(Input* input, const Connection& c, std::size_t n) {
    if (!c.accepted || c.channel.view == nullptr) return;
    auto* header = reinterpret_cast<ChannelHeader*>(c.channel.view);
    Direction& d = header->direction[1 - c.stream->side];
    if (input->byte() & 1) {
      d.producer.switch_at.store_release(tcp_sent_ + 1);
    } else {
      d.producer.tail.fetch_add(n % c.stream->capacity);
    }
  }

  void send_tcp(const Connection& c, std::size_t n) {
    const std::vector<char> bytes(n, 't');
    const ssize_t sent = ::send(c.peer_fd, bytes.data(), n, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0) tcp_sent_ += static_cast<std::uint64_t>(sent);
  }
  // Rarely: each leaves a TIME_WAIT.
  void finish_tcp(Connection* c, std::size_t n) {
    if (n % 64 == 5) shutdown(c->peer_fd, SHUT_WR);
  }
  void drain_tcp(const Connection& c) {
    char bytes[4096];
    for (int i = 0; i < 64 && recv(c.peer_fd, bytes, sizeof bytes, MSG_DONTWAIT) > 0; ++i) {}
  }

  void receive(const Connection& c, std::size_t n, unsigned flags) {
    if (!c.accepted) return;
    c.stream->late = true;  // no naps for bytes that a liar says are on their way
    const std::unique_ptr<unsigned char[]> to(new unsigned char[n]);
    const iovec part = {to.get(), n};
    int f = MSG_DONTWAIT;
    if (flags & 1) f |= MSG_PEEK;
    if (flags & 2) f |= MSG_TRUNC;
    if (flags & 4) f |= MSG_WAITALL;
    const bool lied = tail_is_impossible(c);
    const bool poisoned = c.stream->poisoned.load_acquire() != 0;
    errno = 0;
    const ssize_t got = receive_stream(c.fd, c.stream, &part, 1, f);
    result(got, n, poisoned || lied);
  }

  void send(const Connection& c, std::size_t n) {
    if (!c.accepted) return;
    const std::unique_ptr<unsigned char[]> from(new unsigned char[n]());
    const iovec part = {from.get(), n};
    const bool poisoned = c.stream->poisoned.load_acquire() != 0;
    errno = 0;
    const ssize_t sent = send_stream(c.fd, c.stream, &part, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    result(sent, n, poisoned);
  }

  // Nothing changes while we look: this peer has no thread.
  bool tail_is_impossible(const Connection& c) {
    const Stream* s = c.stream;
    const Gate gate;
    if (s->channel == nullptr || !managed(state_of(s)) || s->ended.load_relaxed() != 0) return false;
    const Direction& in = s->channel->direction[1 - s->side];
    if (static_cast<Path>(s->core->receive.path.load_relaxed()) != Path::kRing) return false;
    if ((in.consumer.head.load_relaxed() & kFrozenBit) != 0) return false;
    return ((in.producer.tail.load_relaxed() - s->core->consumer.head.load_relaxed()) & kPositionMask) > s->capacity;
  }

  // `over`: the peer has lied. The stream is at its end, and the process lives.
  void result(ssize_t got, std::size_t n, bool over) {
    if (got == kNotOurs) return;
    FUZZ_CHECK(got, >=, -1);
    FUZZ_CHECK(got, <=, static_cast<ssize_t>(n));
    if (got == -1) FUZZ_TRUE(errno == EAGAIN || errno == ECONNRESET || errno == EPIPE);
    if (over && n > 0) FUZZ_TRUE(got == -1 && errno == ECONNRESET);
  }

  void ask(const Connection& c) {
    if (!c.accepted) return;
    FUZZ_CHECK(unread_bytes(c.fd, c.stream), >=, 0);
    FUZZ_CHECK(unsent_bytes(c.fd, c.stream), >=, 0);
    if (!pin(c.fd, c.stream)) return;
    Readiness r;
    {
      const Gate gate;
      r = ring_readiness(c.stream, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
      FUZZ_CHECK(not_received(c.stream), <=, c.stream->capacity);
    }
    (void)kernel_readiness(c.stream, c.fd, r.ask_kernel);
    unpin(c.stream);
  }

  void end(bool peer_first) {
    for (Connection& c : connections_) {
      close(c.peer_unix);
      const linger reset = {1, 0};  // no TIME_WAIT: there are not enough ports
      setsockopt(c.peer_fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
      if (peer_first) close(c.peer_fd);
    }
    for (Connection& c : connections_) {
      forget_fd(c.fd);
      close(c.fd);
      if (!peer_first) close(c.peer_fd);
      drop(&c.channel);
    }
    connections_.clear();
    drop(&board_);
    const LockGuard guard(pairs_lock());
    collect_pairs();
  }

  std::vector<Connection> connections_;
  Segment board_;
  ProcessId pair_process_, pair_nonce_;
  std::uint64_t tcp_sent_ = 0;
};

void begin() {
  signal(SIGPIPE, SIG_IGN);
  initialise();
  process().settings = Settings();
  process().settings.guard = GuardSetting::kOff;
  process().settings.log = LogLevel::kOff;
  Reason reason = Reason::kSystem;
  FUZZ_TRUE(ensure_guard(&reason));
}

}  // namespace
}  // namespace mpklink

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace mpklink;
  static const bool begun = (begin(), true);
  FUZZ_TRUE(begun);
  static const std::uint8_t kWarm[] = {0};
  static const bool warm = [] {  // the listener, tables
    Input first(kWarm, sizeof kWarm);
    Stranger().run(&first);
    return true;
  }();
  FUZZ_TRUE(warm);
  const std::size_t before = open_descriptors();
  fuzz::Input input(data, size);
  Stranger().run(&input);
  FUZZ_CHECK(open_descriptors(), ==, before);
  return 0;
}
