// SPDX-License-Identifier: MIT
// A peer that speaks the rendezvous and then lies: what the files hostile_*.cc share. Not preloaded, so its sockets are plain; it makes
// channels and boards itself, in both roles: a connector that attacks a server, an acceptor that attacks a client.
#pragma once
#include "preload/messages.h"
#include "shm/handover.h"
#include "shm/layout.h"
#include "shm/ready.h"
#include "shm/ring.h"
#include "testlib.h"

namespace hostile {

using namespace mpklink;
using testlib::Options;
using testlib::Random;

// What the whole run does; one per program.
struct Attack {
  int port = 0;           // connector: the victim's. Acceptor: ours
  bool acceptor = false;
  const char* speak = "echo";  // echo | http | redis: what makes the victim do an operation
  int64_t end_ms = 0;     // as now_ms()
  uint64_t least = 0;     // streams, also when that takes longer; kPatienceMs at most
  Random* random = nullptr;
  int listener = -1;
  // What became of it, printed at the end.
  uint64_t streams = 0, upgraded = 0, refused = 0, resets = 0, ends = 0, rounds = 0;

  static constexpr int64_t kPatienceMs = 10000;
  bool over() const {
    const int64_t late_ms = testlib::now_ms() - end_ms;
    return late_ms >= 0 && (streams >= least || late_ms >= kPatienceMs);
  }
  uint64_t below(uint64_t n) const { return random->next() % n; }
};

// A TCP connection to the victim and what belongs to it. Everything is closed and unmapped at the end of its scope.
class Peer {
 public:
  explicit Peer(Attack* attack) : attack_(*attack) {}
  ~Peer();
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;

  // TCP, warm, and the Unix socket connected; in the connector's role with the victim's HELLO. False: not to be had.
  bool meet();
  // The connector's offer, as it ought to be; make_memory() before.
  OfferMessage offer() const;
  bool make_memory(std::uint64_t capacity);  // channel and board, and their descriptors
  bool send_offer(const OfferMessage& offer, const int* fds, int count);
  // Turns until the victim has taken the offer. False: it refused.
  bool await_accepted();
  // All of it, honestly: the stream is shared afterwards.
  bool upgrade();

  // One question and its answer, in whatever way both travel just now. False: no answer in time, or the stream has ended.
  bool turn(int timeout_ms = 500);
  bool ask();  // the question alone; false: no room, or it has ended
  // Bytes that have come, thrown away: >0, 0 nothing, -1 the end. Never blocks.
  long take();
  bool over() const { return over_; }
  void wake();             // as after a publish: bits, armed words, bells
  void hear_bells();       // the victim's, from the control channel

  int tcp = -1, control = -1;
  int channel_fd = -1, board_fd = -1;
  ChannelHeader* channel = nullptr;
  Board* board = nullptr;
  std::uint64_t capacity = 0;
  std::uint32_t slot = 0;
  std::uint32_t side = 0;  // ours
  ProcessId own = {}, victim = {}, nonce = {};
  bool answers = true;     // reads what comes by way of the ring

  Direction& out() { return channel->direction[side]; }
  Direction& in() { return channel->direction[1 - side]; }
  unsigned char* ring(unsigned of_side) { return reinterpret_cast<unsigned char*>(channel) + ring_offset(capacity, of_side); }
  RingProducer producer() { return {&out().producer, &out().consumer, &produced_, ring(side), capacity}; }
  RingConsumer consumer() { return {&in().consumer, &in().producer, &consumed_, ring(1 - side), capacity}; }

 private:
  bool connect_name();
  bool listen_name();
  bool receive_hello();
  bool receive_offer();
  bool say(const void* from, std::size_t n);
  void note_end(long n);

  Attack& attack_;
  bool over_ = false;
  int name_listener_ = -1;
  std::size_t mapped_ = 0;
  std::uint64_t sent_ = 0, received_ = 0;
  bool ring_out_ = false, ring_in_ = false;
  ProducerState produced_;
  ConsumerState consumed_;
  int bells_[kPollers] = {};  // fd + 1
};

// memfd as the library makes it, but for what the caller changes.
struct Segment {
  std::size_t bytes = 0;
  int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  unsigned flags = 0;
};
int make_memfd(const Segment& segment);

bool tell(int socket, const void* message, std::size_t size, const int* fds, int count);
long hear(int socket, void* message, std::size_t size, int* fds, int room, int* count);

// A number from the places where arithmetic goes wrong, near `now` or anywhere.
std::uint64_t boundary(Attack* attack, std::uint64_t now, std::uint64_t capacity);

struct Case {
  const char* name;
  void (*run)(Attack*);
};
struct Cases {
  const Case* first;
  std::size_t count;
};
Cases message_cases();
Cases memory_cases();
Cases word_cases();

}  // namespace hostile
