// SPDX-License-Identifier: MIT
#include "elf_versions.h"

#include <elf.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "elf_check.h"
#include "file_bytes.h"

namespace mpklink {
namespace {

// glibc 2.41 defines some 50 versions; a list that does not end is given up.
constexpr unsigned kMaxVersions = 1000;
constexpr uint64_t kMaxDynamicBytes = 1 << 16;
constexpr size_t kMaxNameBytes = 256;

/// The parts of a library that ld.so reads, by their addresses in memory.
class Library {
 public:
  explicit Library(int fd) : file_(fd) {
    Elf64_Ehdr eh;
    const ElfKind kind = inspect_elf(fd).kind;
    if ((kind != ElfKind::kStatic && kind != ElfKind::kDynamic) || !file_.read(0, &eh, sizeof eh)) return;
    headers_.resize(eh.e_phnum);
    if (!file_.read(eh.e_phoff, headers_.data(), headers_.size() * sizeof(Elf64_Phdr))) headers_.clear();
    read_dynamic();
  }

  /// The value of a dynamic tag; 0 if there is none.
  uint64_t tag(Elf64_Sxword wanted) const {
    auto entry = std::find_if(dynamic_.begin(), dynamic_.end(), [wanted](const auto& d) { return d.d_tag == wanted; });
    return entry == dynamic_.end() ? 0 : entry->d_un.d_val;
  }

  /// Copies what lies at an address of the loaded library.
  template <typename T>
  bool read_at(uint64_t address, T* to) const {
    return read_bytes(address, to, sizeof *to);
  }

  /// A string of the dynamic string table; empty if there is none.
  std::string name(uint64_t offset) const {
    std::string text;
    for (char c = 0; text.size() < kMaxNameBytes && read_bytes(tag(DT_STRTAB) + offset + text.size(), &c, 1);
         text += c) {
      if (c == '\0') return text;
    }
    return {};
  }

 private:
  bool read_bytes(uint64_t address, void* to, uint64_t length) const {
    for (const Elf64_Phdr& ph : headers_) {
      if (ph.p_type != PT_LOAD || address < ph.p_vaddr || address - ph.p_vaddr >= ph.p_filesz) continue;
      const uint64_t inside = address - ph.p_vaddr;
      return length <= ph.p_filesz - inside && file_.contains(ph.p_offset, ph.p_filesz) &&
             file_.read(ph.p_offset + inside, to, length);
    }
    return false;
  }

  void read_dynamic() {
    for (const Elf64_Phdr& ph : headers_) {
      if (ph.p_type != PT_DYNAMIC || ph.p_filesz > kMaxDynamicBytes) continue;
      dynamic_.resize(ph.p_filesz / sizeof(Elf64_Dyn));
      if (!file_.read(ph.p_offset, dynamic_.data(), dynamic_.size() * sizeof(Elf64_Dyn))) dynamic_.clear();
      return;
    }
  }

  FileBytes file_;
  std::vector<Elf64_Phdr> headers_;
  std::vector<Elf64_Dyn> dynamic_;
};

/// Calls `visit` with each record of a chain, whose `next` member (an offset, 0 at the end) is the last argument.
template <typename Record, typename Next, typename Visit>
void walk(const Library& library, uint64_t at, Next Record::*next, Visit visit) {
  Record record;
  for (unsigned seen = 0; seen < kMaxVersions && library.read_at(at, &record); ++seen) {
    visit(at, record);
    if (record.*next == 0) return;
    at += record.*next;
  }
}

}  // namespace

std::set<std::string> needed_versions(int fd, const std::string& from) {
  std::set<std::string> names;
  const Library library(fd);
  const uint64_t start = library.tag(DT_VERNEED);
  if (start == 0) return names;
  walk(library, start, &Elf64_Verneed::vn_next, [&](uint64_t at, const Elf64_Verneed& need) {
    if (library.name(need.vn_file) != from) return;
    walk(library, at + need.vn_aux, &Elf64_Vernaux::vna_next,
         [&](uint64_t, const Elf64_Vernaux& version) { names.insert(library.name(version.vna_name)); });
  });
  return names;
}

std::set<std::string> defined_versions(int fd) {
  std::set<std::string> names;
  const Library library(fd);
  const uint64_t start = library.tag(DT_VERDEF);
  if (start == 0) return names;
  walk(library, start, &Elf64_Verdef::vd_next, [&](uint64_t at, const Elf64_Verdef& definition) {
    Elf64_Verdaux first;  // the name itself; further ones are its parents
    if (library.read_at(at + definition.vd_aux, &first)) names.insert(library.name(first.vda_name));
  });
  return names;
}

}  // namespace mpklink
