// SPDX-License-Identifier: MIT
#include "tools/tap.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

#include "tools/command_support.h"
#include "tools/requests.h"
#include "tools/stream_view.h"

namespace mpklink {
namespace {

constexpr int kBacklog = 128;
constexpr int kRecordsInTurn = 256;  // of one process, before the others and the file get theirs

std::uint64_t own_network() {
  struct stat st {};
  return stat("/proc/self/ns/net", &st) == 0 ? st.st_ino : 0;
}

int listen_on(const std::string& name) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  memcpy(address.sun_path + 1, name.data(), name.size());  // abstract: the first byte is 0
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd >= 0 && bind(fd, reinterpret_cast<const sockaddr*>(&address), length) == 0 && listen(fd, kBacklog) == 0) return fd;
  const int error = errno;
  if (fd >= 0) close(fd);
  throw Refusal(kExitUnavailable, fmt::format("no socket can be had for the records: {}; see mpklink doctor", strerror(error)));
}

}  // namespace

Tap::Tap(const DumpFilter& filter, Sink sink)
    : filter_(filter), sink_(std::move(sink)), name_(new_tap_name()), listener_(listen_on(name_)), network_(own_network()) {
  buffer_.resize(sizeof(TapRecord) + kTapPayload + 1);  // one byte more, by which a message that is too long shows
}

Tap::~Tap() {
  withdraw();
  for (const Sender& sender : senders_) close(sender.fd);
  if (listener_ >= 0) close(listener_);
}

// ---- asking ----

void Tap::complain_once(pid_t pid, const std::string& sentence) {
  if (complaints_.emplace(pid, sentence).second) complain(sentence);
}

void Tap::ask(OpenPage&& page) {
  const ProcessName& process = page.process;
  std::string problem;
  if (!page.page->same_version()) {
    problem = other_version_text({process, page.page->version(), {}});
  } else if (process.network != network_) {
    problem = fmt::format("{} is in another network namespace, where this socket cannot be reached; say: nsenter -t {} -n mpklink dump …",
                          process_text(process), process.pid);
  } else if (const pid_t other = ask_tap(&page, name_, filter_.ports.empty() ? 0 : filter_.ports.front())) {
    problem = fmt::format("{} is dumped already, by process {}; end that one first: kill {}", process_text(process), other, other);
  }
  if (!problem.empty()) {
    if (!started_ && (filter_.pid != 0 || problem.find("dumped already") != std::string::npos)) throw Refusal(kExitUnavailable, problem);
    return complain_once(process.pid, problem);
  }
  const auto found = asked_.find(process.pid);
  if (found != asked_.end() && found->second.page.inode == page.inode) return;
  forget(process.pid);
  const std::uint64_t before = page.page->counters().tap_dropped;
  const pid_t pid = process.pid;
  asked_.emplace(pid, Asked{std::move(page), before});
}

void Tap::ask_processes() {
  std::vector<OpenPage> pages;
  try {
    pages = reader_.open(StatusPage::Access::kRequest, filter_.pid != 0 ? std::vector<int>{filter_.pid} : std::vector<int>{});
  } catch (const Refusal&) {
    if (!started_) throw;  // later: the one process has ended
  }
  std::vector<pid_t> ended;
  for (const auto& entry : asked_) {
    const bool there = std::any_of(pages.begin(), pages.end(), [&](const OpenPage& page) { return page.process.pid == entry.first; });
    if (!there) ended.push_back(entry.first);
  }
  for (pid_t pid : ended) forget(pid);
  for (OpenPage& page : pages) ask(std::move(page));
  started_ = true;
}

/// Its page outlives it: what it counted to its end is in there.
void Tap::forget(pid_t pid) {
  const auto found = asked_.find(pid);
  if (found == asked_.end()) return;
  dropped_by_gone_ += found->second.page.page->counters().tap_dropped - found->second.dropped_before;
  asked_.erase(found);
}

void Tap::withdraw() {
  for (auto& entry : asked_) {
    try {
      withdraw_tap(&entry.second.page, name_);
    } catch (const Refusal& refusal) {
      complain(refusal.what());  // the library notices by itself that nobody listens
    }
  }
}

bool Tap::target_ended() const {
  return filter_.pid != 0 && asked_.empty() && senders_.empty() && access(fmt::format("/proc/{}", filter_.pid).c_str(), F_OK) != 0;
}

std::uint64_t Tap::dropped() const {
  std::uint64_t sum = dropped_by_gone_;
  for (const auto& entry : asked_) sum += entry.second.page.page->counters().tap_dropped - entry.second.dropped_before;
  return sum;
}

// ---- receiving ----

std::vector<pollfd> Tap::poll_set() const {
  std::vector<pollfd> fds = {{listener_, POLLIN, 0}};
  for (const Sender& sender : senders_) fds.push_back({sender.fd, POLLIN, 0});
  return fds;
}

bool Tap::is_asked(pid_t pid) {
  if (asked_.count(pid) == 0) ask_processes();  // it may be the child of one that was
  return asked_.count(pid) != 0;
}

/// The kernel says who connects. Nobody else's word would do: the name can be read in /proc/net/unix.
void Tap::accept_senders() {
  for (;;) {
    const int fd = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    ucred peer{};
    socklen_t length = sizeof peer;
    const bool known = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0;
    if (!known || !is_asked(peer.pid)) {
      close(fd);
      continue;
    }
    senders_.push_back({fd, peer.pid, ++sources_, process_text(asked_.at(peer.pid).page.process)});
  }
}

bool Tap::receive_from(const Sender& sender, bool* open) {
  bool any = false;
  for (int i = 0; i < kRecordsInTurn; ++i) {
    const ssize_t length = recv(sender.fd, buffer_.data(), buffer_.size(), MSG_DONTWAIT);
    if (length < 0 && errno == EINTR) continue;
    *open = length > 0 || (length < 0 && errno == EAGAIN);
    if (length <= 0) return any;
    any = true;
    const std::optional<TapMessage> message = parse_tap_message({buffer_.data(), static_cast<std::size_t>(length)});
    if (!message) {
      complain_once(sender.pid, fmt::format("{} sends what is no record: it is left out; use the mpklink that came with its library", sender.process));
      continue;
    }
    ++records_;
    if (filter_.matches(message->header)) sink_.message(*message, sender.source, sender.process);
  }
  return any;
}

bool Tap::receive() {
  accept_senders();
  bool any = false;
  for (std::size_t i = 0; i < senders_.size();) {
    bool open = true;
    any |= receive_from(senders_[i], &open);
    if (open) {
      ++i;
      continue;
    }
    close(senders_[i].fd);
    sink_.gone(senders_[i].source);
    senders_.erase(senders_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  return any;
}

}  // namespace mpklink
