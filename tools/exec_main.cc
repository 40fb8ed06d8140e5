// SPDX-License-Identifier: MIT
// `mpklink-exec program args...`: the entry of a container. Becomes the program, with libmpklink preloaded if that can
// work, else untouched: unlike `mpklink run` it never refuses. Static, so that it runs in an image whose libc is not
// ours.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

#include "elf_versions.h"
#include "fd.h"
#include "preload_env.h"
#include "program_check.h"
#include "refusal.h"

namespace {

using mpklink::Fd;
using mpklink::Refusal;

// As in commands.h, which needs CLI11.
constexpr int kExitUsage = 2;
constexpr int kExitUnavailable = 3;

constexpr char kUsage[] =
    "Usage: mpklink-exec program args...\n"
    "       mpklink-exec --copy-to DIRECTORY\n"
    "\n"
    "The first form becomes the program, with libmpklink preloaded where it can be: a dynamic x86-64 program, linked "
    "with a glibc that is\n"
    "new enough. Any other program is started untouched; MPKLINK_LOG=warn says why. MPKLINK_DISABLE=1 leaves every "
    "program untouched.\n"
    "The library is $MPKLINK_LIBRARY, or libmpklink.so beside this file.\n"
    "\n"
    "The second form copies this file, the library and mpklink into a directory that containers share.\n"
    "\n"
    "Examples:\n"
    "  mpklink-exec nginx -g 'daemon off;'\n"
    "  MPKLINK_LOG=warn mpklink-exec python3 server.py\n";

constexpr char kSharedFiles[] = "libmpklink.so\0mpklink-exec\0mpklink\0";

void say(const std::string& sentence) {
  fputs(("mpklink-exec: " + sentence + "\n").c_str(), stderr);
}

bool is_set(const char* variable, const char* value) {
  const char* text = getenv(variable);
  return text != nullptr && strcmp(text, value) == 0;
}

bool warnings_wanted() {
  return is_set("MPKLINK_LOG", "warn") || is_set("MPKLINK_LOG", "info") || is_set("MPKLINK_LOG", "debug");
}

std::string directory_of(const std::string& path) {
  char real[PATH_MAX];
  if (realpath(path.c_str(), real) == nullptr) return {};
  const std::string text = real;
  return text.substr(0, text.rfind('/'));
}

// ---- becoming the program ----

/// The program's own libc must define all that the library needs of it, or ld.so ends the program before main(). It
/// lies beside the loader in every distribution; where it does not, nothing is known.
void check_libc(const std::string& library, const std::string& loader) {
  if (loader.empty())
    throw Refusal(mpklink::kExitCannotWrap,
                  "which libc it uses cannot be seen; make the program readable for its user");
  const std::string libc = directory_of(loader) + "/libc.so.6";
  const Fd ours(open(library.c_str(), O_RDONLY | O_CLOEXEC));
  const Fd theirs(open(libc.c_str(), O_RDONLY | O_CLOEXEC));
  const std::set<std::string> needed = mpklink::needed_versions(ours.get(), "libc.so.6");
  const std::set<std::string> defined = mpklink::defined_versions(theirs.get());
  auto missing = std::find_if(needed.begin(), needed.end(),
                              [&](const std::string& version) { return defined.count(version) == 0; });
  if (missing == needed.end()) return;
  const std::string why = defined.empty()
                              ? fmt::format("no glibc was found beside its loader {}", loader)
                              : fmt::format("{} is older than libmpklink needs ({} is missing)", libc, *missing);
  throw Refusal(mpklink::kExitCannotWrap, why + "; use a library that was built for that glibc");
}

void set_preload(const mpklink::CheckedProgram& program) {
  const std::string library = mpklink::find_library();
  if (library.find('/') != std::string::npos) check_libc(library, program.loader);
  const char* current = getenv("LD_PRELOAD");
  setenv("LD_PRELOAD", mpklink::append_preload(current != nullptr ? current : "", library).c_str(), 1);
}

/// The program's life does not depend on ours: whatever stands in the way is said, if at all, and the program starts.
void prepare(const char* name) {
  if (is_set("MPKLINK_DISABLE", "1")) return;
  try {
    const mpklink::CheckedProgram program = mpklink::check_program(name);
    set_preload(program);
    for (const std::string& warning : program.warnings) {
      if (warnings_wanted()) say("warning: " + warning);
    }
  } catch (const std::exception& reason) {
    if (warnings_wanted()) say(fmt::format("{} runs without libmpklink: {}", name, reason.what()));
  }
}

int become(char** words) {
  prepare(words[0]);
  execvp(words[0], words);
  const int error = errno;
  const char* hint =
      error == ENOENT ? "check the name, and that its interpreter is there" : "check its mode and its format";
  say(fmt::format("{} cannot be executed: {}; {}", words[0], strerror(error), hint));
  return error == ENOENT ? mpklink::kExitNotFound : mpklink::kExitCannotWrap;
}

// ---- copying ----

[[noreturn]] void refuse_copy(const std::string& path, const char* hint) {
  throw Refusal(kExitUnavailable, fmt::format("{} cannot be written: {}; {}", path, strerror(errno), hint));
}

void copy_bytes(const Fd& from, const Fd& to, const std::string& path) {
  char buffer[65536];
  for (ssize_t n; (n = read(from.get(), buffer, sizeof buffer)) != 0;) {
    if (n < 0) refuse_copy(path, "the image is damaged, pull it again");
    for (ssize_t done = 0, part; done < n; done += part) {
      part = write(to.get(), buffer + done, static_cast<size_t>(n - done));
      if (part < 0) refuse_copy(path, "make room there, or raise the volume's sizeLimit");
    }
  }
}

/// A process that has the old file mapped keeps it: the new one is renamed over it, never written into it.
void copy_file(const std::string& source, const std::string& target) {
  const Fd from(open(source.c_str(), O_RDONLY | O_CLOEXEC));
  if (from.get() < 0 && errno == ENOENT) return;
  const std::string fresh = target + ".new";
  const Fd to(open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755));
  const char* hint = "name a directory that this user may write to";
  if (from.get() < 0 || to.get() < 0) refuse_copy(fresh, hint);
  copy_bytes(from, to, fresh);
  if (fchmod(to.get(), 0755) != 0 || rename(fresh.c_str(), target.c_str()) != 0) refuse_copy(target, hint);
}

int copy_to(const std::string& directory) {
  const std::string here = directory_of("/proc/self/exe");
  if (access((here + "/libmpklink.so").c_str(), R_OK) != 0) {
    throw Refusal(kExitUnavailable,
                  fmt::format("{}/libmpklink.so is not there; --copy-to is for a directory that holds all three files, "
                              "as the image and the tarball's bin/ and lib/ put together do",
                              here));
  }
  for (const char* name = kSharedFiles; *name != '\0'; name += strlen(name) + 1) {
    copy_file(fmt::format("{}/{}", here, name), fmt::format("{}/{}", directory, name));
  }
  return 0;
}

int usage_error(const std::string& sentence) {
  say(sentence + "\nTry 'mpklink-exec --help'.");
  return kExitUsage;
}

int run(int argc, char** argv) {
  if (argc < 2) return usage_error("no program to run");
  const std::string first = argv[1];
  if (first == "--copy-to") return argc == 3 ? copy_to(argv[2]) : usage_error("--copy-to needs one directory");
  if (first == "--help" || first == "--version") {
    fputs(first == "--help" ? kUsage : "mpklink-exec " MPKLINK_VERSION "\n", stdout);
    return 0;
  }
  if (first == "--") return argc > 2 ? become(argv + 2) : usage_error("no program to run");
  if (first[0] == '-') return usage_error(fmt::format("unknown option {}", first));
  return become(argv + 1);
}

}  // namespace

// NOLINTNEXTLINE(bugprone-exception-escape): what else may come, no memory, ends the tool as it should.
int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const Refusal& refusal) {
    say(refusal.what());
    return refusal.exit_code;
  }
}
