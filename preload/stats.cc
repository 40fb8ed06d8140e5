// SPDX-License-Identifier: MIT
#include "preload/stats.h"

#include <errno.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "preload/log.h"
#include "preload/probes.h"
#include "preload/process.h"
#include "preload/status.h"
#include "preload/stream.h"

namespace mpklink {
namespace {

constexpr std::size_t kJsonMax = 4096;  // one write(2) of at most this much: lines of several processes do not mix

// Appends formatted text; what does not fit is cut, which kJsonMax rules out.
class Json {
 public:
  template <class Format, class... Args>
  void add(const Format& format, const Args&... args) {
    const auto end = fmt::format_to_n(text_ + size_, kJsonMax - size_, format, args...);
    size_ = end.size < kJsonMax - size_ ? size_ + end.size : kJsonMax;
  }
  const char* text() const { return text_; }
  std::size_t size() const { return size_; }

 private:
  char text_[kJsonMax];
  std::size_t size_ = 0;
};

// PR_GET_NAME's bytes are the program's: anything that JSON would not take as it is becomes '?'.
void process_name(char (&name)[17]) {
  memset(name, 0, sizeof name);
  ::prctl(PR_GET_NAME, name, 0, 0, 0);
  for (char* c = name; *c != '\0'; ++c) {
    if (*c < ' ' || *c > '~' || *c == '"' || *c == '\\') *c = '?';
  }
}

void add_plain(Json* json) {
  const Counters& c = process().counters;
  const char* separator = "";
  for (unsigned i = 0; i < static_cast<unsigned>(Reason::kCount); ++i) {
    const std::uint64_t n = c.plain[i].load_relaxed();  // relaxed: a statistic
    if (n == 0) continue;
    json->add(FMT_COMPILE("{}\"{}\":{}"), separator, reason_text(i).slug, n);
    separator = ",";
  }
}

void add_all(Json* json) {
  const Process& p = process();
  const Counters& c = p.counters;
  char name[17];
  process_name(name);
  const char* guard = p.guard_state.load_acquire() == 2 ? guard_mode_name(p.guard.mode()) : "unused";
  const char* why = p.guard_why;
  json->add(FMT_COMPILE("{{\"pid\":{},\"comm\":\"{}\",\"guard\":\"{}\",\"guard_why\":\"{}\",\"upgraded\":{},\"revoked\":{},\"plain\":{{"),
            p.pid.load_relaxed(), static_cast<const char*>(name), guard, why == nullptr ? "" : why, c.upgraded.load_relaxed(),
            c.revoked.load_relaxed());
  add_plain(json);
  const struct {
    const char* name;
    std::uint64_t value;
  } numbers[] = {
      {"ring_tx_bytes", c.ring_tx.load_relaxed()}, {"ring_rx_bytes", c.ring_rx.load_relaxed()},
      {"ring_returned_bytes", c.ring_returned.load_relaxed()},
      {"tcp_tx_bytes", c.tcp_tx.load_relaxed()},   {"tcp_rx_bytes", c.tcp_rx.load_relaxed()},
      {"bells", c.bells.load_relaxed()},           {"sleeps", c.sleeps.load_relaxed()},
      {"spin_hits", c.spin_hits.load_relaxed()},   {"gates", p.guard.gates()},
      {"gate_found_open", p.guard.found_open()},   {"slow_waits", c.slow_waits.load_relaxed()},
      {"reentered", c.reentered.load_relaxed()},
  };
  json->add(FMT_COMPILE("}}"));
  for (const auto& number : numbers) json->add(FMT_COMPILE(",\"{}\":{}"), number.name, number.value);
  json->add(FMT_COMPILE("}}\n"));
}

}  // namespace

namespace {

Atomic<std::uint32_t> g_written_by;  // a pid: the child of a fork writes its own line

}  // namespace

void count_plain(Reason reason) {
  const auto i = static_cast<unsigned>(reason);
  process().counters.plain[i].fetch_add(1);
  if (!log_enabled(LogLevel::kInfo)) return;  // the text has to be looked for
  const ReasonText text = reason_text(i);
  log(LogLevel::kInfo, FMT_COMPILE("a connection stays on TCP [{}]: {} {}"), text.slug, text.sentence, text.remedy);
}

void count_plain(Stream* s, Reason reason) {
  s->why = static_cast<std::uint32_t>(reason) + 1;
  show_state(s);
  PROBE2(plain, s->last_fd.load_relaxed(), reason_text(static_cast<unsigned>(reason)).slug);  // relaxed: a hint
  count_plain(reason);
}

void write_stats_before_exec() {
  // Children that only become another program have nothing to tell.
  if (process().generation.load_relaxed() == 0) write_stats();  // relaxed: changes by fork only
}

void exec_failed() {
  if (process().generation.load_relaxed() != 0 || in_foreign_child()) return;  // relaxed: changes by fork only
  const ErrnoSaver keep;
  g_written_by.store_relaxed(0);  // relaxed: an exec is one thread's business
  reset_counters();
}

void write_stats() {
  Process& p = process();
  if (p.settings.stats_path[0] == '\0') return;
  const std::uint32_t pid = p.pid.load_relaxed();  // relaxed: changes by fork only
  if (in_foreign_child() || g_written_by.exchange(pid) == pid) return;
  const ErrnoSaver keep;
  account_all_streams();
  Json json;
  add_all(&json);
  rlimit limit = {};
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) return;  // writing might raise SIGXFSZ
  const int fd = quiet().open(p.settings.stats_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  if (fd < 0) {
    log(LogLevel::kWarn, FMT_COMPILE("cannot write statistics to {}: {}"), static_cast<const char*>(p.settings.stats_path), errno);
    return;
  }
  if (quiet().write(fd, json.text(), json.size()) < 0) log(LogLevel::kWarn, FMT_COMPILE("cannot write statistics: {}"), errno);
  quiet().close(fd);
}

}  // namespace mpklink
