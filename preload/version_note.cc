// SPDX-License-Identifier: MIT
// An ELF note that says which version a library file is, to who has only the file: `mpklink doctor` (tools/doctor_version.cc). Linkers keep
// notes whatever refers to them.
#include <cstdint>

#include "shm/layout.h"
#include "shm/status.h"

namespace mpklink {
namespace {

struct VersionNote {
  std::uint32_t name_bytes = sizeof name, description_bytes = sizeof layout + sizeof status + sizeof text, type = 1;
  char name[8] = "mpklink";
  std::uint32_t layout = kLayoutVersion;
  std::uint32_t status = kStatusVersion;
  char text[16] = MPKLINK_VERSION;
};
static_assert(sizeof(VersionNote) == 44);

__attribute__((section(".note.mpklink"), used, aligned(4))) const VersionNote g_version_note;

}  // namespace
}  // namespace mpklink
