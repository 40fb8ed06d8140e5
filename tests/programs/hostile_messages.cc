// SPDX-License-Identifier: MIT
// Lies in what is said: HELLO, OFFER and bells of wrong versions, sizes, fields and numbers of descriptors; replays; half-open handshakes.
#include <sys/eventfd.h>

#include "hostile.h"

namespace hostile {
namespace {

struct Fds {
  int fd[32];
  int count = 0;
};

// An offer with one field out of order.
void spoil_field(Attack* a, OfferMessage* o) {
  const std::uint64_t bad = boundary(a, 0, 4096);
  switch (a->below(8)) {
    case 0: o->type = static_cast<MessageType>(bad == 2 ? 0 : bad); break;
    case 1: o->version = static_cast<std::uint32_t>(bad == kLayoutVersion ? 0 : bad); break;
    case 2: o->capacity = valid_ring_capacity(bad) ? bad + 1 : bad; break;
    case 3: o->capacity *= 2; break;  // sound, but not what the memory is
    case 4: o->slot = kSlots + static_cast<std::uint32_t>(bad % (std::uint64_t{1} << 31)); break;
    case 5: o->new_pair = 2 + static_cast<std::uint32_t>(bad % 0x7fffffff); break;
    case 6: o->new_pair = 0; break;  // a pair that does not exist, and a descriptor too many
    default: o->bell_count = 1 + static_cast<std::uint32_t>(bad % 0x7fffffff); break;
  }
}

void must_be_refused(Attack* a, Peer* p) {
  CHECK(!p->await_accepted());
  ++a->refused;
}

void offer_fields(Attack* a) {
  while (!a->over()) {
    Peer p(a);
    if (!p.meet()) continue;
    p.make_memory(4096);
    OfferMessage o = p.offer();
    spoil_field(a, &o);
    const int fds[] = {p.channel_fd, p.board_fd};
    p.send_offer(o, fds, 2);
    must_be_refused(a, &p);
  }
}

// Cut, or with something behind it.
void offer_sizes(Attack* a) {
  while (!a->over()) {
    Peer p(a);
    if (!p.meet()) continue;
    p.make_memory(4096);
    unsigned char bytes[4096] = {};
    const OfferMessage o = p.offer();
    memcpy(bytes, &o, sizeof o);
    std::size_t size = a->below(sizeof bytes);
    if (size == sizeof o) ++size;
    const int fds[] = {p.channel_fd, p.board_fd};
    tell(p.control, bytes, size, fds, static_cast<int>(a->below(3)));
    must_be_refused(a, &p);
  }
}

// Too few and too many descriptors, up to what the kernel lets through.
void offer_fds(Attack* a) {
  while (!a->over()) {
    Peer p(a);
    if (!p.meet()) continue;
    p.make_memory(4096);
    int fds[253];
    const int counts[] = {0, 1, 3, 9, 10, 11, 12, 64, 253};
    const int count = counts[a->below(sizeof counts / sizeof *counts)];
    for (int i = 0; i < count; i++) fds[i] = i == 0 ? p.channel_fd : p.board_fd;
    OfferMessage o = p.offer();
    if (a->below(2) != 0 && count > 2) o.bell_count = static_cast<std::uint32_t>(count - 2) + 1;
    p.send_offer(o, fds, count);
    must_be_refused(a, &p);
  }
}

// The same offer again on other streams: with the slot of a stream that lives, as another pair of the same name, without its memory.
void offer_replays(Attack* a) {
  while (!a->over()) {
    Peer first(a);
    if (!first.upgrade()) continue;
    for (int i = 0; i < 3 && !a->over(); i++) {
      Peer again(a);
      if (!again.meet()) break;
      again.make_memory(first.capacity);
      again.own = first.own;
      again.nonce = first.nonce;
      again.slot = first.slot;
      OfferMessage o = again.offer();
      o.new_pair = i == 0 ? 0 : 1;
      const int fds[] = {i == 2 ? first.channel_fd : again.channel_fd, i == 2 ? first.board_fd : again.board_fd};
      again.send_offer(o, fds, i == 0 ? 1 : 2);
      again.send_offer(o, fds, i == 0 ? 1 : 2);  // and on what is a control channel by now
      if (i == 0) {
        must_be_refused(a, &again);  // the slot is taken
      } else {
        again.await_accepted();
        for (int t = 0; t < 5; t++) again.turn(20);
      }
    }
    for (int t = 0; t < 5; t++) first.turn(20);
  }
}

// Instead of an offer, and on a control channel: noise, nothing, and messages of the wrong type.
void noise(Attack* a) {
  while (!a->over()) {
    Peer p(a);
    const bool shared = a->below(2) != 0;
    if (!(shared ? p.upgrade() : p.meet())) continue;
    const int bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    for (int i = 0; i < 30; i++) {
      unsigned char bytes[1024];
      for (unsigned char& b : bytes) b = static_cast<unsigned char>(a->random->next());
      const std::uint32_t type = static_cast<std::uint32_t>(a->below(5));
      memcpy(bytes, &type, sizeof type);
      const int fds[] = {bell, bell, bell};
      const std::size_t sizes[] = {0, 1, sizeof(BellMessage), sizeof(HelloMessage), sizeof(OfferMessage), sizeof bytes};
      tell(p.control, bytes, sizes[a->below(6)], fds, static_cast<int>(a->below(4)));
      if (shared) p.turn(10);
    }
    close(bell);
    if (!shared) {
      for (int i = 0; i < 8; i++) p.turn(20);
      ++a->refused;
    }
  }
}

// HELLO as a server says it, but for one thing.
void hello_fields(Attack* a) {
  CHECK(a->acceptor);
  while (!a->over()) {
    Peer p(a);
    if (!p.meet()) continue;
    unsigned char bytes[256] = {};
    HelloMessage hello = {};
    hello.type = MessageType::kHello;
    hello.version = kLayoutVersion;
    hello.process = p.own;
    std::size_t size = sizeof hello;
    int fds = 0;
    switch (a->below(4)) {
      case 0: hello.type = static_cast<MessageType>(2 + a->below(1000)); break;
      case 1: hello.version = static_cast<std::uint32_t>(kLayoutVersion + 1 + a->below(1000)); break;
      case 2: size = a->below(sizeof bytes); break;
      default: fds = 1 + static_cast<int>(a->below(12)); break;
    }
    if (size == sizeof hello && fds == 0 && hello.type == MessageType::kHello && hello.version == kLayoutVersion) ++size;
    memcpy(bytes, &hello, sizeof hello);
    int extra[16];
    for (int& fd : extra) fd = p.tcp;
    tell(p.control, bytes, size, extra, fds);
    for (int i = 0; i < 5; i++) p.turn(20);
    HelloMessage answer = {};  // to another version it says its own
    ssize_t n = recv(p.control, &answer, sizeof answer, MSG_DONTWAIT);
    if (n == sizeof answer && hello.version != kLayoutVersion) n = recv(p.control, &answer, sizeof answer, MSG_DONTWAIT);
    CHECK_EQ(n, 0);  // it has hung up
    ++a->refused;
  }
}

// Handshakes that stop half-way, by the hundred at a time, and stay open for a while.
void half_open(Attack* a) {
  constexpr int kAtOnce = 200;
  auto** peers = new Peer*[kAtOnce]();
  while (!a->over()) {
    for (int i = 0; i < kAtOnce && !a->over(); i++) {
      delete peers[i];
      peers[i] = new Peer(a);
      Peer& p = *peers[i];
      switch (a->below(4)) {
        case 0:  // warm, and then nothing
          if (p.meet()) {
            close(p.control);
            p.control = -1;
          }
          break;
        case 1: p.meet(); break;
        case 2:  // an offer that is left before it is taken
          if (p.meet()) {
            p.make_memory(4096);
            const int fds[] = {p.channel_fd, p.board_fd};
            p.send_offer(p.offer(), fds, 2);
          }
          break;
        default:  // withdrawn before it is taken
          if (p.meet()) {
            p.make_memory(4096);
            p.channel->accept_state.store_relaxed(kWithdrawn);
            const int fds[] = {p.channel_fd, p.board_fd};
            p.send_offer(p.offer(), fds, 2);
            must_be_refused(a, &p);
          }
          break;
      }
    }
  }
  for (int i = 0; i < kAtOnce; i++) delete peers[i];
  delete[] peers;
}

// HELLO and no more: the victim's offer is received, or not, and never accepted.
void half_open_acceptor(Attack* a) {
  CHECK(a->acceptor);
  while (!a->over()) {
    Peer p(a);
    if (!p.meet()) continue;
    HelloMessage hello = {};
    hello.type = MessageType::kHello;
    hello.version = kLayoutVersion;
    hello.process = p.own;
    if (a->below(4) != 0) tell(p.control, &hello, sizeof hello, nullptr, 0);
    for (int i = 0; i < 40; i++) p.turn(5);
    ++a->refused;
  }
}

// The victim's offer is answered by a word that is no answer.
void accept_state_odd(Attack* a) {
  CHECK(a->acceptor);
  while (!a->over()) {
    Peer p(a);
    if (!p.upgrade()) continue;
    p.channel->accept_state.store_relaxed(3 + static_cast<std::uint32_t>(a->below(1000)));
    p.turn(20);
  }
}

struct Flood {
  int socket;
  int bells[10];
  volatile bool stop;
};

void* flood(void* argument) {
  auto* f = static_cast<Flood*>(argument);
  while (!f->stop) {
    BellMessage message = {};
    message.type = MessageType::kBell;
    message.poller = 77;
    if (!tell(f->socket, &message, sizeof message, f->bells, 10)) sched_yield();
  }
  return nullptr;
}

// The control channel is never empty while the victim looks for a bell that does not come.
void control_flood(Attack* a) {
  Peer p(a);
  if (!p.upgrade()) return;
  Flood f = {p.control, {}, false};
  const int bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  for (int& fd : f.bells) fd = bell;
  pthread_t threads[3];
  for (pthread_t& thread : threads) thread = testlib::start_thread(flood, &f);
  while (!a->over() && !p.over()) {
    p.channel->waiters[p.side].ids.store_relaxed(a->random->next() & 0x03ff03ff03ff03ff);
    for (ArmedLine& line : p.board->side[p.side].armed) line.armed.store_relaxed(1);
    p.turn(20);
  }
  f.stop = true;
  for (const pthread_t thread : threads) testlib::join_thread(thread);
  close(bell);
}

// As many bells as a control channel holds, from one process after the other, all of which stay.
void many_bells(Attack* a) {
  constexpr int kPeers = 40;
  auto** peers = new Peer*[kPeers]();
  for (int i = 0; i < kPeers && !a->over(); i++) {
    peers[i] = new Peer(a);
    if (!peers[i]->upgrade() || !peers[i]->turn() || !peers[i]->turn()) continue;  // on the ring, whose writer looks for bells
    const int bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    bool sent = true;
    for (std::uint32_t id = 0; id < kPollers && sent; id++) {
      BellMessage message = {};
      message.type = MessageType::kBell;
      message.poller = id;
      sent = tell(peers[i]->control, &message, sizeof message, &bell, 1);
    }
    close(bell);
    peers[i]->channel->waiters[peers[i]->side].ids.store_relaxed(1000);  // has it look at the control channel
    peers[i]->turn(20);
  }
  testlib::sleep_ms(300);  // the test counts the victim's descriptors
  for (int i = 0; i < kPeers; i++) delete peers[i];
  delete[] peers;
}

constexpr Case kCases[] = {
    {"offer-fields", offer_fields},   {"offer-sizes", offer_sizes},     {"offer-fds", offer_fds},
    {"offer-replays", offer_replays}, {"noise", noise},                 {"hello-fields", hello_fields},
    {"half-open", half_open},         {"half-open-acceptor", half_open_acceptor}, {"accept-state-odd", accept_state_odd},
    {"control-flood", control_flood}, {"many-bells", many_bells},
};

}  // namespace

Cases message_cases() { return {kCases, sizeof kCases / sizeof *kCases}; }

}  // namespace hostile
