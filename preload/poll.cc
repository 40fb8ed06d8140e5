// SPDX-License-Identifier: MIT
// poll over descriptors of which some are streams (select comes here too).
#include <errno.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/mman.h>

#include "preload/epoll_set.h"
#include "preload/fault.h"
#include "preload/fd_table.h"
#include "preload/on_unwind.h"
#include "preload/pair.h"
#include "preload/pollers.h"
#include "preload/probes.h"
#include "preload/readiness.h"
#include "preload/revoke.h"
#include "preload/spin.h"
#include "preload/transfer.h"
#include "preload/wait.h"

namespace mpklink {
namespace {

constexpr nfds_t kOnStack = 64;
constexpr std::int64_t kSlowLookNs = 2000000;     // no bell can reach us for one of the streams
constexpr std::int64_t kFreshLookNs = 20000000;   // the peer may not have our bell yet
constexpr std::int64_t kOrphanLookNs = 50000000;  // waiting for space: a peer that dies after its FIN is not told of

struct Entry {
  Stream* stream;
  EpollSet* set;   // instead
  bool pinned;     // managed with a channel; otherwise counted in kernel_calls
  bool give_back;  // the peer wants back what is unread
  bool invited;    // it has our bell, and we listen
};

// Working memory for one call: on the stack, or mapped when there are many descriptors.
class Scratch {
 public:
  explicit Scratch(nfds_t n) : bytes_((n + 1) * (sizeof(pollfd) + sizeof(Entry))) {
    void* at = stack_;
    if (n > kOnStack) {
      at = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (at == MAP_FAILED) return;
      mapped_ = true;
    }
    entries_ = static_cast<Entry*>(at);
    kernel_ = reinterpret_cast<pollfd*>(entries_ + n + 1);
  }
  ~Scratch() { release(); }
  void release() {
    if (mapped_) ::munmap(entries_, bytes_);
    mapped_ = false;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  Entry* entries() { return entries_; }
  pollfd* kernel() { return kernel_; }

 private:
  std::size_t bytes_;
  bool mapped_ = false;
  Entry* entries_ = nullptr;
  pollfd* kernel_ = nullptr;
  alignas(16) unsigned char stack_[(kOnStack + 1) * (sizeof(pollfd) + sizeof(Entry))];
};

std::uint32_t bits(short events) { return static_cast<std::uint32_t>(static_cast<unsigned short>(events)); }

class PollCall {
 public:
  PollCall(pollfd* fds, nfds_t n, Scratch* scratch) : fds_(fds), n_(n), scratch_(scratch) {
    entries_ = scratch->entries();
    kernel_ = scratch->kernel();
    enter();
  }
  ~PollCall() { leave(); }
  PollCall(const PollCall&) = delete;
  PollCall& operator=(const PollCall&) = delete;

  int run(std::int64_t timeout_ns, const sigset_t* mask);

 private:
  void enter();
  void leave();
  static void cancelled(void* self);
  bool look();
  void answer();
  bool look_at_rings();
  short shown_of_set(nfds_t i) const;
  void look_for_orphans();
  void cap_by_sets(std::int64_t* cap) const;
  void listen();
  void stop_listening();
  int ask(const timespec* timeout, const sigset_t* mask, nfds_t count);
  int ask_now(const sigset_t* mask);
  int sleep(std::int64_t left_ns, const sigset_t* mask, bool* again);
  int merge();
  bool spin(std::int64_t left_ns);

  const HandlersSince call_;
  Undisturbed undisturbed_;  // whoever jumps out of here leaves pins behind
  pollfd* fds_;
  nfds_t n_;
  Scratch* scratch_;
  Entry* entries_ = nullptr;
  pollfd* kernel_ = nullptr;
  Stream* first_ = nullptr;  // a pinned stream, whose mean gap stands for the call's
  std::uint32_t poller_ = kNoPoller;
  int bell_ = -1;
  bool slow_ = false;
  bool fresh_ = false;
  bool wants_space_ = false;
  bool answers_due_ = false;
  bool answering_ = false;   // something is still to be given back, perhaps: look again soon
  bool inherited_ = false;
  bool has_sets_ = false;
};

// Managed streams with a channel are pinned; streams still on their way are counted, so that no upgrade step overtakes a
// thread that sleeps on the kernel's socket alone.
void PollCall::enter() {
  for (nfds_t i = 0; i < n_; ++i) {
    kernel_[i] = {fds_[i].fd, fds_[i].events, 0};
    entries_[i] = {fd_table().stream(fds_[i].fd), nullptr, false, false, false};
    Stream* s = entries_[i].stream;
    if (s == nullptr) {
      EpollSet* set = fd_table().epoll(fds_[i].fd);
      if (set == nullptr || sections_here() != 0) continue;
      mark_nested(set);
      entries_[i].set = set;
      has_sets_ = true;
      continue;
    }
    if (!hold(fds_[i].fd, s)) {  // closed meanwhile: the kernel will say what the number is now
      entries_[i].stream = nullptr;
      continue;
    }
    s->kernel_calls.fetch_add(1);  // SYNC: kernel_calls, before the look at the state
    const State state = state_of(s);
    if ((state != State::kOffered && state != State::kShared) || s->channel == nullptr) continue;
    s->kernel_calls.fetch_add(~0u);
    entries_[i].pinned = true;
    if (!ours(s)) inherited_ = true;
    if (first_ == nullptr) first_ = s;
    if (bits(fds_[i].events) & (EPOLLOUT | EPOLLWRNORM)) wants_space_ = true;
  }
}

void PollCall::leave() {
  const ErrnoSaver keep;
  stop_listening();
  for (nfds_t i = 0; i < n_; ++i) {
    Stream* s = entries_[i].stream;
    if (s == nullptr) continue;
    if (!entries_[i].pinned) s->kernel_calls.fetch_add(~0u);
    unpin(s);
  }
  if (poller_ != kNoPoller) give_poller(poller_);
  poller_ = kNoPoller;
}

void PollCall::cancelled(void* self) {
  auto* call = static_cast<PollCall*>(self);
  call->leave();
  call->scratch_->release();
}

// Fills the program's revents from the rings, and what the kernel must be asked. One gate. True: something is ready.
bool PollCall::look() {
  bool ready = look_at_rings();
  if (!has_sets_) return ready;
  for (nfds_t i = 0; i < n_; ++i) {
    fds_[i].revents = static_cast<short>(fds_[i].revents | shown_of_set(i));
    if (fds_[i].revents != 0) ready = true;
  }
  return ready;
}

// The kernel's word for a set with streams in it is "perhaps".
short PollCall::shown_of_set(nfds_t i) const {
  EpollSet* set = entries_[i].set;
  const auto reads = static_cast<short>(fds_[i].events & (POLLIN | POLLRDNORM));
  if (set == nullptr || reads == 0 || fd_table().epoll(fds_[i].fd) != set) return 0;
  return set_shows(set) ? reads : short{0};
}

bool PollCall::look_at_rings() {
  bool ready = false;
  const Gate gate;
  for (nfds_t i = 0; i < n_; ++i) {
    fds_[i].revents = 0;
    if (!entries_[i].pinned) continue;
    const std::uint32_t interest = bits(fds_[i].events);
    const Readiness r = ring_readiness(entries_[i].stream, interest);
    entries_[i].give_back = r.give_back;
    if (r.give_back) answers_due_ = true;
    const std::uint32_t shown = r.events & (interest | EPOLLERR | EPOLLHUP);
    fds_[i].revents = static_cast<short>(shown);
    std::uint32_t ask = interest & (EPOLLIN | EPOLLRDNORM | EPOLLRDHUP | EPOLLPRI);
    if (r.ask_kernel & EPOLLOUT) ask |= interest & (EPOLLOUT | EPOLLWRNORM);
    kernel_[i].events = static_cast<short>(ask);
    if (shown != 0) ready = true;
  }
  return ready;
}

// What the look found asked for. Gate closed. What TCP has no room for yet goes later: this thread looks by time, until a look
// finds nothing any more.
void PollCall::answer() {
  answering_ = answers_due_;
  if (!answers_due_) return;
  answers_due_ = false;
  for (nfds_t i = 0; i < n_; ++i) {
    if (entries_[i].pinned && entries_[i].give_back) answer_freeze(fds_[i].fd, entries_[i].stream);
  }
}

// Registers this thread with the peers (once) and arms their boards (each time).
void PollCall::listen() {
  if (poller_ == kNoPoller && first_ != nullptr) {
    poller_ = take_poller(false);
    bell_ = poller_ == kNoPoller ? -1 : bell_of(poller_);
  }
  for (nfds_t i = 0; i < n_; ++i) {
    if (!entries_[i].pinned) continue;
    Stream* s = entries_[i].stream;
    entries_[i].invited = bell_ >= 0 && ours(s) && send_bell(s->pair, poller_, bell_, &fresh_);
    if (!entries_[i].invited) slow_ = true;
  }
  if (bell_ < 0) return;
  const Gate gate;
  for (nfds_t i = 0; i < n_; ++i) {
    const Stream* s = entries_[i].stream;
    if (!entries_[i].invited) continue;
    if (!add_waiter(&s->channel->waiters[s->side].ids, poller_)) slow_ = true;
    arm(&s->pair->board->side[s->pair->side].armed[poller_]);
  }
}

void PollCall::stop_listening() {
  if (bell_ < 0) return;
  const Gate gate;
  for (nfds_t i = 0; i < n_; ++i) {
    const Stream* s = entries_[i].stream;
    if (!entries_[i].invited) continue;
    remove_waiter(&s->channel->waiters[s->side].ids, poller_);
    disarm(&s->pair->board->side[s->pair->side].armed[poller_]);
  }
}

// Adds what the kernel said to what the rings said. Returns the number of descriptors with news.
int PollCall::merge() {
  int ready = 0;
  for (nfds_t i = 0; i < n_; ++i) {
    if (entries_[i].pinned) {
      const std::uint32_t told = bits(kernel_[i].revents);
      if (fd_table().names(fds_[i].fd, entries_[i].stream)) note_kernel_events(entries_[i].stream, told & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR));
      // A connection that is over is readable and writable; we may not have asked for either.
      const std::uint32_t over = told & (EPOLLHUP | EPOLLERR) ? EPOLLIN | EPOLLRDNORM | EPOLLOUT | EPOLLWRNORM : 0;
      fds_[i].revents = static_cast<short>(bits(fds_[i].revents) | (bits(fds_[i].events) & over));
    }
    if (entries_[i].set != nullptr) {
      kernel_[i].revents = static_cast<short>((kernel_[i].revents & ~(POLLIN | POLLRDNORM)) | shown_of_set(i));
    }
    fds_[i].revents = static_cast<short>(fds_[i].revents | kernel_[i].revents);
    if (fds_[i].revents != 0) ++ready;
    kernel_[i].revents = 0;
  }
  return ready;
}

int PollCall::ask_now(const sigset_t* mask) {
  answer();
  const timespec now = {};
  int n = 0;
  if (mask == nullptr) {
    n = quiet().ppoll(kernel_, n_, &now, nullptr);
  } else {  // lets signals in
    const OnUnwind owed(cancelled, this);
    undisturbed_.allow();
    n = quiet().ppoll(kernel_, n_, &now, mask);
    undisturbed_.again();
  }
  return n < 0 ? -1 : merge();
}

void PollCall::cap_by_sets(std::int64_t* cap) const {
  for (nfds_t i = 0; i < n_; ++i) {
    const std::int64_t of_set = entries_[i].set != nullptr ? look_again_ns(entries_[i].set) : -1;
    if (of_set >= 0 && (*cap < 0 || of_set < *cap)) *cap = of_set;
  }
}

// Of a peer that dies after its FIN the kernel says nothing: a full ring would never have space again.
void PollCall::look_for_orphans() {
  for (nfds_t i = 0; i < n_; ++i) {
    if (entries_[i].pinned && (bits(fds_[i].events) & (EPOLLOUT | EPOLLWRNORM))) look_for_orphan(fds_[i].fd, entries_[i].stream, true);
  }
}

int PollCall::sleep(std::int64_t left_ns, const sigset_t* mask, bool* again) {
  std::int64_t wait_ns = left_ns;
  std::int64_t cap = slow_ || answering_ ? kSlowLookNs : fresh_ ? kFreshLookNs : wants_space_ ? kOrphanLookNs : -1;
  if (has_sets_) cap_by_sets(&cap);
  fresh_ = false;
  if (cap >= 0 && (wait_ns < 0 || wait_ns > cap)) wait_ns = cap;
  const timespec timeout = {wait_ns / 1000000000, wait_ns % 1000000000};
  // The bell takes the place of an entry that is none: ppoll refuses more entries than RLIMIT_NOFILE (EINVAL).
  nfds_t count = n_;
  nfds_t bell_at = n_;
  if (bell_ >= 0) {
    for (nfds_t i = 0; i < n_ && bell_at == n_; ++i) {
      if (fds_[i].fd < 0) bell_at = i;
    }
    if (bell_at == n_) ++count;
    kernel_[bell_at] = {bell_, POLLIN, 0};
  }
  process().counters.sleeps.fetch_add(1);
  PROBE0(sleep);
  int n = 0;
  {
    const OnUnwind owed(cancelled, this);
    undisturbed_.allow();
    const bool interrupted = call_.any();  // already; but what is ready comes first
    const timespec now = {};
    n = real().ppoll(kernel_, count, interrupted ? &now : wait_ns < 0 ? nullptr : &timeout, mask);
    if (n == 0 && interrupted) {
      errno = EINTR;
      n = -1;
    }
    undisturbed_.again();
  }
  PROBE0(wake);
  const bool rung = bell_ >= 0 && kernel_[bell_at].revents != 0;
  kernel_[bell_at] = {-1, 0, 0};
  if (n < 0) return -1;
  if (rung) drain_bell(poller_);
  const int ready = merge();
  if (n == 0 && wants_space_) look_for_orphans();
  *again = ready == 0 && (n > 0 || wait_ns != left_ns);
  return ready;
}

bool PollCall::spin(std::int64_t left_ns) {
  if (first_ == nullptr) return false;
  std::uint32_t budget = spin_budget_ns(process().settings.spin_us, &first_->spin);
  if (left_ns >= 0 && budget > left_ns) budget = static_cast<std::uint32_t>(left_ns);
  if (budget == 0) return false;
  {
    const Gate gate;
    publish_cpu(first_->pair, first_->side);
    if (!may_spin(first_->pair, first_->side)) return false;
  }
  const std::uint64_t start = now_ns();
  do {
    for (int round = 0; round < 8; ++round) {
      if (look()) return true;
      for (int i = 0; i < 8; ++i) cpu_relax();
    }
  } while (now_ns() - start < budget);
  return false;
}

int PollCall::run(std::int64_t timeout_ns, const sigset_t* mask) {
  for (nfds_t i = 0; inherited_ && i < n_; ++i) {
    if (entries_[i].pinned && !ours(entries_[i].stream)) leave_softly(fds_[i].fd, entries_[i].stream);
  }
  // Something is ready: no signal is let in, as in the kernel's ppoll, which looks at the descriptors first.
  if (look()) return ask_now(nullptr);
  if (timeout_ns == 0) return ask_now(mask);
  const std::uint64_t start = now_ns();
  const bool came = spin(timeout_ns);
  if (came) process().counters.spin_hits.fetch_add(1);
  for (bool again = true; again;) {
    listen();
    if (look()) return ask_now(nullptr);
    answer();
    std::int64_t left = timeout_ns;
    if (timeout_ns > 0) {
      left = timeout_ns - static_cast<std::int64_t>(now_ns() - start);
      if (left < 0) left = 0;
    }
    again = false;
    const int n = sleep(left, mask, &again);
    if (first_ != nullptr) {
      learn_wait(&first_->spin, now_ns() - start, came);
    }
    if (n != 0) return n;
  }
  return 0;
}

}  // namespace

bool poll_concerns_us(const pollfd* fds, nfds_t n) {
  if (fd_table().unused() || n > static_cast<nfds_t>(FdTable::kMaxFd) || !can_read(fds, n * sizeof *fds)) return false;
  for (nfds_t i = 0; i < n; ++i) {
    const Stream* s = fd_table().stream(fds[i].fd);
    if (s != nullptr && state_of(s) != State::kPlain) return true;
    if (fd_table().epoll(fds[i].fd) != nullptr) return true;
  }
  return false;
}

int poll_streams(pollfd* fds, nfds_t n, std::int64_t timeout_ns, const sigset_t* mask) {
  pthread_testcancel();  // the kernel's call is a cancellation point also when it need not wait
  Scratch scratch(n);
  if (scratch.entries() == nullptr) {
    errno = ENOMEM;  // as poll(2) when the kernel has none
    return -1;
  }
  return PollCall(fds, n, &scratch).run(timeout_ns, mask);
}

}  // namespace mpklink
