// SPDX-License-Identifier: MIT
// `mpklink doctor PID`: is the library in that process, and what stands in its way.
#include "tools/doctor_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "preload/reasons.h"
#include "tools/doctor_streams.h"
#include "tools/elf_check.h"
#include "tools/refusal.h"
#include "tools/text.h"

namespace mpklink {
namespace {

constexpr std::uint64_t kNone = ~std::uint64_t{0};

ElfInfo inspect(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return {};
  ElfInfo elf = inspect_elf(fd);
  close(fd);
  return elf;
}

bool preload_names_library(const std::string& preload) {
  return preload.find("libmpklink") != std::string::npos;
}

/// The entry of LD_PRELOAD that is the library.
std::string library_entry(const std::string& preload) {
  for (std::size_t at = 0; at < preload.size();) {
    const std::size_t end = std::min(preload.find_first_of(" :", at), preload.size());
    const std::string entry = preload.substr(at, end - at);
    if (preload_names_library(entry)) return entry;
    at = end + 1;
  }
  return {};
}

/// What keeps any library out, whatever the environment says. Empty: nothing is known to.
Explanation explain_impossible(const ProcessFacts& p) {
  const ElfInfo elf = inspect(proc_path(p.pid, "exe"));
  const std::string loader = elf.loader.substr(elf.loader.rfind('/') + 1);
  if (elf.kind == ElfKind::kStatic) {
    return {fmt::format("{} is statically linked{}, so nothing can be preloaded into it.", printable(p.program),
                        elf.is_go ? " (a Go program)" : ""),
            "Use a dynamically linked build of it; its connections stay on TCP until then."};
  }
  if (elf.kind == ElfKind::kForeign) {
    return {fmt::format("{} is {}, and the library is for x86-64.", printable(p.program), elf.problem),
            "Use an x86-64 build of it."};
  }
  if (loader.rfind("ld-musl", 0) == 0) {
    return {fmt::format("{} is linked with musl, and the library needs glibc.", printable(p.program)),
            "Use a build of it for glibc (an image of Debian instead of Alpine)."};
  }
  if (secure_mode(p.pid) == 1) {
    return {"It was started in secure mode (setuid, setgid or file capabilities), in which ld.so ignores LD_PRELOAD.",
            "Start it as the user that it changes to, or from a copy without that privilege; systemd's "
            "AmbientCapabilities= gives "
            "capabilities without secure mode."};
  }
  return {};
}

Explanation explain_ignored(const ProcessFacts& p, const std::string& entry) {
  const std::string there = proc_path(p.pid, "root" + entry);
  if (entry.find('/') != std::string::npos && access(there.c_str(), R_OK) != 0) {
    return {fmt::format("Its LD_PRELOAD names {}, which is not there for it ({}).", printable(entry), strerror(errno)),
            "Correct the path (in a container: mount the library there), and start it again."};
  }
  return {fmt::format("Its LD_PRELOAD names {}, but ld.so did not load it.", printable(entry)),
          "Read what it said on stderr when it started; a file system mounted noexec and a user who may not read the "
          "file are the usual causes."};
}

Finding check_io_uring(const Descriptors& descriptors) {
  Finding found{"process",  "io-uring",
                Level::kOk, "It has no io_uring instance.",
                "",         {{"instances", std::int64_t{descriptors.io_uring}}}};
  if (descriptors.io_uring == 0) return found;
  const ReasonText& reason = kReasonTexts[static_cast<unsigned>(Reason::kIoUring)];
  found.level = Level::kWarn;
  found.sentence = fmt::format("It has {} io_uring instance{}: connections of such a process stay on TCP (io-uring).",
                               descriptors.io_uring, descriptors.io_uring == 1 ? "" : "s");
  found.remedy = reason.remedy;
  return found;
}

Finding check_limits(const ProcessFacts& p, const Descriptors& descriptors) {
  const std::uint64_t files = limit_of(p.pid, "Max open files"), addresses = limit_of(p.pid, "Max address space"),
                      memory = memory_limit_of(p.pid);
  const auto fact = [](std::uint64_t limit) {
    return limit == kNone ? std::int64_t{-1} : static_cast<std::int64_t>(limit);
  };
  Finding found{"process",
                "limits",
                Level::kOk,
                "",
                "",
                {{"descriptors", fact(files)},
                 {"descriptors_open", std::int64_t{descriptors.open}},
                 {"address_space_bytes", fact(addresses)},
                 {"cgroup_bytes", fact(memory)}}};
  constexpr std::uint64_t kFewLeft = 16;
  const auto open = static_cast<std::uint64_t>(std::max(descriptors.open, 0L));
  if (files != kNone && open + kFewLeft > files) {
    found.level = Level::kWarn;
    found.sentence = fmt::format(
        "{} of its {} descriptors are open: for new connections the library may find none, and they stay on TCP "
        "(no-fds).",
        open, files);
    found.remedy = fmt::format("prlimit --pid {} --nofile={} (systemd: LimitNOFILE=)", p.pid,
                               std::max<std::uint64_t>(1024, files * 4));
    return found;
  }
  found.sentence = fmt::format("{} descriptors are open{}.", open, files == kNone ? "" : fmt::format(", of {}", files));
  return found;
}

Finding check_seccomp(const ProcessFacts& p) {
  const auto field = p.status.find("Seccomp");
  const int mode = field == p.status.end() ? 0 : atoi(field->second.c_str());
  Finding found{"process", "seccomp", Level::kOk, "No seccomp filter is in force.", "", {{"mode", std::int64_t{mode}}}};
  if (mode != 0) {
    found.level = Level::kNote;
    found.sentence =
        "A seccomp filter is in force. Whether it refuses protection keys shows in what the library says of its guard.";
  }
  return found;
}

}  // namespace

ProcessFacts open_process(pid_t pid) {
  using Kind = ProcessFacts::Kind;
  ProcessFacts p = look_at(pid);
  switch (p.kind) {
    case Kind::kGone:
      throw Refusal(
          kExitUnavailable,
          fmt::format("there is no process {} (any more); for a port, say localhost:{}; to see what runs: mpklink ss",
                      pid, pid));
    case Kind::kKernelThread:
      throw Refusal(
          kExitUnavailable,
          fmt::format("{} is a thread of the kernel, which has no libraries; name a program's process", p.title()));
    case Kind::kZombie:
      throw Refusal(
          kExitUnavailable,
          fmt::format("{} has ended, and only waits for its parent to notice; name a living process", p.title()));
    case Kind::kClosed:
      if (geteuid() == 0) {
        throw Refusal(kExitUnavailable, fmt::format("{} is closed even to this root (another user namespace, or a "
                                                    "security module); ask where it was started: mpklink doctor",
                                                    p.title()));
      }
      throw Refusal(kExitUnavailable,
                    fmt::format("{} belongs to {}, and this user may not look into it; say: sudo mpklink doctor {}",
                                p.title(), user_name(p.uid), pid));
    case Kind::kOpen:
      break;
  }
  return p;
}

Explanation explain_not_loaded(const ProcessFacts& p) {
  if (p.kind == ProcessFacts::Kind::kKernelThread) return {"The kernel itself has that end.", "None: it stays on TCP."};
  const Explanation impossible = explain_impossible(p);
  if (!impossible.sentence.empty()) return impossible;
  const std::string entry = library_entry(p.variable("LD_PRELOAD"));
  if (!entry.empty()) return explain_ignored(p, entry);
  return {"It was started without the library.", restart_advice(p)};
}

Finding check_loaded(const ProcessFacts& p, const std::string& section) {
  Finding found{section, "library", Level::kOk, "", "", {}};
  const LibraryVersion& version = p.version;
  found.facts = {{"pid", std::int64_t{p.pid}},     {"program", p.program},    {"path", p.library.path},
                 {"replaced", p.library.replaced}, {"version", version.text}, {"layout", std::int64_t{version.layout}}};
  if (p.library.path.empty()) {
    const Explanation why = explain_not_loaded(p);
    found.level = Level::kFail;
    found.sentence = fmt::format("{} runs without the library. {}", p.title(), why.sentence);
    found.remedy = why.remedy;
    return found;
  }
  found.sentence = fmt::format(
      "{} has {}{}.", p.title(), printable(p.library.path),
      version.text.empty() ? "" : fmt::format(", version {} (memory layout {})", version.text, version.layout));
  if (inspect(proc_path(p.pid, "exe")).is_go) {
    found.level = Level::kWarn;
    found.sentence +=
        " But it is a Go program: Go makes its system calls without libc, so its connections stay on TCP.";
    found.remedy = "None needed: it is served by TCP.";
  } else if (p.library.replaced) {
    const LibraryVersion now = library_version(proc_path(p.pid, "root" + p.library.path));
    const bool differs = version.layout != 0 && now.layout != 0 && now.layout != version.layout;
    found.level = differs ? Level::kWarn : Level::kNote;
    found.sentence += " The file has been replaced or removed since: it keeps the old one until it is started again.";
    if (differs)
      found.sentence +=
          fmt::format(" The new one has memory layout {}: with programs started since, it stays on TCP (peer-version).",
                      now.layout);
    found.remedy = restart_advice(p);
  }
  return found;
}

Finding check_place(const ProcessFacts& p, const std::string& section) {
  const std::string others = different_namespaces(p.pid, getpid());
  const bool other_network =
      !namespace_of(p.pid, "net").empty() && namespace_of(p.pid, "net") != namespace_of(getpid(), "net");
  Finding found{
      section,    "place",
      Level::kOk, "",
      "",         {{"uid", std::int64_t{p.uid}}, {"net", namespace_of(p.pid, "net")}, {"other_namespaces", others}}};
  found.sentence =
      fmt::format("It runs as {}, in {}.", user_name(p.uid),
                  others.empty() ? "our namespaces" : fmt::format("other namespaces than ours ({})", others));
  if (other_network) {
    found.level = Level::kNote;
    found.sentence += " Its loopback is another one: only programs of its own network namespace reach it there.";
  } else if (p.uid != geteuid()) {
    found.sentence += " Ends of different users meet with MPKLINK_PEERS=verified, the default.";
  }
  return found;
}

Findings check_resources(const ProcessFacts& p) {
  const Descriptors descriptors = descriptors_of(p.pid);
  return {check_io_uring(descriptors), check_limits(p, descriptors), check_seccomp(p)};
}

Findings check_process(pid_t pid) {
  ProcessFacts p = open_process(pid);
  const bool loaded = !p.library.path.empty();
  Findings live;
  if (loaded) live = check_live(&p);
  Findings findings = {check_loaded(p, "process")};
  if (loaded) {
    for (Finding& f : check_settings(p.environment, "process")) findings.push_back(std::move(f));
  }
  findings.push_back(check_place(p, "process"));
  if (loaded) {
    for (Finding& f : check_resources(p)) findings.push_back(std::move(f));
    for (Finding& f : live) findings.push_back(std::move(f));
  }
  return findings;
}

}  // namespace mpklink
