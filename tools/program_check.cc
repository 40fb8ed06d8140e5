// SPDX-License-Identifier: MIT
#include "program_check.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <sstream>

#include "elf_check.h"
#include "fd.h"
#include "secure_exec.h"

namespace mpklink {
namespace {

// A script, and four interpreters that are scripts again, are what exec_binprm() follows (fs/exec.c, tried on
// Linux 6.18).
constexpr int kMaxScripts = 5;
// env starts afresh with exec, so the kernel sets no limit there; a script that names itself through env must not hold
// us for ever.
constexpr int kMaxEnvHops = 8;
constexpr size_t kFirstLineBytes = 256;  // BINPRM_BUF_SIZE
constexpr char kShell[] = "/bin/sh";

std::string base_name(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}
bool starts_with(const std::string& text, const char* prefix) {
  return text.rfind(prefix, 0) == 0;
}

/// 0, or the errno with which execve() would fail to start this file.
int exec_error(const std::string& path) {
  struct stat st;
  if (stat(path.c_str(), &st) != 0) return errno;
  if (S_ISDIR(st.st_mode)) return EISDIR;
  if (!S_ISREG(st.st_mode)) return EACCES;
  return faccessat(AT_FDCWD, path.c_str(), X_OK, AT_EACCESS) == 0 ? 0 : errno;
}

/// What execvp(3) takes as its search path.
std::string search_path() {
  if (const char* path = getenv("PATH")) return path;
  char buffer[256];
  size_t size = confstr(_CS_PATH, buffer, sizeof buffer);
  return size > 0 && size <= sizeof buffer ? buffer : "/bin:/usr/bin";
}

struct Found {
  std::string path;  // empty: nothing there
  int error = ENOENT;
};

/// execvp(3)'s search: the first file that can be executed; a file that cannot is remembered, and the search goes on.
Found find_program(const std::string& name) {
  if (name.empty()) return {};
  if (name.find('/') != std::string::npos) return {name, exec_error(name)};
  Found best;
  const std::string path = search_path();
  for (size_t at = 0; at <= path.size();) {
    size_t end = std::min(path.find(':', at), path.size());
    std::string dir = path.substr(at, end - at);
    std::string candidate = (dir.empty() ? "." : dir) + "/" + name;  // an empty entry is the current directory
    int error = exec_error(candidate);
    if (error == 0) return {candidate, 0};
    // A directory that may not be searched also says EACCES, but that is no find.
    bool is_there = access(candidate.c_str(), F_OK) == 0;
    if (best.path.empty() && is_there) best = {candidate, error};
    at = end + 1;
  }
  return best;
}

[[noreturn]] void refuse_unstartable(const std::string& name, const Found& found, const std::string& subject) {
  switch (found.error) {
    case ENOENT:
    case ENOTDIR:
      if (name.find('/') == std::string::npos) {
        throw Refusal(kExitNotFound,
                      fmt::format("{} was not found in PATH; check the name, or give its full path", subject));
      }
      throw Refusal(kExitNotFound, fmt::format("{} does not exist; check the path", subject));
    case EISDIR:
      throw Refusal(kExitCannotWrap, fmt::format("{} is a directory; name the program inside it", subject));
    case EACCES:
      throw Refusal(
          kExitCannotWrap,
          fmt::format("{} may not be executed; give it execute permission (chmod +x, a mount without noexec), or "
                      "name the program that should run it",
                      subject));
    default:
      throw Refusal(kExitCannotWrap, fmt::format("{} cannot be executed: {}", subject, strerror(found.error)));
  }
}

// ---- scripts ----

struct Shebang {
  std::string interpreter;
  std::string argument;  // all the rest of the line, as the kernel passes it: one argument
};

/// The first line as load_script() in fs/binfmt_script.c reads it; empty where it answers ENOEXEC.
std::optional<Shebang> read_shebang(int fd) {
  char buffer[kFirstLineBytes];
  ssize_t n = pread(fd, buffer, sizeof buffer, 0);
  std::string line(buffer, n > 0 ? static_cast<size_t>(n) : 0);
  if (!starts_with(line, "#!")) return std::nullopt;
  line = line.substr(0, std::min(line.find('\n'), line.find('\0')));
  const bool cut_off = line.size() == kFirstLineBytes;
  const char* blanks = " \t";
  size_t start = line.find_first_not_of(blanks, 2);
  if (start == std::string::npos) return std::nullopt;
  size_t end = line.find_first_of(blanks, start);
  if (end == std::string::npos && cut_off) return std::nullopt;  // half a path
  Shebang shebang{line.substr(start, end - start), {}};
  size_t argument = end == std::string::npos ? end : line.find_first_not_of(blanks, end);
  if (argument != std::string::npos) {
    shebang.argument = line.substr(argument, line.find_last_not_of(blanks) - argument + 1);
  }
  return shebang;
}

/// `#!/usr/bin/env -S X=1 prog -x`: the program that env will look for in PATH. Empty if env names none.
std::string env_program(const std::string& argument, const std::string& script) {
  if (!starts_with(argument, "-")) return argument.find('=') == std::string::npos ? argument : std::string();
  std::string text = argument;
  if (starts_with(text, "--split-string=")) text.replace(0, strlen("--split-string="), "-S ");
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    bool is_short = word.size() > 1 && word[0] == '-' && word[1] != '-';
    size_t split = is_short ? word.find('S') : std::string::npos;
    std::string flags = word.substr(0, split);
    if (word == "-" || flags == "--ignore-environment" || (is_short && flags.find('i') != std::string::npos)) {
      throw Refusal(kExitCannotWrap,
                    fmt::format("the first line of {} clears the environment (env -i), and LD_PRELOAD with it; "
                                "wrap the program it names instead",
                                script));
    }
    if (split != std::string::npos && split + 1 < word.size()) {
      word = word.substr(split + 1);  // -Sprog
    } else if (word[0] == '-') {
      if (word == "-u" || word == "-C") words >> word;
      continue;
    }
    if (word.find('=') == std::string::npos) return word;
  }
  return {};
}

// ---- the walk: script → interpreter → … → ELF ----

class Walk {
 public:
  void check(const std::string& path, const std::string& subject, int scripts);
  std::vector<std::string> warnings;
  std::string last_loader;

 private:
  void check_named(const std::string& name, const std::string& subject, int scripts);
  void check_script(const std::string& path, const Shebang& shebang, int scripts);
  void check_elf(int fd, const std::string& path, const std::string& subject, const ElfInfo& elf);
  void check_loader(const std::string& subject, const std::string& loader);
  int env_hops_ = 0;
};

/// `subject` opens the sentences: the path, and whose interpreter it is.
void Walk::check(const std::string& path, const std::string& subject, int scripts) {
  Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) {  // execute permission without read permission is lawful
    warnings.push_back(fmt::format("{} cannot be read, so nothing is known about it ({})", subject, strerror(errno)));
    return;
  }
  if (std::optional<Shebang> shebang = read_shebang(fd.get())) return check_script(path, *shebang, scripts);
  ElfInfo elf = inspect_elf(fd.get());
  // execve() answers ENOEXEC, and execvp(3) then runs it as a shell script; so do shells and env(1).
  if (elf.kind == ElfKind::kNotElf)
    return check_named(kShell, fmt::format("{}, which runs {},", kShell, path), scripts + 1);
  check_elf(fd.get(), path, subject, elf);
}

void Walk::check_named(const std::string& name, const std::string& subject, int scripts) {
  Found found = find_program(name);
  if (found.path.empty() || found.error != 0) refuse_unstartable(name, found, subject);
  check(found.path, subject, scripts);
}

void Walk::check_script(const std::string& path, const Shebang& shebang, int scripts) {
  if (scripts + 1 > kMaxScripts) {
    throw Refusal(kExitCannotWrap,
                  fmt::format("{} is one #! script too many in a row, the kernel follows {}; let one of them name "
                              "a program",
                              path, kMaxScripts));
  }
  // The kernel looks up relative to the current directory and never in PATH.
  const std::string& interpreter = shebang.interpreter;
  const std::string file = interpreter.find('/') == std::string::npos ? "./" + interpreter : interpreter;
  check_named(file, fmt::format("{}, the interpreter of {},", interpreter, path), scripts + 1);
  if (base_name(interpreter) != "env" || ++env_hops_ > kMaxEnvHops) return;
  std::string program = env_program(shebang.argument, path);
  if (!program.empty()) check_named(program, fmt::format("{}, the interpreter of {},", program, path), 0);
}

void Walk::check_elf(int fd, const std::string& path, const std::string& subject, const ElfInfo& elf) {
  if (elf.kind == ElfKind::kMalformed) {
    throw Refusal(kExitCannotWrap, fmt::format("{} is {}; build or copy it again", subject, elf.problem));
  }
  if (elf.kind == ElfKind::kForeign) {
    throw Refusal(kExitCannotWrap, fmt::format("{} is {}, and libmpklink is for x86-64; use an x86-64 build of it",
                                               subject, elf.problem));
  }
  std::string secure = secure_exec_reason(fd);
  if (!secure.empty()) {
    throw Refusal(kExitCannotWrap,
                  fmt::format("{} {}, so the loader ignores LD_PRELOAD for this user; run mpklink as the user (and "
                              "group) it changes to, or use a copy without that privilege",
                              subject, secure));
  }
  if (elf.kind == ElfKind::kStatic) {
    // `ld.so program` has no loader of its own, being it.
    char real[PATH_MAX];
    if (realpath(path.c_str(), real) != nullptr && starts_with(base_name(real), "ld-linux-x86-64.so.")) {
      last_loader = path;
      return;
    }
    throw Refusal(kExitCannotWrap,
                  fmt::format("{} is statically linked, so nothing can be preloaded into it; use a dynamically linked "
                              "build of it",
                              subject));
  }
  check_loader(subject, elf.loader);
  last_loader = elf.loader;
  if (elf.is_go) {
    warnings.push_back(fmt::format(
        "{} is a Go program: Go makes its system calls without libc, so its connections stay on TCP", subject));
  }
}

void Walk::check_loader(const std::string& subject, const std::string& loader) {
  const std::string name = base_name(loader);
  const char* libc = starts_with(name, "ld-musl") ? "musl" : starts_with(name, "linker") ? "Android's bionic" : nullptr;
  if (libc == nullptr && !starts_with(name, "ld-linux-x86-64.so.") && !starts_with(name, "ld-lsb-x86-64.so.")) {
    libc = "an unknown libc";
  }
  if (libc != nullptr) {
    throw Refusal(kExitCannotWrap,
                  fmt::format("{} is linked with {} (its loader is {}), and libmpklink needs glibc; use a build of it "
                              "for glibc",
                              subject, libc, loader));
  }
  if (access(loader.c_str(), X_OK) != 0) {
    throw Refusal(kExitCannotWrap,
                  fmt::format("{} needs the loader {}, which cannot be used here ({}); install the C library it was "
                              "built for",
                              subject, loader, strerror(errno)));
  }
}

}  // namespace

CheckedProgram check_program(const std::string& name) {
  const std::string subject = name.empty() ? "the empty program name" : name;
  Found found = find_program(name);
  if (found.path.empty() || found.error != 0)
    refuse_unstartable(name, found, found.path.empty() ? subject : found.path);
  Walk walk;
  walk.check(found.path, found.path, 0);
  return {found.path, walk.warnings, walk.last_loader};
}

}  // namespace mpklink
