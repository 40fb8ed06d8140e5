// SPDX-License-Identifier: MIT
// A library that does nothing but append a line of zeros to MPKLINK_STATS at exit. Preloaded in place of libmpklink.so
// (MPKLINK_SO=…/libinert.so) every test must pass in the combinations `client` and `server`, where nothing may be upgraded, and
// must FAIL in `both`: that is how we know that the suite notices when the ring is not used (tests/integration/README.md).
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

char g_path[4096];

void report() {
  if (g_path[0] == '\0') return;
  const int fd = open(g_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  if (fd < 0) return;
  char line[512];
  const int n = snprintf(line, sizeof line,
                         "{\"pid\":%d,\"comm\":\"%s\",\"guard\":\"off\",\"upgraded\":0,\"revoked\":0,\"plain\":{\"no-peer\":1},"
                         "\"ring_tx_bytes\":0,\"ring_rx_bytes\":0,\"ring_returned_bytes\":0,\"tcp_tx_bytes\":0,\"tcp_rx_bytes\":0,\"bells\":0,\"sleeps\":0,"
                         "\"spin_hits\":0,\"gates\":0,\"gate_found_open\":0}\n",
                         static_cast<int>(getpid()), program_invocation_short_name);
  (void)!write(fd, line, static_cast<size_t>(n));
  close(fd);
}

__attribute__((constructor)) void start() {
  const char* path = getenv("MPKLINK_STATS");
  const char* disabled = getenv("MPKLINK_DISABLE");
  if (path != nullptr && strlen(path) < sizeof g_path && disabled == nullptr) strcpy(g_path, path);
}

__attribute__((destructor)) void stop() {
  report();
  g_path[0] = '\0';
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void _exit(int status) {
  stop();
  syscall(SYS_exit_group, status);
  __builtin_unreachable();
}
