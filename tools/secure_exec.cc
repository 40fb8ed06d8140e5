// SPDX-License-Identifier: MIT
// The kernel's rule, from cap_bprm_creds_from_file() in security/commoncap.c and bprm_fill_uid() in fs/exec.c
// (Linux 5.10 to 6.18). A security module (SELinux, AppArmor) may set AT_SECURE on its own; that cannot be seen from
// here.
#include "secure_exec.h"

#include <fmt/format.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>

namespace mpklink {
namespace {

/// Does an owner exist in our user namespace? The set-id bits of a file whose owner does not are ignored.
bool is_mapped(const char* map_file, uint64_t id) {
  std::ifstream map(map_file);
  for (uint64_t inside = 0, outside = 0, count = 0; map >> inside >> outside >> count;) {
    if (id >= inside && id - inside < count) return true;
  }
  return !map.is_open();  // no /proc: assume the initial namespace, where every id exists
}

uint64_t status_mask(const char* field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    uint64_t mask = 0;
    if (line.rfind(field, 0) == 0 && sscanf(line.c_str() + strlen(field), ": %" SCNx64, &mask) == 1) return mask;
  }
  return 0;
}

struct FileCaps {
  bool effective = false;
  uint64_t permitted = 0;
  uint64_t inheritable = 0;
};

/// The capabilities that apply here. The kernel hands out those of our own user namespace in revision 1 or 2; a
/// revision 3 value belongs to another namespace and does not count in ours (capabilities(7), "Namespaced file
/// capabilities").
FileCaps file_caps(int fd) {
  FileCaps caps;
  vfs_cap_data data{};
  ssize_t size = fgetxattr(fd, "security.capability", &data, sizeof data);
  if (size < static_cast<ssize_t>(sizeof data.magic_etc)) return caps;
  uint32_t revision = data.magic_etc & VFS_CAP_REVISION_MASK;
  if (revision != VFS_CAP_REVISION_1 && revision != VFS_CAP_REVISION_2) return caps;
  size_t words = revision == VFS_CAP_REVISION_1 ? VFS_CAP_U32_1 : VFS_CAP_U32_2;
  for (size_t i = 0; i < words; ++i) {
    caps.permitted |= uint64_t{data.data[i].permitted} << (32 * i);
    caps.inheritable |= uint64_t{data.data[i].inheritable} << (32 * i);
  }
  caps.effective = (data.magic_etc & VFS_CAP_FLAGS_EFFECTIVE) != 0;
  return caps;
}

bool gains_capabilities(int fd) {
  if (getuid() == 0) return false;  // real root: already has them, never "secure" on their account
  FileCaps caps = file_caps(fd);
  // File capabilities also clear the ambient set, so anything permitted counts as grown.
  uint64_t grown = (caps.permitted & status_mask("CapBnd")) | (caps.inheritable & status_mask("CapInh"));
  return caps.effective || grown != 0;
}

}  // namespace

std::string secure_exec_reason(int fd) {
  struct stat st;
  struct statvfs fs;
  if (fstat(fd, &st) != 0) return {};
  bool no_suid_mount = fstatvfs(fd, &fs) == 0 && (fs.f_flag & ST_NOSUID) != 0;
  bool set_id_works = !no_suid_mount && prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1 &&
                      is_mapped("/proc/self/uid_map", st.st_uid) && is_mapped("/proc/self/gid_map", st.st_gid);
  bool set_uid = set_id_works && (st.st_mode & S_ISUID) != 0;
  // Without the group's x bit, S_ISGID on a file is an old lock mark and means nothing to exec.
  bool set_gid = set_id_works && (st.st_mode & S_ISGID) != 0 && (st.st_mode & S_IXGRP) != 0;
  uid_t uid = set_uid ? st.st_uid : geteuid();
  gid_t gid = set_gid ? st.st_gid : getegid();

  // "Secure" is: the new effective id is not the caller's real one (nor, since Linux 6.16, its effective one).
  if (set_uid && (uid != getuid() || uid != geteuid())) return fmt::format("is setuid to uid {}", uid);
  if (set_gid && (gid != getgid() || gid != getegid())) return fmt::format("is setgid to gid {}", gid);
  if (uid != getuid() || gid != getgid()) return "would run with an effective user or group that is not the real one";
  if (!no_suid_mount && gains_capabilities(fd)) return "has file capabilities";
  return {};
}

}  // namespace mpklink
