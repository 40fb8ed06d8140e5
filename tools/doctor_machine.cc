// SPDX-License-Identifier: MIT
// What this machine, and this process's share of it, give to the library.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstddef>
#include <cstring>
#include <sstream>

#include "shm/layout.h"
#include "tools/doctor_attempt.h"
#include "tools/doctor_guard.h"
#include "tools/doctor_proc.h"

namespace mpklink {
namespace {

constexpr std::uint64_t kNone = ~std::uint64_t{0};

std::int64_t fact_of(std::uint64_t limit) {
  return limit > INT64_MAX ? -1 : static_cast<std::int64_t>(limit);
}

/// 0 none, 1 strict, 2 a filter.
int seccomp_mode() {
  std::istringstream lines(read_whole("/proc/self/status"));
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("Seccomp:", 0) == 0) return atoi(line.c_str() + strlen("Seccomp:"));
  }
  return 0;
}

// ---- the kernel and its calls ----

Finding check_kernel() {
  utsname names{};
  uname(&names);
  Finding found{"machine",  "kernel",
                Level::kOk, fmt::format("Linux {}.", names.release),
                "",         {{"release", std::string(names.release)}}};
  std::uint64_t cookie = 0;
  socklen_t size = sizeof cookie;
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const bool known = fd >= 0 && getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &size) == 0;
  if (fd >= 0) close(fd);
  if (!known) {
    found.level = Level::kFail;
    found.sentence = fmt::format(
        "Linux {} does not say which network namespace a socket belongs to (SO_NETNS_COOKIE, since 5.14), so every "
        "connection stays on TCP.",
        names.release);
    found.remedy = "Boot Linux 5.14 or later; Debian 12's 6.1 is fine.";
  }
  found.facts.emplace_back("netns_cookie", known);
  return found;
}

int try_memory() {
  const int fd = memfd_create("mpklink-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0 || ftruncate(fd, kPage) != 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    return errno;
  return mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED ? errno : 0;
}

int try_bell() {
  return eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC) < 0 ? errno : 0;
}

/// The abstract Unix socket on which two ends meet.
int try_meeting() {
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  const std::string text = fmt::format("mpklink-doctor/{}", getpid());
  memcpy(name.sun_path + 1, text.data(), text.size());
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + text.size());
  if (fd < 0 || bind(fd, reinterpret_cast<sockaddr*>(&name), length) != 0 || listen(fd, 1) != 0) return errno;
  return 0;
}

struct NeededCall {
  const char* what;
  const char* purpose;
  int (*work)();
};
constexpr NeededCall kNeededCalls[] = {
    {"memfd_create", "shared memory", try_memory},
    {"eventfd2", "waking the peer", try_bell},
    {"AF_UNIX sockets", "meeting the peer", try_meeting},
};

Finding check_calls(int seccomp) {
  Finding found{"machine", "calls", Level::kOk, "", "", {{"seccomp", std::int64_t{seccomp}}}};
  std::string refused;
  for (const NeededCall& call : kNeededCalls) {
    const Outcome outcome = attempt(call.work);
    const bool good = outcome.signal == 0 && outcome.code == 0;
    if (!good)
      refused +=
          fmt::format("{}{} for {}: {}", refused.empty() ? "" : "; ", call.what, call.purpose, outcome_text(outcome));
    found.facts.emplace_back(std::string(call.what == kNeededCalls[2].what ? "af_unix" : call.what), good);
  }
  const char* filter = seccomp == 2 ? "A seccomp filter is in force, and lets" : "The kernel lets";
  if (refused.empty()) {
    found.sentence = fmt::format("{} the calls pass that an upgrade needs.", filter);
    return found;
  }
  found.level = Level::kFail;
  found.sentence = fmt::format("Calls that an upgrade needs are refused: {}.", refused);
  found.remedy =
      seccomp == 2
          ? "Allow them in the seccomp filter (docker run --security-opt seccomp=PROFILE; systemd: SystemCallFilter=, "
            "RestrictAddressFamilies=AF_UNIX AF_NETLINK AF_INET AF_INET6)."
          : "Raise the limits (ulimit -n, -v), or ask who restricts this process.";
  return found;
}

bool may_lock_memory() {
  constexpr int kIpcLock = 14;  // CAP_IPC_LOCK
  const std::string status = read_whole("/proc/self/status");
  const std::size_t at = status.find("CapEff:");
  return at != std::string::npos &&
         (strtoull(status.c_str() + at + strlen("CapEff:"), nullptr, 16) >> kIpcLock & 1) != 0;
}

int try_secret() {
  const long fd = syscall(SYS_memfd_secret, O_CLOEXEC);
  if (fd < 0 || ftruncate(static_cast<int>(fd), kPage) != 0) return errno;
  return mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, static_cast<int>(fd), 0) == MAP_FAILED ? errno : 0;
}

Finding check_secret(const Settings& settings) {
  const Outcome outcome = attempt(try_secret);
  const bool there = outcome.signal == 0 && outcome.code == 0, wanted = settings.backing == Backing::kSecret;
  const std::uint64_t locked = limit_of(getpid(), "Max locked memory");
  Finding found{"machine",  "secret-memory",
                Level::kOk, "",
                "",         {{"there", there}, {"wanted", wanted}, {"locked_bytes", fact_of(locked)}}};
  if (there) {
    // Who may lock memory has no limit of it (mlock(2)).
    found.sentence = "memfd_secret is there, for who asks for it (MPKLINK_BACKING=secret).";
    constexpr std::uint64_t kFew = std::uint64_t{8} << 20;
    if (!wanted || locked >= kFew || may_lock_memory()) return found;
    found.level = Level::kWarn;
    found.sentence = fmt::format(
        "MPKLINK_BACKING=secret takes locked memory, of which this process may have {} KiB only.", locked >> 10);
    found.remedy = "Raise it: ulimit -l unlimited (systemd: LimitMEMLOCK=infinity).";
    return found;
  }
  found.level = wanted ? Level::kFail : Level::kNote;
  found.sentence = fmt::format(
      "There is no secret memory: {}.{}", outcome_text(outcome),
      wanted ? " MPKLINK_BACKING=secret asks for it, so every connection stays on TCP." : " Nobody asks for it.");
  if (wanted) found.remedy = "Boot Linux 6.5 or later, or with secretmem.enable=1; or unset MPKLINK_BACKING.";
  return found;
}

// ---- who is at the other end ----

struct DiagRequest {
  nlmsghdr header;
  inet_diag_req_v2 body;
};

/// Asks the kernel who owns the listening socket of this address, as the library asks for its peers
/// (preload/identity.cc).
int ask_owner(const sockaddr_in& address) {
  const int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
  if (fd < 0) return errno;
  DiagRequest request{};
  request.header = {sizeof request, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0};
  request.body.sdiag_family = AF_INET;
  request.body.sdiag_protocol = IPPROTO_TCP;
  request.body.idiag_states = ~0u;
  request.body.id.idiag_sport = address.sin_port;
  request.body.id.idiag_src[0] = address.sin_addr.s_addr;
  request.body.id.idiag_cookie[0] = request.body.id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
  if (send(fd, &request, sizeof request, 0) != sizeof request) return errno;
  alignas(nlmsghdr) char answer[2048];
  const ssize_t n = recv(fd, answer, sizeof answer, MSG_DONTWAIT);
  if (n < static_cast<ssize_t>(sizeof(nlmsghdr))) return n < 0 ? errno : EPROTO;
  const auto* header = reinterpret_cast<const nlmsghdr*>(answer);
  if (header->nlmsg_type == SOCK_DIAG_BY_FAMILY) return 0;
  const auto* error = static_cast<const nlmsgerr*>(NLMSG_DATA(header));
  return header->nlmsg_type == NLMSG_ERROR && n >= static_cast<ssize_t>(NLMSG_LENGTH(sizeof *error)) ? -error->error
                                                                                                     : EPROTO;
}

int try_identity() {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || bind(fd, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(fd, 1) != 0) return errno;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) return errno;
  return ask_owner(address);
}

Finding check_identity() {
  const Outcome outcome = attempt(try_identity);
  const bool good = outcome.signal == 0 && outcome.code == 0;
  Finding found{"machine",  "identity",
                Level::kOk, "The kernel says who owns the other end of a connection (sock_diag).",
                "",         {{"sock_diag", good}}};
  if (good) return found;
  found.level = Level::kWarn;
  found.sentence = fmt::format(
      "The kernel does not say who owns the other end of a connection (sock_diag): {}. Ends of different users stay on "
      "TCP.",
      outcome_text(outcome));
  found.remedy =
      "modprobe -a inet_diag tcp_diag; allow AF_NETLINK (systemd: RestrictAddressFamilies=, seccomp); or name the "
      "users in MPKLINK_PEERS.";
  return found;
}

// ---- how much there is ----

Finding check_descriptors() {
  constexpr std::uint64_t kFew = 256;
  const std::uint64_t limit = limit_of(getpid(), "Max open files");
  Finding found{"machine",
                "descriptors",
                Level::kOk,
                limit == kNone ? "Descriptors are not limited."
                               : fmt::format("Programs may have {} descriptors (RLIMIT_NOFILE).", limit),
                "",
                {{"limit", fact_of(limit)}}};
  if (limit >= kFew) return found;
  found.level = Level::kWarn;
  found.sentence = fmt::format(
      "Programs may have {} descriptors only (RLIMIT_NOFILE); the library needs some of them, and without stays on TCP "
      "(no-fds).",
      limit);
  found.remedy = "Raise the limit: ulimit -n 1024 (systemd: LimitNOFILE=).";
  return found;
}

/// Rings' memory: an eighth of the addresses, a quarter of the memory cgroup (preload/allowance.h), and mappings.
Finding check_memory(const Settings& settings) {
  const std::uint64_t addresses = limit_of(getpid(), "Max address space"), group = memory_limit_of(getpid());
  const std::uint64_t share = std::min(addresses == kNone ? kNone : addresses / 8, group == kNone ? kNone : group / 4);
  const std::uint64_t each = channel_bytes(settings.ring_bytes);
  const std::uint64_t mappings = strtoull(read_whole("/proc/sys/vm/max_map_count").c_str(), nullptr, 10);
  const std::uint64_t streams = share == kNone ? kSlots : std::min<std::uint64_t>(kSlots, share / each);
  Finding found{"machine",
                "memory",
                Level::kOk,
                "",
                "",
                {{"address_space_bytes", fact_of(addresses)},
                 {"cgroup_bytes", fact_of(group)},
                 {"max_map_count", fact_of(mappings)},
                 {"streams", fact_of(streams)}}};
  constexpr std::uint64_t kFewStreams = 64, kFewMappings = 16384;
  if (streams < kFewStreams) {
    found.level = Level::kWarn;
    found.sentence = fmt::format(
        "The limits of memory leave room for {} connections with full rings ({} KiB each); others stay on TCP "
        "(no-memory).",
        streams, each >> 10);
    found.remedy =
        "Raise RLIMIT_AS (ulimit -v) or the memory cgroup's limit, or take smaller rings: MPKLINK_RING_KIB=16.";
  } else if (mappings != 0 && mappings < kFewMappings) {
    found.level = Level::kWarn;
    found.sentence = fmt::format(
        "vm.max_map_count is {}: a process with many connections runs out of mappings, and they stay on TCP "
        "(no-memory).",
        mappings);
    found.remedy = "sysctl vm.max_map_count=65530";
  } else {
    found.sentence = share == kNone
                         ? "Memory is not limited."
                         : fmt::format("The limits of memory leave room for {} connections with full rings.", streams);
  }
  return found;
}

/// Whole CPUs that the cgroup's quota amounts to; 0: no quota.
double cpu_quota() {
  const std::string groups = read_whole("/proc/self/cgroup");
  const std::size_t at = groups.find("0::/");
  if (at == std::string::npos) return 0;
  const std::string group = groups.substr(at + 3, groups.find('\n', at) - at - 3);
  std::istringstream values(read_whole("/sys/fs/cgroup" + group + "/cpu.max"));
  double quota = 0, period = 0;
  return values >> quota >> period && period > 0 ? quota / period : 0;
}

Finding check_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  const int usable = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  const double quota = cpu_quota();
  Finding found{
      "machine",  "processors",
      Level::kOk, fmt::format("{} CPUs are usable.", usable),
      "",         {{"usable", std::int64_t{usable}}, {"quota_percent", static_cast<std::int64_t>(quota * 100)}}};
  if (usable > 1 && (quota == 0 || quota > 1)) return found;
  found.level = Level::kNote;
  found.sentence =
      usable == 1 ? "One CPU is usable: both ends take turns on it and never spin. Expect round trips some 2 times as "
                    "fast as TCP's; with two CPUs, 20 times."
                  : fmt::format("The CPU quota is {:.2g} CPUs: two ends that spin for each other use it up.", quota);
  found.remedy = usable == 1 ? "Give the programs a second CPU (taskset, cpuset), if there is one."
                             : "MPKLINK_SPIN_US=0 never spins; or raise the quota.";
  return found;
}

}  // namespace

Findings check_machine(const Settings& settings) {
  const int seccomp = seccomp_mode();
  return {check_guard(settings, seccomp == 2),
          check_kernel(),
          check_calls(seccomp),
          check_identity(),
          check_secret(settings),
          check_descriptors(),
          check_memory(settings),
          check_processors()};
}

}  // namespace mpklink
